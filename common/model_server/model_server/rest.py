"""The REST API as an ASGI application: from method, path and body to status and body."""

from __future__ import annotations

import asyncio
import os
import re
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import unquote_to_bytes

import structlog
from google.protobuf.json_format import MessageToDict

from tfserving_protos import messages

from . import json_codec
from .context import Context, deadline_exceeded
from .model import DEFAULT_SIGNATURE
from .status import HTTP_STATUS, Code, StatusError, invalid

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, MutableMapping

    from google.protobuf.message import Message

    from .admission import Admission
    from .core import Core
    from .inference import Inference, ModelService
    from .metrics import ServerMetrics
    from .pool import ElasticPool

    Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
    Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

log = structlog.get_logger()

DEFAULT_METRICS_PATH = "/monitoring/prometheus/metrics"
MAX_INT64 = 2**63 - 1
# Of status, metadata and metrics, which never wait for a model.
CONTROL_THREADS = 2
# A request that has not been answered by then is cancelled when its client goes. Watching every request would cost more
# than what the short ones could save.
WATCH_AFTER_S = 0.05
# What reading a body may take, in bytes: its text, and about how much Python needs to hold the parsed document. Half of
# a container of 1 GiB; the server itself has the other half.
MAX_BODY_MEMORY = int(os.environ.get("MODEL_SERVER_MAX_BODY_MEMORY", 512 << 20))
INFLATE_STEP = 1 << 20
# Measured: a Python number with the references to it, an empty list, an object with one key.
BYTES_PER_VALUE = 56
BYTES_PER_LIST = 88
BYTES_PER_OBJECT = 240

_MODEL = r"/v1/models/(?P<name>[^/:]+)(?:/versions/(?P<version>\d+)|/labels/(?P<label>[^/:]+))?"
_PREDICTION = re.compile(_MODEL + r":(?P<verb>classify|regress|predict)", re.IGNORECASE | re.ASCII)
_STATUS = re.compile(_MODEL + r"(?P<metadata>/metadata)?", re.IGNORECASE | re.ASCII)
_NO_MODEL = re.compile(r"/v1/models(?:/metadata)?", re.IGNORECASE)

_JSON = (b"content-type", b"application/json")
_TEXT = (b"content-type", b"text/plain")
_CLOSE = (b"connection", b"close")
_CORS = (
    (b"access-control-allow-origin", b"*"),
    (b"access-control-allow-methods", b"POST, GET"),
    (b"access-control-allow-headers", b"Content-Type"),
)


class BodyTooLarge(StatusError):
    """413, which no other status code stands for."""

    def __init__(self) -> None:
        super().__init__(
            Code.INVALID_ARGUMENT, f"Reading the body would take more than {MAX_BODY_MEMORY} bytes of memory"
        )


class RestResponse(NamedTuple):
    """Status code, content type and body."""

    status: int
    content_type: tuple[bytes, bytes]
    body: bytes


class RestApi:
    """The ASGI application."""

    def __init__(
        self,
        core: Core,
        inference: Inference,
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
        self._models = models
        self._metrics = metrics
        self._pool = pool
        self._admission = admission
        self._control_pool = ThreadPoolExecutor(CONTROL_THREADS, thread_name_prefix="control")
        self._timeout_s = timeout_s if timeout_s > 0 else None
        self._headers: tuple[tuple[bytes, bytes], ...] = _CORS if cors else ()
        self._cors = cors
        self._metrics_path = metrics_path
        self._is_stopping = False

    def report_not_ready(self) -> None:
        """/health/ready is 503 from now on, while requests are still accepted; connections close after their next."""
        self._is_stopping = True
        # A balancer that works by connection would otherwise use the ones it has for as long as they stay open.
        self._headers = (*self._headers, _CLOSE)

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """One request."""
        method, path = scope["method"], scope["raw_path"].decode("latin-1")
        if method in ("GET", "HEAD") and path in ("/health/live", "/health/ready"):
            await self._send(send, method, self._health(path))
            return
        try:
            body = await _read_body(receive)
        except BodyTooLarge as error:
            await self._send(send, method, _failure(error), _CLOSE)
            return
        if body is None:
            return
        if method == "POST" and (match := _PREDICTION.fullmatch(path)):
            encoding = next((value for name, value in scope["headers"] if name == b"content-encoding"), b"")
            answer = await self._answer(match, body, encoding, receive)
            if answer is None:
                return
            response = answer
        else:
            loop = asyncio.get_running_loop()
            response = await loop.run_in_executor(self._control_pool, self._respond, method, path)
        await self._send(send, method, response)

    def _health(self, path: str) -> RestResponse:
        """Whether the process runs, or whether every model serves. Never waits for anything."""
        if path == "/health/live":
            return RestResponse(200, _JSON, b'{"status": "alive"}')
        reason = "the server is stopping" if self._is_stopping else None
        if missing := self._models.missing():
            reason = f"No version is available of: {', '.join(missing)}"
        if reason is not None:
            return RestResponse(503, _JSON, json_codec.pretty({"status": "not ready", "reason": reason}, 1))
        return RestResponse(200, _JSON, b'{"status": "ready"}')

    async def _send(self, send: Send, method: str, response: RestResponse, *more: tuple[bytes, bytes]) -> None:
        length = (b"content-length", str(len(response.body)).encode())
        headers = [response.content_type, length, *self._headers, *more]
        await send({"type": "http.response.start", "status": response.status, "headers": headers})
        await send({"type": "http.response.body", "body": b"" if method == "HEAD" else response.body})

    async def _answer(
        self, match: re.Match[str], body: bytes, encoding: bytes, receive: Receive
    ) -> RestResponse | None:
        """The response to a prediction; None if the client has gone."""
        ends = None if self._timeout_s is None else time.monotonic() + self._timeout_s
        context = Context(ends)
        loop = asyncio.get_running_loop()
        response: asyncio.Future[RestResponse] = loop.create_future()

        def work() -> None:
            found = self._infer(match, body, encoding, context)
            loop.call_soon_threadsafe(_resolve, response, found)

        # Parsing JSON and running the model can both take long: not on the event loop.
        self._pool.submit(self._admission.submit, _unquote(match["name"]), context, work)
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
            return response.result() if response.done() else _failure(deadline_exceeded())
        finally:
            if not response.done():
                context.cancel()

    def _respond(self, method: str, path: str) -> RestResponse:
        """The response to all but predictions; never raises."""
        try:
            if path == self._metrics_path:
                return RestResponse(200, _TEXT, self._metrics.page())
            if not path.lower().startswith("/v1/"):
                return RestResponse(404, _JSON, json_codec.error_body("Not Found"))
            if self._cors and method == "OPTIONS":
                return RestResponse(200, _TEXT, b"")
            if method == "GET":
                if _NO_MODEL.fullmatch(path):
                    raise invalid("Missing model name in request.")
                if match := _STATUS.fullmatch(path):
                    return RestResponse(200, _JSON, self._describe(match))
            raise invalid(f"Malformed request: {method} {path}")
        except StatusError as error:
            return _failure(error)
        except Exception:
            log.exception("request_failed", method=method, path=path)
            return _failure(StatusError(Code.INTERNAL, "Internal error; see the server's log"))

    def _infer(self, match: re.Match[str], body: bytes, encoding: bytes, context: Context) -> RestResponse:
        """The response to a prediction; never raises."""
        verb = match["verb"].lower()
        started = time.perf_counter()
        code = Code.INTERNAL
        try:
            context.check()
            spec = _model_spec(match)
            text = _inflate(body) if encoding.lower() == b"gzip" else body
            _check_memory(_memory(text))
            content = getattr(self, f"_{verb}")(spec, text, context)
            code = Code.OK
            return RestResponse(200, _JSON, content)
        except StatusError as error:
            code = error.code
            return _failure(error)
        except Exception:
            log.exception("request_failed", path=match[0])
            return _failure(StatusError(Code.INTERNAL, "Internal error; see the server's log"))
        finally:
            name = self._models.known(_unquote(match["name"]))
            self._metrics.record(name, verb, "REST", code, time.perf_counter() - started)

    def _predict(self, spec: messages.ModelSpec, body: bytes, context: Context) -> bytes:
        document = json_codec.parse_body(body)
        name = json_codec.signature_name(document) or DEFAULT_SIGNATURE
        signature = self._core.find(spec).signatures.get(name)
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


def _resolve(future: asyncio.Future[RestResponse], response: RestResponse) -> None:
    if not future.done():
        future.set_result(response)


async def _read_body(receive: Receive) -> bytes | None:
    """The whole body; None if the client has disconnected.

    Raises:
        BodyTooLarge: already its text takes too much memory.
    """
    chunks = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        chunks.append(message.get("body", b""))
        size += len(chunks[-1])
        _check_memory(size)
        if not message.get("more_body"):
            return chunks[0] if len(chunks) == 1 else b"".join(chunks)


def _inflate(body: bytes) -> bytes:
    inflater = zlib.decompressobj(zlib.MAX_WBITS | 16)
    parts, memory = [], 0
    try:
        while body and not inflater.eof:
            # In steps, because a few megabytes can expand to a thousand times as many.
            parts.append(inflater.decompress(body, INFLATE_STEP))
            body = inflater.unconsumed_tail
            memory += _memory(parts[-1])
            _check_memory(memory)
    except zlib.error as error:
        raise invalid(f"Cannot decompress the body: {error}") from None
    if not inflater.eof:
        raise invalid("Cannot decompress the body: it is incomplete")
    return b"".join(parts)


def _memory(text: bytes) -> int:
    """About the bytes that it takes to read a JSON text: twice the text, its strings, and Python's objects."""
    per_character = 3 if text.isascii() else 6
    return (
        len(text) * per_character
        + text.count(b",") * BYTES_PER_VALUE
        + text.count(b"[") * BYTES_PER_LIST
        + text.count(b"{") * BYTES_PER_OBJECT
    )


def _check_memory(memory: int) -> None:
    if memory > MAX_BODY_MEMORY:
        raise BodyTooLarge


def _model_spec(match: re.Match[str]) -> messages.ModelSpec:
    spec = messages.ModelSpec(name=_unquote(match["name"]))
    if match["version"]:
        version = int(match["version"]) if len(match["version"]) < 20 else MAX_INT64 + 1
        if version > MAX_INT64:
            raise invalid(f"Failed to convert version: {match['version']} to numeric.")
        spec.version.value = version
    elif match["label"]:
        spec.version_label = _unquote(match["label"])
    return spec


def _unquote(text: str) -> str:
    return unquote_to_bytes(text).decode("utf-8", "replace")


def _to_dict(message: Message) -> dict[str, Any]:
    return MessageToDict(message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)


def _failure(error: StatusError) -> RestResponse:
    status = 413 if isinstance(error, BodyTooLarge) else HTTP_STATUS[error.code]
    return RestResponse(status, _JSON, json_codec.error_body(str(error)))
