"""Errors as HTTP responses: the one module that maps a kind of error to a status and a body.

Every error body is an RFC 9457 problem: `title`, `status`, `detail`, `request_id`, and for invalid input `errors` (row,
field, reason).
"""

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any, cast

import orjson
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from serving_common import tracing
from serving_common.errors import ErrorKind, FieldError, ServingError

MEDIA_TYPE = "application/problem+json"
RETRY_AFTER_S = 1

STATUS: Mapping[ErrorKind, int] = {
    ErrorKind.INVALID_INPUT: HTTPStatus.UNPROCESSABLE_ENTITY,
    ErrorKind.UNAUTHORIZED: HTTPStatus.UNAUTHORIZED,
    ErrorKind.NOT_FOUND: HTTPStatus.NOT_FOUND,
    ErrorKind.CONFLICT: HTTPStatus.CONFLICT,
    ErrorKind.TOO_LARGE: HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    ErrorKind.OVERLOADED: HTTPStatus.TOO_MANY_REQUESTS,
    ErrorKind.CALLER_GONE: 499,
    ErrorKind.UNAVAILABLE: HTTPStatus.SERVICE_UNAVAILABLE,
    ErrorKind.MISCONFIGURED: HTTPStatus.SERVICE_UNAVAILABLE,
}

# The expected type of the whole body. The reason names the header because without it FastAPI reads the body as text.
_JSON_TYPES = {"model_attributes_type": "object", "dict_type": "object", "list_type": "array"}

# RFC 9110's names, which http.HTTPStatus has from Python 3.13 on.
# 499 is nginx's.
_TITLES = {413: "Content Too Large", 422: "Unprocessable Content", 499: "Client Closed Request"}


def title(status: int) -> str:
    """The name of a status, the same on every version of Python."""
    return _TITLES.get(status) or HTTPStatus(status).phrase


def problem(
    status: int,
    detail: str,
    request_id: str,
    errors: Sequence[FieldError] = (),
    headers: Mapping[str, str] | None = None,
) -> Response:
    """The response to a failed request."""
    body: dict[str, Any] = {"title": title(status), "status": status, "detail": detail}
    if errors:
        body["errors"] = errors
    body["request_id"] = request_id
    headers = dict(headers or {})
    if status in (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE):
        headers.setdefault("Retry-After", str(RETRY_AFTER_S))
    return Response(orjson.dumps(body), status, headers, MEDIA_TYPE)


def install(app: FastAPI, invalid_input: int, invalid_detail: str) -> None:
    """Add handlers for the app's expected errors. (LastResortErrorMiddleware logs and answers unexpected ones.)

    Args:
        invalid_input: status of requests that violate the schema; a pattern's specification may require 400.
        invalid_detail: their `detail`.
    """
    status_of = {**STATUS, ErrorKind.INVALID_INPUT: invalid_input}

    async def expected(request: Request, exc: Exception) -> Response:
        error = cast(ServingError, exc)
        response = problem(status_of[error.kind], str(error), request.state.request_id, error.errors)
        if response.status_code >= 500:
            tracing.current().record(error)
        if error.kind is ErrorKind.MISCONFIGURED:
            del response.headers["Retry-After"]
        return response

    async def invalid(request: Request, exc: Exception) -> Response:
        errors = [_field_error(e) for e in cast(RequestValidationError, exc).errors()]
        return problem(invalid_input, invalid_detail, request.state.request_id, errors)

    async def http(request: Request, exc: Exception) -> Response:
        error = cast(HTTPException, exc)
        if error.status_code == HTTPStatus.BAD_REQUEST:
            # FastAPI's status for a body that json cannot parse, for instance one nested too deeply or not in UTF-8.
            errors: list[FieldError] = [{"field": "body", "reason": "cannot be read as JSON"}]
            return problem(invalid_input, invalid_detail, request.state.request_id, errors)
        return problem(error.status_code, error.detail, request.state.request_id, headers=error.headers)

    app.add_exception_handler(ServingError, expected)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, http)


def _field_error(error: Mapping[str, Any]) -> FieldError:
    """Pydantic's location, such as ("body", "data", 3, 1), as row and field.

    The last number before the field is the row. A domain type with named columns gives the names in `ctx`.
    """
    source, *path = error["loc"]
    if error["type"] == "named_row":
        row = next(({"row": part} for part in reversed(path) if isinstance(part, int)), {})
        return cast(FieldError, {**row, **error["ctx"], "reason": error["msg"]})
    if error["type"] == "json_invalid":
        return {"field": "body", "reason": f"is not JSON: {error['ctx']['error']} at character {error['loc'][1]}"}
    if not path and error["type"] in _JSON_TYPES:
        reason = f"must be a JSON {_JSON_TYPES[error['type']]}, sent with Content-Type: application/json"
        return {"field": "body", "reason": reason}
    names = error.get("ctx", {}).get("names")
    column = names[path.pop()] if names else None
    rows = [part for part in path if isinstance(part, int)]
    fields = [part for part in path if isinstance(part, str)]
    found: FieldError = {"field": column or (fields[-1] if fields else source), "reason": _reason(error)}
    return {"row": rows[-1], **found} if rows else found


def _reason(error: Mapping[str, Any]) -> str:
    """Pydantic's message as a predicate to the field's name."""
    if error["type"] == "missing":
        return "is missing"
    reason: str = error["msg"].removeprefix("Value error, ").replace("Input should", "must")
    return reason.replace("List should", "must").replace(" after validation", "")


def problem_responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """OpenAPI's description of these error responses, for the `responses` of a route or router."""
    schema = {
        "type": "object",
        "required": ["title", "status", "detail", "request_id"],
        "properties": {
            "title": {"type": "string"},
            "status": {"type": "integer"},
            "detail": {"type": "string"},
            "request_id": {"type": "string"},
            "errors": {
                "type": "array",
                "items": {
                    "type": "object",
                    "required": ["field", "reason"],
                    "properties": {
                        "row": {"type": "integer", "description": "Counted from 0."},
                        "field": {"type": "string"},
                        "reason": {"type": "string"},
                    },
                },
            },
        },
    }
    return {status: {"description": title(status), "content": {MEDIA_TYPE: {"schema": schema}}} for status in statuses}
