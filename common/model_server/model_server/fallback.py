"""Decides at start whether a private API of grpc or TensorFlow is used, or the public one that does the same."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, TypeVar

import structlog

if TYPE_CHECKING:
    from collections.abc import Callable

    T = TypeVar("T")

log = structlog.get_logger()

# Set to 1 to use public APIs only. The tests do, and it is a way out if a private API misbehaves later than at start.
VARIABLE = "MODEL_SERVER_PUBLIC_APIS"


def try_private(api: str, load_and_test: Callable[[], T]) -> T | None:
    """The result of `load_and_test`. None, with one log line, if it raises or VARIABLE is set."""
    reason = f"{VARIABLE} is set"
    if os.environ.get(VARIABLE, "0") in ("", "0"):
        try:
            return load_and_test()
        except Exception as error:  # noqa: BLE001 an API that has changed can fail in any way
            reason = f"{type(error).__name__}: {error}"
    log.warning("public_api_fallback", api=api, reason=reason)
    return None
