"""R-CNN: a body, a neck, proposals and heads for regions, called as torchvision's detectors are."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import RegionProposalNetwork
from torchvision.models.detection.transform import GeneralizedRCNNTransform, resize_boxes

from convatlas.core.auxiliary import Features
from convatlas.core.compose import is_observed
from convatlas.core.network import Network, feature_map, is_chain, is_overwritten, named_layers
from convatlas.core.ragged import to_device
from convatlas.core.signal import PairSignal, Signal, Tally, rule, walk
from convatlas.errors import InputError
from convatlas.models.detection.body import Body
from convatlas.models.detection.counting import count_head
from convatlas.models.detection.inputs import check_images, check_targets

EXAMPLE_SIDE = 224
"""Maximum side in pixels of the images with which training steps are timed."""


class ImageTransform(GeneralizedRCNNTransform):  # type: ignore[misc]  # torchvision carries no types
    """torchvision's transform, which standardizes, resizes and pads images; a target may state its own short side.

    least: smallest height and width of a batch in pixels, which the body needs. compact: see `Network.compact`.
    """

    compact = False

    min_size: tuple[int, ...]

    def __init__(self, *args: Any, least: int = 1) -> None:
        super().__init__(*args)
        self.least = least

    def resize(self, image: Tensor, target: dict[str, Any] | None = None) -> tuple[Tensor, dict[str, Any] | None]:
        """Resize an image, its boxes, masks and keypoints to `target["short_side"]`, or else to `min_size`."""
        usual = self.min_size
        if target is not None and "short_side" in target:
            self.min_size = (int(target["short_side"]),)
        try:
            resized: tuple[Tensor, dict[str, Any] | None] = super().resize(image, target)
        finally:
            self.min_size = usual
        return resized

    def postprocess(
        self, result: list[dict[str, Tensor]], image_shapes: list[tuple[int, int]],
        original_sizes: list[tuple[int, int]],
    ) -> list[dict[str, Tensor]]:  # fmt: skip
        """Return detections in pixels of the images; masks are those of the images, or if compact, of their boxes."""
        compact = [each.pop("masks") for each in result if self.compact and "masks" in each]
        finished: list[dict[str, Tensor]] = super().postprocess(result, image_shapes, original_sizes)
        for each, masks in zip(finished, compact, strict=False):
            each["masks_of_boxes"] = masks
        return finished

    def batch_images(self, images: list[Tensor], size_divisible: int = 32) -> Tensor:
        """Return the images as one batch (n, channels, h, w), padded with zeros on the right and below."""
        if self.least > size_divisible:
            first = images[0]
            height, width = (max(0, self.least - size) for size in first.shape[-2:])
            images = [F.pad(first, (0, width, 0, height)), *images[1:]]
        batch: Tensor = super().batch_images(images, size_divisible)
        return batch


class DetectionHead(nn.Module):
    """What is behind the body: neck, region proposal network and RoI heads, of torchvision."""

    def __init__(
        self, transform: ImageTransform, neck: nn.Module, rpn: RegionProposalNetwork, roi_heads: RoIHeads
    ) -> None:
        super().__init__()
        self.transform, self.neck, self.rpn, self.roi_heads = transform, neck, rpn, roi_heads

    def forward(
        self, images: Any, maps: Sequence[Tensor], sizes: Sequence[tuple[int, int]], targets: Any = None
    ) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
        """Return (detections, losses): the one is empty in training, the other in evaluation.

        images: an `ImageList` of what the transform returned. maps: of the levels of the body. sizes: (height, width)
        of each image before it was resized.
        """
        seeds = [target.get("seed") for target in targets or ()]
        self.rpn.fg_bg_sampler.seeds = self.roi_heads.fg_bg_sampler.seeds = seeds
        features = self.pyramid(maps)
        proposals, losses = self.rpn(images, features, targets)
        detections, more = self.roi_heads(features, proposals, images.image_sizes, targets)
        detections = self.transform.postprocess(detections, images.image_sizes, list(sizes))
        return detections, {**more, **losses}

    def pyramid(self, maps: Sequence[Tensor]) -> dict[str, Tensor]:
        """Return the maps of the neck by name: "0", "1", ..., and "pool" of a feature pyramid."""
        if isinstance(self.neck, nn.Conv2d):
            return OrderedDict([("0", self.neck(maps[-1]))])
        pyramid: dict[str, Tensor] = self.neck(OrderedDict((str(i), each) for i, each in enumerate(maps)))
        return pyramid


class RCNN(Network):
    """Faster, Mask or Keypoint R-CNN. `stem` and `stages` are those of the body, `head` a `DetectionHead`.

    network(images) in evaluation: images are a list of (channels, h, w) from 0 to 1, of any sizes; returns for each
    {"boxes": (k, 4) in pixels of that image, "labels": (k,) from 1, "scores": (k,)}, and "masks" (k, 1, h, w) from 0 to
    1, or "keypoints" (k, points, 3) and "keypoints_scores" (k, points).
    network(images, targets) in training: a target is {"boxes": (k, 4), "labels": (k,) int64 from 1}, with "masks"
    (k, h, w) uint8 or "keypoints" (k, points, 3); k may be 0. Returns the losses by name, scalars. Two more keys are
    optional: "short_side", pixels to which the short side of this image is resized, and "seed", an integer on which
    the choice of anchors and proposals of this image depends; without it torch's global generator is used.

    The network and its images are float32; torch.autocast computes its layers in another type. Raises InputError for
    images and targets of another form.

    Taps are read with a batch of the transform: `taps(network, paths, network.first_inputs(images))`.
    """

    runs_in_sequence: ClassVar[bool] = False

    def __init__(self, body: Body, head: DetectionHead, *, input_shape: tuple[int, ...]) -> None:
        network = body.network
        super().__init__(stem=network.stem, stages=network.stages, head=head, input_shape=input_shape)
        self.takes_channels_last = network.takes_channels_last
        self.levels = tuple(level.path for level in body.levels)
        self._cloned = frozenset(path for path in self.levels if is_overwritten(network, path))

    @property
    def transform(self) -> ImageTransform:
        transform: ImageTransform = self.head.transform  # type: ignore[assignment]
        return transform

    @property
    def compact(self) -> bool:
        """Whether {"masks_of_boxes": (k, 1, side, side)} replaces "masks" in evaluation."""
        return self.transform.compact

    @compact.setter
    def compact(self, compact: bool) -> None:
        self.transform.compact = compact

    def first_inputs(self, x: Sequence[Tensor]) -> Tensor:
        """Return the images as one batch: resized, standardized and padded."""
        batch: Tensor = self.transform(list(x))[0].tensors
        return batch

    def forward(self, images: Sequence[Tensor], targets: Sequence[Mapping[str, Any]] | None = None) -> Any:
        """Return the detections of each image, or in training the losses; see the class."""
        weight: Tensor = self.head.rpn.head.cls_logits.weight  # type: ignore[union-attr, assignment]
        check_images(images, self.input_shape[0], dtype=weight.dtype, max_size=self.transform.max_size)
        if self.training:
            self._check_targets(targets, images)
        if not len(images):
            return []
        sizes = [(int(image.shape[-2]), int(image.shape[-1])) for image in images]
        batch, resized = self.transform(list(images), targets)
        detections, losses = self.head(batch, self.maps(batch.tensors), sizes, resized)
        return losses if self.training else detections

    def _check_targets(self, targets: Any, images: Sequence[Tensor]) -> None:
        if targets is None:
            raise InputError("targets: must be given in training mode; call eval() for predictions")
        if not len(images):
            raise InputError("images: must be at least one in training mode, got none")
        heads: Any = self.head.roi_heads
        check_targets(
            targets, images, classes=heads.box_predictor.cls_score.out_features - 1, masks=heads.has_mask(),
            points=self._points,
        )  # fmt: skip

    @property
    def _points(self) -> int:
        """Number of keypoints, 0 without a head for them."""
        heads: Any = self.head.roi_heads
        return heads.keypoint_predictor.kps_score_lowres.out_channels if heads.has_keypoint() else 0

    def example_loss(self, images: int, classes: int, device: torch.device) -> Callable[[Callable[..., Any]], Tensor]:
        """Return a function that runs a training step's forward pass on small random images and returns its loss."""
        generator = torch.Generator().manual_seed(0)
        channels, side = self.input_shape[0], min(self.input_shape[-1], EXAMPLE_SIDE)
        inputs = [torch.rand(channels, side, side, generator=generator).to(device) for _ in range(images)]
        targets = [self._example_target(side, classes, generator, device) for _ in range(images)]

        def loss(forward: Callable[..., Any]) -> Tensor:
            total: Tensor = sum(forward(inputs, targets).values())
            return total

        return loss

    def _example_target(
        self, side: int, classes: int, generator: torch.Generator, device: torch.device
    ) -> dict[str, Any]:
        """Return a target with four objects in the quarters of a square image."""
        half = side / 2
        corners = torch.tensor([[0.0, 0.0], [half, 0.0], [0.0, half], [half, half]])
        target: dict[str, Any] = {
            "boxes": torch.cat([corners, corners + half * 0.9], 1),
            "labels": torch.randint(1, classes + 1, (4,), generator=generator),
            "short_side": side,
            "seed": 0,
        }
        heads: Any = self.head.roi_heads
        if heads.has_mask():
            target["masks"] = torch.ones(4, side, side, dtype=torch.uint8)
        if self._points:
            points = torch.cat([corners + half / 2, torch.ones(4, 1)], 1)
            target["keypoints"] = points[:, None].repeat(1, self._points, 1)
        placed: dict[str, Any] = to_device(target, device)
        return placed

    def box_logits(
        self, images: Any, maps: Sequence[Tensor], boxes: Sequence[Tensor], sizes: Sequence[tuple[int, int]]
    ) -> Tensor:
        """Return the class logits of the box head for these boxes, (all boxes, 1 + classes), the background first.

        They are what the network computes for a proposal at that place. Gradients flow to the maps.
        images: an `ImageList` of what the transform returned. maps: of the levels of the body, `maps(images.tensors)`.
        boxes: (k, 4) of each image, in pixels before it was resized. sizes: (height, width) of each image before that.
        """
        heads: Any = self.head.roi_heads
        resized = [resize_boxes(*each) for each in zip(boxes, sizes, images.image_sizes, strict=True)]
        pyramid = self.head.pyramid(maps)  # type: ignore[operator]  # torch's type of a part is Tensor | Module
        regions = heads.box_roi_pool(pyramid, resized, images.image_sizes)
        logits: Tensor = heads.box_predictor(heads.box_head(regions))[0]
        return logits

    def maps(self, x: Tensor) -> list[Tensor]:
        """Return the maps of the body's levels for a batch (n, channels, h, w)."""
        found: list[Tensor] = []
        features: Any = x

        def visit(path: str, layer: nn.Module) -> None:
            nonlocal features
            inside = any(level.startswith(f"{path}.") for level in self.levels)
            if is_chain(layer) and (inside or not is_observed(layer)):
                for name, inner in named_layers(layer):
                    visit(f"{path}.{name}", inner)
            else:
                features = layer(features)
            if path in self.levels:
                found.append(self._level(path, features))

        visit("stem", self.stem)
        visit("stages", self.stages)
        return found

    def _level(self, path: str, features: Features) -> Tensor:
        level = feature_map(features)
        return level.clone() if path in self._cloned else level


@rule.register
def _(network: RCNN, x: Signal, tally: Tally) -> Signal:
    """Count the cost of one square image whose sides are padded as the transform pads them."""
    step = network.transform.size_divisible
    padded = tuple(-(-size // step) * step for size in x.spatial)
    borders = [(0, after - before) for before, after in zip(x.spatial, padded, strict=True)]
    y = replace(x, shape=(x.channels, *padded), reach=x.reach.pad(borders))
    for name in ("stem", "stages"):
        with tally.inside(name):
            y = walk(network.get_submodule(name), y, tally)
            tally.signals[name] = y.now if isinstance(y, PairSignal) else y
    with tally.inside("head"):
        scores = count_head(network.head, [tally.signals[path] for path in network.levels], tally)
    tally.signals["head"] = scores.like((scores.channels - 1,))  # without the background
    return tally.signals["head"]
