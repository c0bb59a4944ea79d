"""How cost grows: each pattern over the whole range of one of its sizes. `make bench BENCH=growth`, 12 minutes.

Writes growth.md, growth.json and a plot of each table into bench-results/; `make bench BENCH="growth quick"` tries it
in a minute, over smaller ranges.
"""

import asyncio
import io
import itertools
import json
import shutil
import sys
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path

from PIL import Image
from redis.asyncio import Redis
from rich.console import Console

from scripts.benchmarks.asynchronous import BODY, DATA, KEYS, RESULT
from scripts.benchmarks.batch import SERVER, SQLITE, item_store
from scripts.benchmarks.curves import Figures, Plot, Point
from scripts.benchmarks.harness import ARTIFACTS, ROW, Benchmark, fill, send_load
from scripts.benchmarks.horizontal_microservice import DELAY_S, SERVICE_NAMES, bare_service, process, url_of
from scripts.benchmarks.report import facts
from scripts.benchmarks.sync_async import VARIANT
from scripts.benchmarks.synchronous import PATH
from scripts.devstack.machine import described, resident_mb
from scripts.devstack.patterns import PATTERNS
from scripts.devstack.patterns.sync_async import photograph_body, request_body
from scripts.devstack.runs import Profile, parse, require_redis, run_each
from scripts.devstack.stack import ManagedProcess, is_answering, run
from scripts.devstack.table import HOST, ROOT
from scripts.devstack.terminal import INTERRUPTED
from serving_common.queue.worker import Worker
from serving_testing.load import Load, LoadConnection
from serving_testing.processes import cpu_seconds

REQUEST_ID = "0" * 32  # as long as the proxy's
CPU_BOUND_S, MEMORY_BOUND_MB = 2.0, 400.0
"""What 07 promises for any image that it accepts, with its default settings."""

MODELS = Plot(
    file="growth_models",
    title="02: models that one server has loaded",
    size="models",
    why="a request finds its model in a dictionary. A new version is loaded and warmed up beside the old one, on the "
    "same cores and under the same interpreter lock as the requests: the requests that wait for it are the slowest "
    "percent.",
)
QUEUE = Plot(
    file="growth_queue",
    title="03: jobs that wait in the queue",
    size="jobs waiting",
    why="every command of a POST or a claim takes the same time at any length (LPUSH, LMOVE, SET, HSET), except ZADD "
    "and ZSCORE on the list of all jobs: a logarithm. A job is three keys (data, status, metadata) and an entry in "
    "each of two lists; the fixed part is what Redis allocates for its first keys, and the steps are its hash "
    "tables, which double.",
)
ROWS = Plot(
    file="growth_rows",
    title="04: rows in one run of the job",
    size="rows",
    why="the job reads, predicts and commits chunk by chunk, by primary key: its memory is that of a chunk, and a row "
    "costs the same anywhere in the table. Few rows share the start of the run and its log; when the table "
    "outgrows the database's buffer (InnoDB's default, 128 MiB), each page is read from the disk and written to it, "
    "more than once. With innodb_buffer_pool_size=4G most of that bend is gone.",
)
JOBS = Plot(
    file="growth_jobs",
    title="04: jobs at once",
    size="jobs",
    why="jobs claim different chunks with SKIP LOCKED and never wait for each other's rows. They share the cores with "
    "the database, and its one log.",
)
SERVICES = Plot(
    file="growth_services",
    title="06: services that one proxy calls",
    size="services",
    why="the proxy is one thread: its time for a call to a service is the same each time, and calls in parallel "
    "overlap only in waiting. The services' own work grows alike and competes for the same cores.",
)
SLOW_SERVICE = Plot(
    file="growth_slow_service",
    title=f"06: the same, one of them taking {1000 * DELAY_S:.0f} ms",
    size="services",
    why="an answer is as late as the slowest service, and meanwhile the others are done; the bend is where calling "
    "the others takes longer than waiting for the slow one.",
)
IMAGES = Plot(
    file="growth_images",
    title="07: pixels of an image",
    size="megapixels",
    why="decoding and resizing touch every pixel, once, and MobileNetV2 sees 224 x 224 of them at any size: the fixed "
    "part is the model and the process, the other the pixels. Memory is that of the decoded image (4 bytes a "
    "pixel) and of the file in its forms. The documented bounds hold for any image that is accepted: 8 bytes for "
    "each of MAX_IMAGE_PIXELS and 2 s of CPU.",
)


@dataclass(kw_only=True)
class Growth(Benchmark):
    """One pattern's curves."""

    run_dir = ROOT / ".run/growth"

    points: dict[Plot, list[Point]] = field(default_factory=dict)

    def add_at(self, plot: Plot, at: float, figures: Figures) -> None:
        """Keep the figures of one size: value and unit by what is measured."""
        points = plot.points(at, figures)
        self.points.setdefault(plot, []).extend(points)
        self.say(f"{points[0].what} {plot.size}: " + ", ".join(f"{point.measure} {point.text}" for point in points))


def latencies(load: Load, what: str = "") -> Figures:
    """p50 and p99 of some load, in ms."""
    return {f"{what}p{percent}": (1000 * load.percentile(percent), "ms") for percent in (50, 99)}


async def grow_models(growth: Growth) -> None:
    """02: many models in one server, then new versions of all of them under load."""
    all_of_them = [1, 2, 5, 10, 20, 50]
    counts, seconds = growth.choose(quick=([1, 2, 4], 1.0), short=(all_of_them, 5.0), long=(all_of_them, 20.0))
    folder = growth.run_dir / "models"
    for count in counts:
        shutil.rmtree(folder, ignore_errors=True)
        publish(folder, count, "1")
        config = folder / "models.config"
        models = (
            f'config {{ name: "m{number}" base_path: "{folder}/m{number}" model_platform: "tensorflow" }}'
            for number in range(count)
        )
        config.write_text(f"model_config_list {{ {' '.join(models)} }}")
        server = replace(
            PATTERNS["02"].process("model_server"),
            argv=(
                *("python", "-m", "model_server", "--port={PORT_02_GRPC}", "--rest_api_port={PORT_02_REST}"),
                *(f"--model_config_file={config}", "--file_system_poll_wait_seconds=1"),
            ),
            ready=f"http://{HOST}:{{PORT_02_REST}}/health/ready",
            ready_within_s=120,
        )
        async with growth.stack(replace(PATTERNS["02"], processes=(server,))) as stack:
            rest, managed = stack.urls["PORT_02_REST"], stack.process("02-model_server")
            body = {"instances": [ROW]}
            load = partial(send_load, f"{rest}{PATH.replace('iris', 'm0')}", 4, seconds, body)
            await load()  # warm-up
            memory, steady = resident_mb(managed.pid) or 0, await load()
            while_loading, versions, started = asyncio.create_task(load()), itertools.count(2), time.monotonic()
            while not while_loading.done():
                version = str(next(versions))
                await asyncio.to_thread(publish, folder, count, version)
                for number in range(count):
                    url = f"{rest}/v2/models/m{number}/versions/{version}/ready"
                    while not await is_answering(url):  # noqa: ASYNC110 - another process has no event for it
                        await asyncio.sleep(0.02)
            loaded_s = (time.monotonic() - started) / (next(versions) - 2)
            figures = latencies(steady) | latencies(await while_loading, "while versions are loaded, ")
            figures |= {"memory": (memory, "MB"), "start": (managed.ready_after_s, "s")}
            growth.add_at(MODELS, count, figures | {"a new version of each": (loaded_s, "s")})
    shutil.rmtree(folder)


def publish(folder: Path, count: int, version: str) -> None:
    """A version of each model, by rename, as the server expects it."""
    for number in range(count):
        shutil.copytree(ARTIFACTS / "saved_model/iris/1", folder / f"m{number}.new")
        (folder / f"m{number}").mkdir(exist_ok=True)
        (folder / f"m{number}.new").rename(folder / f"m{number}" / version)


async def grow_queue(growth: Growth) -> None:
    """03: the time of a POST and of a claim while so many jobs wait, and the memory of each."""
    require_redis()
    decades = [10**exponent for exponent in range(1, 7)]
    lengths, times = growth.choose(quick=([10, 1000, 20_000], 50), short=(decades, 500), long=(decades, 5000))
    pattern = PATTERNS["03"].without("worker")
    async with (
        growth.stack(pattern, environ={"MAX_QUEUE_LENGTH": "10000000"}) as stack,
        Redis(port=stack.ports["PORT_03_REDIS"]) as redis,
    ):
        worker, port = Worker(redis, KEYS), stack.ports["PORT_03_PROXY"]
        await alternate(worker, port, times)  # warm-up
        for length in lengths:
            await redis.flushall()
            empty = await used_memory(redis)
            await fill(redis, KEYS, DATA, length, REQUEST_ID)
            memory = await used_memory(redis) - empty
            posts, claims = await alternate(worker, port, times)
            figures = latencies(posts, "POST, ") | latencies(claims, "claim of one, ")
            growth.add_at(QUEUE, length, figures | {"memory of a job": (memory / length, "bytes")})


async def used_memory(redis: Redis) -> int:
    """Bytes that Redis has allocated."""
    return int((await redis.info("memory"))["used_memory"])


async def connect(port: int) -> LoadConnection:
    """A connection that sends POST /predict again and again, and adds little to its time."""
    body = json.dumps(BODY)
    headers = f"Host: {HOST}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    request = f"POST /predict HTTP/1.1\r\n{headers}\r\n{body}".encode()
    factory = partial(LoadConnection, request, b"")
    return (await asyncio.get_running_loop().create_connection(factory, HOST, port))[1]


async def alternate(worker: Worker, port: int, times: int) -> tuple[Load, Load]:
    """A POST and a claim in turn, so that the queue keeps its length."""
    posts, claims = [], []
    # A new one each time: filling the queue takes longer than the proxy keeps an idle connection.
    connection = await connect(port)
    for _ in range(times):
        started = time.perf_counter()
        if not await connection.call():
            raise RuntimeError("POST /predict failed")
        posts.append(time.perf_counter() - started)
        started = time.perf_counter()
        [job] = await worker.claim(1)
        claims.append(time.perf_counter() - started)
        await worker.complete([(job.id, RESULT)])
    connection.close()
    return Load(sorted(posts), 0, sum(posts)), Load(sorted(claims), 0, sum(claims))


async def grow_rows(growth: Growth) -> None:
    """04: rows in one run, on both kinds of database; jobs at once, where the database lets several write."""
    counts, rows = growth.choose(
        quick=([1000, 5000], 2000),
        short=([10_000, 100_000, 1_000_000, 5_000_000], 100_000),
        long=([10_000, 50_000, 100_000, 500_000, 1_000_000, 5_000_000], 500_000),
    )
    for group in (SQLITE, SERVER):
        async with item_store(growth, group) as store:
            for count in counts:
                await store.fill(count)
                rate, peak = await store.run_job()
                growth.add_at(ROWS, count, {group: (rate, "rows/s"), f"{group}, job's peak memory": (peak, "MB")})
            for jobs in (1, 2, 3, 4) if group == SERVER else ():
                await store.fill(rows)
                together = await store.run_jobs_together(jobs)
                growth.add_at(JOBS, jobs, {"all of them together": (together, "rows/s")})


async def grow_services(growth: Growth) -> None:
    """06: a proxy before more and more services; the same with a slow one among them."""
    all_of_them = [1, 2, 4, 8, 16, 32]
    counts, seconds = growth.choose(quick=([1, 2, 4], 0.3), short=(all_of_them, 3.0), long=(all_of_them, 10.0))
    model = f"{{root}}/models/artifacts/{PATTERNS['06'].artifacts[0]}.onnx"
    names = [f"service_{number}" for number in range(max(counts))]
    slow = bare_service("slow", DELAY_S=str(DELAY_S))
    processes = [slow]
    for number, name in enumerate(names):
        service = process(name, "src.services.app", SERVICE_NAME=name, MODEL_FILEPATH=model)
        # Four at a time: all of them together would take longer to start than the devstack waits.
        processes.append(replace(service, depends_on=(f"06-{names[number - 4]}",) if number >= 4 else ()))
    pattern = PATTERNS["06"].without("proxy", *SERVICE_NAMES).with_processes(*processes)
    async with growth.stack(pattern) as stack:
        for count in counts:
            for plot, listed in ((SERVICES, names[:count]), (SLOW_SERVICE, [*names[: count - 1], slow.name])):
                urls = ",".join(f"{name}={url_of(name)}" for name in listed)
                proxy = await stack.start("06", process("proxy", "src.proxy.app", SERVICES=urls))
                services = [stack.process(f"06-{name}") for name in listed]
                growth.add_at(plot, count, await of_proxy(proxy, services, seconds))
                await stack.stop(proxy)


async def of_proxy(proxy: ManagedProcess, services: Sequence[ManagedProcess], seconds: float) -> Figures:
    """Latencies at one connection, and the CPU time of a request in the proxy and in all services together."""
    load = partial(send_load, f"{proxy.url}/predict", 1, body=BODY)
    await load(seconds=seconds / 3)  # warm-up
    before = cpu_seconds(proxy.pid), sum(cpu_seconds(each.pid) for each in services)
    found = await load(seconds=seconds)
    after = cpu_seconds(proxy.pid), sum(cpu_seconds(each.pid) for each in services)
    of_one, of_all = (1000 * (end - start) / len(found.latencies) for start, end in zip(before, after, strict=True))
    return latencies(found) | {"the proxy's CPU": (of_one, "ms"), "all services' CPU": (of_all, "ms")}


async def grow_images(growth: Growth) -> None:
    """07: the fast answer to larger and larger images, of a kind that compresses well and of one that does not."""
    require_redis()
    all_of_them = [0.1, 0.3, 1, 3, 10, 30, 49.9]
    sizes, seconds = growth.choose(quick=([0.1, 1, 4], 0.3), short=(all_of_them, 2.0), long=(all_of_them, 10.0))
    for kind in ("JPEG", "PNG"):
        # A job's image would stay in Redis: with a full queue, answers have none.
        async with growth.stack(VARIANT, environ={"MAX_QUEUE_LENGTH": "1"}) as stack:
            proxy = stack.process("07-proxy")
            load = partial(send_load, f"{proxy.url}/predict", 1)
            await load(seconds=0.5, body=photograph_body())  # warm-up
            memory = resident_mb(proxy.pid) or 0
            for megapixels in sizes:  # ascending: the peak is that of the largest so far
                body = await asyncio.to_thread(image_of, megapixels, kind)
                before = cpu_seconds(proxy.pid)
                found = await load(seconds=seconds, body=body)
                cpu_s = (cpu_seconds(proxy.pid) - before) / max(1, len(found.latencies))
                more = (resident_mb(proxy.pid, "VmHWM") or 0) - memory
                growth.add_at(IMAGES, megapixels, {f"{kind}, CPU": (cpu_s, "s"), f"{kind}, memory": (more, "MB")})
    for megapixels in sizes:
        growth.add_at(IMAGES, megapixels, {"CPU, bound": (CPU_BOUND_S, "s"), "memory, bound": (MEMORY_BOUND_MB, "MB")})


def image_of(megapixels: float, kind: str) -> dict[str, str]:
    """The sample photograph, scaled to so many pixels, as the body of a request."""
    photograph = Image.open(ARTIFACTS / "sample.jpg")
    scale = (megapixels * 1e6 / (photograph.width * photograph.height)) ** 0.5
    size = (int(photograph.width * scale), int(photograph.height * scale))
    file = io.BytesIO()
    # Repeated pixels: interpolated ones would make PNG files that are larger than MAX_IMAGE_BYTES.
    photograph.resize(size, Image.Resampling.NEAREST).save(file, kind)
    return request_body(file.getvalue())


GROW: Mapping[str, Callable[[Growth], Awaitable[None]]] = {
    "02": grow_models,
    "03": grow_queue,
    "04": grow_rows,
    "06": grow_services,
    "07": grow_images,
}

INTRODUCTION = """\
Each size is measured over its whole range, all else alike, and each curve's law is computed from its points: a fixed
cost and one of each unit where their sum fits within 10 %, otherwise the slope of the curve in the plot (exponent 0:
the size does not matter; 1: twice the size, twice the figure), before and after the point where it bends. Everything
ran on one machine, the load generator included; the slopes hold elsewhere, the figures are this machine's.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code: 0 if nothing failed, 1 if something did, 130 after Ctrl-C."""
    options = parse(__doc__, argv, dict.fromkeys(GROW, ""), ROOT / "bench-results")
    return run(grow(options.patterns, options.profile, options.output))


async def grow(numbers: Sequence[str], profile: Profile, output: Path) -> int:
    """Measure these patterns, and write what was measured, whatever failed."""
    console, started = Console(highlight=False), time.monotonic()
    say = partial(console.print, markup=False, soft_wrap=True)
    say(described())
    runs = [Growth(pattern=PATTERNS[number], profile=profile, say=say) for number in numbers]
    finished = await run_each(runs, console, lambda growth: GROW[growth.pattern.number](growth))
    for path in write(runs, profile, time.monotonic() - started, output):
        say(str(path))
    return (1 if any(each.error for each in runs) else 0) if finished else INTERRUPTED


def write(runs: Sequence[Growth], profile: Profile, seconds: float, output: Path) -> list[Path]:
    """Write growth.md, growth.json and the plots; the paths of the first two."""
    output.mkdir(parents=True, exist_ok=True)
    command = "BENCH=growth" if profile is Profile.SHORT else f'BENCH="growth {profile}"'
    text = [f"# How cost grows\n\n`make bench {command}` on {described()}; {seconds / 60:.0f} min.\n\n{INTRODUCTION}"]
    for each in runs:
        text.append(f"\n## {each.title}\n")
        for plot, points in each.points.items():
            text.append(plot.section(points, output))
        text += [f"\n{note}\n" for note in (*(f"Skipped: {reason}." for reason in each.skipped), each.error) if note]
    (output / "growth.md").write_text("".join(text), encoding="utf-8")
    points_of = {
        each.pattern.number: [asdict(point) for found in each.points.values() for point in found] for each in runs
    }
    everything = facts(runs, profile, seconds) | {"patterns": points_of}
    (output / "growth.json").write_text(json.dumps(everything, indent=1) + "\n", encoding="utf-8")
    return [output / "growth.md", output / "growth.json"]


if __name__ == "__main__":
    sys.exit(main())
