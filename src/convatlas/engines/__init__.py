"""Inference engines with the same outputs: PyTorch, torch.compile, ONNX Runtime and OpenVINO."""
