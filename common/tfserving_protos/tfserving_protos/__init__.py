"""TensorFlow Serving's messages (`messages`) and services (`services`) without TensorFlow."""
