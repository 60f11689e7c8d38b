"""The parts of an R-CNN behind its body as rows of a table, built from torchvision's components."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from torch import nn

from convatlas.core.record import above, at_least, between
from convatlas.core.spec import Row, Width

if TYPE_CHECKING:
    from torchvision.models.detection.anchor_utils import AnchorGenerator
    from torchvision.models.detection.roi_heads import RoIHeads
    from torchvision.models.detection.rpn import RegionProposalNetwork

    from convatlas.models.detection.roi_align import RegionPool

Count = Annotated[int, at_least(1)]
Share = Annotated[float, between(0, 1)]
Positive = Annotated[float, above(0)]

SAMPLES_PER_BIN = 2
"""Sampling points of RoIAlign along each axis of a bin, as in torchvision."""


@dataclass(frozen=True)
class Proposals(Row):
    """The region proposal network (Ren et al. 2015, section 3): 3x3 convolutions, then scores and boxes of anchors.

    convs: number of 3x3 convolutions. before_nms, after_nms: number of proposals of a level and of an image that are
    kept, in training and in prediction. nms: IoU above which the lower score is dropped. positive, negative: IoU with
    an object from which, and below which, an anchor is one. samples, positives: number of anchors of an image in the
    loss, and the largest share of positive ones. min_score: least score of a proposal.
    """

    convs: Count = 1
    before_nms: tuple[Count, Count] = (2000, 1000)
    after_nms: tuple[Count, Count] = (2000, 1000)
    nms: Share = 0.7
    positive: Share = 0.7
    negative: Share = 0.3
    samples: Count = 256
    positives: Share = 0.5
    min_score: Share = 0.0

    def build(self, width: int, anchors: AnchorGenerator) -> RegionProposalNetwork:
        """Return the network for maps of `width` channels."""
        from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead

        from convatlas.models.detection.sampling import SeededSampler

        network = RegionProposalNetwork(
            anchors, RPNHead(width, anchors.num_anchors_per_location()[0], conv_depth=self.convs),
            self.positive, self.negative, self.samples, self.positives,
            {"training": self.before_nms[0], "testing": self.before_nms[1]},
            {"training": self.after_nms[0], "testing": self.after_nms[1]},
            self.nms, score_thresh=self.min_score,
        )  # fmt: skip
        network.fg_bg_sampler = SeededSampler(self.samples, self.positives, stream=0)
        return network


@dataclass(frozen=True)
class BoxHead(Row):
    """Fast R-CNN's head (Girshick 2015): RoIAlign -> [3x3 convolutions] -> linear layers -> classes and boxes.

    pool: side of a pooled region. convs: channels of the 3x3 convolutions. units: of the linear layers.
    norm: the convolutions have batch norms, and no bias. positive, samples, positives: as in `Proposals`, of regions.
    min_score, nms, detections: of a prediction: least score, IoU above which the lower score of a class is dropped, and
    the largest number for an image.
    """

    pool: Count = 7
    convs: tuple[Width, ...] = ()
    units: tuple[Width, ...] = (1024, 1024)
    norm: bool = False
    positive: Share = 0.5
    samples: Count = 512
    positives: Share = 0.25
    min_score: Share = 0.05
    nms: Share = 0.5
    detections: Count = 100

    def build(self, width: int, strides: Sequence[int], classes: int) -> RoIHeads:
        """Return RoI heads with this box head, for maps of `width` channels at these strides."""
        from torchvision.models.detection.faster_rcnn import FastRCNNPredictor
        from torchvision.models.detection.roi_heads import RoIHeads

        from convatlas.models.detection.sampling import SeededSampler

        heads = RoIHeads(
            roi_align(self.pool, strides), self._layers(width), FastRCNNPredictor(self.units[-1], classes + 1),
            self.positive, self.positive, self.samples, self.positives, None,
            self.min_score, self.nms, self.detections,
        )  # fmt: skip
        heads.fg_bg_sampler = SeededSampler(self.samples, self.positives, stream=1)
        return heads

    def _layers(self, width: int) -> nn.Module:
        from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, TwoMLPHead

        if not self.convs and len(set(self.units)) == 1 and len(self.units) == 2:
            plain: nn.Module = TwoMLPHead(width * self.pool**2, self.units[0])
            return plain
        norm = nn.BatchNorm2d if self.norm else None
        region = (width, self.pool, self.pool)
        layers: nn.Module = FastRCNNConvFCHead(region, list(self.convs), list(self.units), norm_layer=norm)
        return layers


@dataclass(frozen=True)
class MaskHead(Row):
    """Mask R-CNN's head (He et al. 2017, figure 4, right): 3x3 convolutions -> 2x2 deconvolution -> a mask per class.

    pool: side of a pooled region. convs: channels of the convolutions. deconv: of the deconvolution, which doubles the
    side. norm: the convolutions have batch norms, and no bias.
    """

    pool: Count = 14
    convs: tuple[Width, ...] = (256, 256, 256, 256)
    deconv: Width = 256
    norm: bool = False

    def add_to(self, heads: RoIHeads, width: int, strides: Sequence[int], classes: int) -> None:
        """Give RoI heads this mask head."""
        from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor

        norm = nn.BatchNorm2d if self.norm else None
        heads.mask_roi_pool = roi_align(self.pool, strides)
        heads.mask_head = MaskRCNNHeads(width, self.convs, 1, norm_layer=norm)
        heads.mask_predictor = MaskRCNNPredictor(self.convs[-1], self.deconv, classes + 1)


@dataclass(frozen=True)
class KeypointHead(Row):
    """Mask R-CNN's head for keypoints (He et al. 2017, section 5): 3x3 convolutions -> a heatmap for each keypoint.

    pool: side of a pooled region; heatmaps are four times as large. convs: channels of the convolutions.
    """

    pool: Count = 14
    convs: tuple[Width, ...] = (512,) * 8

    def add_to(self, heads: RoIHeads, width: int, strides: Sequence[int], points: int) -> None:
        """Give RoI heads this head for `points` keypoints."""
        from torchvision.models.detection.keypoint_rcnn import KeypointRCNNHeads

        from convatlas.models.detection.keypoints import KeypointPredictor

        heads.keypoint_roi_pool = roi_align(self.pool, strides)
        heads.keypoint_head = KeypointRCNNHeads(width, self.convs)
        heads.keypoint_predictor = KeypointPredictor(self.convs[-1], points)


def roi_align(pool: int, strides: Sequence[int]) -> RegionPool:
    """Return RoIAlign to `pool` x `pool` on maps "0", "1", ... at these strides (Lin et al. 2017, equation 1).

    torchvision infers the strides from the first batch, which fails for small images with much padding.
    """
    from torchvision.ops.poolers import initLevelMapper

    from convatlas.models.detection.roi_align import RegionPool

    align = RegionPool([str(i) for i in range(len(strides))], pool, SAMPLES_PER_BIN)
    lowest, highest = (round(math.log2(stride)) for stride in (strides[0], strides[-1]))
    align.scales, align.map_levels = [1 / stride for stride in strides], initLevelMapper(lowest, highest)
    return align


def anchor_generator(sizes: Sequence[Sequence[int]], ratios: Sequence[float]) -> AnchorGenerator:
    """Return the generator of anchors: for each level of the neck its sizes in pixels, each in all height / width."""
    from torchvision.models.detection.anchor_utils import AnchorGenerator

    return AnchorGenerator(tuple(map(tuple, sizes)), (tuple(ratios),) * len(sizes))
