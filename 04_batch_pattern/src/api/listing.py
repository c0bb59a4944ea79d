"""Lists of any length in bounded memory: a JSON array, read from the database and sent page by page."""

from collections.abc import Iterator
from itertools import chain

from src.constants import READ_PAGE_ROWS
from src.db import cruds
from src.db.database import Database
from src.db.schemas import StoredItem, to_json


def json_array(database: Database, which: cruds.Filter, after_id: int, limit: int | None) -> Iterator[bytes]:
    """These items, at most `limit`, with ids greater than `after_id`, as the parts of a JSON array.

    Each page is a transaction of its own: however slowly a client reads, it holds no connection. An error on a later
    page leaves the array without its end.

    Raises:
        serving_common.errors.Unavailable: the database is away. At once, not when the array is first read from.
    """
    pages = _pages(database, which, after_id, limit)
    return _array(chain([next(pages)], pages))


def _pages(database: Database, which: cruds.Filter, after_id: int, limit: int | None) -> Iterator[list[StoredItem]]:
    """At least one page, which may be empty."""
    left = limit
    while True:
        size = READ_PAGE_ROWS if left is None else min(left, READ_PAGE_ROWS)
        with database.transaction() as db:
            page = cruds.select_items(db, which, after_id, size)
        yield page
        if left is not None:
            left -= len(page)
        if len(page) < size or left == 0:
            return
        after_id = page[-1].id


def _array(pages: Iterator[list[StoredItem]]) -> Iterator[bytes]:
    separator = b"["
    for page in pages:
        if page:
            yield separator + to_json(page)[1:-1]
            separator = b","
    yield b"]" if separator == b"," else b"[]"
