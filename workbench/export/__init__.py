"""From float weights to what a car runs: ONNX, INT8, the proof that they agree, and the bundle."""
