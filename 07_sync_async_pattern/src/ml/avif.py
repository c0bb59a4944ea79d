"""AVIF, decoded in a process of its own, which may have so much memory and CPU time and no more.

The headers of other formats say what an image costs. AVIF's container can claim one pixel and hold hundreds of
megapixels, and only the compressed pixels say in how many bits; libavif decodes them first and compares afterwards.
"""

import math
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

from PIL import AvifImagePlugin, Image

PROGRAM = __file__
HEADER_BYTES = 30
VIRTUAL_MEMORY = Path("/proc/self/statm")


def decode(data: bytes, *, memory: int, seconds: float) -> Image.Image:
    """The first frame, in mode RGB or RGBA, without its metadata. Blocks.

    `memory`: bytes that decoding may take, where there is /proc. `seconds`: of CPU time, rounded up.

    Raises:
        ValueError: the file is damaged, or needs more memory.
        TimeoutError: it needs more time.
        OSError: no process can be started.
    """
    command = [sys.executable, "-I", PROGRAM, str(memory), str(math.ceil(seconds))]
    done = subprocess.run(command, input=data, capture_output=True, env={}, check=False)  # noqa: S603 - this file
    if done.returncode == -signal.SIGXCPU:
        raise TimeoutError
    if done.returncode:
        raise ValueError(f"decoding ended with code {done.returncode}: {done.stderr.decode(errors='replace')[-200:]}")
    mode, width, height = done.stdout[:HEADER_BYTES].decode().split()
    return Image.frombytes(mode, (int(width), int(height)), memoryview(done.stdout)[HEADER_BYTES:])


def main() -> None:
    """In the process: the file from stdin to stdout, as a header of mode, width and height, and the pixels."""
    memory, seconds = map(int, sys.argv[1:])
    AvifImagePlugin.DEFAULT_MAX_THREADS = 1  # its caller is one of several threads already
    image = Image.open(sys.stdin.buffer, formats=["AVIF"])
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))  # SIGXCPU, then SIGKILL
    if VIRTUAL_MEMORY.exists():
        most = int(VIRTUAL_MEMORY.read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE") + memory
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
    image.load()
    sys.stdout.buffer.write(f"{image.mode} {image.width} {image.height}".ljust(HEADER_BYTES).encode())
    sys.stdout.buffer.write(image.tobytes())


if __name__ == "__main__":
    main()
