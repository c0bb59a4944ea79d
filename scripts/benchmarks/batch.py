"""Pattern 04 beside its ceiling and the book's way, in one run: `python -m scripts.benchmarks.batch`.

    job          the real job, as a process
    load data    the ceiling on MySQL: same reading, same model, LOAD DATA into a temporary table, UPDATE with a join
    executemany  the ceiling on SQLite, and the usual way: the driver's executemany of UPDATE
    book         a predict, an UPDATE and a commit for each row, the commit expiring all rows that were loaded

The ways take turns, each on a freshly filled table. The machine drifts; the ratios are what to read. Needs
models/artifacts/iris_svc.onnx and mariadbd or mysqld, or --url with a database of its own whose user may do anything.
"""

import argparse
import json
import os
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import orjson
import pymysql
from sqlalchemy import JSON, URL, create_engine, make_url, select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from scripts.benchmarks.figures import Figure, add_output, report
from serving_common.onnx import OnnxModel
from serving_testing.mysql_server import MySqlServer, mysql_binary
from serving_testing.processes import free_port, running

ROOT = Path(__file__).parents[2]
PATTERN = ROOT / "04_batch_pattern"
ARTIFACTS = ROOT / "models/artifacts"
CHUNK_ROWS = 10_000
BOOK_ROWS = 10_000
# What the job promises to be beside these ways, on SQLite or not.
TARGETS = {(False, "load data"): 0.5, (False, "book"): 400, (True, "executemany"): 0.5}

Row = tuple[int, str]
Write = Callable[[Any, Sequence[Row]], None]


class Base(DeclarativeBase):
    pass


class BookItem(Base):
    __tablename__ = "items"
    id: Mapped[int] = mapped_column(primary_key=True)
    values: Mapped[Any] = mapped_column(JSON)
    prediction: Mapped[Any] = mapped_column(JSON)


@dataclass(frozen=True)
class Job:
    """A job as a process, and where its log goes."""

    process: subprocess.Popen[bytes]
    _log: BinaryIO

    def log(self) -> list[dict[str, Any]]:
        """The lines of its log, once it has ended. Raises RuntimeError if it failed."""
        self._log.seek(0)
        lines = [json.loads(line) for line in self._log.read().splitlines()]
        if self.process.returncode:
            raise RuntimeError(f"the job failed: {lines[-1]}")
        return lines


def _time(line: dict[str, Any]) -> float:
    return datetime.fromisoformat(line["timestamp"]).timestamp()


class Bench:
    """One database, and the ways to fill it with predictions."""

    def __init__(self, url: URL) -> None:
        self.url = url
        self.is_sqlite = url.get_backend_name() == "sqlite"
        self.model = OnnxModel.load(ARTIFACTS / "iris_svc.onnx", input_shape=(None, 4), output_shape=(None, 3))
        self.environment = {
            "DATABASE_URL": url.render_as_string(hide_password=False),
            "MODEL_FILEPATH": str(ARTIFACTS / "iris_svc.onnx"),
            "LABEL_FILEPATH": str(ARTIFACTS / "label.json"),
            "LOG_FORMAT": "json",
        }
        self.job()  # makes the tables

    def connect(self) -> Any:
        if self.is_sqlite:
            return closing(sqlite3.connect(str(self.url.database)))
        return pymysql.connect(
            host=self.url.host or "localhost",
            port=self.url.port or 3306,
            user=self.url.username,
            password=self.url.password or "",
            database=self.url.database,
            local_infile=True,
        )

    def fill(self, count: int) -> None:
        """Exactly so many rows, all of them waiting."""
        mark = "?" if self.is_sqlite else "%s"
        rows = np.random.default_rng(0).uniform(0.1, 8, (count, 4)).round(1).tolist()
        with self.connect() as connection:
            cursor = connection.cursor()
            cursor.execute("DELETE FROM items" if self.is_sqlite else "TRUNCATE items")
            for start in range(0, count, CHUNK_ROWS):
                page = [(orjson.dumps(row).decode(),) for row in rows[start : start + CHUNK_ROWS]]
                cursor.executemany(f"INSERT INTO items (`values`) VALUES ({mark})", page)  # noqa: S608 - no input
                connection.commit()

    def job(self) -> tuple[float, float]:
        """Rows per second that the job's log tells of, and the peak of its memory in MB."""
        with self._start_job() as job:
            peak = 0.0
            while job.process.poll() is None:
                peak = max(peak, peak_rss_mb(job.process.pid))
                time.sleep(0.01)
            last = job.log()[-1]
        return last["items"] / (last["duration_ms"] / 1000), peak

    def jobs_together(self, count: int) -> float:
        """Rows per second of so many jobs at once, from the first one's first row to the last one's last."""
        with ExitStack() as stack:
            jobs = [stack.enter_context(self._start_job()) for _ in range(count)]
            for job in jobs:
                job.process.wait()
            logs = [job.log() for job in jobs]
        starts = [_time(line) for log in logs for line in log if line["action"] == "starting batch"]
        ends = [_time(log[-1]) for log in logs]
        return sum(int(log[-1]["items"]) for log in logs) / (max(ends) - min(starts))

    @contextmanager
    def _start_job(self) -> Iterator[Job]:
        with tempfile.TemporaryFile() as log:
            command = [sys.executable, "-m", "src.task.job", "--once", "--no-wait"]
            process = subprocess.Popen(command, cwd=PATTERN, env=os.environ | self.environment, stdout=log)
            yield Job(process, log)

    def raw(self, write: Write) -> float:
        """Rows per second of reading and predicting as fast as it goes, and this way to write."""
        started, count, last_id = time.perf_counter(), 0, 0
        with self.connect() as connection:
            cursor = connection.cursor()
            if not self.is_sqlite:
                cursor.execute("CREATE TEMPORARY TABLE new_predictions (id INT PRIMARY KEY, prediction TEXT)")
            while True:
                mark, lock = ("?", "") if self.is_sqlite else ("%s", "FOR UPDATE SKIP LOCKED")
                cursor.execute(
                    "SELECT id, `values` FROM items WHERE is_predicted = 0 AND is_failed = 0 "  # noqa: S608 - no input
                    f"AND id > {mark} ORDER BY id LIMIT {CHUNK_ROWS} {lock}",
                    (last_id,),
                )
                rows = cursor.fetchall()
                if not rows:
                    return count / (time.perf_counter() - started)
                values = orjson.loads(f"[{','.join(values for _, values in rows)}]")
                scores = self.model.run(np.array(values, np.float32)).astype(float).round(8).tolist()
                texts = [orjson.dumps(dict(zip("012", score, strict=True))).decode() for score in scores]
                write(cursor, [(row[0], text) for row, text in zip(rows, texts, strict=True)])
                connection.commit()
                count, last_id = count + len(rows), rows[-1][0]

    def book(self) -> float:
        """Rows per second of the book's way."""
        engine = create_engine(self.url)
        started = time.perf_counter()
        with Session(engine) as session:
            items = session.scalars(select(BookItem).where(BookItem.prediction.is_(None))).all()
            for item in items:
                [score] = self.model.run(np.array([item.values], np.float32)).tolist()
                item.prediction = dict(zip("012", score, strict=True))
                session.commit()
        engine.dispose()
        return len(items) / (time.perf_counter() - started)

    def post_list(self, folder: Path) -> float:
        """Seconds for POST /data/list of 10,000 items: the median of seven."""
        port = free_port()
        url = f"http://127.0.0.1:{port}"
        body = orjson.dumps({"items": [{"values": [5.1, 3.5, 1.4, 0.2]}] * 10_000})
        request = urllib.request.Request(f"{url}/data/list", body, {"Content-Type": "application/json"})  # noqa: S310
        environment = self.environment | {"PORT": str(port)}
        with running("src.api.app", cwd=PATTERN, env=environment, log=folder / "api.log", ready=f"{url}/health"):
            seconds = []
            for _ in range(7):
                started = time.perf_counter()
                with urllib.request.urlopen(request) as response:  # noqa: S310 - our own URL
                    response.read()
                seconds.append(time.perf_counter() - started)
        return statistics.median(seconds)


def peak_rss_mb(pid: int) -> float:
    """Of a running process, so far. (What wait4 tells includes the memory of the process that started it.)"""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    return next((int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith("VmHWM")), 0)


def load_data(cursor: Any, rows: Sequence[Row]) -> None:
    with tempfile.NamedTemporaryFile("w", suffix=".tsv") as file:
        file.write("".join(f"{item_id}\t{text}\n" for item_id, text in rows))
        file.flush()
        cursor.execute(f"LOAD DATA LOCAL INFILE '{file.name}' INTO TABLE new_predictions FIELDS ESCAPED BY ''")
    cursor.execute("UPDATE items JOIN new_predictions AS new USING (id) SET items.prediction = new.prediction")
    cursor.execute("DELETE FROM new_predictions")


def executemany(cursor: Any, rows: Sequence[Row]) -> None:
    mark = "?" if isinstance(cursor, sqlite3.Cursor) else "%s"
    statement = f"UPDATE items SET prediction = {mark} WHERE id = {mark}"  # noqa: S608 - no input
    cursor.executemany(statement, [(text, item_id) for item_id, text in rows])


def measure(bench: Bench, rows: int, book_rows: int, rounds: int, large: int, folder: Path) -> Iterator[Figure]:
    ways: dict[str, tuple[int, Callable[[], float]]] = {
        "job": (rows, lambda: bench.job()[0]),
        "executemany": (rows, lambda: bench.raw(executemany)),
        "book": (book_rows, bench.book),
    }
    if not bench.is_sqlite:
        ways["load data"] = (rows, lambda: bench.raw(load_data))
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds):
        for name, (count, run) in ways.items():
            if name == "book" and number:
                continue  # minutes each, and orders of magnitude away
            bench.fill(count)
            rates[name].append(run())
    job = statistics.median(rates["job"])
    group = bench.url.get_backend_name().replace("mysql", "MySQL or MariaDB").replace("sqlite", "SQLite")
    for name, (count, _) in ways.items():
        rate = statistics.median(rates[name])
        what = f"{name}, {count:,} rows"
        yield Figure(group=group, what=what, measure="rate", value=rate, unit="rows/s")
        # The book's way slows down as its rows grow; the bound is for so many.
        bound = None if name == "book" and count < BOOK_ROWS else TARGETS.get((bench.is_sqlite, name))
        yield Figure(group=group, what=what, measure="the job's to it", value=job / rate, unit="x", at_least=bound)
    for count in (10_000, large):
        bench.fill(count)
        rate, peak = bench.job()
        what = f"job, {count:,} rows in one run"
        yield Figure(group=group, what=what, measure="rate", value=rate, unit="rows/s")
        yield Figure(group=group, what=what, measure="peak memory", value=peak, unit="MB", at_most=250)
    if not bench.is_sqlite:  # which lets one write at a time
        together: dict[int, list[float]] = {1: [], 3: []}
        for _ in range(rounds):
            for count, each in together.items():
                bench.fill(rows)
                each.append(bench.jobs_together(count))
        one, three = (statistics.median(each) for each in together.values())
        what = f"3 jobs at once, {rows:,} rows"
        yield Figure(group=group, what=what, measure="rate", value=three, unit="rows/s")
        yield Figure(group=group, what=what, measure="to one", value=three / one, unit="x", at_least=1)
    bench.fill(0)
    seconds = bench.post_list(folder)
    yield Figure(
        group=group, what="POST /data/list of 10,000 items", measure="time", value=seconds, unit="s", at_most=0.5
    )


@contextmanager
def private_server(folder: Path) -> Iterator[URL]:
    """An empty database on a mariadbd or mysqld of our own."""
    binary = mysql_binary()
    if binary is None:
        raise SystemExit("neither mariadbd nor mysqld is installed: give --url")
    server = MySqlServer(binary, folder)
    server.install()
    server.start()
    try:
        with pymysql.connect(host="127.0.0.1", port=server.port, user="root") as connection:
            connection.cursor().execute("CREATE DATABASE bench")
        yield URL.create("mysql+pymysql", "root", "", "127.0.0.1", server.port, "bench")
    finally:
        server.stop()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", type=make_url, help="an empty database instead of a private server and SQLite")
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--book-rows", type=int, default=BOOK_ROWS, help="the book's way slows down as this grows")
    parser.add_argument("--large", type=int, default=1_000_000, help="rows for the second look at the job's memory")
    parser.add_argument("--rounds", type=int, default=3)
    add_output(parser)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)

        def run(url: URL) -> list[Figure]:
            return [*measure(Bench(url), options.rows, options.book_rows, options.rounds, options.large, folder)]

        if options.url is not None:
            figures = run(options.url)
        else:
            figures = run(make_url(f"sqlite:///{folder}/items.db"))
            with private_server(folder) as url:
                figures += run(url)
    report(figures, options.json)


if __name__ == "__main__":
    main()
