# /// script
# dependencies = ["ovmsclient==2023.1"]
# ///
"""OpenVINO's client of TensorFlow Serving's protocol, over gRPC and REST. Arguments: gRPC address, REST URL."""

import sys

import numpy as np
from ovmsclient import make_grpc_client, make_http_client

row = np.array([[5.1, 3.5, 1.4, 0.2]], np.float32)
# Without one it sends version 0: the newest for OpenVINO's server, one like any other in this protocol.
VERSION = 1
for client in (make_grpc_client(sys.argv[1]), make_http_client(sys.argv[2].removeprefix("http://"))):
    assert client.get_model_status("iris", VERSION)[1]["state"] == "AVAILABLE"
    metadata = client.get_model_metadata("iris", VERSION)
    if "inputs" not in metadata:  # over REST it knows the names of OpenVINO's JSON only, and hands on all others
        metadata = metadata["metadata"]["signature_def"]["signature_def"]["serving_default"]
    assert metadata["inputs"]["input"]["dtype"] == "DT_FLOAT", metadata
    assert client.predict({"input": row}, "iris", VERSION).argmax() == 0
