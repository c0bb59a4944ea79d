"""What a job is on every queue: one row for the model server, then the result and how often this job has one."""

import os
from functools import cache

import grpc
import redis
import redis.asyncio

from tfserving_protos import messages
from tfserving_protos.services import PredictionServiceStub

REDIS_URL = os.environ["REDIS_URL"]
RESULTS_URL = os.environ["RESULTS_URL"]  # another database: the queue must not find keys of ours in its own
ADDRESS = os.environ["MODEL_ADDRESS"]
TIMEOUT_S = 5

REQUEST = messages.PredictRequest(model_spec=messages.ModelSpec(name="iris"))
ROW = REQUEST.inputs["input"]
ROW.dtype = messages.DT_FLOAT
for size in (1, 4):
    ROW.tensor_shape.dim.add().size = size
ROW.float_val.extend([5.1, 3.5, 1.4, 0.2])


# Opened by the first job of a process: a connection that was open before a fork does not work after it.
@cache
def connections() -> tuple[PredictionServiceStub, redis.Redis]:
    return PredictionServiceStub(grpc.insecure_channel(ADDRESS)), redis.Redis.from_url(RESULTS_URL)


@cache
def async_connections() -> tuple[PredictionServiceStub, redis.asyncio.Redis]:
    return PredictionServiceStub(grpc.aio.insecure_channel(ADDRESS)), redis.asyncio.Redis.from_url(RESULTS_URL)


def predict(job: int) -> None:
    model, results = connections()
    reply = model.Predict(REQUEST, timeout=TIMEOUT_S)
    store(results.pipeline(), job, reply).execute()


async def predict_async(job: int) -> None:
    model, results = async_connections()
    reply = await model.Predict(REQUEST, timeout=TIMEOUT_S)
    await store(results.pipeline(), job, reply).execute()


def store(transaction, job: int, reply):  # noqa: ANN001, ANN201 - of either client
    [score, *_] = reply.outputs["output"].float_val
    return transaction.set(f"result:{job}", score).hincrby("times", job, 1)
