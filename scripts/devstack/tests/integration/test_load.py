"""Load on a real server that decides what becomes of each job, and the count of it."""

import asyncio
import socket
from contextlib import asynccontextmanager

import httpx
import pytest
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route

from scripts.devstack import load, web
from scripts.devstack.load import PatternLoad, ResultWrites, Work, times_written


@asynccontextmanager
async def pattern(answer):
    """A client of a server whose POST /jobs gives out ids, 0, 1 and so on; answer(id) is what GET /jobs/{id} says."""
    ids = iter(range(10_000))

    async def post(_):
        return JSONResponse({"id": next(ids)})

    async def get(request):
        status, content = answer(request.path_params["id"])
        return JSONResponse(content, status)

    app = Starlette(routes=[Route("/jobs", post, methods=["POST"]), Route("/jobs/{id:int}", get)])
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        async with web.serving(app, listener), httpx.AsyncClient(base_url=url, trust_env=False) as client:
            yield client


WORK = Work(port="", path="/jobs", job="/jobs/{id}", state=lambda job: job["status"])


async def tally_of(client, work, folder, count, wanted):
    """The tally of about so many requests, once `wanted` of it is true."""
    running = PatternLoad(work, client, folder)
    try:
        running.send(200)
        async with asyncio.timeout(30):
            while running.tally.accepted + running.tally.refused < count:  # noqa: ASYNC110 - it only counts
                await asyncio.sleep(0.01)
            running.send(0)
            while not wanted(running.tally):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
    finally:
        await running.close()
    return running.tally


async def test_each_job_is_counted_as_what_became_of_it(tmp_path, monkeypatch):
    monkeypatch.setattr(load, "FOLLOW_EVERY_S", 0.02)
    monkeypatch.setattr(load, "STUCK_AFTER_S", 0)
    asked = set()

    def answer(job_id):
        if job_id not in asked:  # the first time each
            asked.add(job_id)
            return (503, {}) if job_id % 2 else (200, {"status": "pending"})
        return [
            (200, {"status": "completed"}),
            (200, {"status": "failed"}),
            (404, {}),
            (200, {"status": "processing"}),
        ][job_id % 4]

    async with pattern(answer) as client:
        tally = await tally_of(
            client,
            WORK,
            tmp_path,
            8,
            lambda tally: tally.stuck == tally.accepted - tally.completed - tally.lost == tally.accepted // 4,
        )
    count = tally.accepted
    assert (tally.completed, tally.lost) == ((count + 3) // 4, (count + 2) // 4 + (count + 1) // 4)
    assert (tally.refused, tally.twice) == (0, None)


@pytest.mark.parametrize(
    ("work", "what"),
    [
        (Work(port="", path="/nothing"), "refused"),
        (Work(port="", path="/jobs", state=lambda _: "partial"), "refused"),
        (Work(port="", path="/jobs", state=lambda answer: answer["status"]), "refused"),
        (Work(port="", path="/jobs", job="/jobs/{job_id}"), "refused"),  # accepted, as it says, but with no id
        (Work(port="", path="/jobs"), "completed"),
    ],
)
async def test_work_without_a_job_is_done_or_refused_at_once(tmp_path, work, what):
    async with pattern(None) as client:
        tally = await tally_of(client, work, tmp_path, 3, lambda tally: getattr(tally, what) >= 3)
    assert tally.accepted == (tally.completed if what == "completed" else 0)


async def test_a_request_without_an_answer_is_lost(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        async with httpx.AsyncClient(base_url=url, trust_env=False, timeout=httpx.Timeout(30, read=0.05)) as client:
            tally = await tally_of(client, WORK, tmp_path, 1, lambda tally: tally.lost)
    assert tally.refused == 0


def test_answer_that_names_no_job_has_none():
    assert WORK.job_path({"id": 0}) == "/jobs/0"
    assert [WORK.job_path(answer) for answer in ({"id": None}, {}, [1], None)] == [None] * 4


def command(key):
    return f"*3\r\n$3\r\nSET\r\n${len(key)}\r\n{key}\r\n$1\r\n1\r\n".encode()


def test_results_are_counted_as_they_are_written(tmp_path):
    file = tmp_path / "appendonlydir/appendonly.aof.1.incr.aof"
    file.parent.mkdir()
    file.write_bytes(command("job:aaaaaa:result"))
    writes = ResultWrites(tmp_path, "job:{}:result", since_now=True)
    assert writes.update() == {}
    whole = command("job:bbbbbb:result") + command("job:bbbbbb:status") + command("job:bbbbbb:result")
    for end in range(len(whole)):  # as it grows, byte by byte
        file.write_bytes(command("job:aaaaaa:result") + whole[: end + 1])
        written = writes.update()
    assert written == {"bbbbbb": 2}
    file.with_name("appendonly.aof.2.incr.aof").write_bytes(command("job:cccccc:result"))
    assert writes.update() == {"bbbbbb": 2, "cccccc": 1}
    replica = tmp_path / "replica/appendonly.aof.1.incr.aof"
    replica.parent.mkdir()
    replica.write_bytes(whole)
    assert times_written(tmp_path, "job:{}:result", ["aaaaaa", "bbbbbb", "dddddd"]) == {"aaaaaa": 1, "bbbbbb": 2}
