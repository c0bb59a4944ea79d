"""The tables."""

from datetime import datetime
from typing import Any

from sqlalchemy import JSON, TIMESTAMP, CheckConstraint, Column, Computed, Index, MetaData, String, Table, Text, func
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from src.constants import MAX_ERROR_LENGTH


class Base(DeclarativeBase):
    pass


class Item(Base):
    """A flower, and once the job has seen it either its prediction or the reason why there is none."""

    __tablename__ = "items"

    id: Mapped[int] = mapped_column(primary_key=True)
    values: Mapped[list[float]] = mapped_column(JSON)
    # Without none_as_null a None would be stored as JSON's null, which IS NULL does not find.
    prediction: Mapped[dict[str, float] | None] = mapped_column(JSON(none_as_null=True))
    error: Mapped[str | None] = mapped_column(String(MAX_ERROR_LENGTH))
    model_version: Mapped[str | None] = mapped_column(String(64))
    created_datetime: Mapped[datetime] = mapped_column(TIMESTAMP, server_default=func.current_timestamp())  # UTC
    # MySQL cannot index a JSON column; whether there is something in it, it can.
    is_predicted: Mapped[bool] = mapped_column(Computed("prediction IS NOT NULL", persisted=True))
    is_failed: Mapped[bool] = mapped_column(Computed("error IS NOT NULL AND prediction IS NULL", persisted=True))

    __table_args__: Any = (
        # Ends, in every database, in the primary key: it yields each list in the order of the ids.
        Index("ix_items_state", "is_predicted", "is_failed"),
        # MySQL and MariaDB see to it themselves.
        CheckConstraint('json_valid("values")', name="values_are_json").ddl_if(dialect="sqlite"),
        CheckConstraint("prediction IS NULL OR json_valid(prediction)", name="prediction_is_json").ddl_if(
            dialect="sqlite"
        ),
        {"mysql_engine": "InnoDB", "mysql_charset": "utf8mb4", "sqlite_autoincrement": True},
    )


class BatchRun(Base):
    """One run of the job. One that was killed has no end, but the rows that it had committed."""

    __tablename__ = "batch_runs"

    id: Mapped[int] = mapped_column(primary_key=True)
    started_datetime: Mapped[datetime] = mapped_column(TIMESTAMP, server_default=func.current_timestamp())  # UTC
    ended_datetime: Mapped[datetime | None] = mapped_column(TIMESTAMP)
    predicted_rows: Mapped[int] = mapped_column(default=0)
    error_rows: Mapped[int] = mapped_column(default=0)
    model_version: Mapped[str] = mapped_column(String(64))

    __table_args__: Any = ({"mysql_engine": "InnoDB", "mysql_charset": "utf8mb4"},)


new_predictions = Table(
    "new_predictions",
    MetaData(),
    Column("id", Item.__table__.c.id.type, primary_key=True, autoincrement=False),
    Column("prediction", Text, nullable=False),
    prefixes=["TEMPORARY"],
    mysql_engine="InnoDB",
    mysql_charset="utf8mb4",
)
"""Where a chunk's predictions are sent in one go, before one UPDATE takes them over. Each connection has its own."""
