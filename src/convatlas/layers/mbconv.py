"""The inverted residual: narrow, wide inside each channel, narrow again. MobileNet v2 and all that followed it."""

from __future__ import annotations

import re

from torch import nn

from convatlas.core.compose import Chain, Sum
from convatlas.layers.channels import DropPath
from convatlas.layers.conv import Activation, ConvNorm, Norm


class InvertedResidual(Sum):
    """1x1 expand, kxk within each channel, [gate], 1x1 project, beside the identity where the shape stays.

    Sandler et al. 2018, figure 3b. Nothing is expanded where `middle` equals `inputs`; the projection is linear.
    fused: one full kxk convolution expands (EfficientNetV2, figure 2); where nothing is expanded it is all there is.
    """

    def __init__(
        self,
        inputs: int,
        middle: int,
        outputs: int,
        *,
        kernel: int = 3,
        stride: int = 1,
        act: Activation = nn.ReLU6,
        norm: Norm = nn.BatchNorm2d,
        gate: nn.Module | None = None,
        drop: float = 0.0,
        fused: bool = False,
        skip: bool = True,
    ) -> None:
        layers: dict[str, nn.Module] = {}
        if fused:
            wide = middle if middle != inputs else outputs
            layers["expand"] = ConvNorm(inputs, wide, kernel=kernel, stride=stride, norm=norm, act=act)
        else:
            if middle != inputs:
                layers["expand"] = ConvNorm(inputs, middle, kernel=1, norm=norm, act=act)
            layers["depthwise"] = ConvNorm(
                middle, middle, kernel=kernel, stride=stride, groups=middle, norm=norm, act=act
            )
        if gate is not None:
            layers["gate"] = gate
        if not fused or middle != inputs:
            layers["project"] = ConvNorm(middle, outputs, kernel=1, norm=norm, act=None)
        beside = skip and (inputs, stride) == (outputs, 1)
        if beside and drop:
            layers["drop"] = DropPath(drop)
        super().__init__(body=Chain(**layers), **({"skip": nn.Identity()} if beside else {}))


def timm_stages(blocks: list[tuple[str, bool, bool]]) -> list[tuple[str, str]]:
    """Return timm's key rules for inverted residuals: (path "stage.block", expanded?, fused?) of each.

    timm calls the layers conv_pw, conv_dw, conv_pwl; without an expansion the projection is conv_pw.
    """
    rules = []
    for path, expanded, fused in blocks:
        if fused:
            names = {"conv_exp": "expand", "conv_pwl": "project"} if expanded else {"conv": "expand"}
        elif expanded:
            names = {"conv_pw": "expand", "conv_dw": "depthwise", "conv_pwl": "project"}
        else:
            names = {"conv_dw": "depthwise", "conv_pw": "project"}
        at, ours = rf"^{re.escape(f'blocks.{path}.')}", f"stages.{path}.body."
        rules += [(rf"{at}{conv}\.", f"{ours}{name}.conv.") for conv, name in names.items()]
        rules += [(rf"{at}bn{i}\.", f"{ours}{name}.norm.") for i, name in enumerate(names.values(), 1)]
        rules += [
            (rf"{at}se\.conv_reduce\.", f"{ours}gate.gate.reduce."),
            (rf"{at}se\.conv_expand\.", f"{ours}gate.gate.expand."),
        ]
    return [
        (r"^conv_stem\.", "stem.conv."), (r"^bn1\.", "stem.norm."), (r"^conv_head\.", "head.conv.conv."),
        (r"^bn2\.", "head.conv.norm."), (r"^classifier\.", "head.out."), *rules,
    ]  # fmt: skip
