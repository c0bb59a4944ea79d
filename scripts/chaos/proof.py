"""What a fault run has to show: what it did to a pattern, what clients saw of it, and what became of their work.

A `Proof` is handed to `prove` of a pattern's module, which runs clients and injects faults:

    async with proof.clients(8, ask):
        async with proof.incident("kill -9", "service_setosa") as incident:
            kill(...)
            await proof.all_well(since=incident.started)

An incident ends when all is as before, or has failed to become so in time. An answer that was not as it should be is
forgiven only while an incident lasts whose target it puts the blame on.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

AS_BEFORE_WITHIN_S = 60
POLL_S = 0.01
PAUSE_S = 0.02  # of a client that was refused


class Form(StrEnum):
    """How much of it: quick is for the tests, long for a machine that has the time."""

    QUICK = "quick"
    SHORT = "short"
    LONG = "long"


@dataclass(frozen=True)
class Problem:
    """How an answer was not as it should be, and whose fault that is; nobody's: it must never happen."""

    text: str
    blame: str = ""


@dataclass(frozen=True)
class Answer:
    """To one request; times of time.monotonic()."""

    kind: str
    started: float
    ended: float
    problem: Problem | None


@dataclass(eq=False)
class Incident:
    """One fault and its end; times of time.monotonic()."""

    fault: str
    target: str
    is_outage: bool
    started: float
    over: float | None = None
    """When the fault itself was over, for one that lasts; recovery counts from there."""
    ended: float | None = None
    """When all was as before."""
    note: str = ""

    @property
    def recovery_s(self) -> float | None:
        """From the fault to the state before it; None if it did not come back."""
        return None if self.ended is None else self.ended - (self.over or self.started)

    def is_over(self) -> float:
        """The fault itself has ended, at the moment that is returned; what is left is the recovery."""
        self.over = time.monotonic()
        return self.over

    def forgives(self, answer: Answer, grace_s: float) -> bool:
        """Whether the answer's request was under way during this outage, and blames its target only."""
        end = float("inf") if self.ended is None else self.ended + grace_s
        blamed = answer.problem is not None and answer.problem.blame == self.target
        return self.is_outage and blamed and answer.started < end and answer.ended > self.started


@dataclass(kw_only=True)
class Proof:
    """One pattern's part of the ledger."""

    number: str
    title: str
    form: Form = Form.SHORT
    say: Callable[[str], None] = lambda line: None

    unit: str = "requests"
    """What `accepted` counts."""
    failure: str = ""
    """What a failed answer is here, in a sentence."""
    forgiven: str = "refused"
    """What an answer is called that a fault explains."""
    grace_s: float = 0.0
    """After an incident's end, clients may take so long to notice it."""

    accepted: int = 0
    lost: int = 0
    twice: int | None = None
    """None: nothing is stored that could be there twice."""
    stuck: int = 0
    seconds: float = 0.0
    error: str = ""
    """Why the run did not come to its end."""
    started: float = field(default_factory=time.monotonic)
    remarks: list[str] = field(default_factory=list)
    """What else there is to say of this run."""
    incidents: list[Incident] = field(default_factory=list)
    answers: list[Answer] = field(default_factory=list)
    _clients: int = 0

    @property
    def failed(self) -> list[Answer]:
        """The answers that no incident forgives."""
        return [answer for answer in self.answers if answer.problem and not self._is_forgiven(answer)]

    @property
    def refused(self) -> int:
        """The answers that were not as they should be, and are forgiven."""
        return sum(answer.problem is not None for answer in self.answers) - len(self.failed)

    @property
    def faults(self) -> dict[str, Counter[str]]:
        """How often each fault was injected into which process."""
        found: dict[str, Counter[str]] = {}
        for incident in self.incidents:
            found.setdefault(incident.fault, Counter())[incident.target] += 1
        return found

    @property
    def worst_recovery_s(self) -> float | None:
        """The longest recovery; None if one never came to an end, or there was no fault."""
        recoveries = [incident.recovery_s for incident in self.incidents]
        known = [seconds for seconds in recoveries if seconds is not None]
        return max(known) if known and len(known) == len(recoveries) else None

    @property
    def is_kept(self) -> bool:
        """Whether every column that must be 0 is, with work done and faults injected."""
        clean = not (self.lost or self.twice or self.stuck or self.failed or self.error)
        return clean and bool(self.accepted and self.incidents)

    @asynccontextmanager
    async def clients(
        self, count: int, ask: Callable[[int], Awaitable[tuple[str, Problem | None]]]
    ) -> AsyncIterator[None]:
        """So many clients that ask without a pause, each with its number; `ask` gives the kind of its question."""
        self._clients, stopping = count, asyncio.Event()

        async def client(number: int) -> None:
            while not stopping.is_set():
                started = time.monotonic()
                kind, problem = await ask(number)
                self.answers.append(Answer(kind, started, time.monotonic(), problem))
                await asyncio.sleep(PAUSE_S if problem else 0)

        async with asyncio.TaskGroup() as tasks:
            for number in range(count):
                tasks.create_task(client(number))
            try:
                yield
            finally:
                stopping.set()

    @asynccontextmanager
    async def incident(
        self, fault: str, target: str, *, is_outage: bool = True, within_s: float = AS_BEFORE_WITHIN_S
    ) -> AsyncIterator[Incident]:
        """A fault, injected by the body, which returns when all is as before; if it takes too long, that is stuck."""
        incident = Incident(fault, target, is_outage, time.monotonic())
        self.incidents.append(incident)
        try:
            async with asyncio.timeout(within_s):
                yield incident
            incident.ended = time.monotonic()
        except TimeoutError:
            self.stuck += 1
            incident.note += f" not as before within {within_s:g} s"
        self.say(self.told(incident))

    def meanwhile(self, incident: Incident) -> tuple[int, int]:
        """Answers that came while it lasted: the good ones, and those that were not."""
        end = incident.ended or time.monotonic()
        during = [answer for answer in self.answers if incident.started < answer.ended <= end]
        good = sum(answer.problem is None for answer in during)
        return good, len(during) - good

    def told(self, incident: Incident) -> str:
        """One line: when, what, to whom, how long it took, what clients saw of it."""
        good, refused = self.meanwhile(incident)
        recovery = "NEVER" if incident.recovery_s is None else f"{incident.recovery_s:.1f} s"
        saw = f"{good:,} good answers meanwhile, {refused:,} {self.forgiven}"
        what = f"{incident.fault:<16} {incident.target:<20}"
        note = f"; {incident.note}" if incident.note else ""
        return f"+{incident.started - self.started:5.1f} s  {what} as before after {recovery:>6}   {saw}{note}"

    async def all_well(self, since: float) -> None:
        """Returns when the last answers, two for each client and all to requests after this moment, are good."""

        def are_good() -> bool:
            last = self.answers[-2 * self._clients :]
            return all(answer.problem is None and answer.started >= since for answer in last)

        await self.until(are_good)

    def rounds(self, *, short: int, long: int) -> int:
        """How often to do the same faults again in this form of the run; once in the quick one."""
        return {Form.QUICK: 1, Form.SHORT: short, Form.LONG: long}[self.form]

    def fail(self, text: str) -> None:
        """Something that must never happen has happened, outside the clients' requests."""
        now = time.monotonic()
        self.answers.append(Answer("", now, now, Problem(text)))

    async def until(self, condition: Callable[[], object]) -> None:
        """Returns when the condition holds; an incident bounds how long that may take."""
        while not condition():
            await asyncio.sleep(POLL_S)

    def _is_forgiven(self, answer: Answer) -> bool:
        return any(incident.forgives(answer, self.grace_s) for incident in self.incidents)
