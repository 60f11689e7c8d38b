"""Faster, Mask and Keypoint R-CNN: detectors with any network of the catalog as their body."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, Self

import torch
from torch import nn

from convatlas.core.network import Network
from convatlas.core.record import at_least, fields_of
from convatlas.core.spec import Resolution, Spec, Width
from convatlas.errors import SpecError, nearest
from convatlas.layers.frozen_norm import freeze_norms, set_eps
from convatlas.models.card import IMAGENET_MEAN, IMAGENET_STD, Family, Variant
from convatlas.models.detection.body import build_body
from convatlas.models.detection.rows import BoxHead, KeypointHead, MaskHead, Positive, Proposals, anchor_generator
from convatlas.models.keys import KeyMapping, Rules

if TYPE_CHECKING:
    from torchvision.models.detection.roi_heads import RoIHeads

PROPOSALS, BOX_HEAD, MASK_HEAD, KEYPOINT_HEAD = Proposals(), BoxHead(), MaskHead(), KeypointHead()

ANCHOR_STRIDES = 8
"""Side of the anchors of a level, in strides of the level, unless sizes are given."""


@dataclass(frozen=True, repr=False)
class FasterRCNN(Spec):
    """Ren et al. 2015 with the feature pyramid of Lin et al. 2017: body -> neck -> proposals -> boxes and classes.

    body: any classifier of images; its own resolution is not used. levels: the layers of the body whose maps are read;
    by default the last ones at strides 4, 8, 16 and 32, or those of them that it has.
    neck: "pyramid" makes a map of each level and one of half the size of the last; "single map" is a 1x1 convolution
    of the last level. width: channels of the neck's maps. neck_norm: the neck has batch norms, and no bias.
    norm: batch norms of the body are constants ("frozen") or trained ("batch"). eps: of these norms; null: the body's.
    anchors: sizes in pixels for each map of the neck; by default 8 strides. ratios: height / width of anchors.
    resolution: images are resized so that their short side has this many pixels, but the long one at most `max_size`.
    mean, std: by which each channel, from 0 to 1, is standardized; those of the body's weights.
    """

    predicts: ClassVar[str] = "boxes"

    body: Spec
    levels: tuple[str, ...] = ()
    neck: Literal["pyramid", "single map"] = "pyramid"
    width: Width = 256
    neck_norm: bool = False
    norm: Literal["frozen", "batch"] = "frozen"
    eps: float | None = None
    anchors: tuple[tuple[Annotated[int, at_least(1)], ...], ...] = ()
    ratios: tuple[Positive, ...] = (0.5, 1.0, 2.0)
    proposals: Proposals = PROPOSALS
    boxes: BoxHead = BOX_HEAD
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[Positive, ...] = IMAGENET_STD
    max_size: Annotated[int, at_least(1)] = 1333
    resolution: Resolution = 800

    def __post_init__(self) -> None:
        super().__post_init__()
        name = type(self).__name__
        if self.max_size < self.resolution:
            raise SpecError(f"{name}: max_size must be >= resolution, {self.resolution} px, got {self.max_size} px")
        if len(self.mean) != len(self.std) or not self.mean:
            raise SpecError(f"{name}: mean and std must have the same length, got {self.mean} and {self.std}")
        if len({len(sizes) for sizes in self.anchors}) > 1 or not self.ratios or () in self.anchors:
            raise SpecError(f"{name}: anchors must have as many sizes on each level, got {self.anchors}")

    def __repr__(self) -> str:
        """Return the cells that differ from their defaults, as an expression."""
        cells = {field.name: getattr(self, field.name) for field in fields_of(type(self))}
        usual = {field.name: field.default for field in fields_of(type(self))}
        changed = (f"{name}={value!r}" for name, value in cells.items() if value != usual[name])
        return f"{type(self).__name__}({', '.join(changed)})"

    @property
    def minimum(self) -> int:
        return self.body.minimum

    def scaled(self, *, width: float = 1.0, depth: float = 1.0, resolution: int | None = None) -> Self:
        """Scale the body and the widths of neck and heads; the resolution is that of the detector, not of the body.

        `max_size` keeps its ratio to the resolution.
        """
        scaled = replace(super().scaled(width=width, depth=depth), body=self.body.scaled(width=width, depth=depth))
        if resolution is None:
            return scaled
        return replace(scaled, resolution=resolution, max_size=round(self.max_size * resolution / self.resolution))

    @property
    def training_note(self) -> str:
        return f"norms of the body: {'constants' if self.norm == 'frozen' else 'trained'}"

    def for_training(self, *, pretrained: bool, images: int) -> Self:
        """Return the detector with trained norms if the weights are random and there is more than one image at once.

        Constant norms have statistics of pretrained weights alone.
        """
        return self if pretrained or images < 2 else replace(self, norm="batch", eps=None)

    def build(self, *, classes: int, channels: int) -> Network:
        """Return the detector for `classes` classes besides the background; see `RCNN` for its inputs and outputs."""
        from convatlas.models.detection import drawing as drawing  # registers what drawings show
        from convatlas.models.detection.network import RCNN, DetectionHead, ImageTransform

        single = self.neck == "single map"
        body = build_body(self.body, self.levels, channels=channels, least=1 if single else 2)
        if self.norm == "frozen":
            freeze_norms(body.network)
        if self.eps is not None:
            set_eps(body.network, self.eps)
        levels = body.levels[-1:] if single else body.levels
        strides = [level.stride for level in levels]
        sizes = self._anchor_sizes(strides if single else [*strides, 2 * strides[-1]])
        roi_heads = self.boxes.build(self.width, strides, classes)
        self.add_heads(roi_heads, strides, classes)
        head = DetectionHead(
            ImageTransform(self.resolution, self.max_size, *self._standardization(channels), least=self.body.minimum),
            self._neck([level.channels for level in levels]),
            self.proposals.build(self.width, anchor_generator(sizes, self.ratios)),
            roi_heads,
        )
        return RCNN(body, head, input_shape=self.input_shape(channels))

    def add_heads(self, roi_heads: RoIHeads, strides: list[int], classes: int) -> None:
        """Add what there is besides the box head."""

    def _neck(self, channels: list[int]) -> nn.Module:
        from torchvision.ops import FeaturePyramidNetwork
        from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

        if self.neck == "single map":
            return nn.Conv2d(channels[-1], self.width, 1)
        norm = nn.BatchNorm2d if self.neck_norm else None
        pyramid: nn.Module = FeaturePyramidNetwork(channels, self.width, LastLevelMaxPool(), norm)
        return pyramid

    def _anchor_sizes(self, strides: list[int]) -> tuple[tuple[int, ...], ...]:
        if not self.anchors:
            sizes = tuple((ANCHOR_STRIDES * stride,) for stride in strides)
            return (tuple(size for (size,) in sizes),) if self.neck == "single map" else sizes
        if len(self.anchors) != len(strides):
            raise SpecError(
                f"{type(self).__name__}: anchors must have sizes for {len(strides)} maps, at strides "
                f"{', '.join(map(str, strides))} px, or be () for 8 strides each, got {len(self.anchors)}"
            )
        return self.anchors

    def _standardization(self, channels: int) -> tuple[list[float], list[float]]:
        """Return mean and deviation of each channel; other numbers of channels use the averages."""
        mean, std = self.mean, self.std
        if channels != len(mean):
            mean, std = (sum(mean) / len(mean),) * channels, (sum(std) / len(std),) * channels
        return list(mean), list(std)


@dataclass(frozen=True, repr=False)
class MaskRCNN(FasterRCNN):
    """He et al. 2017: Faster R-CNN with a head that predicts the mask of each object."""

    predicts: ClassVar[str] = "masks"

    masks: MaskHead = MASK_HEAD

    def add_heads(self, roi_heads: RoIHeads, strides: list[int], classes: int) -> None:
        self.masks.add_to(roi_heads, self.width, strides, classes)


@dataclass(frozen=True, repr=False)
class KeypointRCNN(FasterRCNN):
    """He et al. 2017, section 5: Faster R-CNN with a head that predicts a heatmap for each of `points` keypoints."""

    predicts: ClassVar[str] = "keypoints"

    points: Annotated[int, at_least(1)] = 17
    keypoints: KeypointHead = KEYPOINT_HEAD

    def add_heads(self, roi_heads: RoIHeads, strides: list[int], classes: int) -> None:
        self.keypoints.add_to(roi_heads, self.width, strides, self.points)


KINDS: dict[str, type[FasterRCNN]] = {"fasterrcnn": FasterRCNN, "maskrcnn": MaskRCNN, "keypointrcnn": KeypointRCNN}
"""Name, as in those of the catalog -> type of detector."""


def on_body(detector: str | FasterRCNN, body: Variant) -> FasterRCNN:
    """Return a detector on a network of the catalog, with its normalization.

    detector: a kind, such as "fasterrcnn", with torchvision's defaults; or a detector whose body is replaced: all other
    cells stay, but the levels are those of the new body. Raises SpecError for an unknown kind.
    """
    mean, std = body.preprocessing.mean, body.preprocessing.std
    if isinstance(detector, FasterRCNN):
        return replace(detector, body=body.spec, levels=(), eps=None, mean=mean, std=std)
    if detector not in KINDS:
        raise SpecError(f"detector: must be one of {', '.join(KINDS)}, got {detector!r}{nearest(detector, KINDS)}")
    return KINDS[detector](body.spec, mean=mean, std=std)


def from_body(spec: FasterRCNN) -> tuple[tuple[str, str], ...]:
    """Return rules from the tensor names of the body's own network; those of its classifier are left out.

    "head.conv.conv.weight" -> "stages.6.conv.conv.weight" where the detector reads that layer
    """
    with torch.device("meta"):
        stages = build_body(spec.body, spec.levels, channels=len(spec.mean), least=1).network.stages
        own = spec.body.build(classes=1, channels=len(spec.mean))
    number = len(own.stages)
    moved = "|".join(stages._modules[str(number)]._modules) if len(stages) > number else ""
    counters = ((r"^(stem|stages)\..*num_batches_tracked$", ""),) if spec.norm == "frozen" else ()
    kept = ((rf"^head\.({moved})\.", f"stages.{number}.{{1}}."),) if moved else ()
    return (*kept, (r"^(head|auxiliary)\..*", ""), *counters)


def key_mapping(families: Iterable[Family]) -> KeyMapping:
    """Return the key rules of torchvision's detectors, whose bodies have those of their families."""
    known = list(families)

    def torchvision(spec: FasterRCNN) -> Rules:
        """Rules for torchvision.

        "backbone.body.layer1.0.conv1.weight" -> "stages.0.0.sum.body.conv1.conv.weight"
        "backbone.fpn.inner_blocks.0.0.weight" -> "head.neck.inner_blocks.0.0.weight"
        "rpn.head.cls_logits.weight" -> "head.rpn.head.cls_logits.weight"
        "roi_heads.box_predictor.cls_score.bias" -> "head.roi_heads.box_predictor.cls_score.bias"
        """
        bodies = (family.rules(spec.body).get("torchvision") for family in known)
        return (
            (r"^backbone\.body\.(?=\d)", "features."), (r"^backbone\.body\.", ""),
            *next(filter(None, bodies), ()), *from_body(spec),
            # names of the files of COCO_V1, before torchvision 0.13
            (r"^(backbone\.fpn\.\w+_blocks\.\d)\.(weight|bias)$", "{1}.0.{2}"),
            (r"^rpn\.head\.conv\.(weight|bias)$", "rpn.head.conv.0.0.{1}"), (r"\.mask_fcn(\d)\.", ".{1-1}.0."),
            (r"^backbone\.fpn\.", "head.neck."), (r"^(rpn|roi_heads)\.", "head.{1}."),
        )  # fmt: skip

    return torchvision
