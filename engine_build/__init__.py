"""Makes the engines that `serve_app` serves: weights -> torch -> ONNX -> backend -> verified engine folder."""
