"""Hot endpoints without FastAPI's routing and dependency machinery, which take longer than a small model does.

    @router.post("/predict")
    @direct
    async def predict(request: PredictRequest, predictor: PredictorDep) -> Prediction: ...

The endpoint stays a FastAPI route: its OpenAPI document comes from there. `DirectMiddleware` reads the route's
dependencies once and then answers requests of the common form by itself: the right path and method, a valid body with
`Content-Type: application/json`, none of the optional headers. Any other request goes to the FastAPI route, with its
body, so that the errors have one source.

How FastAPI describes its routes is not a public interface. If it is missing or different, FastAPI's routes answer all
requests: an upgrade may cost speed, not function.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar, cast, overload

import structlog
from fastapi import FastAPI, Response, routing
from fastapi.exceptions import ResponseValidationError
from pydantic import BaseModel, TypeAdapter, ValidationError
from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

if TYPE_CHECKING:
    from fastapi.dependencies.models import Dependant

log = structlog.get_logger()

Endpoint = TypeVar("Endpoint", bound=Callable[..., Awaitable[Any]])

_MARK = "__serving_direct__"
_REQUEST, _BODY = "the request", "the validated body"


@overload
def direct(endpoint: Endpoint) -> Endpoint: ...


@overload
def direct(*, body: type[BaseModel]) -> Callable[[Endpoint], Endpoint]: ...


def direct(endpoint: Endpoint | None = None, *, body: type[BaseModel] | None = None) -> Any:
    """Marks an endpoint for `DirectMiddleware`. Put it below the route's decorator.

    Endpoint and dependencies are `async def` without `yield`. Their parameters are the request, further dependencies,
    optional headers and at most one JSON body, a BaseModel. Anything else is a TypeError when the service starts.

    Args:
        endpoint: without `body`, `direct` is the decorator itself.
        body: takes less than the declared body and is faster; what it rejects goes to the FastAPI route.
    """

    def mark(endpoint: Endpoint) -> Endpoint:
        setattr(endpoint, _MARK, body)
        return endpoint

    return mark if endpoint is None else mark(endpoint)


@dataclass(frozen=True, slots=True)
class _Step:
    """One dependency, or the endpoint: its arguments are earlier results, by key."""

    key: object
    function: Callable[..., Awaitable[Any]]
    arguments: tuple[tuple[str, object], ...]


class _DirectRoute:
    """What a route's declaration says, in the form in which a request needs it."""

    def __init__(self, context: routing.RouteContext) -> None:
        self.route = context.original_route
        self.headers: set[bytes] = set()
        self._declared_body: type[BaseModel] | None = None
        self._body_name: str | None = None
        self.steps: list[_Step] = []
        self.defaults: dict[object, Any] = {}
        shaping = (
            context.response_model_include,
            context.response_model_exclude,
            context.response_model_exclude_defaults,
            context.response_model_exclude_none,
            not context.response_model_by_alias,
        )
        if context.response_field is None or any(shaping):
            raise TypeError(f"{context.endpoint} cannot be served directly: it needs a response model, used as it is")
        self._response: TypeAdapter[Any] = TypeAdapter(context.response_model)
        self._exclude_unset: bool = context.response_model_exclude_unset
        self.status: int = context.status_code or 200
        self._add(context.dependant)
        stricter: type[BaseModel] | None = getattr(context.endpoint, _MARK)
        self.body = stricter or self._declared_body

    def _add(self, dependant: Dependant) -> None:
        function = cast(Callable[..., Awaitable[Any]], dependant.call)
        arguments: list[tuple[str, object]] = []
        for dependency in dependant.dependencies:
            if dependency.call not in [step.key for step in self.steps]:
                self._add(dependency)
            if dependency.name is not None:
                arguments.append((dependency.name, dependency.call))
        is_async = inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(
            getattr(function, "__call__", None)  # noqa: B004 - a security scheme is an object
        )
        unsupported = (
            dependant.path_params,
            dependant.query_params,
            dependant.cookie_params,
            dependant.response_param_name,
            dependant.background_tasks_param_name,
            dependant.security_scopes_param_name,
            dependant.concurrency,
            not dependant.use_cache,
        )
        if not is_async or any(unsupported):
            raise TypeError(f"{function} cannot be served directly: see serving_common.direct")
        for field in dependant.header_params:
            if field.field_info.is_required():
                raise TypeError(f"{function} cannot be served directly: {field.name} is required")
            self.headers.add(field.alias.lower().encode())
            key = (function, field.name)
            self.defaults[key] = field.default
            arguments.append((field.name, key))
        for field in dependant.body_params:
            annotation = field.field_info.annotation
            # FastAPI expects an object with one entry per name if the bodies have several names.
            is_one = self._body_name in (None, field.name) and self._declared_body in (None, annotation)
            if not (is_one and isinstance(annotation, type) and issubclass(annotation, BaseModel)):
                raise TypeError(f"{function} cannot be served directly: its body must be one BaseModel")
            self._declared_body, self._body_name = annotation, field.name
            arguments.append((field.name, _BODY))
        request_names = (dependant.request_param_name, dependant.http_connection_param_name)
        arguments.extend((name, _REQUEST) for name in request_names if name is not None)
        self.steps.append(_Step(function, function, tuple(arguments)))

    async def respond(self, request: Request, body: BaseModel | None) -> Response | bytes:
        """Solve the dependencies, in FastAPI's order, call the endpoint, validate and serialise what it returns.

        JSON is returned as it is: building a Response around it takes as long as serialising a small one.
        """
        known: dict[object, Any] = {_REQUEST: request, _BODY: body, **self.defaults}
        result: Any = None
        for step in self.steps:
            result = known[step.key] = await step.function(**{name: known[key] for name, key in step.arguments})
        if isinstance(result, Response):
            return result
        try:
            value = self._response.validate_python(result, from_attributes=True)
        except ValidationError as exc:
            raise ResponseValidationError(exc.errors(include_url=False), body=result) from exc
        return self._response.dump_json(value, by_alias=True, exclude_unset=self._exclude_unset)


class DirectMiddleware:
    """Answers the plain requests to endpoints marked with `direct`. The innermost middleware."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._routes: dict[tuple[str, str], _DirectRoute] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope.get("root_path"):
            await self._app(scope, receive, send)
            return
        app: FastAPI = scope["app"]
        if self._routes is None:
            self._routes = direct_routes(app)
        route = self._routes.get((scope["method"], scope["path"]))
        if route is None or app.dependency_overrides or not _is_plain(scope, route):
            await self._app(scope, receive, send)
            return

        scope["route"] = route.route
        request = Request(scope, receive, send)
        try:
            content = await request.body()
            body = route.body.model_validate_json(content) if route.body is not None else None
        except ClientDisconnect:
            await self._app(scope, receive, send)
            return
        except ValidationError:
            await self._app(scope, _received_again(content, receive), send)
            return
        except Exception as exc:  # noqa: BLE001 - raised again unless the app has a handler
            response: Response | bytes = await _handled(app, request, exc)
        else:
            try:
                response = await route.respond(request, body)
            except Exception as exc:  # noqa: BLE001 - raised again unless the app has a handler
                response = await _handled(app, request, exc)
        if isinstance(response, bytes):
            headers = [(b"content-length", b"%d" % len(response)), (b"content-type", b"application/json")]
            await send({"type": "http.response.start", "status": route.status, "headers": headers})
            await send({"type": "http.response.body", "body": response})
        else:
            await response(scope, receive, send)


def direct_routes(app: FastAPI) -> dict[tuple[str, str], _DirectRoute]:
    """The marked routes by method and path; none, with one log line, if FastAPI describes its routes in another way.

    Raises:
        TypeError: a marked route needs what only FastAPI's own handling has.
    """
    try:
        return {
            (method, context.path): _DirectRoute(context)
            for context in routing.iter_route_contexts(app.routes)
            if hasattr(context.endpoint, _MARK) and context.path is not None
            for method in context.methods or ()
        }
    except AttributeError as exc:
        log.warning("public_api_fallback", api="fastapi.routing.iter_route_contexts", reason=str(exc))
        return {}


def _is_plain(scope: Scope, route: _DirectRoute) -> bool:
    is_json = route.body is None
    for name, value in scope["headers"]:
        if name in route.headers:
            return False
        if name == b"content-type":
            is_json = value == b"application/json"
    return is_json


def _received_again(content: bytes, receive: Receive) -> Receive:
    """`receive` from the request's beginning."""
    first: list[Message] = [{"type": "http.request", "body": content, "more_body": False}]

    async def replayed() -> Message:
        return first.pop() if first else await receive()

    return replayed


async def _handled(app: FastAPI, request: Request, exc: Exception) -> Response:
    """The response of the app's handler of this exception; raises it if there is none."""
    for kind in type(exc).__mro__:
        if handler := app.exception_handlers.get(kind):
            return cast(Response, await cast(Any, handler)(request, exc))
    raise exc
