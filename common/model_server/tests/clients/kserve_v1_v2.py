# /// script
# dependencies = ["kserve==0.21.0"]
# ///
"""KServe's clients of V1 and V2 over REST and of V2 over gRPC. Arguments: gRPC address, REST URL."""

import asyncio
import sys

import numpy as np
from kserve import InferenceGRPCClient, InferenceRESTClient, InferInput, InferRequest, RESTConfig

address, url = sys.argv[1:3]
row = np.array([[5.1, 3.5, 1.4, 0.2]], np.float32)


def request(*, is_binary: bool) -> InferRequest:
    """The row, as JSON or as binary data."""
    given = InferInput("input", list(row.shape), "FP32")
    given.set_data_from_numpy(row, binary_data=is_binary)
    return InferRequest("iris", [given])


async def main() -> None:
    """Every call that the clients have, but explain."""
    v1 = InferenceRESTClient(RESTConfig(protocol="v1"))
    # Its is_model_ready of V1 looks for a key that KServe's own servers add, and TensorFlow Serving does not.
    predictions = (await v1.infer(url, {"instances": row.tolist()}, "iris"))["predictions"]
    assert np.argmax(predictions[0]) == 0
    v2 = InferenceRESTClient(RESTConfig(protocol="v2"))
    assert await v2.is_server_live(url)
    assert await v2.is_server_ready(url)
    assert await v2.is_model_ready(url, "iris")
    for is_binary in (False, True):
        answer = await v2.infer(url, request(is_binary=is_binary), "iris")
        assert answer.outputs[0].as_numpy().argmax() == 0
    async with InferenceGRPCClient(address) as client:
        assert await client.is_server_live()
        assert await client.is_server_ready()
        assert await client.is_model_ready("iris")
        for is_binary in (False, True):
            answer = await client.infer(request(is_binary=is_binary))
            assert answer.outputs[0].as_numpy().argmax() == 0


asyncio.run(main())
