"""HTTP load against a real server, in a closed and in an open loop."""

import asyncio
import http.server
import os
import signal
import threading
from typing import ClassVar

import pytest

from serving_testing.load import LoadConnection, run_in_process


class Jobs(http.server.BaseHTTPRequestHandler):
    """POST gives out an id; GET of another path is 404."""

    protocol_version = "HTTP/1.1"
    paths: ClassVar[set[str]] = set()

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.respond(200)

    def do_GET(self):
        self.paths.add(self.path)
        self.respond(200 if self.path == "/job/a1b2c3" else 404)

    def respond(self, status):
        body = b'{"job_id": "a1b2c3"}'
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


@pytest.fixture(scope="module")
def server():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Jobs) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_load_is_measured_in_a_closed_and_in_an_open_loop(server):
    def measured(path, connections, seconds, **more):
        url = f"{server}{path}"
        return asyncio.run(
            run_in_process("serving_testing.load", url=url, connections=connections, seconds=seconds, **more)
        )

    closed = measured("/predict", 2, 0.2, body="{}", then="/job/{}")
    assert closed.latencies
    assert closed.failed == 0
    assert Jobs.paths == {"/job/a1b2c3"}
    opened = measured("/predict", 2, 0.5, body="{}", rate=20)
    assert len(opened.latencies) == 10
    assert measured("/nothing", 1, 0.1).failed > 0


def test_a_call_on_a_connection_that_the_server_has_closed_fails():
    async def respond_once(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        writer.close()

    async def calls():
        request = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
        async with await asyncio.start_server(respond_once, "127.0.0.1", 0) as server, asyncio.timeout(10):
            loop, address = asyncio.get_running_loop(), server.sockets[0].getsockname()
            transport, connection = await loop.create_connection(lambda: LoadConnection(request, b""), *address)
            first = await connection.call()
            while not transport.is_closing():  # noqa: ASYNC110 - the transport tells its protocol only
                await asyncio.sleep(0)
            return first, await connection.call()

    assert asyncio.run(calls()) == (True, False)


def test_load_that_is_cancelled_leaves_no_process_and_prints_nothing(capfd):
    """As after Ctrl-C, which a terminal sends to all processes of the caller's group."""
    spawn, started = asyncio.create_subprocess_exec, []

    async def recorded(*command, **options):
        started.append(await spawn(*command, **options))
        return started[0]

    async def cancel():
        asked = asyncio.Event()

        async def never_answer(reader, writer):
            await reader.readuntil(b"\r\n\r\n")
            asked.set()
            await reader.read()
            writer.close()

        async with asyncio.timeout(60), await asyncio.start_server(never_answer, "127.0.0.1", 0) as server:
            url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
            running = asyncio.create_task(run_in_process("serving_testing.load", url=url, connections=1, seconds=3600))
            await asked.wait()
            group = os.getpgid(started[0].pid)
            running.cancel()
            await asyncio.wait([running])
            return running.cancelled(), group

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(asyncio, "create_subprocess_exec", recorded)
        assert asyncio.run(cancel()) == (True, started[0].pid)
    assert started[0].returncode == -signal.SIGKILL
    assert capfd.readouterr() == ("", "")
