"""Baseline of POST /predict, for `make bench`: a bare FastAPI endpoint that parses and sends one Redis pipeline."""

import json
import os

import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel
from redis.asyncio import Redis

app = FastAPI()
redis = Redis(port=int(os.environ["REDIS_PORT"]))


class EnqueueBody(BaseModel):
    data: list[list[float]]


@app.get("/health")
async def health() -> str:
    return "ok"


@app.post("/predict")
async def predict(body: EnqueueBody) -> dict[str, str]:
    async with redis.pipeline() as pipeline:
        pipeline.set("bare:data", json.dumps(body.data), ex=60)
        pipeline.set("bare:status", "pending", ex=60)
        pipeline.lpush("bare", "a1b2c3")
        await pipeline.execute()
    return {"job_id": "a1b2c3"}


if __name__ == "__main__":
    uvicorn.run(app, port=int(os.environ["PORT"]), access_log=False, log_level="warning")
