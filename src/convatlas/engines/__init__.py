"""What runs a network on images: torch itself, torch.compile, ONNX Runtime or OpenVINO, with the same answers."""
