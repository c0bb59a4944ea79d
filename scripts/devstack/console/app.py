"""The console of `make up`: one page about all patterns that run, for this machine only.

Anybody on this machine may look and send a request, as they may without it. What loads or breaks a pattern needs the
token that `make up` prints. No page of another site can do either: Host and Origin of every request are checked.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
import socket
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.responses import FileResponse, JSONResponse, StreamingResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from scripts.devstack import web
from scripts.devstack.console.choosing import Requirements, choose, results
from scripts.devstack.console.diagram import diagram
from scripts.devstack.console.live import Live
from scripts.devstack.console.requests import TIMEOUT_S, operations, send
from scripts.devstack.faults import FaultNotInjected, hanging, kill, restart
from scripts.devstack.load import PatternLoad
from scripts.devstack.patterns import WORKS
from scripts.devstack.steps import caller_api_key
from scripts.devstack.table import HOST

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from scripts.devstack.spans import SpanStore
    from scripts.devstack.stack import DevStack
    from scripts.devstack.table import Pattern

STATIC = Path(__file__).with_name("static")
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-cache",
}
TOKEN_HEADER = "X-Console-Token"  # noqa: S105
MAX_BODY_BYTES = 1024 * 1024
MAX_WATCHERS = 16
RATES = (0, 1, 10, 100)
FAULTS = ("kill", "hang", "restart")
HANG_S, RESTART_WITHIN_S = 5, 60
METHODS = ("GET", "POST", "DELETE")
NUMBERS, MAX_NUMBER = ("model_ms", "wait_s", "rate"), 10_000_000


class LocalOnly:
    """Refuses requests that another site's page sent: under its own name (DNS rebinding), or from its own origin."""

    def __init__(self, app: ASGIApp, port: int) -> None:
        self._app = app
        self._hosts = {f"{name}:{port}" for name in (HOST, "localhost")}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        origin = headers.get("origin")

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        is_own = headers.get("host") in self._hosts and origin in (None, *(f"http://{host}" for host in self._hosts))
        answer = self._app if is_own else JSONResponse({"detail": "The console answers its own page only."}, 403)
        await answer(scope, receive, send_with_headers)


class Console:
    """The routes, and what they hold while the stack runs."""

    def __init__(self, stack: DevStack, table: Mapping[str, Pattern], token: str, spans: SpanStore | None) -> None:
        self.live = Live(stack)
        self._stack, self._token, self._spans = stack, token, spans
        numbers = {managed.id.partition("-")[0] for managed in stack.processes}
        self._works = {number: WORKS[number] for number in sorted(numbers) if number in WORKS}
        self._diagrams = {number: diagram(table[number], table) for number in self._works}
        self._titles = {number: table[number].title for number in self._works}
        key = caller_api_key()
        self._clients = {
            number: httpx.AsyncClient(
                base_url=stack.urls[work.port],
                headers={"X-API-Key": key} if key else {},
                trust_env=False,
                timeout=TIMEOUT_S,
            )
            for number, work in self._works.items()
        }
        self._loads: dict[str, PatternLoad] = {}
        self._faulty: set[str] = set()
        self._watchers = 0

    def app(self, port: int) -> Starlette:
        """The ASGI application, for this port."""
        return Starlette(
            routes=[
                Route("/", self.page),
                Mount("/static", StaticFiles(directory=STATIC)),
                Route("/events", self.events),
                Route("/patterns", self.patterns),
                Route("/requests/{number}", self.requests),
                Route("/requests/{number}", self.send, methods=["POST"]),
                Route("/load/{number}", self.load, methods=["POST"]),
                Route("/faults/{id}", self.fault, methods=["POST"]),
                Route("/choose", self.choose),
            ],
            middleware=[Middleware(LocalOnly, port)],
            exception_handlers={HTTPException: _problem},
        )

    async def close(self) -> None:
        """End streams and loads."""
        await self.live.close()
        for load in self._loads.values():
            await load.close()
        for client in self._clients.values():
            await client.aclose()

    async def page(self, _: Request) -> Response:
        """GET /: the page."""
        return FileResponse(STATIC / "page.html")

    async def patterns(self, _: Request) -> Response:
        """GET /patterns: title and diagram of every pattern that runs."""
        return JSONResponse(
            {number: {"title": self._titles[number]} | shape for number, shape in self._diagrams.items()}
        )

    async def events(self, _: Request) -> Response:
        """GET /events: the state of every process and load once a second, as server-sent events."""
        if self._watchers >= MAX_WATCHERS:
            raise HTTPException(503, "too many pages watch")

        async def stream() -> AsyncIterator[str]:
            self._watchers += 1
            try:
                async with contextlib.aclosing(self.live.watch()) as states:
                    async for processes in states:
                        loads = {number: vars(load.tally) for number, load in self._loads.items()}
                        yield f"data: {json.dumps({'processes': processes, 'loads': loads})}\n\n"
            finally:
                self._watchers -= 1

        return StreamingResponse(stream(), media_type="text/event-stream")

    async def requests(self, request: Request) -> Response:
        """GET /requests/{number}: the requests that the pattern's form offers, the usual one first."""
        return JSONResponse(await self._operations(self._number(request)))

    async def _operations(self, number: str) -> list[dict[str, Any]]:
        work = self._works[number]
        usual = {"method": work.method, "path": work.path}
        offered = [usual | {"body": work.body}]
        with contextlib.suppress(httpx.HTTPError, ValueError):  # 02 has no OpenAPI document
            found = operations((await self._clients[number].get("/openapi.json")).json())
            # The document's example is of the model that is served, which may be the user's own.
            offered = [each for each in found if each | usual == each] or offered
            offered += [each for each in found if each | usual != each]
        return offered

    async def send(self, request: Request) -> Response:
        """POST /requests/{number}: send one request, and say what became of it."""
        number = self._number(request)
        wanted = await _body(request, method=str, path=str, body=str)
        if wanted["method"] not in METHODS or not wanted["path"].startswith("/"):
            raise HTTPException(400, f"method is one of {', '.join(METHODS)}, and path begins with /")
        columns = {box["id"]: box["column"] for box in self._diagrams[number]["boxes"]}
        client, work = self._clients[number], self._works[number]
        return JSONResponse(await send(self._stack, self.live, client, work, columns, wanted, self._spans))

    async def load(self, request: Request) -> Response:
        """POST /load/{number}: send so many requests a second from now on; 0 stops."""
        number = self._number(request)
        self._check_token(request)
        rate = (await _body(request, rate=int))["rate"]
        if rate not in RATES:
            raise HTTPException(400, f"rate is one of {', '.join(map(str, RATES))}")
        work = replace(self._works[number], body=(await self._operations(number))[0]["body"])
        if number not in self._loads:
            self._loads[number] = PatternLoad(work, self._clients[number], self._stack.run_dir / number)
        self._loads[number].send(rate)
        return JSONResponse({"rate": rate})

    async def fault(self, request: Request) -> Response:
        """POST /faults/{id}: kill -9, hang or restart a process, which the supervisor keeps running; what was done."""
        self._check_token(request)
        id_, fault = request.path_params["id"], (await _body(request, fault=str))["fault"]
        victim = next((managed for managed in self._stack.processes if managed.id == id_), None)
        if victim is None or fault not in FAULTS:
            raise HTTPException(404, f"there is no process {id_} here, or the fault is none of {', '.join(FAULTS)}")
        if id_ in self._faulty:
            raise HTTPException(409, f"{victim.label} has not got over its last fault yet")
        self._faulty.add(id_)
        try:
            if fault == "kill":
                await kill(self._stack, victim)
                return JSONResponse({"done": f"{victim.label} was killed by SIGKILL; the supervisor starts it again."})
            if fault == "restart":
                async with asyncio.timeout(RESTART_WITHIN_S):
                    await restart(victim)
                return JSONResponse({"done": f"{victim.label} was stopped by SIGTERM, and is ready again."})
            async with hanging(victim):
                await asyncio.sleep(HANG_S)
            return JSONResponse({"done": f"{victim.label} was stopped for {HANG_S} s, and goes on."})
        except FaultNotInjected as exc:
            raise HTTPException(409, str(exc)) from None
        except TimeoutError:
            raise HTTPException(409, f"{victim.label} is not ready again after {RESTART_WITHIN_S} s") from None
        finally:
            self._faulty.discard(id_)

    async def choose(self, request: Request) -> Response:
        """GET /choose: which pattern fits; the parameters are the fields of Requirements."""
        query = request.query_params
        try:
            model_ms, wait_s, rate = (float(query[name]) for name in NUMBERS)
        except (KeyError, ValueError):
            model_ms = wait_s = rate = -1.0
        if not all(0 <= value <= MAX_NUMBER for value in (model_ms, wait_s, rate)):
            raise HTTPException(400, f"{', '.join(NUMBERS)} are numbers from 0 to {MAX_NUMBER:,}")
        lossless, poorer, several = (query.get(name) == "true" for name in ("lossless", "poorer", "several"))
        try:
            bench = results()
        except FileNotFoundError as exc:
            raise HTTPException(404, str(exc)) from None
        return JSONResponse(choose(Requirements(model_ms, wait_s, rate, lossless, poorer, several), bench))

    def _number(self, request: Request) -> str:
        number: str = request.path_params["number"]
        if number not in self._works:
            raise HTTPException(404, f"there is no pattern {number} here")
        return number

    def _check_token(self, request: Request) -> None:
        given = request.headers.get(TOKEN_HEADER, "")
        if not secrets.compare_digest(given.encode(), self._token.encode()):
            raise HTTPException(403, f"{TOKEN_HEADER} is not the token that make up has printed")


async def _problem(_: Request, exc: Exception) -> Response:
    assert isinstance(exc, HTTPException)  # noqa: S101 - it is registered for this class
    return JSONResponse({"detail": exc.detail}, exc.status_code)


async def _body(request: Request, **fields: type) -> dict[str, Any]:
    """The JSON object of a request, with these fields. Raises HTTPException for any other."""
    content = b""
    async for chunk in request.stream():
        content += chunk
        if len(content) > MAX_BODY_BYTES:
            raise HTTPException(413, f"a body has at most {MAX_BODY_BYTES} bytes")
    try:
        parsed = json.loads(content)
        json.dumps(parsed, ensure_ascii=False).encode()  # a lone surrogate cannot be sent on
    except (ValueError, RecursionError):
        parsed = None
    if not isinstance(parsed, dict) or any(type(parsed.get(name)) is not kind for name, kind in fields.items()):
        wanted = ", ".join(f"{name} ({kind.__name__})" for name, kind in fields.items())
        raise HTTPException(400, f"the body is a JSON object with {wanted}")
    return parsed


@asynccontextmanager
async def serving(
    stack: DevStack, table: Mapping[str, Pattern], port: int, spans: SpanStore | None = None
) -> AsyncIterator[str]:
    """Serve the console of a stack, which may start later; its address, with the token. Port 0: a free one.

    spans: those that the stack's processes export.

    Raises OSError for a port in use.
    """
    token = secrets.token_urlsafe(18)
    async with AsyncExitStack() as exits:
        listener = exits.enter_context(socket.create_server((HOST, port)))
        port = listener.getsockname()[1]
        console = Console(stack, table, token, spans)
        await exits.enter_async_context(web.serving(console.app(port), listener))
        exits.push_async_callback(console.close)  # first: the server waits for the streams to end
        # In the fragment, which is sent to nobody.
        yield f"http://{HOST}:{port}/#token={token}"
