"""The floor under a service of pattern 06: one FastAPI endpoint around the same model, and nothing else."""

import os

import numpy as np
import onnxruntime as ort
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel

options = ort.SessionOptions()
options.intra_op_num_threads = 1
session = ort.InferenceSession(os.environ["MODEL_FILEPATH"], options)
app = FastAPI()


class Rows(BaseModel):
    data: list[list[float]]


@app.get("/health")
async def health() -> dict[str, str]:
    return {"health": "ok"}


@app.post("/predict")
async def predict(rows: Rows) -> dict[str, list[float]]:
    [probabilities] = session.run(["probabilities"], {"input": np.array(rows.data, np.float32)})
    return {"prediction": probabilities[0].tolist()}


uvicorn.run(app, port=int(os.environ["PORT"]), access_log=False, log_level="warning")
