"""Baseline of a service, for `make bench`: one FastAPI endpoint around the same model; DELAY_S slows it down."""

import asyncio
import os

import numpy as np
import onnxruntime as ort
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel

options = ort.SessionOptions()
options.intra_op_num_threads = 1
session = ort.InferenceSession(os.environ["MODEL_FILEPATH"], options)
delay_s = float(os.environ.get("DELAY_S", "0"))
app = FastAPI()


class BareBody(BaseModel):
    data: list[list[float]]


@app.get("/health")
async def health() -> dict[str, str]:
    return {"health": "ok"}


@app.post("/predict")
async def predict(body: BareBody) -> dict[str, list[float]]:
    if delay_s:
        await asyncio.sleep(delay_s)
    [probabilities] = session.run(["probabilities"], {"input": np.array(body.data, np.float32)})
    return {"prediction": probabilities[0].tolist()}


if __name__ == "__main__":
    uvicorn.run(app, port=int(os.environ["PORT"]), access_log=False, log_level="warning")
