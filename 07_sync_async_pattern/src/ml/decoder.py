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
import threading
from collections.abc import Callable
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
CHECK_S = 0.02


def decode(data: bytes, file_format: str, *, memory: int, seconds: float, waits: Callable[[], bool]) -> Image.Image:
    """The first frame, in mode RGB or RGBA, without its metadata. Blocks.

    Args:
        data: the file.
        file_format: Pillow's name of its format.
        memory: bytes that decoding may take, where there is /proc.
        seconds: of CPU time, rounded up.
        waits: asked every CHECK_S meanwhile, from another thread; once it is false, the process is killed.

    Raises:
        ValueError: the file is damaged, or needs more memory and the decoder does not say so.
        MemoryError: it needs more memory.
        TimeoutError: it needs more time.
        OSError: the process could not start, or was killed.
    """
    command = [sys.executable, "-I", PROGRAM, file_format, str(memory), str(math.ceil(seconds))]
    code, output, errors = _run(command, data, waits)
    reason = errors.decode(errors="replace").strip()[-200:]
    if code == -signal.SIGXCPU:
        raise TimeoutError
    if code == DAMAGED or -code in CRASHES:
        raise ValueError(reason)
    if code == TOO_LARGE:
        raise MemoryError(reason)
    if code:
        raise OSError(f"code {code}: {reason}")
    mode, width, height = output[:HEADER_BYTES].decode().split()
    return Image.frombytes(mode, (int(width), int(height)), memoryview(output)[HEADER_BYTES:])


def _run(command: list[str], data: bytes, waits: Callable[[], bool]) -> tuple[int, bytes, bytes]:
    """The exit code, stdout and stderr of a process that reads `data`."""
    pipe, has_ended = subprocess.PIPE, threading.Event()
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, env=ENVIRONMENT) as process:  # noqa: S603

        def watch() -> None:
            while not has_ended.wait(CHECK_S):
                if not waits():
                    process.kill()

        # Not `communicate` with a timeout: each time, that would copy all that has been read.
        watching = threading.Thread(target=watch)
        watching.start()
        try:
            output, errors = process.communicate(data)
        finally:
            has_ended.set()
            watching.join()
        return process.returncode, output, errors


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
