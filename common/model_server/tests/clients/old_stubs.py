# /// script
# # Its generated code is older than protobuf 4.
# dependencies = ["tensorflow-serving-client-grpc==2.3.0", "protobuf==3.20.3"]
# ///
"""Stubs of TensorFlow Serving 2.3, without TensorFlow. Arguments: gRPC address, REST URL."""

import sys

import grpc
from tensorflow.core.framework import types_pb2
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc  # type: ignore[import-untyped]

request = predict_pb2.PredictRequest()
request.model_spec.name = "iris"
tensor = request.inputs["input"]
tensor.dtype = types_pb2.DT_FLOAT
for size in (1, 4):
    tensor.tensor_shape.dim.add().size = size
tensor.float_val.extend([5.1, 3.5, 1.4, 0.2])
with grpc.insecure_channel(sys.argv[1]) as channel:
    response = prediction_service_pb2_grpc.PredictionServiceStub(channel).Predict(request, timeout=30)
scores = response.outputs["output"].float_val
assert max(range(3), key=scores.__getitem__) == 0
