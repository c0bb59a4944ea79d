# /// script
# # Its generated code is older than protobuf 4.
# dependencies = ["min-tfs-client==1.0.2", "protobuf==3.20.3"]
# ///
"""min-tfs-client: arrays in, arrays out, without TensorFlow. Arguments: gRPC address, REST URL."""

import sys

import numpy as np
from min_tfs_client.requests import TensorServingClient
from min_tfs_client.tensors import tensor_proto_to_ndarray

host, port = sys.argv[1].split(":")
response = TensorServingClient(host, int(port)).predict_request(
    "iris", {"input": np.array([[5.1, 3.5, 1.4, 0.2]], np.float32)}
)
assert tensor_proto_to_ndarray(response.outputs["output"]).argmax() == 0
