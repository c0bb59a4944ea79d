"""Shows patterns at work: starts them, sends real requests, checks and prints the answers, and stops everything.

    make demo PATTERNS="04 06"
    python -m scripts.devstack.demo --svg docs/demo.svg    also draws the summary, for the README

Exit code 0 if every answer was right. State starts empty; the logs of the processes stay in .run/logs/.
To add a pattern, write one function that yields what `ask` returns, and list it in DEMOS.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import io
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx
from rich.console import Console
from rich.table import Table
from rich.text import Text

from scripts.devstack.patterns import PATTERNS, Pattern
from scripts.devstack.stack import ROOT, Stack, StackError, run
from scripts.devstack.terminal import INTERRUPTED, chosen_patterns, event_printer, make_console

REQUEST_TIMEOUT_S = 30
BATCH_WITHIN_S = 60
ONE_LINE = 100
PICTURE_WIDTH, PICTURE_CELL = 166, 48

# One flower of each class, from the Iris data set: sepal length and width, petal length and width, in cm.
FLOWERS = {"setosa": [5.1, 3.5, 1.4, 0.2], "versicolor": [6.4, 2.9, 4.3, 1.3], "virginica": [6.3, 3.3, 6.0, 2.5]}


@dataclass(frozen=True, kw_only=True)
class Step:
    """One request of a demo and what came back."""

    method: str
    url: httpx.URL
    sent: object
    answer: object
    status: int | None
    latency_ms: float
    problem: str | None
    is_highlight: bool


Demo = Callable[[httpx.AsyncClient, Mapping[str, str]], AsyncGenerator[Step, None]]


async def ask(
    client: httpx.AsyncClient,
    method: str,
    url: str,
    body: object = None,
    *,
    want: object,
    status: int = 200,
    shown: object = None,
    is_highlight: bool = False,
) -> Step:
    """Send one request. `want` is how the answer must look, see `mismatch`; highlights stand in the summary.

    shown: instead of a body that is nothing to read.
    """
    started = time.perf_counter()
    answer, got_status = None, None
    try:
        response = await client.request(method, url, json=body)
        answer, got_status = response.json(), response.status_code
        problem = mismatch(want, answer) if got_status == status else f"status {got_status}, not {status}"
    except httpx.HTTPError as exc:
        problem = f"no answer: {exc}"
    except ValueError:
        answer, got_status, problem = response.text, response.status_code, "the answer is not JSON"
    return Step(
        method=method,
        url=httpx.URL(url),
        sent=body if shown is None else shown,
        answer=answer,
        status=got_status,
        latency_ms=1000 * (time.perf_counter() - started),
        problem=problem,
        is_highlight=is_highlight,
    )


def mismatch(want: object, got: object, where: str = "answer") -> str | None:
    """Where `got` is not as wanted, or None.

    A type wants any value of that type; a dict wants at least these keys; a list this many items; anything else itself.
    """
    if isinstance(want, type):
        return None if isinstance(got, want) else f"{where} is {got!r}, not a {want.__name__}"
    if isinstance(want, dict) and isinstance(got, dict):
        if missing := want.keys() - got.keys():
            return f"{where} has no {', '.join(sorted(missing))}"
        return next(filter(None, (mismatch(want[key], got[key], f"{where}.{key}") for key in want)), None)
    if isinstance(want, list) and isinstance(got, list) and len(want) == len(got):
        pairs = enumerate(zip(want, got, strict=True))
        return next(filter(None, (mismatch(one, other, f"{where}[{i}]") for i, (one, other) in pairs)), None)
    return None if want == got else f"{where} is {got!r}, not {want!r}"


async def horizontal_microservices(client: httpx.AsyncClient, urls: Mapping[str, str]) -> AsyncGenerator[Step, None]:
    """06: the proxy asks three services that know one class each; then every service is asked on its own."""
    proxy = urls["PORT_06_PROXY"]
    one_flower = {"data": [FLOWERS["setosa"]]}
    is_well = {"health": "ok"}
    probabilities = {"prediction": [float, float]}
    all_services = dict.fromkeys(FLOWERS, probabilities)

    yield await ask(client, "GET", f"{proxy}/health", want=is_well)
    yield await ask(client, "GET", f"{proxy}/health/all", want=dict.fromkeys(FLOWERS, is_well))
    yield await ask(client, "GET", f"{proxy}/metadata", want=dict)
    yield await ask(client, "POST", f"{proxy}/predict", one_flower, want=all_services)
    for label, row in FLOWERS.items():
        best = {"prediction": {"proba": float, "label": label}}
        yield await ask(client, "POST", f"{proxy}/predict/label", {"data": [row]}, want=best, is_highlight=True)
    yield await ask(client, "GET", f"{proxy}/predict/get/test", want=all_services)
    yield await ask(client, "POST", f"{proxy}/predict/post/test", want=all_services)
    for label, row in FLOWERS.items():
        service = urls[f"PORT_06_SERVICE_{label.upper()}"]
        yield await ask(client, "GET", f"{service}/health", want=is_well)
        yield await ask(client, "GET", f"{service}/metadata", want=dict)
        yield await ask(client, "POST", f"{service}/predict", {"data": [row]}, want=probabilities)
        yield await ask(client, "GET", f"{service}/predict/test", want=probabilities)


async def synchronous(client: httpx.AsyncClient, urls: Mapping[str, str]) -> AsyncGenerator[Step, None]:
    """02: the model server answers at once, over REST and over gRPC; then its two clients do."""
    model = f"{urls['PORT_02_REST']}/v1/models/iris"
    rows = list(FLOWERS.values())
    available = {"model_version_status": [{"version": "1", "state": "AVAILABLE", "status": dict}]}
    three = [[float, float, float]] * 3

    yield await ask(client, "GET", model, want=available)
    yield await ask(client, "GET", f"{model}/metadata", want={"model_spec": dict, "metadata": dict})
    yield await ask(client, "POST", f"{model}:predict", {"instances": rows}, want={"predictions": three})
    by_name = {"inputs": {"input": rows}}
    yield await ask(client, "POST", f"{model}/versions/1:predict", by_name, want={"outputs": three})
    for name, address in (("rest", urls["PORT_02_REST"]), ("grpc", urls["PORT_02_GRPC"].replace("http", "grpc"))):
        yield await ask_with_client(f"client.{name}_client", address, rows)


async def ask_with_client(module: str, address: str, rows: list[list[float]]) -> Step:
    """The same question, asked by a client of pattern 02 as a process of its own."""
    words = [str(number) for row in rows for number in row]
    command = [sys.executable, "-m", module, *words, "--json", "--address", address.removeprefix("grpc://")]
    started = time.perf_counter()
    done = await asyncio.to_thread(
        subprocess.run, command, cwd=ROOT / PATTERNS["02"].folder, capture_output=True, text=True, check=False
    )
    answer = [json.loads(line) for line in done.stdout.splitlines()]
    labels = [{"input": list, "label": label, "probabilities": list} for label in FLOWERS]
    return Step(
        method="RUN",
        url=httpx.URL(address),
        sent=f"python -m {module} {' '.join(words)}",
        answer=answer,
        status=done.returncode,
        latency_ms=1000 * (time.perf_counter() - started),
        problem=mismatch(labels, answer) if done.returncode == 0 else done.stderr.strip(),
        is_highlight=True,
    )


async def asynchronous(client: httpx.AsyncClient, urls: Mapping[str, str]) -> AsyncGenerator[Step, None]:
    """03: a job's id at once, its result once a worker has asked the model server."""
    proxy = urls["PORT_03_PROXY"]
    well = {"status": "healthy", "components": {"redis": "ok", "tensorflow_serving": "ok"}}

    yield await ask(client, "GET", f"{proxy}/health", want=well)
    yield await ask(client, "GET", f"{proxy}/metadata", want={"model_spec": {"name": "iris", "version": "1"}})
    for label, row in FLOWERS.items():
        queued = await ask(client, "POST", f"{proxy}/predict", {"data": [row]}, want={"job_id": str}, is_highlight=True)
        yield queued
        if isinstance(queued.answer, dict):
            job = f"{proxy}/job/{queued.answer['job_id']}?wait=10"
            result = {"prediction": int, "class_name": label, "probabilities": [float, float, float]}
            yield await ask(client, "GET", job, want={"status": "completed", "result": result}, is_highlight=True)
    yield await ask(client, "POST", f"{proxy}/predict/test", want={"job_id": str})
    yield await ask(client, "GET", f"{proxy}/jobs?limit=2", want={"jobs": [dict, dict]})
    yield await ask(client, "GET", f"{proxy}/job/000000", want={"detail": "Job not found"}, status=404)


async def batch(client: httpx.AsyncClient, urls: Mapping[str, str]) -> AsyncGenerator[Step, None]:
    """04: flowers are registered at once and predicted by the next run of the job."""
    api = urls["PORT_04_API"]
    items = [{"values": row} for row in FLOWERS.values()]
    waiting = {"id": int, "values": list, "prediction": None, "created_datetime": str}

    yield await ask(client, "GET", f"{api}/health", want={"status": "ok"})
    yield await ask(client, "GET", f"{api}/metadata", want=dict)
    registered = await ask(client, "POST", f"{api}/data", items[0], want=waiting)
    yield registered
    yield await ask(client, "POST", f"{api}/data/list", {"items": items}, want=[waiting] * 3, is_highlight=True)
    yield await ask(client, "GET", f"{api}/data/unpredicted", want=list)
    deadline = time.monotonic() + BATCH_WITHIN_S
    # The job is a process of its own that tells nobody when it is done.
    while (await client.get(f"{api}/data/unpredicted")).json() and time.monotonic() < deadline:  # noqa: ASYNC110
        await asyncio.sleep(0.2)
    done = waiting | {"prediction": {"0": float, "1": float, "2": float}}
    yield await ask(client, "GET", f"{api}/data/predicted", want=[done] * 4, is_highlight=True)
    yield await ask(client, "GET", f"{api}/data/all?limit=1", want=[done])
    if isinstance(registered.answer, dict):
        yield await ask(client, "GET", f"{api}/data/{registered.answer['id']}", want=done)
    yield await ask(client, "GET", f"{api}/data/failed", want=[])


async def sync_async(client: httpx.AsyncClient, urls: Mapping[str, str]) -> AsyncGenerator[Step, None]:
    """07: the fast model's answer about a photograph at once, the better model's a moment later."""
    proxy = urls["PORT_07_PROXY"]
    photograph = (ROOT / "models/artifacts/sample.jpg").read_bytes()
    body = {"image_data": base64.b64encode(photograph).decode()}
    shown = {"image_data": f"<{len(photograph):,} bytes of a JPEG, a palace, in Base64>"}
    weights = {"sync": str, "async": str}  # "random": then nothing was downloaded, and the labels mean nothing

    yield await ask(client, "GET", f"{proxy}/health", want={"health": "ok"})
    yield await ask(client, "GET", f"{proxy}/metadata", want={"data_type": "str", "weights": weights})
    answer = {"job_id": str, "result_sync": str}
    posted = await ask(client, "POST", f"{proxy}/predict", body, want=answer, shown=shown, is_highlight=True)
    yield posted
    if isinstance(posted.answer, dict):
        job_id = posted.answer["job_id"]
        job = f"{proxy}/job/{job_id}"
        yield await ask(client, "GET", job, want={job_id: {"prediction": str}})
        five = [{"label": str, "probability": float}] * 5
        both = {"prediction": str, "top5": five, "sync": {"prediction": posted.answer["result_sync"], "top5": five}}
        done = await ask(client, "GET", f"{job}?wait=30&detail=true", want={job_id: both})
        yield done
        if isinstance(done.answer, dict):
            best = done.answer[job_id]["prediction"]
            yield await ask(client, "GET", job, want={job_id: {"prediction": best}}, is_highlight=True)
    yield await ask(client, "GET", f"{proxy}/predict/test", want=answer)
    no_image = {"image_data": "aGVsbG8="}
    yield await ask(client, "POST", f"{proxy}/predict", no_image, want={"detail": str, "errors": [dict]}, status=400)
    yield await ask(client, "GET", f"{proxy}/job/000000", want={"detail": "Job not found"}, status=404)


DEMOS: Mapping[str, Demo] = {
    "02": synchronous,
    "03": asynchronous,
    "04": batch,
    "06": horizontal_microservices,
    "07": sync_async,
}


def main(
    argv: Sequence[str] | None = None,
    table: Mapping[str, Pattern] = PATTERNS,
    demos: Mapping[str, Demo] = DEMOS,
) -> int:
    """Exit code: 0 if every answer was right, 1 if not or if a pattern could not be started, 130 after Ctrl-C."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--svg", type=Path)
    options, rest = parser.parse_known_args(argv)
    numbers = chosen_patterns(__doc__, rest, {number: table[number] for number in demos})
    return run(show_all(numbers, table, demos, options.svg))


async def show_all(
    numbers: Sequence[str], table: Mapping[str, Pattern], demos: Mapping[str, Demo], svg: Path | None = None
) -> int:
    """Run the demos of these patterns one after the other on one stack, and sum up; in a picture, too, if wanted."""
    console = make_console()
    steps: dict[str, list[Step]] = {}
    api_key = {"X-API-Key": key} if (key := caller_api_key()) else {}  # the services read it too
    try:
        async with (
            Stack(numbers, table=table, fresh=True, on_event=event_printer(console, table)) as stack,
            httpx.AsyncClient(trust_env=False, timeout=REQUEST_TIMEOUT_S, headers=api_key) as client,
        ):
            for number in numbers:
                console.rule(f"{number} {table[number].title}", characters="-")
                steps[number] = await show(demos[number](client, stack.urls), console)
    except StackError as exc:
        console.print(f"make demo: {exc}", markup=False, style="red")
        return 1
    except asyncio.CancelledError:
        console.print("Interrupted; all stopped.")
        return INTERRUPTED
    console.print(summary(steps, table))
    wrong = [f"{step.method} {step.url}: {step.problem}" for done in steps.values() for step in done if step.problem]
    for line in wrong:
        console.print(f"WRONG: {line}", markup=False, style="bold red")
    outcome = f"{sum(map(len, steps.values()))} requests, {len(wrong)} wrong. All stopped."
    console.print(outcome)
    if svg is not None:
        draw(svg, summary(steps, table, is_brief=True), outcome)
    return 1 if wrong else 0


def caller_api_key() -> str:
    """The API key of our environment, or of the file that it names; empty if there is none."""
    if path := os.environ.get("API_KEY_FILE"):
        return Path(path).read_text(encoding="utf-8").rstrip("\r\n")
    return os.environ.get("API_KEY", "")


async def show(demo: AsyncGenerator[Step, None], console: Console) -> list[Step]:
    """Print the steps of a demo as they happen. It ends with the first wrong one: the rest may build on it."""
    steps = []
    async with contextlib.aclosing(demo):
        async for step in demo:
            steps.append(step)
            console.print(Text.assemble((f"{step.method:4} ", "bold cyan"), (str(step.url), "bold")), soft_wrap=True)
            if step.sent is not None:
                console.print(Text.assemble(("  sent ", "dim"), readable(step.sent)), soft_wrap=True)
            outcome = (f"  {step.status or '---'}  ", "red" if step.problem else "green")
            console.print(
                Text.assemble(outcome, readable(step.answer), (f"  {step.latency_ms:.1f} ms", "dim")), soft_wrap=True
            )
            if step.problem:
                console.print(Text(f"  WRONG: {step.problem}", style="bold red"))
                break
    return steps


def readable(value: object) -> str:
    """JSON for people: numbers to four digits; on one line if that is short, else one line for each entry."""
    line = on_one_line(value)
    if len(line) <= ONE_LINE or not isinstance(value, dict | list):
        return line
    items = value.items() if isinstance(value, dict) else ((None, item) for item in value)
    entries = [("" if key is None else f"{json.dumps(key)}: ") + json.dumps(_rounded(item)) for key, item in items]
    return line[0] + f",\n{' ' * 8}".join(entries) + line[-1]


def on_one_line(value: object) -> str:
    """The same, however long."""
    return json.dumps(_rounded(value))


def _rounded(value: object) -> object:
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    return round(value, 4) if isinstance(value, float) else value


def summary(steps: Mapping[str, Sequence[Step]], table: Mapping[str, Pattern], *, is_brief: bool = False) -> Table:
    """One row for every highlight of every pattern; brief: of one line each, cut off where it ends."""
    rows = Table("pattern", "sent", "came back", "latency", "runs at", title="What was sent, and what came back")
    spelled = readable
    if is_brief:
        spelled = on_one_line
        for column in rows.columns[1:3]:
            column.no_wrap, column.width = True, PICTURE_CELL
    for number, done in steps.items():
        for step in done:
            if step.is_highlight or step.problem:
                rows.add_row(
                    f"{number} {table[number].title}",
                    f"{step.method} {step.url.path} {spelled(step.sent) if step.sent is not None else ''}",
                    step.problem or spelled(step.answer),
                    f"{step.latency_ms:.1f} ms",
                    f"{step.url.host}:{step.url.port}",
                )
        rows.add_section()
    return rows


def draw(svg: Path, rows: Table, outcome: str) -> None:
    """The end of a demo as a terminal shows it, in SVG that loads nothing from elsewhere."""
    console = Console(record=True, file=io.StringIO(), width=PICTURE_WIDTH, highlight=False)
    console.print(rows, outcome, sep="\n")
    picture = re.sub(r"@font-face \{.*?\}\s*", "", console.export_svg(title="make demo"), flags=re.DOTALL)
    svg.write_text(picture, encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
