"""Draw diagnose-sigmoid.png: a plain network of twelve convolutions with sigmoids, in which the gradient vanishes."""

from __future__ import annotations

import torch
from torch import nn

import convatlas as ca

layers: list[nn.Module] = [nn.Conv2d(1, 16, 3, padding=1), nn.Sigmoid()]
for _ in range(10):
    layers += [nn.Conv2d(16, 16, 3, padding=1), nn.Sigmoid()]
torch.manual_seed(0)
network = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10))
options, execution = ca.DataOptions(resolution=16), ca.ExecutionOptions(threads=1)
run = ca.fit("digits", network, epochs=5, data_options=options, execution=execution, out="run", progress=False)
ca.diagnose(run).figure("diagnose-sigmoid.png")
