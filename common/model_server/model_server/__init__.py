"""A portable model server: TensorFlow Serving's protocol, flags and errors on TensorFlow's pip package."""
