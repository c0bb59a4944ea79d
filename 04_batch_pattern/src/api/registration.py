"""Registers rows, once per Idempotency-Key."""

import hashlib
from collections.abc import Sequence

import orjson

from serving_common.cards import Row
from serving_common.errors import InvalidInput
from src.db import cruds
from src.db.database import Database
from src.db.failures import ReadOnlyServer
from src.db.schemas import StoredItem


def register_rows(
    database: Database, endpoint: str, rows: Sequence[Row], idempotency_key: str | None
) -> list[StoredItem]:
    """Store the rows, all or none. A known key returns the items of its first request and stores nothing.

    Raises:
        InvalidInput: the key belongs to a different request.
    """
    try:
        return _store_once(database, endpoint, rows, idempotency_key)
    # Nothing has been stored. The next transaction reads the other request's answer, or is on a new connection, which
    # leads to the new primary after a failover.
    except (cruds.KeyTaken, ReadOnlyServer):
        return _store_once(database, endpoint, rows, idempotency_key)


def _store_once(
    database: Database, endpoint: str, rows: Sequence[Row], idempotency_key: str | None
) -> list[StoredItem]:
    with database.transaction(write=True, operation="INSERT") as db:
        if idempotency_key is None:
            return cruds.register_items(db, rows)
        hashed_key = hashlib.sha256(idempotency_key.encode()).hexdigest()
        digest = hashlib.sha256(orjson.dumps([endpoint, rows])).hexdigest()
        known = cruds.select_by_idempotency_key(db, hashed_key)
        if known is None:
            items = cruds.register_items(db, rows)
            cruds.register_idempotency_key(db, hashed_key, digest, items)
            return items
        if known.digest != digest:
            reason = "was used before for a different request"
            raise InvalidInput("Invalid data format", [{"field": "Idempotency-Key", "reason": reason}])
        ids = [item_id for some in known.id_ranges for item_id in range(*some)]
        return cruds.new_items(ids, rows, known.created_datetime)
