"""The endpoints. Those that use the database block, so they are plain functions, which FastAPI runs in threads."""

import re
import time
from collections.abc import Callable
from typing import Annotated, cast

from anyio import from_thread
from fastapi import APIRouter, Body, Depends, Header, HTTPException, Path, Query, Request, Response
from fastapi.responses import StreamingResponse
from pydantic import BeforeValidator, Field

from serving_common.callers import waits
from serving_common.cards import Card
from serving_common.errors import CallerGone
from serving_common.problems import problem_responses
from src.api.health import Probe
from src.api.listing import json_array
from src.api.registration import register_rows
from src.constants import MAX_ID
from src.db import cruds
from src.db.database import Database
from src.db.schemas import Health, ModelMetadata, NewItem, item_types, to_json

JSON = "application/json"
LONG_WAIT_S = 0.1


async def _database(request: Request) -> Database:
    return cast(Database, request.app.state.database)


async def _caller(request: Request) -> Callable[[], None]:
    """What a thread calls before it stores a row; it raises CallerGone if nobody waits for the response any more."""
    still_waits, begun = waits(request), time.monotonic()

    def require_caller() -> None:
        # To ask the event loop takes time itself, and a caller rarely goes before a thread is free.
        if time.monotonic() - begun > LONG_WAIT_S and not from_thread.run_sync(still_waits):
            raise CallerGone("The caller no longer waits for the response")

    return require_caller


def _require_digits(text: str) -> str:
    """Reject other text that Python or pydantic would read as an integer, such as 1.0, 1_000 and +1."""
    if re.fullmatch("-?[0-9]+", text) is None:
        raise ValueError("must be a valid integer")
    return text


Id = Annotated[int, BeforeValidator(_require_digits)]
DatabaseDep = Annotated[Database, Depends(_database)]
CallerDep = Annotated[Callable[[], None], Depends(_caller)]
# Bounds come before the validator; after it they would be missing from the OpenAPI document.
AtLeast0 = Annotated[int, Field(ge=0, le=MAX_ID), BeforeValidator(_require_digits)]
AtLeast1 = Annotated[int, Field(ge=1), BeforeValidator(_require_digits)]
AfterId = Annotated[AtLeast0, Query(description="Only items with ids greater than this one.")]
Limit = Annotated[AtLeast1 | None, Query(description="Maximum number of items; fetch the rest with after_id.")]
IdempotencyKey = Annotated[str | None, Header(min_length=1, max_length=255, include_in_schema=False)]

health_router = APIRouter(tags=["health"])


@health_router.get("/health", responses=problem_responses(503))
async def health(request: Request) -> Health:
    """Whether the database answers."""
    await cast(Probe, request.app.state.ping).run()
    return {"status": "ok"}


def create_router(card: Card) -> APIRouter:
    """The endpoints for rows and predictions of this card's model."""
    router = APIRouter(tags=["data"], responses=problem_responses(401))
    types = item_types(card)

    @router.get("/metadata")
    async def metadata(request: Request) -> ModelMetadata:
        """The model that the job predicts with."""
        return cast(ModelMetadata, request.app.state.metadata)

    # The name keeps the operationId of the OpenAPI document.
    @router.post("/data", name="register", response_model=types.stored, responses=problem_responses(400, 413, 429, 503))
    def register_item(
        item: Annotated[NewItem, types.new, Body()],
        database: DatabaseDep,
        require_caller: CallerDep,
        idempotency_key: IdempotencyKey = None,
    ) -> Response:
        """Store one row; the next batch predicts it.

        A request with the header `Idempotency-Key` can be retried: the same key returns the same item, or 400 if the
        body is another one.
        """
        require_caller()
        [stored] = register_rows(database, "/data", [item["values"]], idempotency_key)
        return Response(to_json(stored), media_type=JSON)

    @router.post("/data/list", response_model=types.stored_list, responses=problem_responses(400, 413, 429, 503))
    def register_list(
        items: Annotated[list[NewItem], types.new_list, Body()],
        database: DatabaseDep,
        require_caller: CallerDep,
        idempotency_key: IdempotencyKey = None,
    ) -> Response:
        """Store many rows, all or none. `Idempotency-Key` is that of POST /data."""
        require_caller()
        stored = register_rows(database, "/data/list", [item["values"] for item in items], idempotency_key)
        return Response(to_json(stored), media_type=JSON)

    @router.get("/data/all", response_model=types.stored_list, responses=problem_responses(400, 503))
    def list_all(database: DatabaseDep, after_id: AfterId = 0, limit: Limit = None) -> StreamingResponse:
        """All items."""
        return StreamingResponse(json_array(database, cruds.ALL, after_id, limit), media_type=JSON)

    @router.get("/data/unpredicted", response_model=types.stored_list, responses=problem_responses(400, 503))
    def list_unpredicted(database: DatabaseDep, after_id: AfterId = 0, limit: Limit = None) -> StreamingResponse:
        """Items that wait for the next batch."""
        return StreamingResponse(json_array(database, cruds.UNPREDICTED, after_id, limit), media_type=JSON)

    @router.get("/data/predicted", response_model=types.stored_list, responses=problem_responses(400, 503))
    def list_predicted(database: DatabaseDep, after_id: AfterId = 0, limit: Limit = None) -> StreamingResponse:
        """Items with a prediction."""
        return StreamingResponse(json_array(database, cruds.PREDICTED, after_id, limit), media_type=JSON)

    @router.get("/data/failed", response_model=types.stored_list, responses=problem_responses(400, 503))
    def list_failed(database: DatabaseDep, after_id: AfterId = 0, limit: Limit = None) -> StreamingResponse:
        """Items that the job could not predict, and why."""
        return StreamingResponse(json_array(database, cruds.FAILED, after_id, limit), media_type=JSON)

    @router.get("/data/list", include_in_schema=False)
    async def reject_list_as_id() -> None:
        """405: without this route, GET /data/list would be a request for the item `list`."""
        raise HTTPException(405, "Method Not Allowed", {"Allow": "POST"})

    @router.get("/data/{id}", response_model=types.stored, responses=problem_responses(400, 404, 503))
    def get_item(item_id: Annotated[Id, Path(alias="id")], database: DatabaseDep) -> Response:
        """One item."""
        with database.transaction(operation="SELECT") as db:
            stored = cruds.select_by_id(db, item_id)
        return Response(to_json(stored), media_type=JSON)

    return router
