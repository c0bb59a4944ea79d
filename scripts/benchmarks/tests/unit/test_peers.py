"""The part of `make bench-peers` that does not measure: pins, tables, and when to leave."""

import asyncio
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.benchmarks.peers import __main__ as program
from scripts.benchmarks.peers import asynchronous, batch
from scripts.benchmarks.peers.peer import Peer, PeerRun, kill_tree, process_tree
from scripts.benchmarks.report import markdown
from scripts.devstack.machine import resident_mb
from scripts.devstack.patterns import PATTERNS
from scripts.devstack.runs import Profile
from serving_testing.processes import wait_until

FOLDER = Path(program.__file__).parent
SCRIPTS = sorted([*FOLDER.glob("engines/*.py"), *FOLDER.glob("queues/*.py")])
PEERS = [path for path in SCRIPTS if path.name.startswith("with_")]
PIN = re.compile(r"[\w-]+(\[\w+\])?==\d[\w.]*")


@pytest.fixture
def anyio_backend():
    return "asyncio"


def run_of(number, *sizes):
    return PeerRun(pattern=PATTERNS[number], sizes=list(sizes))


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_script_compiles(path):
    compile(path.read_text(), path, "exec")


@pytest.mark.parametrize("path", [*PEERS, FOLDER / "engines/rows.py"], ids=lambda path: path.stem)
def test_packages_are_pinned(path):
    assert [pin for pin in Peer.read(path).pins if not PIN.fullmatch(pin) and pin != "tfserving-protos"] == []


@pytest.mark.parametrize("path", PEERS, ids=lambda path: path.stem)
def test_peer_says_what_was_set_and_where_it_is_documented(path):
    peer = Peer.read(path)
    assert peer.name in peer.line
    assert peer.settings in peer.line
    assert "\n" not in peer.line
    assert peer.docs.startswith("https://")


@pytest.mark.parametrize("path", [*FOLDER.glob("queues/with_*.py")], ids=lambda path: path.stem)
def test_queue_has_a_worker_and_a_time_within_which_jobs_come_back(path):
    peer = Peer.read(path)
    assert peer.worker
    assert 0 < peer.redelivery_s < asynchronous.GIVE_UP_AFTER_S


def test_script_without_packages_is_rejected(tmp_path):
    script = tmp_path / "with_nothing.py"
    script.write_text('"""Nothing."""\n')
    with pytest.raises(ValueError, match="does not begin"):
        Peer.read(script)


async def test_peer_that_cannot_be_installed_is_a_line_and_no_failure(tmp_path):
    script = tmp_path / "with_gone.py"
    script.write_text(
        '# /// script\n# dependencies = []\n# [tool.peer]\n# name = "Gone"\n# program = "no-such"\n# ///\n'
    )
    run, peer = run_of("04", 10), Peer.read(script)
    await run.attempt("Batch", peer.name, 10, lambda: peer.install(run))
    assert "| Gone | not installed: there is no no-such on this machine |" in markdown(run.measurements)
    assert run.error == ""
    assert batch.verdict(run) == []


async def test_peer_that_fails_is_a_line_and_a_failure():
    async def fail():
        raise ValueError("wrong | answer\nof the model")

    run = run_of("04", 10)
    await run.attempt("Batch", "Odd", 10, fail)
    assert "| Odd | FAILED: ValueError: wrong / answer of the model |" in markdown(run.measurements)
    assert run.error == "Odd failed in Batch"


def batch_run(*figures):
    run = run_of("04")
    for what, rows, start_s, rate in figures:
        whole = start_s + rows / rate
        values = {batch.START: start_s, batch.RATE: rate, batch.WHOLE: whole, batch.MEMORY: 100.0}
        run.add_at(f"Batch: {rows:,} rows", what, rows, {measure: (value, "") for measure, value in values.items()})
    return run


def test_engine_is_faster_from_a_size_on():
    small = [(batch.OURS, 1000, 1, 1000), ("Fast", 1000, 11, 2000), ("Slow", 1000, 5, 500)]
    large = [(batch.OURS, 100_000, 1, 1000), ("Fast", 100_000, 11, 2000), ("Slow", 100_000, 5, 500)]
    fast, slow = batch.verdict(batch_run(*small, *large))
    assert fast.startswith(
        "- Fast is faster than the job from 100,000 rows on (100,000 rows: 61 s and 100 MB, the job 101 s"
    )
    assert fast.endswith("from about 20,000 rows on.")
    assert slow.startswith("- Slow is slower than the job at every measured size (100,000 rows: 205 s")


@pytest.mark.parametrize(
    ("start_s", "rate", "rows"), [(11, 2000, 20_000), (11, 500, None), (0.5, 2000, None), (11, 1000, None)]
)
def test_break_even_needs_a_later_start_and_a_higher_rate(start_s, rate, rows):
    ours, theirs = {batch.START: 1, batch.RATE: 1000}, {batch.START: start_s, batch.RATE: rate}
    even = batch.break_even(ours, theirs)
    assert even == (rows and pytest.approx(rows))


def queue_run(**queues):
    run = run_of("03", 100)
    for what, (rate, lost, twice, last_s) in queues.items():
        figures = {asynchronous.RATE: rate, asynchronous.LOST: lost, asynchronous.TWICE: twice}
        figures[asynchronous.LAST] = last_s
        run.add_at("Queues", what, 100, {measure: (value, "") for measure, value in figures.items()})
    return run


def test_losses_and_speed_of_queues_are_said():
    found = asynchronous.verdict(
        queue_run(**{"03": (1000, 0, 0, 11), "quick": (3000, 0, 0, 10), "lossy": (5000, 7, 2, 9.5)})
    )
    assert found == [
        "- Lost by the kill: lossy 7.",
        "- Done twice after the kill: lossy 2.",
        "- From the kill to the last job: 03 11 s, quick 10 s, lossy 9.5 s.",
        "- Faster than 03 (1,000 jobs/s) and without a loss: quick 3 x.",
    ]


def test_no_queue_is_a_reason_to_leave():
    found = asynchronous.verdict(queue_run(**{"03": (1000, 0, 0, 11), "slow": (500, 0, 0, 10)}))
    assert found[0] == "- No queue lost a job by the kill."
    assert (
        found[-1]
        == "- None is faster than 03 (1,000 jobs/s) and without a loss; slow, the fastest, does 0.5 x its jobs/s."
    )


def test_a_queue_alone_has_no_verdict_on_its_rate():
    assert len(asynchronous.verdict(queue_run(**{"03": (1000, 0, 0, 11)}))) == 2


class Counted(asynchronous.Theirs):
    """A queue that does a job each time it is looked at, and loses some."""

    def __init__(self, jobs):
        self.jobs, self.looks = jobs, 0

    async def done(self):
        self.looks += 1
        return min(self.looks - 1, self.jobs)


async def test_worker_is_killed_when_half_of_the_jobs_are_done():
    kills = []
    progress = await asynchronous.follow(Counted(10), 10, lambda: kills.append(1), 0.1)
    assert (len(kills), progress.done_at_kill, progress.done) == (1, 5, 10)
    assert progress.rate > 0


async def test_jobs_that_never_end_are_given_up(monkeypatch):
    monkeypatch.setattr(asynchronous, "GIVE_UP_AFTER_S", 0.1)
    progress = await asynchronous.follow(Counted(8), 10, lambda: None, None)
    assert (progress.done, progress.killed_at) == (8, 0)


def test_children_in_other_groups_are_killed():
    starter = "import subprocess as s; s.Popen(['sleep', '60'], start_new_session=True); print(1, flush=True); input()"
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", starter], stdin=pipe, stdout=pipe, start_new_session=True) as parent:
        assert parent.stdout
        parent.stdout.readline()
        [_, child] = process_tree(parent.pid)
        kill_tree(parent.pid)
    assert parent.returncode == -9
    wait_until(lambda: resident_mb(child) is None)  # gone, or a zombie


def test_report_has_everything(tmp_path):
    run = batch_run((batch.OURS, 1000, 1, 1000))
    run.versions["Dask"] = {"dask": "2026.8.0"}
    written = program.write([run], Profile.QUICK, 60, "04 --rows 1000", tmp_path)
    assert [path.name for path in written] == ["peers.md", "peers.json"]
    text = (tmp_path / "peers.md").read_text()
    assert "`python -m scripts.benchmarks.peers 04 --rows 1000`" in text
    assert batch.INTRODUCTION in text
    assert "- **Ray Data** (ray[data]==" in text
    assert "- Nothing to compare was measured." in text
    assert json.loads((tmp_path / "peers.json").read_text())["versions"] == {"Dask": {"dask": "2026.8.0"}}


def test_interrupted_run_keeps_what_was_measured(tmp_path, monkeypatch):
    async def measure(run):
        run.add_at("Batch", "ours", 10, {"rate": (5, "rows/s")})
        raise asyncio.CancelledError

    monkeypatch.setattr(batch, "measure", measure)
    assert program.main(["04", "--rows", "10", "--output", str(tmp_path)]) == 130
    assert "| ours | 5 rows/s |" in (tmp_path / "peers.md").read_text()
