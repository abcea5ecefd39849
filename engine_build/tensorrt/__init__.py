"""The second half of a TensorRT build: from typed ONNX to a plan for this machine's GPU, checked on it."""
