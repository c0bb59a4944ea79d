"""04: jobs are killed in the middle of a batch, and where there is a MySQL or MariaDB, so is the database.

On SQLite one job works; on the server two share the rows. Clients register rows all the while, and only while the
database is away may they see 503. At the end each row must be predicted, by one UPDATE: a trigger has counted them.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import httpx
from sqlalchemy import create_engine, text
from sqlalchemy.exc import DBAPIError

from scripts.chaos.faults import RUN_DIR, back, kill, process
from scripts.chaos.proof import Problem, Proof
from scripts.devstack.patterns import PATTERNS
from scripts.devstack.stack import free_ports, private_stack
from scripts.devstack.table import HOST, Pattern, ProcessDefinition
from serving_testing.mysql_server import mysql_binary

if TYPE_CHECKING:
    from sqlalchemy import Engine

CLIENTS = 2
ROWS_AT_ONCE = 100
ROWS_AT_FIRST = 10_000  # of each list that is registered before the faults begin
CHUNK_ROWS = 200
PACE_S = 0.1
ALL_DONE_WITHIN_S = 90
ROW = {"values": [5.1, 3.5, 1.4, 0.2]}


def pattern_with_server() -> Pattern:
    """04 with a database server, which the stack supervises, and two jobs."""
    api, job = PATTERNS["04"].processes
    server = ProcessDefinition(
        name="database",
        argv=("python", "{root}/scripts/devstack/mysql_server.py", "{PORT_04_DATABASE}", "{state}"),
        ports={"PORT_04_DATABASE": 3304},
        ready=f"tcp://{HOST}:{{PORT_04_DATABASE}}",
        ready_within_s=60,
    )
    second = replace(job, name="job_2")
    return replace(PATTERNS["04"], processes=(server, replace(api, depends_on=("04-database",)), job, second))


@dataclass
class Rows:
    """The clients, and the ids of the rows whose registration was confirmed."""

    proof: Proof
    client: httpx.AsyncClient
    ids: set[int]

    async def ask(self, _number: int) -> tuple[str, Problem | None]:
        """Register some rows."""
        await asyncio.sleep(PACE_S)
        return "POST /data/list", await self.register(ROWS_AT_ONCE)

    async def register(self, count: int) -> Problem | None:
        try:
            response = await self.client.post("/data/list", json={"items": [ROW] * count})
        except httpx.TransportError as exc:
            return Problem(f"{type(exc).__name__}: {exc}")
        if response.status_code != 200:
            is_away = response.status_code == 503 and "Retry-After" in response.headers
            return Problem(f"status {response.status_code}: {response.text[:200]}", blame="database" if is_away else "")
        self.ids.update(item["id"] for item in response.json())
        self.proof.accepted += count
        return None


async def prove(proof: Proof) -> None:
    """First on SQLite, then on a server, if there is one."""
    proof.unit, proof.failure = "rows", "anything but 200, or 503 with Retry-After while the database is away"
    proof.twice = 0
    await _prove_on(proof, PATTERNS["04"], is_server=False)
    if mysql_binary() is None:
        proof.say("no mariadbd and no mysqld on this machine: SQLite only")
    else:
        await _prove_on(proof, pattern_with_server(), is_server=True)


async def _prove_on(proof: Proof, pattern: Pattern, *, is_server: bool) -> None:
    table = PATTERNS | {"04": pattern}
    ports = free_ports(["04"], table)
    state = RUN_DIR / "04"
    url = (
        f"mysql+pymysql://root@{HOST}:{ports['PORT_04_DATABASE']}/items" if is_server else f"sqlite:///{state}/items.db"
    )
    settings = {
        "DATABASE_URL": url,
        "DATABASE_TIMEOUT_S": "10",
        "DATABASE_WAIT_S": "30",
        "JOB_WAIT_SECONDS": "0",
        "BATCH_CHUNK_SIZE": str(CHUNK_ROWS),
    }
    where = "server" if is_server else "SQLite"
    engine = create_engine(url, pool_pre_ping=True)
    async with (
        private_stack(["04"], RUN_DIR, table=table, ports=ports, environ=settings) as stack,
        httpx.AsyncClient(base_url=stack.urls["PORT_04_API"], timeout=60, trust_env=False) as client,
    ):
        await asyncio.to_thread(_count_updates, engine)
        rows = Rows(proof, client, set())
        for _ in range(proof.rounds(short=3, long=30)):
            if problem := await rows.register(ROWS_AT_FIRST):
                proof.fail(problem.text)
        async with proof.clients(CLIENTS, rows.ask):
            for _ in range(proof.rounds(short=3, long=20)):
                async with proof.incident("kill -9", "job", is_outage=False) as incident:
                    done = await _in_the_middle(engine)
                    incident.started = time.monotonic()
                    job = process(stack, "04-job")
                    while job.running is None:  # one batch has ended, the next will start at once
                        await asyncio.sleep(0.01)
                    killed = kill(job)
                    incident.note = f"{where}, {done:,} rows predicted"
                    await back(job, killed)
                    await _more_done(engine)
            for _ in range(proof.rounds(short=2, long=10) if is_server else 0):
                async with proof.incident("kill -9", "database") as incident:
                    done = await _in_the_middle(engine)
                    incident.started = time.monotonic()
                    incident.note = f"{where}, {done:,} rows predicted"
                    database = process(stack, "04-database")
                    await back(database, kill(database))
                    await proof.all_well(since=time.monotonic())
                    await _more_done(engine)
        await _account(proof, engine, rows.ids)
    engine.dispose()


def _count_updates(engine: Engine) -> None:
    """Every UPDATE of a row that is committed leaves the row's id in the table `updates`."""
    body = "INSERT INTO updates VALUES (NEW.id)"
    if engine.dialect.name == "sqlite":
        body = f"BEGIN {body}; END"
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE updates (item_id INTEGER)"))
        connection.execute(text(f"CREATE TRIGGER count_updates AFTER UPDATE ON items FOR EACH ROW {body}"))


async def _scalar(engine: Engine, query: str) -> int:
    """A number out of the database; -1 while it is away."""

    def read() -> int:
        try:
            with engine.connect() as connection:
                return int(connection.scalar(text(query)) or 0)
        except DBAPIError:
            return -1

    return await asyncio.to_thread(read)


async def _predicted(engine: Engine) -> int:
    return await _scalar(engine, "SELECT COUNT(*) FROM items WHERE is_predicted = 1 AND is_failed = 0")


async def _more_done(engine: Engine) -> int:
    """Returns when more rows are predicted than now."""
    before = await _predicted(engine)
    while (now := await _predicted(engine)) <= max(before, 0):
        await asyncio.sleep(0.02)
    return now


async def _in_the_middle(engine: Engine) -> int:
    """Returns at a random moment of a batch."""
    await _more_done(engine)
    await asyncio.sleep(random.uniform(0, 0.2))
    return await _predicted(engine)


async def _account(proof: Proof, engine: Engine, ids: set[int]) -> None:
    """What has become of the rows, once none is waiting, or when that has taken too long."""
    deadline = time.monotonic() + ALL_DONE_WITHIN_S
    waiting = "SELECT COUNT(*) FROM items WHERE is_predicted = 0"
    while (left := await _scalar(engine, waiting)) and time.monotonic() < deadline:
        await asyncio.sleep(0.1)

    def read() -> tuple[set[int], Counter[int]]:
        with engine.connect() as connection:
            items = connection.scalars(text("SELECT id FROM items"))
            return set(items), Counter(connection.scalars(text("SELECT item_id FROM updates")))

    found, updates = await asyncio.to_thread(read)
    proof.stuck += left
    proof.lost += len(ids - found)
    proof.twice = (proof.twice or 0) + updates.total() - len(updates)
    if len(updates) != len(found) - left:
        proof.error = f"{len(found) - left} rows are predicted, but the trigger has seen {len(updates)}"
    cut_off = await _scalar(engine, "SELECT COUNT(*) FROM batch_runs WHERE ended_datetime IS NULL")
    proof.remarks.append(
        f"{engine.dialect.name}: {updates.total():,} updates of {len(found):,} rows, "
        f"{cut_off} batches cut off in the middle."
    )
