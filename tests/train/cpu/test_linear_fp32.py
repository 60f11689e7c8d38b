"""Large linear layers compute in float32 under autocast."""

from __future__ import annotations

import torch
from torch import nn

from convatlas.train.cpu import linear_fp32
from convatlas.train.swap_forward import restore_forwards


def test_large_linear_layers_stay_in_float32() -> None:
    torch.manual_seed(0)
    head = nn.Sequential(nn.Linear(2048, 2048), nn.Linear(2048, 10))
    x = torch.randn(4, 2048)
    exact = head[0](x)
    linear_fp32.install(head)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(head[0](x), exact)
        assert head[0](x.bfloat16()).dtype == torch.float32
        assert head[0](torch.randn(linear_fp32.MAX_ROWS + 1, 2048)).dtype == torch.bfloat16  # regions of a detector
        assert head(x).dtype == torch.bfloat16
        restore_forwards(head)
        assert head[0](x).dtype == torch.bfloat16
