"""Creates missing tables, `python -m src.db.migrate`. Afterwards neither the API nor the job needs the right to."""

import sys

import structlog

from serving_common import logs
from serving_common.errors import StartupError
from serving_common.settings import load
from src.configurations import DatabaseSettings
from src.db.database import open_database

log = structlog.get_logger()


def main() -> int:
    """Returns the exit code: 0 once all tables exist, also if they did before; 1 with the reason in the log."""
    settings = load(DatabaseSettings)
    logs.configure("migrate", settings)
    try:
        with open_database(settings):
            log.info("tables are ready")
    except StartupError as exc:
        log.critical("migration failed", reason=str(exc))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
