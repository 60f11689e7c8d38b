"""The detectors of the catalog: their cards, and their rows on the bodies of other families."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from convatlas.core.preprocessing import Preprocessing
from convatlas.models.card import Card, Family, ReportedMetrics, Variant
from convatlas.models.detection.rows import BoxHead, KeypointHead, MaskHead, Proposals
from convatlas.models.families.rcnn import FasterRCNN, KeypointRCNN, MaskRCNN, key_mapping

CARD = Card(
    "Faster R-CNN", 2015,
    "Ren, He, Girshick, Sun, Faster R-CNN: towards real-time object detection with region proposal networks, "
    "arXiv 1506.01497; Lin et al., Feature pyramid networks for object detection, arXiv 1612.03144", ("detection",),
    "A small network proposes boxes, and reads the same maps as the classifier of the boxes.",
    note="MACs: of a square image, with the maximum number of proposals.",
)  # fmt: skip
CARD_MASK = CARD.of(
    "Mask R-CNN", year=2017, paper="He, Gkioxari, Dollar, Girshick, Mask R-CNN, arXiv 1703.06870",
    innovation="A third head predicts the mask of each object; RoIAlign samples maps without rounding coordinates.",
    note="MACs: of a square image, with the maximum numbers of proposals and of detections.",
)  # fmt: skip
CARD_KEYPOINTS = CARD_MASK.of(
    "Keypoint R-CNN", family_title="Keypoint R-CNN",
    innovation="The head for masks predicts keypoints: each is a mask with a single pixel.",
)  # fmt: skip
V2: dict[str, Any] = {
    "year": 2021,
    "paper": "Li et al., Benchmarking detection transfer learning with vision transformers, arXiv 2111.11429",
    "innovation": "Trained norms, in neck and heads too, a deeper box head, and long training with large-scale jitter.",
}  # fmt: skip
COCO, COCO_V1 = "COCO val2017", "torchvision COCO_V1"

TWO_CORES = {
    "resolution": 320, "max_size": 640, "width": 128,
    "proposals": Proposals(before_nms=(1000, 500), after_nms=(500, 150)), "boxes": BoxHead(samples=128),
}  # fmt: skip
"""Cells of the detectors that train on two cores: small images, thin necks, few proposals."""


def preprocessing_of(spec: FasterRCNN) -> Preprocessing:
    """Return the preprocessing in front of a detector, which standardizes and resizes images itself."""
    size, channels = spec.resolution, len(spec.mean)
    return Preprocessing(resize=size, crop=size, max_size=spec.max_size, mean=(0.0,) * channels, std=(1.0,) * channels)


def row(spec: FasterRCNN, card: Card, *, upstream: str = "", **reported: Any) -> Variant:
    """Return the row of a detector for the 90 categories of COCO, or its persons with keypoints.

    upstream: torchvision's name. reported: AP of torchvision's weights, in percent, as in `ReportedMetrics`.
    """
    if reported:
        card = replace(card, reported=ReportedMetrics(dataset=COCO, source=COCO_V1, **reported))
    return Variant(
        spec, card, preprocessing_of(spec), classes=1 if spec.predicts == "keypoints" else 90,
        recipe="scratch-detection", upstream={"torchvision": upstream} if upstream else {},
    )  # fmt: skip


def custom_row(spec: FasterRCNN, body_title: str) -> Variant:
    """Return the row of a detector that the catalog does not have."""
    card = {"boxes": CARD, "masks": CARD_MASK, "keypoints": CARD_KEYPOINTS}[spec.predicts]
    return row(spec, card.of(f"{card.title} {body_title}"))


def family(families: Mapping[str, Family]) -> Family:
    """Return the detectors, with bodies of these families."""
    bodies = {name: row for each in families.values() for name, row in each.variants.items()}
    r18, r50 = bodies["resnet18"].spec, bodies["resnet50"].spec
    mobile_v2, mobile_v3 = bodies["mobilenet_v2"].spec, bodies["mobilenet_v3_large"].spec
    faster = FasterRCNN(r50, eps=0.0)
    better: dict[str, Any] = {
        "norm": "batch", "neck_norm": True, "proposals": Proposals(convs=2),
        "boxes": BoxHead(convs=(256,) * 4, units=(1024,), norm=True),
    }  # fmt: skip
    # torchvision reads the first block at stride 32, and the last convolution
    mobile = FasterRCNN(
        mobile_v3, levels=("stages.5.0", "stages.6"), eps=1e-5, anchors=((32, 64, 128, 256, 512),) * 3,
        proposals=Proposals(min_score=0.05),
    )  # fmt: skip
    mobile_320 = replace(
        mobile, resolution=320, max_size=640,
        proposals=Proposals(before_nms=(2000, 150), after_nms=(2000, 150), min_score=0.05),
    )  # fmt: skip
    small: dict[str, Any] = {**TWO_CORES, "anchors": ((16,), (32,), (64,), (128,), (256,))}
    smaller: dict[str, Any] = {
        **TWO_CORES, "levels": ("stages.2", "stages.4", "stages.6"),
        "anchors": ((16, 24), (32, 48), (64, 96), (128, 192)),
    }  # fmt: skip
    return Family(
        {
            "fasterrcnn_resnet50_fpn": row(
                faster, CARD.of("Faster R-CNN ResNet-50-FPN"), upstream="fasterrcnn_resnet50_fpn", box_ap=37.0
            ),
            "fasterrcnn_resnet50_fpn_v2": row(
                FasterRCNN(r50, **better), CARD.of("Faster R-CNN v2 ResNet-50-FPN", **V2, family_title=CARD.title),
                upstream="fasterrcnn_resnet50_fpn_v2", box_ap=46.7,
            ),
            "fasterrcnn_mobilenet_v3_large_fpn": row(
                mobile, CARD.of("Faster R-CNN MobileNet v3 large FPN"), upstream="fasterrcnn_mobilenet_v3_large_fpn",
                box_ap=32.8,
            ),
            "fasterrcnn_mobilenet_v3_large_320_fpn": row(
                mobile_320, CARD.of("Faster R-CNN MobileNet v3 large 320 FPN"),
                upstream="fasterrcnn_mobilenet_v3_large_320_fpn", box_ap=22.8,
            ),
            "fasterrcnn_mobilenet_v2_fpn": row(
                FasterRCNN(mobile_v2, **smaller), CARD.of("Faster R-CNN MobileNet v2 FPN")
            ),
            "fasterrcnn_resnet18_fpn": row(FasterRCNN(r18, **small), CARD.of("Faster R-CNN ResNet-18-FPN")),
            "maskrcnn_resnet50_fpn": row(
                MaskRCNN(r50, eps=0.0), CARD_MASK.of("Mask R-CNN ResNet-50-FPN"), upstream="maskrcnn_resnet50_fpn",
                box_ap=37.9, mask_ap=34.6,
            ),
            "maskrcnn_resnet50_fpn_v2": row(
                MaskRCNN(r50, **better, masks=MaskHead(norm=True)),
                CARD_MASK.of("Mask R-CNN v2 ResNet-50-FPN", **V2, family_title=CARD_MASK.title),
                upstream="maskrcnn_resnet50_fpn_v2", box_ap=47.4, mask_ap=41.8,
            ),
            "maskrcnn_resnet18_fpn": row(
                MaskRCNN(r18, **small, masks=MaskHead(convs=(128,) * 4, deconv=128)),
                CARD_MASK.of("Mask R-CNN ResNet-18-FPN"),
            ),
            "keypointrcnn_resnet50_fpn": row(
                KeypointRCNN(r50, eps=0.0), CARD_KEYPOINTS.of("Keypoint R-CNN ResNet-50-FPN"),
                upstream="keypointrcnn_resnet50_fpn", box_ap=54.6, keypoint_ap=65.0,
            ),
            "keypointrcnn_resnet18_fpn": row(
                KeypointRCNN(r18, **small, keypoints=KeypointHead(convs=(128,) * 4)),
                CARD_KEYPOINTS.of("Keypoint R-CNN ResNet-18-FPN"),
            ),
        },
        {"torchvision": key_mapping(families.values())},
    )  # fmt: skip
