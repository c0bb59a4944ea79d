"""Structured logs: one line per event, JSON in containers, readable on a terminal.

Fields: `timestamp` (UTC), `level`, `component`, `action` (the event, past tense), `request_id` or `job_id` where there
is one, `duration_ms`, and what else the event is about.
"""

import logging
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from typing import Any

import orjson
import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from serving_common.settings import LogFormat, Settings


def configure(component: str, settings: Settings) -> None:
    """Send all logs of this process, those of libraries too, to stdout in one format.

    Args:
        component: the process's name in every line, for instance `proxy`.
        settings: level and format.
    """

    def add_component(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
        event["component"] = component
        return event

    is_terminal = sys.stdout.isatty()
    is_console = settings.log_format is LogFormat.CONSOLE or (settings.log_format is LogFormat.AUTO and is_terminal)
    level = logging.getLevelNamesMapping()[settings.log_level.upper()]
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        add_component,
    ]
    # A worker writes thousands of lines per second: JSON goes out as the bytes that orjson makes, its time included.
    as_json = partial(orjson.dumps, default=repr, option=orjson.OPT_UTC_Z)

    def rendering(serialize: Callable[[Any], str | bytes]) -> list[Processor]:
        if is_console:
            stamp = structlog.processors.TimeStamper(fmt="%Y-%m-%dT%H:%M:%S.%fZ", utc=True)
            # By default rich, where it is installed, takes seconds for a traceback and prints all local variables.
            plain = structlog.dev.plain_traceback
            return [stamp, structlog.dev.ConsoleRenderer(colors=is_terminal, exception_formatter=plain)]
        return [structlog.processors.format_exc_info, _specified_names, lambda _, __, event: serialize(event)]

    structlog.configure(
        processors=[*shared, *rendering(as_json)],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=(
            structlog.WriteLoggerFactory(sys.stdout) if is_console else structlog.BytesLoggerFactory(sys.stdout.buffer)
        ),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                *rendering(lambda event: as_json(event).decode()),
            ],
        )
    )
    logging.basicConfig(handlers=[handler], level=max(level, logging.WARNING), force=True)


def _specified_names(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """The fields that every line has come first, under the names that the specifications give them."""
    first = {
        "timestamp": datetime.now(UTC),
        "level": event.pop("level").upper(),
        "component": event.pop("component"),
        "action": event.pop("event"),
    }
    return {**first, **event}
