"""04's job on SQLite and on MySQL or MariaDB, beside other ways to store the same predictions.

    job          the real job, as a process
    load data    the upper bound on MySQL: same reads, same model, LOAD DATA into a temporary table, UPDATE with a join
    executemany  the upper bound on SQLite, and the usual way: the driver's executemany of UPDATE
    book         a predict, an UPDATE and a commit for each row; the commit expires all rows that were loaded

They take turns, each on a freshly filled table; the ratios are what to compare.
"""

import asyncio
import json
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, closing
from dataclasses import replace
from datetime import datetime
from functools import partial
from typing import Any

import numpy as np
import orjson
from sqlalchemy import JSON, create_engine, select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from scripts.benchmarks.harness import ARTIFACTS, ROW, Benchmark, Endpoint, send_load, take_turns
from scripts.devstack.machine import resident_mb
from scripts.devstack.runs import SkippedError
from scripts.devstack.stack import DevStack
from scripts.devstack.table import HOST, mysql_process
from serving_common.onnx import OnnxModel
from serving_testing.mysql_server import mysql_binary

StoredRow = tuple[int, str]
Write = Callable[[Any, str, Sequence[StoredRow]], None]

ENDPOINTS = [Endpoint("04 registration", "PORT_04_API", "/data", lambda: {"values": ROW})]
CHUNK_ROWS = 10_000
BOOK_ROWS = 10_000
SQLITE, SERVER = "SQLite", "MySQL or MariaDB"
# The job's targets beside these ways.
TARGETS = {(SERVER, "load data"): 0.5, (SERVER, "book"): 400, (SQLITE, "executemany"): 0.5}


class BookBase(DeclarativeBase):
    pass


class BookItem(BookBase):
    __tablename__ = "items"
    id: Mapped[int] = mapped_column(primary_key=True)
    values: Mapped[Any] = mapped_column(JSON)
    prediction: Mapped[Any] = mapped_column(JSON)


async def measure(benchmark: Benchmark) -> None:
    """First on SQLite, then on a server, if one is installed."""
    for group in (SQLITE, SERVER):
        async with item_store(benchmark, group) as store:
            await measure_on(benchmark, store)


@asynccontextmanager
async def item_store(benchmark: Benchmark, group: str) -> AsyncIterator["ItemStore"]:
    """The API and an empty database of this kind. Raises SkippedError where no server is installed."""
    pattern, url = benchmark.pattern.without("job"), f"sqlite:///{benchmark.run_dir}/04/items.db"
    if group == SERVER:
        if mysql_binary() is None:
            raise SkippedError(f"{SERVER}: neither mariadbd nor mysqld is installed")
        database = mysql_process("PORT_04_DATABASE")
        pattern = pattern.with_changes("api", depends_on=("04-database",)).with_processes(database)
        url = f"mysql+pymysql://root@{HOST}:{{PORT_04_DATABASE}}/items"
    pattern = pattern.with_changes("api", env={**pattern.process("api").env, "DATABASE_URL": url})
    async with benchmark.stack(pattern) as stack:
        store = ItemStore(benchmark, stack, group, url.format_map(stack.ports))
        yield store
        store.close()


async def measure_on(benchmark: Benchmark, store: "ItemStore") -> None:
    """All ways to store predictions on one kind of database."""
    rows, book_rows, large, rounds = benchmark.choose(
        quick=(400, 20, 800, 1), short=(20_000, 500, 100_000, 3), long=(100_000, BOOK_ROWS, 1_000_000, 3)
    )
    await measure_ways(store, rows, book_rows, rounds)
    for count in (min(10_000, rows), large):
        await store.fill(count)
        rate, peak = await store.run_job()
        store.add(f"job, {count:,} rows in one run", "rate", rate, "rows/s")
        store.add(f"job, {count:,} rows in one run", "peak memory", peak, "MB", at_most=250)
    if store.group == SERVER:  # SQLite lets one write at a time
        await measure_concurrency(store, rows, rounds)
    await store.fill(0)
    body = {"items": [{"values": ROW}] * 10_000}
    post = await send_load(f"{store.api}/data/list", 1, 2.0, body)
    store.add("POST /data/list of 10,000 items", "time", post.percentile(50), "s", at_most=0.5)


async def measure_ways(store: "ItemStore", rows: int, book_rows: int, rounds: int) -> None:
    """Rows per second of each way, and the job's rate divided by it."""

    async def job() -> float:
        return (await store.run_job())[0]

    def way(count: int, function: Callable[..., float], *arguments: object) -> Callable[[], Awaitable[float]]:
        return partial(store.fill_and, count, partial(asyncio.to_thread, function, *arguments))

    ways: dict[str, Callable[[], Awaitable[float]]] = {
        "job": partial(store.fill_and, rows, job),
        "executemany": way(rows, store.predict_raw, executemany),
    }
    if store.group == SERVER:
        ways["load data"] = way(rows, store.predict_raw, load_data)
    rates = await take_turns(rounds, ways)
    # Once only: it takes minutes, and is orders of magnitude slower.
    rates |= await take_turns(1, {"book": way(book_rows, store.predict_as_the_book)})
    for name, found in rates.items():
        what = f"{name}, {book_rows if name == 'book' else rows:,} rows"
        rate = statistics.median(found)
        store.add(what, "rate", rate, "rows/s")
        # The book's way slows down as its rows grow; the target is for this many.
        target = None if name == "book" and book_rows < BOOK_ROWS else TARGETS.get((store.group, name))
        store.add(what, "the job's to it", statistics.median(rates["job"]) / rate, "x", at_least=target)


async def measure_concurrency(store: "ItemStore", rows: int, rounds: int) -> None:
    """Three jobs at once against one."""
    cases = {count: partial(store.fill_and, rows, partial(store.run_jobs_together, count)) for count in (1, 3)}
    one, three = (statistics.median(rates) for rates in (await take_turns(rounds, cases)).values())
    store.add(f"3 jobs at once, {rows:,} rows", "rate", three, "rows/s")
    store.add(f"3 jobs at once, {rows:,} rows", "to one", three / one, "x", at_least=1)


class ItemStore:
    """One database of items, and the ways to fill it with predictions."""

    def __init__(self, benchmark: Benchmark, stack: DevStack, group: str, url: str) -> None:
        self.group, self._benchmark, self.stack, self._url = group, benchmark, stack, url
        self.api = stack.urls["PORT_04_API"]
        self._mark, options = ("?", {}) if group == SQLITE else ("%s", {"local_infile": True})
        self._engine = create_engine(url, connect_args=options)
        self.close = self._engine.dispose
        self._model = OnnxModel.load(ARTIFACTS / "iris_svc.onnx", input_shape=(None, 4), output_shape=(None, 3))

    def add(self, what: str, measure: str, value: float, unit: str, **target: float | None) -> None:
        """Keep a measurement of this database."""
        self._benchmark.add(self.group, what, measure, value, unit, **target)

    async def fill(self, count: int) -> None:
        """Exactly this many rows, all of them waiting."""
        await asyncio.to_thread(self._fill, count)

    async def fill_and(self, count: int, run: Callable[[], Awaitable[float]]) -> float:
        """The result of `run` on this many waiting rows."""
        await self.fill(count)
        return await run()

    def _fill(self, count: int) -> None:
        rows = np.random.default_rng(0).uniform(0.1, 8, (min(count, CHUNK_ROWS), 4)).round(1).tolist()
        with closing(self._engine.raw_connection()) as connection:
            cursor = connection.cursor()
            cursor.execute("DELETE FROM items" if self.group == SQLITE else "TRUNCATE items")
            texts = [(orjson.dumps(row).decode(),) for row in rows]
            cursor.executemany(f"INSERT INTO items (`values`) VALUES ({self._mark})", texts)  # noqa: S608 - no input
            stored = len(texts)
            while stored < count:
                more = min(stored, count - stored)
                cursor.execute(f"INSERT INTO items (`values`) SELECT `values` FROM items LIMIT {more}")  # noqa: S608
                stored += more
            connection.commit()

    async def run_job(self) -> tuple[float, float]:
        """Rows per second, by the job's own log, and its peak memory in MB."""
        [(log, peak)] = await self._run_jobs(1)
        return log[-1]["items"] / (log[-1]["duration_ms"] / 1000), peak

    async def run_jobs_together(self, count: int) -> float:
        """Rows per second of this many jobs at once, from the first job's first row to the last job's last."""
        logs = [log for log, _ in await self._run_jobs(count)]
        starts = [_time(line) for log in logs for line in log if line["action"] == "starting batch"]
        ends = [_time(log[-1]) for log in logs]
        return sum(int(log[-1]["items"]) for log in logs) / (max(ends) - min(starts))

    async def _run_jobs(self, count: int) -> list[tuple[list[dict[str, Any]], float]]:
        """The log lines of each job, and its peak memory. Raises RuntimeError if one fails."""
        job = self._benchmark.pattern.process("job")
        env = {**job.env, "DATABASE_URL": self._url, "LOG_FORMAT": "json"}
        job = replace(job, argv=(*job.argv, "--once", "--no-wait"), env=env, restart=False)
        started = [await self.stack.start("04", replace(job, name=f"job_{number}")) for number in range(count)]
        peaks = await asyncio.gather(*(_peak_memory_mb(each.pid) for each in started))
        found = []
        for process, peak in zip(started, peaks, strict=True):
            exit_code = await self.stack.wait(process)
            await self.stack.stop(process)
            lines = [json.loads(line) for line in process.log.read_text().splitlines()]
            if exit_code:
                raise RuntimeError(f"the job failed: {lines[-1]}")
            found.append((lines, peak))
        return found

    def predict_raw(self, write: Write) -> float:
        """Rows per second of reading and predicting as fast as it goes, and this way to write."""
        started, count, last_id = time.perf_counter(), 0, 0
        with closing(self._engine.raw_connection()) as connection:
            cursor = connection.cursor()
            if self.group == SERVER:
                cursor.execute(
                    "CREATE TEMPORARY TABLE IF NOT EXISTS new_predictions (id INT PRIMARY KEY, prediction TEXT)"
                )
            lock = "FOR UPDATE SKIP LOCKED" if self.group == SERVER else ""
            while True:
                cursor.execute(
                    "SELECT id, `values` FROM items WHERE is_predicted = 0 AND is_failed = 0 "  # noqa: S608 - no input
                    f"AND id > {self._mark} ORDER BY id LIMIT {CHUNK_ROWS} {lock}",
                    (last_id,),
                )
                rows = cursor.fetchall()
                if not rows:
                    return count / (time.perf_counter() - started)
                values = orjson.loads(f"[{','.join(values for _, values in rows)}]")
                scores = self._model.run(np.array(values, np.float32)).astype(float).round(8).tolist()
                texts = [orjson.dumps(dict(zip("012", score, strict=True))).decode() for score in scores]
                write(cursor, self._mark, [(row[0], text) for row, text in zip(rows, texts, strict=True)])
                connection.commit()
                count, last_id = count + len(rows), rows[-1][0]

    def predict_as_the_book(self) -> float:
        """Rows per second of the book's way."""
        started = time.perf_counter()
        with Session(self._engine) as session:
            items = session.scalars(select(BookItem).where(BookItem.prediction.is_(None))).all()
            for item in items:
                [score] = self._model.run(np.array([item.values], np.float32)).tolist()
                item.prediction = dict(zip("012", score, strict=True))
                session.commit()
        return len(items) / (time.perf_counter() - started)


def _time(line: dict[str, Any]) -> float:
    return datetime.fromisoformat(line["timestamp"]).timestamp()


async def _peak_memory_mb(pid: int) -> float:
    """Peak of a process's resident memory, once it has ended. (wait4 counts memory of the process that forked.)"""
    peak = 0.0
    while (found := resident_mb(pid, "VmHWM")) is not None:
        peak = max(peak, found)
        await asyncio.sleep(0.01)
    return peak


def load_data(cursor: Any, _mark: str, rows: Sequence[StoredRow]) -> None:
    """LOAD DATA into a temporary table, and an UPDATE with a join."""
    with tempfile.NamedTemporaryFile("w", suffix=".tsv") as file:
        file.write("".join(f"{item_id}\t{text}\n" for item_id, text in rows))
        file.flush()
        cursor.execute(f"LOAD DATA LOCAL INFILE '{file.name}' INTO TABLE new_predictions FIELDS ESCAPED BY ''")
    cursor.execute("UPDATE items JOIN new_predictions AS new USING (id) SET items.prediction = new.prediction")
    cursor.execute("DELETE FROM new_predictions")


def executemany(cursor: Any, mark: str, rows: Sequence[StoredRow]) -> None:
    """The driver's executemany of UPDATE."""
    statement = f"UPDATE items SET prediction = {mark} WHERE id = {mark}"  # noqa: S608 - no input
    cursor.executemany(statement, [(text, item_id) for item_id, text in rows])
