"""Export: ONNX files, INT8 quantization, the proof that they agree, and the bundle."""
