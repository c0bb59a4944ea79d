"""What decoding costs is bounded: every file is decoded within CPU seconds and memory, or refused for a named reason.

Each runs in a process of its own, so that its peak of memory is its own.
"""

import resource
import time
from contextlib import suppress
from multiprocessing import get_context
from pathlib import Path

import pytest
from PIL import Image

from serving_common.errors import InvalidInput
from src.ml.image_cards import imagenet_form
from src.ml.preprocessing import BYTES_PER_PIXEL, ResizeMode, preprocess
from tests.corpus import CASES

MAX_PIXELS = 50_000_000
MAX_CPU_S = 2.0
MAX_MEMORY_MB = BYTES_PER_PIXEL * MAX_PIXELS / 1e6 + 3 * 12  # the file and copies of it
USUAL_S = 0.15
"""CPU seconds of `usual_work` on the machine for which MAX_CPU_S holds; a slower one may take more, in proportion."""

# A process for each file, forked from one that has everything imported and has held no file.
CHILDREN = get_context("forkserver")
CHILDREN.set_forkserver_preload(["tests.corpus", "src.ml.preprocessing"])

pytestmark = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peaks of memory are Linux's")


def memory_mb(name: str) -> float:
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name)]
    return int(line.split()[1]) * 1024 / 1e6


def usual_work() -> float:
    """CPU seconds, here and now, for a work that has nothing to do with the files."""
    started = time.process_time()
    Image.new("RGB", (4_000, 4_000)).resize((224, 224))
    return time.process_time() - started


def measure(path: Path, answer) -> None:
    """In the child: what came out, CPU seconds, megabytes, and how much slower than usual the machine is."""
    data = path.read_bytes()
    Path("/proc/self/clear_refs").write_text("5")
    before_mb, started = memory_mb("VmRSS"), time.process_time()
    try:
        preprocess(data, imagenet_form(ResizeMode.STRETCH), max_pixels=MAX_PIXELS)
        outcome = "decoded"
    except InvalidInput as exc:
        outcome = exc.errors[0]["reason"]
    seconds, peak_mb = time.process_time() - started, memory_mb("VmHWM")
    other = resource.getrusage(resource.RUSAGE_CHILDREN)  # AVIF and large WebP have been decoded in a process
    seconds += other.ru_utime + other.ru_stime
    # Looking from outside may miss a short peak, or not see the process at all. With its interpreter, to be safe.
    peak_mb = max(peak_mb, other.ru_maxrss * 1024 / 1e6 + before_mb)
    # Measured only where it matters, because it takes longer than most files.
    slowness = max(1, usual_work() / USUAL_S) if seconds >= MAX_CPU_S else 1
    answer.send((outcome, seconds, before_mb, peak_mb, slowness))


def make(case: str, path: Path) -> None:
    path.write_bytes(CASES[case][0]())


def in_child(call, *args) -> float:
    """Run it. Returns the most megabytes that the child and its own children had together, as looked at every 2 ms."""
    process = CHILDREN.Process(target=call, args=args)
    process.start()
    pid = int(process.pid or 0)
    most, deadline = 0.0, time.monotonic() + 120
    while process.is_alive() and time.monotonic() < deadline:
        most = max(most, sum(resident_mb(each) for each in (pid, *children(pid))))
        process.join(0.002)
    assert process.exitcode == 0
    return most


def children(pid: int) -> list[int]:
    with suppress(OSError):  # it has just ended, or this kernel does not list them
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


def resident_mb(pid: int) -> float:
    with suppress(OSError):
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * resource.getpagesize() / 1e6
    return 0


@pytest.mark.parametrize("case", CASES)
def test_file_is_decoded_within_bounds_or_refused(case, tmp_path):
    path = tmp_path / "file"
    in_child(make, case, path)  # a child, because this process would keep the memory
    parent, child = CHILDREN.Pipe()
    together_mb = in_child(measure, path, child)
    outcome, seconds, before_mb, peak_mb, slowness = parent.recv()
    memory = max(peak_mb, together_mb) - before_mb
    print(f"{case}: {path.stat().st_size / 1e6:.1f} MB, {seconds:.2f} s, {memory:.0f} MB, {outcome}")

    assert path.stat().st_size <= 12_000_000
    assert seconds < MAX_CPU_S * slowness
    assert memory < MAX_MEMORY_MB
    if (is_decoded := CASES[case][1]) is not None:
        assert (outcome == "decoded") == is_decoded
