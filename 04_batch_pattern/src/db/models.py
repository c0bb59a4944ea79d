"""The tables, as SQLAlchemy models."""

from datetime import datetime
from typing import Any

from sqlalchemy import JSON, TIMESTAMP, CheckConstraint, Column, Computed, Index, MetaData, String, Table, Text, func
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from serving_common.cards import Value
from src.constants import MAX_ERROR_LENGTH

# JSON null, which other programs may store, is no prediction either. SQLite gives its type in lower case.
_IS_PREDICTED = "prediction IS NOT NULL AND JSON_TYPE(prediction) NOT IN ('NULL', 'null')"


class Base(DeclarativeBase):
    pass


class ItemRow(Base):
    """A row to predict and, after a batch, either its prediction or the reason why it cannot be predicted."""

    __tablename__ = "items"

    id: Mapped[int] = mapped_column(primary_key=True)
    values: Mapped[list[Value]] = mapped_column(JSON)
    # Without none_as_null, None would be stored as JSON null, which IS NULL does not match.
    prediction: Mapped[dict[str, float] | None] = mapped_column(JSON(none_as_null=True))
    error: Mapped[str | None] = mapped_column(String(MAX_ERROR_LENGTH))
    model_version: Mapped[str | None] = mapped_column(String(64))
    created_datetime: Mapped[datetime] = mapped_column(TIMESTAMP, server_default=func.current_timestamp())  # UTC
    # MySQL cannot index a JSON column, but it can index these generated ones.
    is_predicted: Mapped[bool] = mapped_column(Computed(_IS_PREDICTED, persisted=True))
    is_failed: Mapped[bool] = mapped_column(Computed(f"error IS NOT NULL AND NOT ({_IS_PREDICTED})", persisted=True))

    __table_args__: Any = (
        # Every database appends the primary key, so the index yields each list ordered by id.
        Index("ix_items_state", "is_predicted", "is_failed"),
        # MySQL and MariaDB validate JSON columns themselves.
        CheckConstraint('json_valid("values")', name="values_are_json").ddl_if(dialect="sqlite"),
        CheckConstraint("prediction IS NULL OR json_valid(prediction)", name="prediction_is_json").ddl_if(
            dialect="sqlite"
        ),
        {"mysql_engine": "InnoDB", "mysql_charset": "utf8mb4", "sqlite_autoincrement": True},
    )


class BatchRun(Base):
    """One run of the job. A run that was killed has no end, but the counts of the rows that it committed."""

    __tablename__ = "batch_runs"

    id: Mapped[int] = mapped_column(primary_key=True)
    started_datetime: Mapped[datetime] = mapped_column(TIMESTAMP, server_default=func.current_timestamp())  # UTC
    ended_datetime: Mapped[datetime | None] = mapped_column(TIMESTAMP)
    predicted_rows: Mapped[int] = mapped_column(default=0)
    error_rows: Mapped[int] = mapped_column(default=0)
    model_version: Mapped[str] = mapped_column(String(64))

    __table_args__: Any = ({"mysql_engine": "InnoDB", "mysql_charset": "utf8mb4"},)


class IdempotencyKey(Base):
    """A request that was answered under an Idempotency-Key, and what its answer cannot be computed from otherwise."""

    __tablename__ = "idempotency_keys"

    hashed_key: Mapped[str] = mapped_column(String(64), primary_key=True)
    digest: Mapped[str] = mapped_column(String(64))  # of the request
    id_ranges: Mapped[list[list[int]]] = mapped_column(JSON)
    created_datetime: Mapped[datetime] = mapped_column(TIMESTAMP, server_default=func.current_timestamp(), index=True)

    __table_args__: Any = ({"mysql_engine": "InnoDB", "mysql_charset": "utf8mb4"},)


new_predictions = Table(
    "new_predictions",
    MetaData(),
    Column("id", ItemRow.__table__.c.id.type, primary_key=True, autoincrement=False),
    Column("prediction", Text, nullable=False),
    prefixes=["TEMPORARY"],
    mysql_engine="InnoDB",
    mysql_charset="utf8mb4",
)
"""A chunk's predictions, bulk-inserted here before one UPDATE copies them to `items`. Private to each connection."""
