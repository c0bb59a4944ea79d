"""04: jobs are killed in the middle of a batch and, where MySQL or MariaDB is installed, so is the database.

On SQLite one job works; on the server, which fails over as well if it is MariaDB, two share the rows. Clients register
rows all the time, and only while the database is down may they see 503. At the end each row must be predicted by one
UPDATE: a trigger has counted them.
"""

import asyncio
import random
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace

import httpx
from sqlalchemy import Engine, create_engine, text
from sqlalchemy.exc import DBAPIError

from scripts.chaos.failover import Pair, attach_mariadb, mariadb_pair, promote_mariadb
from scripts.chaos.harness import ChaosRun, Violation
from scripts.devstack.faults import kill_and_wait
from scripts.devstack.stack import DevStack, free_ports
from scripts.devstack.steps import FLOWERS
from scripts.devstack.table import HOST, Pattern, mysql_process
from serving_testing.mysql_server import is_mariadb, mysql_binary

CLIENTS = 2
ROWS_AT_ONCE = 100
ROWS_AT_FIRST = 10_000  # of each list that is registered before the faults begin
CHUNK_ROWS = 200
PACE_S = 0.1
ALL_DONE_WITHIN_S = 90
ROW = {"values": FLOWERS["setosa"]}
READ_ONLY = "The database server is read-only"


@dataclass
class RowClients:
    """The clients, and the ids of the rows whose registration was confirmed."""

    run: ChaosRun
    client: httpx.AsyncClient
    ids: set[int]

    async def send(self, _number: int) -> tuple[str, Violation | None]:
        """Register some rows."""
        await asyncio.sleep(PACE_S)
        return "POST /data/list", await self.post_rows(ROWS_AT_ONCE)

    async def post_rows(self, count: int) -> Violation | None:
        """Register this many rows."""
        response = await self.run.request(self.client, "POST", "/data/list", json={"items": [ROW] * count})
        if isinstance(response, Violation):
            return response
        if response.status_code != 200:
            return Violation(f"status {response.status_code}: {response.text[:200]}", _blame(response))
        self.ids.update(item["id"] for item in response.json())
        self.run.accepted += count
        return None


def _blame(response: httpx.Response) -> str:
    if response.status_code == 503 and "Retry-After" in response.headers:
        return "database"
    # The old primary is read-only for a moment, and no answer can know for how long.
    return "failover" if response.status_code == 503 and READ_ONLY in response.text else ""


async def inject(run: ChaosRun) -> None:
    """First on SQLite, then on a server, if one is installed."""
    run.unit, run.failure = "rows", "anything but 200, or 503 while the database is down, or read-only for a failover"
    run.twice = 0
    pattern = run.pattern
    await inject_on(run, pattern, free_ports(["04"]), "SQLite", f"sqlite:///{run.run_dir}/04/items.db")
    if (binary := mysql_binary()) is None:
        run.skip("MySQL or MariaDB: neither mariadbd nor mysqld is installed")
        return
    second = replace(pattern.process("job"), name="job_2")
    pattern = pattern.with_changes("api", depends_on=("04-database",)).with_processes(second)
    if not is_mariadb(binary):
        run.skip("failover: the database is MySQL, not MariaDB")
        pattern = pattern.with_processes(mysql_process("PORT_04_DATABASE"))
        url = f"mysql+pymysql://app@{HOST}:{{PORT_04_DATABASE}}/items"
        await inject_on(run, pattern, free_ports(["04"], {"04": pattern}), "server", url)
        return
    async with mariadb_pair(pattern) as (pair, pattern, ports):
        url = f"mysql+pymysql://app@{HOST}:{pair.address.port}/items"
        await inject_on(run, pattern, ports, "server", url, pair)


async def inject_on(
    run: ChaosRun, pattern: Pattern, ports: Mapping[str, int], where: str, url: str, pair: Pair | None = None
) -> None:
    """Kill jobs and, on a server, the database; where it is one of a pair, it also fails over."""
    url = url.format_map(ports)
    settings = {
        "DATABASE_URL": url,
        "DATABASE_TIMEOUT_S": "10",
        "DATABASE_WAIT_S": "30",
        "JOB_WAIT_SECONDS": "0",
        "BATCH_CHUNK_SIZE": str(CHUNK_ROWS),
    }
    engine = create_engine(url, pool_pre_ping=True)
    async with (
        run.stack(pattern, ports, settings) as stack,
        httpx.AsyncClient(base_url=stack.urls["PORT_04_API"], timeout=60, trust_env=False) as client,
    ):
        if pair:
            await attach_mariadb(pair.primary, pair.replica)
        await asyncio.to_thread(_count_updates, engine)
        rows = RowClients(run, client, set())
        for _ in range(run.choose(quick=1, short=3, long=30)):
            if violation := await rows.post_rows(ROWS_AT_FIRST):
                run.fail(violation.text)
        async with run.clients(CLIENTS, rows.send):
            for _ in range(run.choose(quick=1, short=3, long=20)):
                await kill_in_batch(run, stack, engine, where, "job")
            for _ in range(run.choose(quick=1, short=2, long=10) if where == "server" else 0):
                await kill_in_batch(run, stack, engine, where, "database")

            async def works() -> None:
                engine.dispose()  # its connections lead to the old primary
                await _more_predicted(engine)

            for each in [pair] * run.choose(quick=1, short=2, long=10) if pair else []:
                await each.fail_over(run, "database", promote_mariadb, works)
            engine.dispose()
        await account(run, engine, rows.ids)
    engine.dispose()


async def kill_in_batch(run: ChaosRun, stack: DevStack, engine: Engine, where: str, name: str) -> None:
    """SIGKILL in the middle of a batch; as before once it is back and more rows are predicted."""
    is_outage = name == "database"
    async with run.incident("kill -9", name, is_outage=is_outage) as incident:
        incident.note = f"{where}, {await _mid_batch(engine):,} rows predicted"
        incident.started = time.monotonic()
        victim = stack.process(f"04-{name}")
        while victim.running is None:  # one batch has ended, the next will start at once
            await asyncio.sleep(0.01)
        await kill_and_wait(stack, victim)
        if is_outage:
            await run.recovered(since=time.monotonic())
        await _more_predicted(engine)


def _count_updates(engine: Engine) -> None:
    """Every committed UPDATE of a row leaves the row's id in the table `updates`."""
    body = "INSERT INTO updates VALUES (NEW.id)"
    if engine.dialect.name == "sqlite":
        body = f"BEGIN {body}; END"
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE updates (item_id INTEGER)"))
        connection.execute(text(f"CREATE TRIGGER count_updates AFTER UPDATE ON items FOR EACH ROW {body}"))


async def _scalar(engine: Engine, query: str) -> int:
    """A number from the database; -1 while it is down."""

    def read() -> int:
        try:
            with engine.connect() as connection:
                return int(connection.scalar(text(query)) or 0)
        except DBAPIError:
            return -1

    return await asyncio.to_thread(read)


async def _predicted(engine: Engine) -> int:
    return await _scalar(engine, "SELECT COUNT(*) FROM items WHERE is_predicted = 1 AND is_failed = 0")


async def _more_predicted(engine: Engine) -> None:
    """Return when more rows are predicted than now."""
    before = await _predicted(engine)
    while await _predicted(engine) <= max(before, 0):
        await asyncio.sleep(0.02)


async def _mid_batch(engine: Engine) -> int:
    """Return at a random moment of a batch, with the number of predicted rows."""
    await _more_predicted(engine)
    await asyncio.sleep(random.uniform(0, 0.2))
    return await _predicted(engine)


async def account(run: ChaosRun, engine: Engine, ids: set[int]) -> None:
    """Count what became of the rows, once none is waiting, or at the deadline."""
    deadline = time.monotonic() + ALL_DONE_WITHIN_S
    waiting = "SELECT COUNT(*) FROM items WHERE is_predicted = 0"
    while (left := await _scalar(engine, waiting)) and time.monotonic() < deadline:
        await asyncio.sleep(0.1)

    def read() -> tuple[set[int], Counter[int]]:
        with engine.connect() as connection:
            items = connection.scalars(text("SELECT id FROM items"))
            return set(items), Counter(connection.scalars(text("SELECT item_id FROM updates")))

    found, updates = await asyncio.to_thread(read)
    run.stuck += left
    run.lost += len(ids - found)
    run.twice = (run.twice or 0) + updates.total() - len(updates)
    if len(updates) != len(found) - left:
        run.error = f"{len(found) - left} rows are predicted, but the trigger has seen {len(updates)}"
    cut_off = await _scalar(engine, "SELECT COUNT(*) FROM batch_runs WHERE ended_datetime IS NULL")
    run.remarks.append(
        f"{engine.dialect.name}: {updates.total():,} updates of {len(found):,} rows, "
        f"{cut_off} batches cut off in the middle."
    )
