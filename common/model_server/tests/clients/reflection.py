# /// script
# dependencies = ["grpc-requests==0.1.21"]
# ///
"""A client that knows no protocol and asks the server for it by reflection. Arguments: gRPC address, REST URL."""

import sys

from grpc_requests import Client

client = Client(sys.argv[1])
tensor = {
    "dtype": "DT_FLOAT",
    "tensor_shape": {"dim": [{"size": 1}, {"size": 4}]},
    "float_val": [5.1, 3.5, 1.4, 0.2],
}
request = {"model_spec": {"name": "iris"}, "inputs": {"input": tensor}}
response = client.request("tensorflow.serving.PredictionService", "Predict", request)
scores = response["outputs"]["output"]["float_val"]
assert max(range(3), key=scores.__getitem__) == 0
