"""All reads and writes of the tables, in SQL that SQLite, MySQL and MariaDB share."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TypeVar, cast

import orjson
from sqlalchemy import (
    ColumnElement,
    Select,
    Table,
    Text,
    bindparam,
    delete,
    func,
    insert,
    literal_column,
    select,
    text,
    update,
)
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session
from sqlalchemy.schema import CreateTable

from serving_common.cards import Row
from serving_common.errors import NotFound, Unavailable
from src.constants import (
    IDEMPOTENCY_KEY_LIFETIME,
    INSERT_BYTES,
    INSERT_PAGE_ROWS,
    INSERT_ROW_BYTES,
    MAX_ERROR_LENGTH,
    MAX_ID,
    STATEMENT_BYTES,
)
from src.db.failures import full_table
from src.db.models import BatchRun, IdempotencyKey, ItemRow, new_predictions
from src.db.schemas import StoredItem

items = cast(Table, ItemRow.__table__)

# JSON columns are read as text, so that SQLAlchemy does not parse each row; the text is sent, or parsed in bulk. (The
# cast is for SQLite, which stores JSON that is just a number as a number.)
VALUES = items.c["values"].cast(Text).label("values")
PREDICTION = items.c.prediction.cast(Text).label("prediction")
SELECT_ITEMS = select(items.c.id, VALUES, PREDICTION, items.c.created_datetime, items.c.error)

BACKLOG_LIMIT = 100_000  # so that counting takes milliseconds, however many rows wait

T = TypeVar("T")
Statement = TypeVar("Statement", bound=Select[*tuple[Any, ...]])
Filter = Sequence[ColumnElement[bool]]
ALL: Filter = ()
# Always both columns: together they are the index that yields the rows in the order of their ids.
UNPREDICTED: Filter = (items.c.is_predicted == 0, items.c.is_failed == 0)
PREDICTED: Filter = (items.c.is_predicted == 1, items.c.is_failed == 0)
FAILED: Filter = (items.c.is_predicted == 0, items.c.is_failed == 1)


def predicted_by(model_version: str) -> Filter:
    """The rows that this version of the model has predicted."""
    return (*PREDICTED, items.c.model_version == model_version)


@dataclass(frozen=True, slots=True)
class RowRange:
    """How many rows match, and their first and last id (0 and 0 if there are none)."""

    count: int
    first_id: int
    last_id: int


@dataclass(frozen=True, slots=True)
class Backlog:
    """What waits for the job, and what it did last."""

    rows: int  # at most BACKLOG_LIMIT
    oldest_at: datetime | None
    last_run_at: datetime | None  # when a run last came to its end


@dataclass(frozen=True, slots=True)
class ClaimedItem:
    """A row that no other job can claim until this transaction ends."""

    id: int
    values: str  # JSON


class KeyTaken(Unavailable):
    """Another request has just been answered under the same Idempotency-Key."""


# --- the API ---


def register_items(db: Session, rows: Sequence[Row]) -> list[StoredItem]:
    """Store rows, unpredicted. Their ids ascend in the order of the rows."""
    now = datetime.now(UTC).replace(tzinfo=None, microsecond=0)
    return new_items(_insert(db, rows, now), rows, now)


def new_items(ids: Sequence[int], rows: Sequence[Row], created: datetime) -> list[StoredItem]:
    """These rows as they are stored at first."""
    return [
        StoredItem(item_id, orjson.dumps(values).decode(), None, created, None)
        for item_id, values in zip(ids, rows, strict=True)
    ]


def select_by_idempotency_key(db: Session, hashed_key: str) -> IdempotencyKey | None:
    """What was answered under this key."""
    return db.get(IdempotencyKey, hashed_key)


def register_idempotency_key(db: Session, hashed_key: str, digest: str, items: Sequence[StoredItem]) -> None:
    """Raises KeyTaken if another transaction has registered the key; then this one must be rolled back."""
    ranges = [[some.start, some.stop, some.step] for some in _ranges([item.id for item in items])]
    row = IdempotencyKey(
        hashed_key=hashed_key, digest=digest, id_ranges=ranges, created_datetime=items[0].created_datetime
    )
    db.add(row)
    try:
        db.flush()
    except IntegrityError as error:
        raise KeyTaken("Another request with this Idempotency-Key is being worked on") from error


def _ranges(ids: Sequence[int]) -> list[range]:
    """Ascending ids, of which most are at equal distances."""
    ranges: list[range] = []
    for item_id in ids:
        last = ranges[-1] if ranges else range(0)
        if len(last) == 1:
            ranges[-1] = range(last.start, item_id + 1, item_id - last.start)
        elif last and item_id == last[-1] + last.step:
            ranges[-1] = range(last.start, item_id + 1, last.step)
        else:
            ranges.append(range(item_id, item_id + 1))
    return ranges


def _insert(db: Session, rows: Sequence[Row], now: datetime) -> list[int]:
    connection = db.connection()
    returning = insert(items).returning(items.c.id, sort_by_parameter_order=True)
    has_returning = connection.dialect.insert_executemany_returning_sort_by_parameter_order
    # MySQL has no RETURNING, but gives the rows of one INSERT consecutive ids and returns the first; the step is 1
    # unless several servers replicate to each other.
    step = 1 if has_returning else connection.scalar(text("SELECT @@auto_increment_increment"))
    ids: list[int] = []
    for some in _insert_pages(db, rows):
        page = [{"values": values, "created_datetime": now} for values in some]
        if has_returning:
            ids += connection.scalars(returning, page)
        else:
            first = connection.execute(insert(items), page).lastrowid
            ids += range(first, first + len(page) * step, step)
    if ids[-1] > MAX_ID:  # SQLite's integers end later
        raise full_table()
    return ids


def _insert_pages(db: Session, rows: Sequence[Row]) -> Iterator[Sequence[Row]]:
    """The rows, divided into as many as one INSERT may hold; one of strings may be any size."""
    limit = min(INSERT_BYTES, _packet_limit(db) or INSERT_BYTES) - STATEMENT_BYTES
    start = size = 0
    for row, values in enumerate(rows):
        row_bytes = INSERT_ROW_BYTES + 2 * len(orjson.dumps(values))  # every character may be escaped
        if row > start and (size + row_bytes > limit or row - start == INSERT_PAGE_ROWS):
            yield rows[start:row]
            start, size = row, 0
        size += row_bytes
    yield rows[start:]


def _packet_limit(db: Session) -> int | None:
    """The server's max_allowed_packet."""
    return db.connection().info.get("max_allowed_packet")


def _pages(db: Session, rows: Sequence[T], row_bytes: int, most: int) -> Iterator[Sequence[T]]:
    """The rows, divided into as many as one statement may hold."""
    if (limit := _packet_limit(db)) is not None:
        most = max(1, min(most, (limit - STATEMENT_BYTES) // row_bytes))
    for start in range(0, len(rows), most):
        yield rows[start : start + most]


def select_items(db: Session, row_filter: Filter, after_id: int, limit: int) -> list[StoredItem]:
    """Up to `limit` matching rows with ids greater than `after_id`, ordered by id."""
    statement = _by_index(SELECT_ITEMS, row_filter).where(items.c.id > after_id).order_by(items.c.id).limit(limit)
    return [StoredItem(*row) for row in db.execute(statement).all()]


def select_by_id(db: Session, item_id: int) -> StoredItem:
    """Raises NotFound."""
    is_storable = 0 < item_id <= MAX_ID  # the drivers reject integers of more than 64 bits
    row = db.execute(SELECT_ITEMS.where(items.c.id == item_id)).one_or_none() if is_storable else None
    if row is None:
        raise NotFound("Item not found")
    return StoredItem(*row)


def backlog(db: Session) -> Backlog:
    """The unpredicted rows and the last run that ended."""
    ids = _by_index(select(items.c.id), UNPREDICTED).order_by(items.c.id).limit(BACKLOG_LIMIT).subquery()
    count, first_id = db.execute(select(func.count(), func.min(ids.c.id)).select_from(ids)).one()
    ended = BatchRun.ended_datetime
    # Not `id = NULL` when no row waits: MariaDB answers `id IS NULL` with the row that was inserted last.
    oldest_at = db.scalar(select(items.c.created_datetime).where(items.c.id == first_id)) if count else None
    last_run_at = db.scalar(select(ended).where(ended.is_not(None)).order_by(BatchRun.id.desc()).limit(1))
    return Backlog(count, *(at and at.replace(tzinfo=UTC) for at in (oldest_at, last_run_at)))


# --- the job ---


def count_items(db: Session, row_filter: Filter) -> RowRange:
    statement = select(func.count(), func.min(items.c.id), func.max(items.c.id)).select_from(items)
    row = db.execute(_by_index(statement, row_filter)).one()
    return RowRange(row[0], row[1] or 0, row[2] or 0)


def claim_items(db: Session, row_filter: Filter, after_id: int, last_id: int, limit: int) -> list[ClaimedItem]:
    """Lock and return up to `limit` matching rows, ordered by id; rows that another job has locked are skipped.

    In SQLite the write transaction itself is the lock.
    """
    statement = (
        _by_index(select(items.c.id, VALUES), row_filter)
        .where(items.c.id > after_id, items.c.id <= last_id)
        .order_by(items.c.id)
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    return [ClaimedItem(*row) for row in db.execute(statement).all()]


def register_predictions(db: Session, predictions: Mapping[int, str], model_version: str) -> None:
    """Store the predictions (id to JSON) of claimed rows in one UPDATE, or in several if max_allowed_packet is small.

    A driver's executemany of UPDATE sends one statement per row, but its executemany of INSERT is a bulk statement:
    so the predictions go into a temporary table first.
    """
    if not predictions:
        return
    connection = db.connection()
    connection.execute(CreateTable(new_predictions, if_not_exists=True))
    # Bypasses SQLAlchemy, which would process each row's parameters in Python.
    placeholder = "?" if connection.dialect.paramstyle == "qmark" else "%s"
    insert_new = f"INSERT INTO new_predictions (id, prediction) VALUES ({placeholder}, {placeholder})"  # noqa: S608
    row_bytes = 20 + 2 * max(map(len, predictions.values()))  # every character may be escaped
    for rows in _pages(db, list(predictions.items()), row_bytes, len(predictions)):
        connection.exec_driver_sql(insert_new, list(rows))
        # Not a join, for which MySQL and MariaDB buffer all rows in another temporary table. The ids are literals
        # because SQLite limits the number of parameters; every statement is different, so caching it would only cost
        # memory.
        new = select(new_predictions.c.prediction).where(new_predictions.c.id == items.c.id).scalar_subquery()
        ids: ColumnElement[int] = literal_column(", ".join(str(item_id) for item_id, _ in rows))
        statement = update(items).where(items.c.id.in_([ids])).values(prediction=new, model_version=model_version)
        connection.execute(statement, execution_options={"compiled_cache": None})
        connection.execute(delete(new_predictions))


def register_errors(db: Session, errors: Mapping[int, str]) -> None:
    """Store why claimed rows cannot be predicted (id to reason). The job does not try them again."""
    if errors:
        statement = update(items).where(items.c.id == bindparam("item_id")).values(error=bindparam("reason"))
        rows = [{"item_id": item_id, "reason": reason[:MAX_ERROR_LENGTH]} for item_id, reason in errors.items()]
        db.connection().execute(statement, rows)


def start_run(db: Session, model_version: str) -> int:
    """The id of a new row of batch_runs."""
    run = BatchRun(model_version=model_version)
    db.add(run)
    db.flush()
    return run.id


def count_in_run(db: Session, run_id: int, predicted: int, errors: int) -> None:
    """Add to the counts of a run, in the transaction that stores these rows."""
    counts = {
        BatchRun.predicted_rows: BatchRun.predicted_rows + predicted,
        BatchRun.error_rows: BatchRun.error_rows + errors,
    }
    db.execute(update(BatchRun).where(BatchRun.id == run_id).values(counts))


def delete_old_idempotency_keys(db: Session) -> None:
    """Those older than IDEMPOTENCY_KEY_LIFETIME."""
    oldest = datetime.now(UTC).replace(tzinfo=None) - IDEMPOTENCY_KEY_LIFETIME
    db.execute(delete(IdempotencyKey).where(IdempotencyKey.created_datetime < oldest))


def end_run(db: Session, run_id: int) -> None:
    db.execute(update(BatchRun).where(BatchRun.id == run_id).values(ended_datetime=func.current_timestamp()))


def _by_index(statement: Statement, row_filter: Filter) -> Statement:
    if not row_filter:
        return statement
    # MySQL's optimizer relies on statistics, which are stale after every batch.
    return statement.where(*row_filter).with_hint(items, "FORCE INDEX (ix_items_state)", "mysql")
