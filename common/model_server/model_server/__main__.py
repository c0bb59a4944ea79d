"""The model server: tensorflow_model_server --port=8500 --rest_api_port=8501 --model_base_path=/models/churn …"""

from __future__ import annotations

import sys

import structlog
import uvloop

from . import flags as command_line
from .status import StatusError


def main() -> None:
    """Entry point. Exit code: 0 after SIGTERM or SIGINT, 1 if it cannot start, 2 for a wrong command line."""
    flags = command_line.parse()
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso"),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ],
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    try:
        configuration = command_line.read_files(flags)
        # Importing the server takes a while: report a wrong configuration before that.
        from .server import serve

        uvloop.run(serve(flags, configuration))
    except (StatusError, RuntimeError, OSError) as error:
        reason = error.describe() if isinstance(error, StatusError) else str(error)
        sys.exit(f"Failed to start server. Error: {reason}")


if __name__ == "__main__":
    main()
