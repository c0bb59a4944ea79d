"""Kills the processes of a stack whose supervisor is gone, also after kill -9.

The supervisor holds the other end of stdin and writes `+<pgid>` for a process group that it started and `-<pgid>` for
one that has ended; end of file is its death. Linux's PR_SET_PDEATHSIG would need code between fork and exec, which is
unsafe beside threads, and reaches neither grandchildren nor macOS.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys


def main() -> None:
    """Follow stdin to its end, then kill the groups that are left."""
    groups: set[int] = set()
    for line in sys.stdin:
        (groups.add if line[0] == "+" else groups.discard)(int(line[1:]))
    for group in groups:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(group, signal.SIGKILL)


if __name__ == "__main__":
    main()
