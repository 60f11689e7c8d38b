"""How images are explained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal, get_args

from convatlas.core.record import Record, at_least
from convatlas.errors import InputError

Cam = Literal["grad-cam", "hires-cam", "layer-cam"]
Method = Literal[Cam, "integrated-gradients", "occlusion"]

CAMS: tuple[Cam, ...] = get_args(Cam)
"""Methods that read the maps of a layer."""
METHODS: tuple[Method, ...] = get_args(Method)


@dataclass(frozen=True)
class ExplainOptions(Record):
    """What is explained, and how.

    method: one of `METHODS`; "auto" chooses by the layer, see `layers.default_method`. label: the class to explain, by
    default the most probable one. against: a class whose logit is subtracted: why one and not the other. object: of
    detectors, the number of the object, the most probable one first. layers: taps, of CAMs; by default the last one
    with a map. Maps of several are averaged. steps: of integrated gradients.
    faithfulness: insertion and deletion curves, beside those of a random map and of the edge map. randomize: the sanity
    check by random weights, of maps that are not empty. stages: the strongest feature maps of each stage.
    """

    error = InputError

    method: Literal["auto", Method] = "auto"
    label: str | None = None
    against: str | None = None
    object: Annotated[int, at_least(0)] = 0
    layers: tuple[str, ...] = ()
    steps: Annotated[int, at_least(1)] = 32
    faithfulness: bool = True
    randomize: bool = False
    stages: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.layers and self.method not in ("auto", *CAMS):
            raise InputError(f"explain: layer must be left out with {self.method}, which reads pixels; use a CAM")
