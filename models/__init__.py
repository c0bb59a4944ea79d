import os

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # before anyone imports it; serving_common/onnx.py says why
