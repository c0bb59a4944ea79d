"""The REST API as an ASGI application: from method, path and body to status and body."""

from __future__ import annotations

import asyncio
import re
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import structlog
from google.protobuf.json_format import MessageToDict

from serving_common import tracing
from tfserving_protos import messages

from . import json_codec
from .context import Context, deadline_exceeded
from .http_body import JSON, TEXT, BodyTooLarge, RestRequest, RestResponse, failure, read_body, unquote
from .open_inference_rest import INFER, LOADS, OpenInferenceRest
from .signature import DEFAULT_SIGNATURE
from .status import Code, StatusError, invalid
from .versions import MAX_VERSION

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, MutableMapping

    from google.protobuf.message import Message

    from .admission import Admission
    from .core import Core
    from .http_body import Header, Receive
    from .inference import Inference, ModelService
    from .metrics import ServerMetrics
    from .pool import ElasticPool

    Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

log = structlog.get_logger()

DEFAULT_METRICS_PATH = "/monitoring/prometheus/metrics"
# Of status, metadata and metrics, which never wait for a model. Loading one has a thread of its own.
CONTROL_THREADS = 2
# A request that has not been answered by then is cancelled when its client goes. Watching every request would cost more
# than what the short ones could save.
WATCH_AFTER_S = 0.05

_MODEL = r"/v1/models/(?P<name>[^/:]+)(?:/versions/(?P<version>\d+)|/labels/(?P<label>[^/:]+))?"
_PREDICTION = re.compile(_MODEL + r":(?P<verb>classify|regress|predict)", re.IGNORECASE | re.ASCII)
_STATUS = re.compile(_MODEL + r"(?P<metadata>/metadata)?", re.IGNORECASE | re.ASCII)
_NO_MODEL = re.compile(r"/v1/models(?:/metadata)?", re.IGNORECASE)

_HEALTH = frozenset(f"{prefix}/health/{word}" for prefix in ("", "/v2") for word in ("live", "ready"))
_CLOSE = (b"connection", b"close")
_CORS = (
    (b"access-control-allow-origin", b"*"),
    (b"access-control-allow-methods", b"POST, GET"),
    (b"access-control-allow-headers", b"Content-Type"),
)


class _Prediction(NamedTuple):
    """A request that runs a model: `api` is its name in the metrics, `route` its path with placeholders."""

    model: str
    api: str
    route: str
    headers: Iterable[Header]
    run: Callable[[Context], RestResponse]


class RestApi:
    """The ASGI application."""

    def __init__(
        self,
        core: Core,
        inference: Inference,
        open_inference: OpenInferenceRest,
        models: ModelService,
        metrics: ServerMetrics,
        pool: ElasticPool,
        admission: Admission,
        *,
        timeout_s: float,
        cors: bool = False,
        metrics_path: str | None = None,
    ) -> None:
        self._core = core
        self._inference = inference
        self._open_inference = open_inference
        self._models = models
        self._metrics = metrics
        self._pool = pool
        self._admission = admission
        self._control_pool = ThreadPoolExecutor(CONTROL_THREADS, thread_name_prefix="control")
        self._load_pool = ThreadPoolExecutor(1, thread_name_prefix="load")
        self._timeout_s = timeout_s if timeout_s > 0 else None
        self._headers: tuple[Header, ...] = _CORS if cors else ()
        self._cors = cors
        self._metrics_path = metrics_path

    def close_connections(self) -> None:
        """Each connection closes after its next request, from now on."""
        # A balancer that works by connection would otherwise use the ones it has for as long as they stay open.
        self._headers = (*self._headers, _CLOSE)

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """One request."""
        method, path = scope["method"], scope["raw_path"].decode("latin-1")
        if method in ("GET", "HEAD") and path in _HEALTH:
            await self._send(send, method, self._health(path))
            return
        try:
            body = await read_body(receive)
        except BodyTooLarge as error:
            await self._send(send, method, failure(error), _CLOSE)
            return
        if body is None:
            return
        request = RestRequest(body, scope["headers"])
        if method == "POST" and (prediction := self._prediction(path, request)):
            answer = await self._answer(prediction, receive)
            if answer is None:
                return
            response = answer
        else:
            pool = self._load_pool if LOADS.fullmatch(path) else self._control_pool
            respond = partial(self._respond, method, path, request)
            outcome = partial(_outcome, path, respond, request.headers)
            _, response = await asyncio.get_running_loop().run_in_executor(pool, outcome)
        await self._send(send, method, response)

    def _health(self, path: str) -> RestResponse:
        """Whether the process runs, or whether every model serves. Never waits for anything."""
        reason = self._models.not_ready() if path.endswith("/ready") else ""
        word = path.rpartition("/")[2]
        if path.startswith("/v2/"):
            document: dict[str, object] = {word: not reason} | ({"error": reason} if reason else {})
        elif reason:
            document = {"status": "not ready", "reason": reason}
        else:
            document = {"status": "alive" if word == "live" else word}
        return RestResponse(503 if reason else 200, JSON, json_codec.dumps(document))

    async def _send(self, send: Send, method: str, response: RestResponse, *more: Header) -> None:
        length = (b"content-length", str(len(response.body)).encode())
        headers = [response.content_type, length, *response.headers, *self._headers, *more]
        await send({"type": "http.response.start", "status": response.status, "headers": headers})
        await send({"type": "http.response.body", "body": b"" if method == "HEAD" else response.body})

    def _prediction(self, path: str, request: RestRequest) -> _Prediction | None:
        """What POST to `path` asks of a model; None if it asks for something else."""
        if match := _PREDICTION.fullmatch(path):
            verb, run = match["verb"].lower(), partial(self._run, match, request)
            return _Prediction(unquote(match["name"]), verb, f"/v1/models/{{name}}:{verb}", request.headers, run)
        if match := INFER.fullmatch(path):
            run = partial(self._open_inference.infer, match, request)
            return _Prediction(unquote(match["name"]), "infer", "/v2/models/{name}/infer", request.headers, run)
        return None

    async def _answer(self, prediction: _Prediction, receive: Receive) -> RestResponse | None:
        """The response to a prediction; None if the client has gone."""
        ends = None if self._timeout_s is None else time.monotonic() + self._timeout_s
        context = Context(ends)
        loop = asyncio.get_running_loop()
        response: asyncio.Future[RestResponse] = loop.create_future()

        def work() -> None:
            found = self._infer(prediction, context)
            loop.call_soon_threadsafe(_resolve, response, found)

        # Parsing JSON and running the model can both take long: not on the event loop.
        self._pool.submit(self._admission.submit, prediction.model, context, work)
        try:
            await asyncio.wait([response], timeout=min(WATCH_AFTER_S, context.left_s() or WATCH_AFTER_S))
            if not response.done():
                gone = asyncio.ensure_future(receive())
                waited: set[asyncio.Future[Any]] = {response, gone}
                try:
                    await asyncio.wait(waited, timeout=context.left_s(), return_when=asyncio.FIRST_COMPLETED)
                    if gone.done() and not response.done():
                        return None
                finally:
                    gone.cancel()
            return response.result() if response.done() else failure(deadline_exceeded())
        finally:
            if not response.done():
                context.cancel()

    def _respond(self, method: str, path: str, request: RestRequest) -> RestResponse:
        """The response to all but predictions."""
        if path == self._metrics_path:
            return RestResponse(200, TEXT, self._metrics.page())
        is_open_inference = path == "/v2" or path.startswith("/v2/")
        if not is_open_inference and not path.lower().startswith("/v1/"):
            return RestResponse(404, JSON, json_codec.error_body("Not Found"))
        if self._cors and method == "OPTIONS":
            return RestResponse(200, TEXT, b"")
        if is_open_inference:
            return self._open_inference.respond(method, path, request)
        if method == "GET":
            if _NO_MODEL.fullmatch(path):
                raise invalid("Missing model name in request.")
            if match := _STATUS.fullmatch(path):
                return RestResponse(200, JSON, self._describe(match))
        raise invalid(f"Malformed request: {method} {path}")

    def _infer(self, prediction: _Prediction, context: Context) -> RestResponse:
        """The response to a prediction; never raises."""
        started = time.perf_counter()

        def run() -> RestResponse:
            context.check()
            return prediction.run(context)

        attributes = {"http.request.method": "POST", "http.route": prediction.route}
        with tracing.begin(prediction.headers, f"POST {prediction.route}", tracing.SERVER, attributes) as span:
            code, response = _outcome(prediction.api, run, prediction.headers)
            span.set({"http.response.status_code": response.status})
            if response.status >= 500:
                span.fail(code.name, str(response.status))
        name = self._models.known(prediction.model)
        self._metrics.record(name, prediction.api, "REST", code, time.perf_counter() - started)
        return response

    def _run(self, match: re.Match[str], request: RestRequest, context: Context) -> RestResponse:
        verb = getattr(self, f"_{match['verb'].lower()}")
        return RestResponse(200, JSON, verb(_model_spec(match), request.content(), context))

    def _predict(self, spec: messages.ModelSpec, body: bytes, context: Context) -> bytes:
        document = json_codec.parse_body(body)
        name = json_codec.signature_name(document) or DEFAULT_SIGNATURE
        servable = self._core.find(spec)  # in a variable: it is closed once nothing refers to it
        signature = servable.signatures.get(name)
        if signature is None:
            raise invalid(f'Serving signature name: "{name}" not found in signature def')
        inputs, is_row_format = json_codec.predict_inputs(document, signature)
        outputs = self._core.predict(signature, inputs, context=context)
        return json_codec.predict_body(outputs, is_row_format=is_row_format)

    def _classify(self, spec: messages.ModelSpec, body: bytes, context: Context) -> bytes:
        document = json_codec.parse_body(body)
        spec.signature_name = json_codec.signature_name(document)
        request = messages.ClassificationRequest(model_spec=spec, input=json_codec.example_input(document))
        return json_codec.classify_body(self._inference.classify(request, context).result)

    def _regress(self, spec: messages.ModelSpec, body: bytes, context: Context) -> bytes:
        document = json_codec.parse_body(body)
        spec.signature_name = json_codec.signature_name(document)
        request = messages.RegressionRequest(model_spec=spec, input=json_codec.example_input(document))
        return json_codec.regress_body(self._inference.regress(request, context).result)

    def _describe(self, match: re.Match[str]) -> bytes:
        spec = _model_spec(match)
        if match["metadata"]:
            return self._metadata(spec)
        status = self._models.status(messages.GetModelStatusRequest(model_spec=spec))
        versions = [_to_dict(version) for version in status.model_version_status]
        for version in versions:
            version["status"] = {"error_code": "OK", "error_message": "", **version["status"]}
        return json_codec.pretty({"model_version_status": versions}, 1) + b"\n"

    def _metadata(self, spec: messages.ModelSpec) -> bytes:
        request = messages.GetModelMetadataRequest(model_spec=spec, metadata_field=["signature_def"])
        response = self._inference.metadata(request)
        signatures = messages.SignatureDefMap()
        response.metadata["signature_def"].Unpack(signatures)
        # A map has no order of its own: sorted, the answer is the same at every start and on every runtime.
        definitions = {}
        for name, definition in sorted(_to_dict(signatures)["signature_def"].items()):
            for side in ("inputs", "outputs"):
                definition[side] = dict(sorted(definition[side].items()))
            definitions[name] = definition
        document = {
            "model_spec": {
                "name": response.model_spec.name,
                "signature_name": response.model_spec.signature_name,
                "version": str(response.model_spec.version.value),
            },
            "metadata": {"signature_def": {"signature_def": definitions}},
        }
        return json_codec.pretty(document, 1) + b"\n"


def _outcome(what: str, respond: Callable[[], RestResponse], headers: Iterable[Header]) -> tuple[Code, RestResponse]:
    """How `respond` ends; never raises."""
    try:
        return Code.OK, respond()
    except StatusError as error:
        return error.code, failure(error)
    except Exception:
        log.exception("request_failed", what=what, **tracing.log_ids(headers))
        return Code.INTERNAL, failure(StatusError(Code.INTERNAL, "Internal error; see the server's log"))


def _resolve(future: asyncio.Future[RestResponse], response: RestResponse) -> None:
    if not future.done():
        future.set_result(response)


def _model_spec(match: re.Match[str]) -> messages.ModelSpec:
    spec = messages.ModelSpec(name=unquote(match["name"]))
    if match["version"]:
        version = int(match["version"]) if len(match["version"]) < 20 else MAX_VERSION + 1
        if version > MAX_VERSION:
            raise invalid(f"Failed to convert version: {match['version']} to numeric.")
        spec.version.value = version
    elif match["label"]:
        spec.version_label = unquote(match["label"])
    return spec


def _to_dict(message: Message) -> dict[str, Any]:
    return MessageToDict(message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)
