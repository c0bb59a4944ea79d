"""Load on a pattern, and what became of it: accepted, completed, lost, done twice, stuck.

A pattern's module describes its `Work`; the console sends it at a steady rate, and chaos runs count the same things.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import httpx

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator
    from pathlib import Path

MAX_IN_FLIGHT = 100
MAX_FOLLOWED = 10_000
FOLLOW_EVERY_S = 1.0
FOLLOWERS = 8
STUCK_AFTER_S = 60
CATCH_UP_S = 0.5
UNFINISHED = ("pending", "processing")
LONGEST_COMMAND = 1024  # bytes of a SET in the append-only file, up to its key


@dataclass(frozen=True, kw_only=True)
class Work:
    """One unit of a pattern's work: the request that hands it over, and how to learn what became of it."""

    port: str
    """Name of the port that takes it."""
    method: str = "POST"
    path: str
    body: object = None
    job: str = ""
    """Path of what was accepted, as "/job/{job_id}" with keys of the answer; empty: the answer is all there is."""
    state: Callable[[Any], str] = lambda answer: "completed"
    """Reads "completed", "pending", "processing" or what is wrong from the answer, or from that of `job`."""
    stored: str = ""
    """The key of a result in Redis, with {} for the job's id; empty: not stored in Redis."""

    def job_path(self, answer: object) -> str | None:
        """Where the job that this answer is about can be looked up; None if it names none."""
        if not self.job or not isinstance(answer, dict):
            return None
        try:
            return self.job.format_map({key: value for key, value in answer.items() if value is not None})
        except KeyError:
            return None

    def state_of(self, answer: object) -> str:
        """What `state` reads from an answer; "wrong" where that has another form."""
        try:
            return self.state(answer)
        except (AttributeError, KeyError, TypeError, ValueError):
            return "wrong"


@dataclass(kw_only=True)
class Tally:
    """What became of the work. What is refused was not accepted, and its caller knows."""

    accepted: int = 0
    lost: int = 0
    twice: int | None = None
    """None: nothing is stored that could be there twice."""
    stuck: int = 0


@dataclass(kw_only=True)
class LoadTally(Tally):
    """The same while the load runs."""

    rate: float = 0
    completed: int = 0
    refused: int = 0


class ResultWrites:
    """How often each result was stored, from what Redis appends to its append-only files."""

    def __init__(self, folder: Path, key: str, *, since_now: bool = False) -> None:
        """Args: where the servers' folders are; the key of a result, {} for the id; skip what is already written."""
        self._folder = folder
        pattern = re.escape(key).replace(r"\{\}", "([0-9a-f]+)")
        self._set = re.compile(rf"(?i)\r\nset\r\n\$\d+\r\n{pattern}\r\n".encode())
        self._read = {path: path.stat().st_size for path in folder.rglob("*.aof")} if since_now else {}
        self._by_server: dict[Path, Counter[str]] = {}

    def update(self) -> Counter[str]:
        """Count what was written since the last call; how often until now, by id."""
        for path in sorted(self._folder.rglob("*.aof")):
            with path.open("rb") as file:
                start = file.seek(self._read.get(path, 0))
                written = file.read()
            done = max(0, len(written) - LONGEST_COMMAND)  # the last command may be half written
            times = self._by_server.setdefault(path.parent, Counter())
            for found in self._set.finditer(written):
                times[found[1].decode()] += 1
                done = max(done, found.end())
            self._read[path] = start + done
        total = Counter[str]()
        for times in self._by_server.values():
            total |= times  # a replica has what its primary has
        return total


def times_written(folder: Path, key: str, ids: Collection[str]) -> Counter[str]:
    """How often the key of each of these ids ({} in `key`) was set, according to the servers' append-only files."""
    known = set(ids)
    return Counter({job_id: times for job_id, times in ResultWrites(folder, key).update().items() if job_id in known})


class PatternLoad:
    """Sends a pattern's work at a steady rate, and follows what was accepted to its end."""

    def __init__(self, work: Work, client: httpx.AsyncClient, redis_folder: Path) -> None:
        """`client`: of the process that takes the work; a request without an answer within its timeout is lost."""
        self.tally = LoadTally()
        self._work, self._client = work, client
        self._writes = ResultWrites(redis_folder, work.stored, since_now=True) if work.stored else None
        self.tally.twice = None if self._writes is None else 0
        self._jobs: dict[str, float] = {}  # when each was accepted, by the path where it can be looked up
        self._slots = asyncio.Semaphore(MAX_IN_FLIGHT)
        self._sending: set[asyncio.Task[None]] = set()
        self._sender: asyncio.Task[None] | None = None
        self._follower = asyncio.create_task(self._follow())

    def send(self, rate: float) -> None:
        """Send so many requests a second from now on; 0 ends it. What was accepted is followed in any case."""
        if self._sender:
            self._sender.cancel()
        self.tally.rate = rate
        self._sender = asyncio.create_task(self._send_at(rate)) if rate else None

    async def close(self) -> None:
        """End it, and forget what was accepted."""
        tasks = [self._follower, *self._sending, *([self._sender] if self._sender else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _send_at(self, rate: float) -> None:
        due = time.monotonic()
        while True:
            await asyncio.sleep(max(0, due - time.monotonic()))
            if len(self._jobs) >= MAX_FOLLOWED:
                await asyncio.sleep(FOLLOW_EVERY_S)
                continue
            await self._slots.acquire()
            task = asyncio.create_task(self._send_one())
            self._sending.add(task)
            task.add_done_callback(self._sent)
            # A rate that cannot be had becomes a lower one, not a burst once it can.
            due = max(due + 1 / rate, time.monotonic() - CATCH_UP_S)

    def _sent(self, task: asyncio.Task[None]) -> None:
        self._sending.discard(task)
        self._slots.release()

    async def _send_one(self) -> None:
        try:
            response = await self._client.request(self._work.method, self._work.path, json=self._work.body)
            answer = response.json() if response.status_code == 200 else None
        except httpx.ReadTimeout:
            self.tally.accepted += 1
            self.tally.lost += 1
            return
        except (httpx.HTTPError, ValueError):
            answer = None
        path = self._work.job_path(answer)
        if path is None and (answer is None or self._work.job or self._work.state_of(answer) != "completed"):
            self.tally.refused += 1
            return
        self.tally.accepted += 1
        if path is None:
            self.tally.completed += 1
        else:
            self._jobs[path] = time.monotonic()

    async def _follow(self) -> None:
        while True:
            await asyncio.sleep(FOLLOW_EVERY_S)
            waiting = iter(list(self._jobs))
            await asyncio.gather(*(self._look_up(waiting) for _ in range(FOLLOWERS)))
            limit = time.monotonic() - STUCK_AFTER_S
            self.tally.stuck = sum(accepted < limit for accepted in self._jobs.values())
            if self._writes is not None:
                times = await asyncio.to_thread(self._writes.update)
                self.tally.twice = sum(count - 1 for count in times.values())

    async def _look_up(self, paths: Iterator[str]) -> None:
        for path in paths:
            try:
                response = await self._client.get(path)
                answer = response.json()
            except (httpx.HTTPError, ValueError):
                continue  # nobody can tell now
            if response.status_code == 200:
                state = self._work.state_of(answer)
            elif response.status_code == 404:
                state = "lost"
            else:
                continue
            if state in UNFINISHED:
                continue
            del self._jobs[path]
            if state == "completed":
                self.tally.completed += 1
            else:
                self.tally.lost += 1
