"""Networks for videos with random weights, so small that a clip takes a millisecond."""

from __future__ import annotations

import torch

from convatlas.core.clips import ClipSampling
from convatlas.core.preprocessing import Preprocessing
from convatlas.inference.model import Model
from convatlas.models.families.video_resnet import VideoResNet
from convatlas.tasks.known import MultilabelVideoClassification, VideoClassification
from convatlas.weights.modelfile import Header

CLASSES = ("clap", "jump", "wave")


def random_video_model(
    *, frames: int = 4, rate: float = 10, clips: int = 3, size: int = 16, channels: int = 3,
    classes: tuple[str, ...] = CLASSES, multilabel: bool = False, seed: int = 0,
) -> Model:  # fmt: skip
    """Return a model whose probabilities differ between videos, and between the clips of one."""
    spec = VideoResNet(("3d",) * 4, (1,) * 4, (4, 4, 8, 8), stem=(4,), frames=frames, resolution=size)
    torch.manual_seed(seed)
    network = spec.build(classes=len(classes), channels=channels).eval()
    with torch.no_grad():
        network.head.out.weight.mul_(60)
    task = (MultilabelVideoClassification if multilabel else VideoClassification)(classes)
    steps = Preprocessing(
        resize=size, width=size + 4, crop=size, mean=(0.4,) * channels, std=(0.2,) * channels,
        sampling=ClipSampling(frames, rate, clips),
    )  # fmt: skip
    return Model(network, Header("random", task, spec, steps))
