"""The stack inside a program, and the table of patterns."""

import asyncio
import signal
from dataclasses import replace

import httpx
import pytest

from scripts.devstack import stack as stack_module
from scripts.devstack.stack import DevStack, StackError, free_ports, private_stack
from scripts.devstack.table import ROOT, Pattern, ProcessDefinition, by_number
from scripts.devstack.tests.conftest import is_alive
from scripts.devstack.tests.dummies import DUMMIES, dummy


def one(*processes, **options):
    return {
        "numbers": ["70"],
        "table": by_number([Pattern(number="70", title="", folder=".", processes=processes, **options)]),
    }


@pytest.fixture
def run_dir(tmp_path):
    return tmp_path / "run"


class Events(list[str]):
    """What on_event reported; a test waits for what it needs of it."""

    def __init__(self):
        super().__init__()
        self.changed = asyncio.Event()

    def add(self, label, text):
        self.append(text)
        self.changed.set()

    async def until(self, condition):
        async with asyncio.timeout(30):
            while not condition(self):
                await self.changed.wait()
                self.changed.clear()


async def test_runs_inside_a_program(run_dir):
    lines = []
    stack = DevStack(
        ["90"],
        table=DUMMIES,
        ports=free_ports(["90"], DUMMIES),
        run_dir=run_dir,
        on_output=lambda label, new: lines.extend(new),
    )
    async with stack, httpx.AsyncClient(trust_env=False) as client:
        assert (await client.get(stack.urls["PORT_90_GOOD"])).status_code == 200
    pids = [int(line.split()[1]) for line in lines if line.startswith(("pid", "child"))]
    assert len(set(pids)) == 3
    assert not any(map(is_alive, pids))
    assert (run_dir / "logs/90-good.log").read_text().startswith("pid ")


async def test_backoff_doubles_for_a_process_that_keeps_failing(run_dir, monkeypatch):
    monkeypatch.setattr(stack_module, "BACKOFF_FIRST_S", 0.01)
    monkeypatch.setattr(stack_module, "BACKOFF_MAX_S", 0.03)
    events = Events()
    failing = dummy("bad", "dies-at-start", "70", with_port=False)
    async with DevStack(**one(failing), run_dir=run_dir, on_event=events.add):
        await events.until(lambda all_: len(all_) >= 8)
    assert [text.splitlines()[-1] for text in events if "again" in text][:4] == [
        f"starting again in {delay_s} s" for delay_s in (0.01, 0.02, 0.03, 0.03)
    ]
    assert "the disk is on fire" in events[1]


async def test_a_job_that_finishes_is_run_again_without_back_off(run_dir, monkeypatch):
    monkeypatch.setattr(stack_module, "BACKOFF_FIRST_S", 0.01)
    events = Events()
    job = dummy("job", "finishes", "70", with_port=False)
    async with DevStack(**one(job), run_dir=run_dir, on_event=events.add):
        await events.until(lambda all_: len(all_) >= 8)
    ended = [text for text in events if "again" in text]
    assert set(ended) == {"exited with code 0\nstarting again in 0.01 s"}
    assert "all work done" in (run_dir / "logs/70-job.log").read_text()


async def test_keeps_trying_when_a_restart_does_not_become_ready(run_dir, monkeypatch):
    monkeypatch.setattr(stack_module, "BACKOFF_FIRST_S", 0.01)
    events = Events()
    mark = run_dir / "70/mark"

    async def is_first_start(env):
        return env["MARK"] == str(mark) and not events

    once = ProcessDefinition(
        name="once",
        argv=("python", "-m", "scripts.devstack.tests.dummy", "runs-once", "{state}/mark"),
        env={"MARK": "{state}/mark"},
        ready=is_first_start,
    )
    failure = "did not become ready: it exited with code 4"
    async with DevStack(**one(once), run_dir=run_dir, on_event=events.add):
        await events.until(lambda all_: sum(failure in text for text in all_) == 2)


async def test_a_program_starts_and_stops_more_processes(run_dir):
    async with private_stack(["90"], run_dir, table=DUMMIES) as stack, httpx.AsyncClient(trust_env=False) as client:
        more = await stack.start("90", dummy("more", "serves", "90"))
        assert (await client.get(more.url)).status_code == 200
        assert stack.urls["PORT_90_MORE"] == more.url
        pid = more.pid
        assert await stack.stop(more) == -signal.SIGTERM
        assert not is_alive(pid)
        with pytest.raises(StackError, match="90 more is not running"):
            _ = more.pid
        once = await stack.start("90", dummy("once", "dies-at-start", "90", with_port=False, restart=False))
        assert await stack.wait(once) == 3
        assert "the disk is on fire" in once.log.read_text()


async def test_a_changed_source_file_restarts_the_process_without_back_off(run_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(stack_module, "WATCH_S", 0.05)
    monkeypatch.setattr(stack_module, "SHARED", tmp_path / "common")
    monkeypatch.setattr(stack_module, "BACKOFF_FIRST_S", 600)
    source = tmp_path / "src/module.py"
    source.parent.mkdir()
    source.touch()
    events = Events()
    env = {"PYTHONPATH": str(ROOT)}
    definition = one(dummy("good", "serves", "70", env=env), ProcessDefinition(name="other", argv=("python", "-c", "")))
    definition["table"]["70"] = replace(definition["table"]["70"], folder=str(tmp_path))
    ports = free_ports(["70"], definition["table"])
    async with DevStack(**definition, ports=ports, run_dir=run_dir, reload=True, on_event=events.add) as stack:
        first = stack.process("70-good").pid
        source.write_text("changed = True")
        await events.until(lambda all_: sum("ready after" in text for text in all_) == 3)
        assert stack.process("70-good").pid != first
    assert [text for text in events if "has changed" in text] == [f"{source} has changed: restarting"]


@pytest.mark.parametrize(
    "process",
    [
        pytest.param(ProcessDefinition(name="none", argv=("/no/such/program",)), id="no such program"),
        pytest.param(
            dummy("deaf", "never-ready", "70", ready="tcp://127.0.0.1:{PORT_70_DEAF}", ready_within_s=0.3), id="no port"
        ),
    ],
)
async def test_the_error_names_the_process_that_cannot_start(process, run_dir):
    definition = one(process)
    with pytest.raises(StackError, match=f"70 {process.name} (cannot be started|did not become ready within 0.3 s)"):
        async with DevStack(**definition, ports=free_ports(["70"], definition["table"]), run_dir=run_dir):
            pass


async def test_a_failed_model_build_starts_nothing(run_dir):
    definition = one(dummy("good", "serves", "70", with_port=False), artifacts=("no_such_model",))
    with pytest.raises(StackError, match="models could not be built"):
        async with DevStack(**definition, run_dir=run_dir):
            pass
    assert not run_dir.exists()


async def test_long_lines_are_split(run_dir):
    lines, events = [], Events()
    program = ProcessDefinition(name="endless", argv=("python", "-c", "print('x' * 1_000_000)"))
    async with DevStack(
        **one(program), run_dir=run_dir, on_output=lambda label, new: lines.extend(new), on_event=events.add
    ):
        await events.until(lambda all_: "exited" in all_[-1])
    assert len(lines) > 2
    assert sum(map(len, lines)) % 1_000_000 == 0
