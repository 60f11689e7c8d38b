"""The last layer of the head for keypoints."""

from __future__ import annotations

from torch import Tensor
from torchvision.models.detection.keypoint_rcnn import KeypointRCNNPredictor


class KeypointPredictor(KeypointRCNNPredictor):  # type: ignore[misc]  # torchvision carries no types
    """torchvision's predictor, whose heatmaps are contiguous also in channels_last: its loss needs that."""

    def forward(self, x: Tensor) -> Tensor:
        heatmaps: Tensor = super().forward(x).contiguous()
        return heatmaps
