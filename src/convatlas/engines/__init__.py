"""What runs a network on pictures: torch itself, torch.compile, ONNX Runtime or OpenVINO, with the same answers."""
