# /// script
# dependencies = ["tensorflow-serving-api==2.21.0"]
# ///
"""The stubs that the TensorFlow Serving project publishes. Arguments: gRPC address, REST URL."""

import sys

import grpc
import tensorflow as tf
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc  # type: ignore[import-untyped]

address = sys.argv[1]
request = predict_pb2.PredictRequest()
request.model_spec.name = "iris"
request.model_spec.signature_name = "serving_default"
request.inputs["input"].CopyFrom(tf.make_tensor_proto([[5.1, 3.5, 1.4, 0.2]], shape=[1, 4]))
with grpc.insecure_channel(address) as channel:
    response = prediction_service_pb2_grpc.PredictionServiceStub(channel).Predict(request, timeout=30)
assert tf.make_ndarray(response.outputs["output"]).argmax() == 0
