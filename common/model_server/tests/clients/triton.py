# /// script
# dependencies = ["tritonclient[http,grpc]==2.73.0"]
# ///
"""NVIDIA's client of the Open Inference Protocol: JSON, binary data, gRPC. Arguments: gRPC address, REST URL."""

import sys

import numpy as np
from tritonclient import grpc, http

row = np.array([[5.1, 3.5, 1.4, 0.2]], np.float32)
for module, address in ((grpc, sys.argv[1]), (http, sys.argv[2].removeprefix("http://"))):
    client = module.InferenceServerClient(address)
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("iris")
    client.get_server_metadata()
    client.get_model_metadata("iris")
    # gRPC has binary data only.
    for options in ({}, {"binary_data": False})[: 1 if module is grpc else 2]:
        given = module.InferInput("input", row.shape, "FP32")
        given.set_data_from_numpy(row, **options)
        wanted = [module.InferRequestedOutput("output", **options)]
        assert client.infer("iris", [given], outputs=wanted).as_numpy("output").argmax() == 0
