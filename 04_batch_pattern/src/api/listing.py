"""Streams lists of any length in bounded memory: a JSON array, read from the database and sent page by page."""

from collections.abc import Iterator
from itertools import chain

from src.constants import MAX_ID, READ_PAGE_ROWS
from src.db import cruds
from src.db.database import Database
from src.db.schemas import StoredItem, to_json


def json_array(database: Database, row_filter: cruds.Filter, after_id: int, limit: int | None) -> Iterator[bytes]:
    """The parts of a JSON array of up to `limit` matching items with ids greater than `after_id`.

    Each page is its own transaction, so that a slow client does not hold a database connection. An error on a later
    page leaves the array unterminated.

    Raises:
        Unavailable, Misconfigured: from the database; raised here, not when the array is iterated.
    """
    pages = _pages(database, row_filter, after_id, limit)
    return _array(chain([next(pages)], pages))


def _pages(
    database: Database, row_filter: cruds.Filter, after_id: int, limit: int | None
) -> Iterator[list[StoredItem]]:
    """Yields at least one page, which may be empty."""
    remaining = limit or MAX_ID
    while True:
        size = min(remaining, READ_PAGE_ROWS)
        with database.transaction(operation="SELECT") as db:
            page = cruds.select_items(db, row_filter, after_id, size)
        yield page
        remaining -= len(page)
        if len(page) < size or remaining == 0:
            return
        after_id = page[-1].id


def _array(pages: Iterator[list[StoredItem]]) -> Iterator[bytes]:
    separator = b"["
    for page in pages:
        if page:
            yield separator + to_json(page)[1:-1]
            separator = b","
    yield b"]" if separator == b"," else b"[]"
