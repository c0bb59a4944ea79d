"""Deprecated name of the command `python -m src.worker.dead_letters`."""

import sys

from src.worker.dead_letters import main

if __name__ == "__main__":
    print("`src.worker.failed` is deprecated: use `src.worker.dead_letters`", file=sys.stderr)  # noqa: T201
    main()
