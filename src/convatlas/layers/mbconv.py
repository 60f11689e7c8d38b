"""Inverted residuals: MBConv of MobileNetV2 and its successors, and FusedMBConv of EfficientNetV2."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

from torch import nn

from convatlas.core.compose import Chain, Sum
from convatlas.layers.channels import DropPath

Conv = Callable[..., nn.Module]
"""A `ConvNorm` with the norm and activation of the network filled in."""


def _beside_identity(layers: dict[str, nn.Module], *, skip: bool, drop: float) -> dict[str, nn.Module]:
    """Return the branches of the sum: the layers, with stochastic depth, and the identity if there is a shortcut."""
    if not skip:
        return {"body": Chain(**layers)}
    if drop:
        layers["drop"] = DropPath(drop)
    return {"body": Chain(**layers), "skip": nn.Identity()}


class MBConv(Sum):
    """[x +] 1x1 expand -> kxk depthwise /s -> [gate] -> 1x1 project, linear (Sandler et al. 2018, figure 3b).

    The shortcut exists where input and output have the same shape. There is no expansion if `middle` equals `inputs`.
    conv: builds convolution, norm and activation. gate: squeeze-and-excitation. drop: rate of stochastic depth.
    skip: False for a block without shortcut.
    """

    def __init__(
        self,
        inputs: int,
        middle: int,
        outputs: int,
        *,
        conv: Conv,
        kernel: int = 3,
        stride: int = 1,
        gate: nn.Module | None = None,
        drop: float = 0.0,
        skip: bool = True,
    ) -> None:
        layers: dict[str, nn.Module] = {}
        if middle != inputs:
            layers["expand"] = conv(inputs, middle, kernel=1)
        layers["depthwise"] = conv(middle, middle, kernel=kernel, stride=stride, groups=middle)
        if gate is not None:
            layers["gate"] = gate
        layers["project"] = conv(middle, outputs, kernel=1, act=None)
        super().__init__(**_beside_identity(layers, skip=skip and (inputs, stride) == (outputs, 1), drop=drop))


class FusedMBConv(Sum):
    """[x +] kxk expand /s -> 1x1 project, linear; without expansion one kxk /s (EfficientNetV2, figure 2).

    The shortcut exists where input and output have the same shape. Arguments as for `MBConv`.
    """

    def __init__(
        self, inputs: int, middle: int, outputs: int, *, conv: Conv, kernel: int, stride: int, drop: float = 0.0
    ) -> None:
        layers: dict[str, nn.Module] = {}
        if middle == inputs:
            layers["expand"] = conv(inputs, outputs, kernel=kernel, stride=stride)
        else:
            layers["expand"] = conv(inputs, middle, kernel=kernel, stride=stride)
            layers["project"] = conv(middle, outputs, kernel=1, act=None)
        super().__init__(**_beside_identity(layers, skip=(inputs, stride) == (outputs, 1), drop=drop))


def mbconv_layers(*, expanded: bool, fused: bool = False, gated: bool = False) -> list[str]:
    """Return the names of a block's layers, in order."""
    if fused:
        return ["expand", "project"] if expanded else ["expand"]
    names = {"expand": expanded, "depthwise": True, "gate": gated, "project": True}
    return [name for name, present in names.items() if present]


def timm_mbconv_rules(blocks: Iterable[tuple[str, bool, bool]]) -> list[tuple[str, str]]:
    """Return timm's key rules for a network of MBConv: (path "stage.block", expanded, fused) of each block."""
    head = [(r"^conv_head\.", "head.conv.conv."), (r"^bn2\.", "head.conv.norm."), (r"^classifier\.", "head.out.")]
    return head + timm_stage_rules(blocks)


def timm_stage_rules(blocks: Iterable[tuple[str, bool, bool]]) -> list[tuple[str, str]]:
    """Return timm's key rules for the stem and the blocks: (path "stage.block", expanded, fused) of each.

    "blocks.1.0.conv_pwl.weight" -> "stages.1.0.body.project.conv.weight" for an expanded block. Without an expansion
    timm calls the projection conv_pw.
    """
    rules = [(r"^conv_stem\.", "stem.conv."), (r"^bn1\.", "stem.norm.")]
    for path, expanded, fused in blocks:
        if fused:
            theirs = ["conv_exp", "conv_pwl"] if expanded else ["conv"]
        else:
            theirs = ["conv_pw", "conv_dw", "conv_pwl"] if expanded else ["conv_dw", "conv_pw"]
        at, body = rf"^{re.escape(f'blocks.{path}.')}", f"stages.{path}.body."
        ours = mbconv_layers(expanded=expanded, fused=fused)
        for i, (their_name, name) in enumerate(zip(theirs, ours, strict=True), 1):
            rules += [(rf"{at}{their_name}\.", f"{body}{name}.conv."), (rf"{at}bn{i}\.", f"{body}{name}.norm.")]
        rules += [
            (rf"{at}se\.conv_reduce\.", f"{body}gate.gate.reduce."),
            (rf"{at}se\.conv_expand\.", f"{body}gate.gate.expand."),
        ]
    return rules
