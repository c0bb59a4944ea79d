"""What every chaos module uses: clients that send requests all the time, incidents, and what became of the work.

A chaos module, found by the pattern's name, has `async def inject(run)`, which runs clients and injects faults:

    async with run.clients(8, send):
        async with run.incident("kill -9", "service_setosa") as incident:
            await kill_and_wait(...)
            await run.recovered(since=incident.started)

An incident ends when every client's responses are as before, or when that has taken too long. A violation (a response
that should not have been) is expected only during an incident whose target it blames; any other fails the run.
"""

import asyncio
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx

from scripts.devstack.load import UNFINISHED, Tally, times_written
from scripts.devstack.runs import PatternRun
from scripts.devstack.table import ROOT

RECOVERY_LIMIT_S = 60
POLL_S = 0.01
REFUSED_PAUSE_S = 0.02  # of a client, before its next request


@dataclass(frozen=True)
class Violation:
    """How a response was wrong, and the process, or the fault, that it blames; with none, it must never happen."""

    text: str
    blame: str = ""


@dataclass(frozen=True)
class ClientResult:
    """The outcome of one request; times of time.monotonic()."""

    kind: str
    started: float
    ended: float
    violation: Violation | None


@dataclass(eq=False)
class Incident:
    """One fault and its end; times of time.monotonic()."""

    fault: str
    target: str
    is_outage: bool
    started: float
    fault_ended: float | None = None
    """When a fault that lasts was over; recovery counts from there."""
    ended: float | None = None
    """When everything was as before."""
    note: str = ""

    @property
    def recovery_s(self) -> float | None:
        """From the fault to the state before it; None if that never returned."""
        return None if self.ended is None else self.ended - (self.fault_ended or self.started)

    def end_fault(self) -> float:
        """Mark the end of the fault itself, at the time that is returned; what remains is the recovery."""
        self.fault_ended = time.monotonic()
        return self.fault_ended

    def explains(self, result: ClientResult, grace_s: float) -> bool:
        """Whether the request was in flight during this outage, and its violation blames the target or the fault."""
        end = float("inf") if self.ended is None else self.ended + grace_s
        is_blamed = result.violation is not None and result.violation.blame in (self.target, self.fault)
        return self.is_outage and is_blamed and result.started < end and result.ended > self.started


@dataclass(kw_only=True)
class ChaosRun(PatternRun, Tally):
    """One pattern's chaos run, and its line of the loss report."""

    run_dir = ROOT / ".run/prove"

    unit: str = "requests"
    """What `accepted` counts."""
    failure: str = ""
    """What a failed response is here, in a sentence."""
    expected_label: str = "refused"
    """Column title of the violations that a fault explains."""
    grace_s: float = 0.0
    """Seconds after an incident in which clients may still notice it."""

    remarks: list[str] = field(default_factory=list)
    incidents: list[Incident] = field(default_factory=list)
    results: list[ClientResult] = field(default_factory=list)
    _client_count: int = 0

    @property
    def failed(self) -> list[ClientResult]:
        """The violations that no incident explains."""
        return [result for result in self.results if result.violation and not self.is_expected(result)]

    @property
    def expected(self) -> int:
        """The number of violations that an incident explains."""
        return sum(result.violation is not None for result in self.results) - len(self.failed)

    @property
    def faults(self) -> dict[str, Counter[str]]:
        """How often each fault was injected into which process."""
        found: dict[str, Counter[str]] = {}
        for incident in self.incidents:
            found.setdefault(incident.fault, Counter())[incident.target] += 1
        return found

    @property
    def worst_recovery_s(self) -> float | None:
        """The longest recovery; None if one never ended, or there was no fault."""
        recoveries = [incident.recovery_s for incident in self.incidents]
        known = [seconds for seconds in recoveries if seconds is not None]
        return max(known) if known and len(known) == len(recoveries) else None

    @property
    def is_passed(self) -> bool:
        """Whether every column that must be 0 is 0, with work done and faults injected."""
        is_clean = not (self.lost or self.twice or self.stuck or self.failed or self.error)
        return is_clean and bool(self.accepted and self.incidents)

    @asynccontextmanager
    async def clients(
        self, count: int, send: Callable[[int], Awaitable[tuple[str, Violation | None]]]
    ) -> AsyncIterator[None]:
        """Clients that send requests without a pause; `send` gets its number and returns the kind."""
        self._client_count, stopping = count, asyncio.Event()

        async def client(number: int) -> None:
            while not stopping.is_set():
                started = time.monotonic()
                kind, violation = await send(number)
                self.results.append(ClientResult(kind, started, time.monotonic(), violation))
                await asyncio.sleep(REFUSED_PAUSE_S if violation else 0)

        async with asyncio.TaskGroup() as tasks:
            for number in range(count):
                tasks.create_task(client(number))
            try:
                yield
            finally:
                stopping.set()

    @asynccontextmanager
    async def incident(
        self, fault: str, target: str, *, is_outage: bool = True, within_s: float = RECOVERY_LIMIT_S
    ) -> AsyncIterator[Incident]:
        """A fault, injected by the body, which returns when all is as before; too long counts as stuck."""
        incident = Incident(fault, target, is_outage, time.monotonic())
        self.incidents.append(incident)
        try:
            async with asyncio.timeout(within_s):
                yield incident
            incident.ended = time.monotonic()
        except TimeoutError:
            self.stuck += 1
            incident.note += f" not as before within {within_s:g} s"
        self.say(self.format_incident(incident))

    async def request(
        self, client: httpx.AsyncClient, method: str, path: str, *, blame: str = "", **options: Any
    ) -> httpx.Response | Violation:
        """The response, or why there is none; a broken connection blames `blame`, a timeout nobody."""
        try:
            return await client.request(method, path, **options)
        except httpx.TimeoutException as exc:
            self.lost += self.unit == "requests"
            return Violation(f"no response in time: {exc!r}")
        except httpx.TransportError as exc:
            return Violation(f"{type(exc).__name__}: {exc}", blame=blame)

    async def send_bad_bodies(
        self, client: httpx.AsyncClient, url: str, bodies: Sequence[bytes], statuses: Collection[int]
    ) -> None:
        """POST each body; a status other than these fails the run."""
        for body in bodies:
            response = await client.post(url, content=body)
            if response.status_code not in statuses:
                self.fail(f"{body!r} was answered with {response.status_code}")

    def during(self, incident: Incident) -> tuple[int, int]:
        """Responses that arrived during an incident: the good ones, and the violations."""
        end = incident.ended or time.monotonic()
        results = [result for result in self.results if incident.started < result.ended <= end]
        good = sum(result.violation is None for result in results)
        return good, len(results) - good

    def format_incident(self, incident: Incident) -> str:
        """One line: when, what, which process, how long the recovery took, what clients saw."""
        good, violations = self.during(incident)
        recovery = "NEVER" if incident.recovery_s is None else f"{incident.recovery_s:.1f} s"
        what = f"{incident.fault:<16} {incident.target:<20}"
        note = f"; {incident.note}" if incident.note else ""
        return (
            f"+{incident.started - self.started:5.1f} s  {what} as before after {recovery:>6}   "
            f"{good:,} good responses meanwhile, {violations:,} {self.expected_label}{note}"
        )

    async def recovered(self, since: float) -> None:
        """Return when the last responses, two for each client and all to requests after this moment, are good."""

        def are_good() -> bool:
            last = self.results[-2 * self._client_count :]
            return all(result.violation is None and result.started >= since for result in last)

        while not are_good():
            await asyncio.sleep(POLL_S)

    def fail(self, text: str) -> None:
        """Record what must never happen, outside the clients' requests."""
        now = time.monotonic()
        self.results.append(ClientResult("", now, now, Violation(text)))

    def is_expected(self, result: ClientResult) -> bool:
        """Whether an incident explains the violation."""
        return any(incident.explains(result, self.grace_s) for incident in self.incidents)


@dataclass
class QueueClients(ABC):
    """Clients of a proxy that queues jobs, and the ids that they were given."""

    run: ChaosRun
    client: httpx.AsyncClient
    ids: list[str] = field(default_factory=list)

    @abstractmethod
    async def state(self, job_id: str, wait_s: float) -> str:
        """`completed`, `pending`, `processing`, or what is wrong."""

    async def newest_done(self) -> None:
        """Return when a job that was accepted after the fault is completed."""
        known = len(self.ids)
        while len(self.ids) == known:
            await asyncio.sleep(POLL_S)
        while await self.state(self.ids[known], 10) != "completed":
            await asyncio.sleep(POLL_S)

    async def account(self, key: str) -> None:
        """Wait until all have ended, or too long, and count what became of them.

        key: where Redis's append-only file has the results, with {} for the id.
        """
        deadline = time.monotonic() + RECOVERY_LIMIT_S
        states = Counter[str]()
        for job_id in self.ids:
            states[await self.state(job_id, max(0, min(30, deadline - time.monotonic())))] += 1
        stored = times_written(self.run.run_dir / self.run.pattern.number, key, self.ids)
        run, completed, unfinished = self.run, states["completed"], sum(states[state] for state in UNFINISHED)
        run.stuck += unfinished
        run.lost = states.total() - completed - unfinished
        run.twice = sum(times - 1 for times in stored.values())
        run.remarks.append(f"{stored.total():,} results in Redis's append-only file, for {len(self.ids):,} {run.unit}.")
        if len(stored) != completed:
            run.error = f"{completed} {run.unit} completed, but Redis's file has results of {len(stored)}"
