"""Decodes an image, AVIF or a large WebP, in a process of its own, whose memory and CPU time are limited.

Most decoders read a file in blocks, between which they can be stopped, and its header says what it will cost. libwebp
and libavif decode in one call, which nothing stops but the end of a process. Besides, AVIF's container can claim one
pixel and hold hundreds of megapixels, and only the compressed pixels say in how many bits; libavif decodes them first
and compares afterwards.
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
STRIP_PIXELS = 1_000_000
DAMAGED, TOO_LARGE = 3, 4
"""Exit codes with which the process says that it is the file."""
CRASHES = (signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT)
# Enough to start, and no secrets: what is decoded there is a stranger's.
ENVIRONMENT = {name: value for name, value in os.environ.items() if name in ("LD_LIBRARY_PATH", "PATH")}
VIRTUAL_MEMORY = Path("/proc/self/statm")


def decode(data: bytes, file_format: str, *, memory: int, seconds: float) -> Image.Image:
    """The first frame, in mode RGB or RGBA, without its metadata. Blocks.

    `memory`: bytes that decoding may take, where there is /proc. `seconds`: of CPU time, rounded up.

    Raises:
        ValueError: the file is damaged, or needs more memory and the decoder does not say so.
        MemoryError: it needs more memory.
        TimeoutError: it needs more time.
        OSError: the process could not start, or was killed.
    """
    command = [sys.executable, "-I", PROGRAM, file_format, str(memory), str(math.ceil(seconds))]
    done = subprocess.run(command, input=data, capture_output=True, env=ENVIRONMENT, check=False)  # noqa: S603
    reason = done.stderr.decode(errors="replace").strip()[-200:]
    if done.returncode == -signal.SIGXCPU:
        raise TimeoutError
    if done.returncode == DAMAGED or -done.returncode in CRASHES:
        raise ValueError(reason)
    if done.returncode == TOO_LARGE:
        raise MemoryError(reason)
    if done.returncode:
        raise OSError(f"code {done.returncode}: {reason}")
    mode, width, height = done.stdout[:HEADER_BYTES].decode().split()
    return Image.frombytes(mode, (int(width), int(height)), memoryview(done.stdout)[HEADER_BYTES:])


def main() -> None:
    """In the process: the file on stdin becomes, on stdout, a header of mode, width and height, and the pixels."""
    file_format, memory, seconds = sys.argv[1], *map(int, sys.argv[2:])
    AvifImagePlugin.DEFAULT_MAX_THREADS = 1  # its caller is one of several threads already
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))  # SIGXCPU, then SIGKILL
    if VIRTUAL_MEMORY.exists():
        most = int(VIRTUAL_MEMORY.read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE") + memory
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
    try:
        image = Image.open(sys.stdin.buffer, formats=[file_format])
        image.load()
        sys.stdout.buffer.write(f"{image.mode} {image.width} {image.height}".ljust(HEADER_BYTES).encode())
        rows = max(1, STRIP_PIXELS // image.width)
        for top in range(0, image.height, rows):  # in parts: the whole as bytes would take its memory twice
            strip = image.crop((0, top, image.width, min(top + rows, image.height)))
            sys.stdout.buffer.write(strip.tobytes())
    except Exception as exc:  # noqa: BLE001 - Pillow's decoders raise nearly any on a damaged file
        sys.stderr.write(repr(exc))
        sys.exit(TOO_LARGE if isinstance(exc, MemoryError) or "Out of memory" in str(exc) else DAMAGED)


if __name__ == "__main__":
    main()
