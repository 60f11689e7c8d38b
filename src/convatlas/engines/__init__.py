"""What runs a network on pictures: torch itself, torch.compile, ONNX Runtime or OpenVINO, with the same answers."""

from convatlas.engines.choice import Chosen, Way, choose
from convatlas.engines.running import ENGINES, Engine, Torch, installed, start

__all__ = ["ENGINES", "Chosen", "Engine", "Torch", "Way", "choose", "installed", "start"]
