"""With the same weights, detectors of torchvision and ours compute the same, to the bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from convatlas.models.catalog import CATALOG, build_fresh
from torchvision_detectors import ROWS, SMALL_SPECS, pair, renamed, small_pair, targets_of

IMAGES = Path(__file__).parents[3] / "../shared/data/coco_tiny/val10"


def check_detections(network: Any, other: Any, images: list[Tensor]) -> None:
    with torch.no_grad():
        ours, theirs = network.eval()(images), other.eval()(images)
    assert len(ours) == len(theirs) == len(images)
    for a, b in zip(ours, theirs, strict=True):
        assert a.keys() == b.keys()
        assert len(a["boxes"])
        for key in a:
            assert torch.equal(a[key], b[key]), key


def check_step(network: Any, other: Any, images: list[Tensor], classes: int) -> None:
    """One training step: losses, gradients of all parameters, and running statistics."""
    targets = targets_of(images, classes)
    losses = []
    for detector in (network.train(), other.train()):
        torch.manual_seed(2)
        losses.append(detector(images, targets))
        sum(losses[-1].values()).backward()
    assert list(losses[0]) == list(losses[1])
    for key, loss in losses[0].items():
        assert torch.equal(loss, losses[1][key]), key
        assert loss.isfinite()
    theirs = renamed(
        {key: p.grad for key, p in other.named_parameters()}, network.spec, dict(network.named_parameters())
    )
    for key, parameter in network.named_parameters():
        assert parameter.grad is not None, key
        assert torch.equal(parameter.grad, theirs[key]), key
    state = renamed(other.state_dict(), network.spec, network.state_dict())
    assert all(torch.equal(tensor, state[key]) for key, tensor in network.state_dict().items())


@pytest.mark.parametrize("kind", SMALL_SPECS)
def test_small_detectors_give_equal_outputs_losses_and_gradients(kind: str) -> None:
    network, other = small_pair(kind)
    images = [torch.rand(3, 60, 80), torch.rand(3, 120, 64), torch.rand(3, 50, 50)]
    check_detections(network, other, images)
    check_step(network, other, images, 3)


@pytest.mark.slow
@pytest.mark.skipif(not IMAGES.is_dir(), reason=f"the images are not there ({IMAGES})")
@pytest.mark.parametrize("name", ROWS)
def test_real_images_at_full_size_give_equal_outputs_losses_and_gradients(name: str) -> None:
    import torchvision

    files = sorted(IMAGES.iterdir())[:10]
    images = [torchvision.io.decode_image(str(file), "RGB") / 255 for file in files]
    assert len({image.shape for image in images}) > 3
    network, other = pair(name)
    for heads in (network.head.roi_heads, other.roi_heads):
        heads.score_thresh = 0.0  # type: ignore[union-attr]
    for start in range(0, 10, 3):
        check_detections(network, other, images[start : start + 3])
    check_step(network, other, images[:3], CATALOG[name].classes)


@pytest.mark.parametrize("name", ROWS)
def test_parameters_are_those_that_torchvision_publishes(name: str) -> None:
    import torchvision

    weights = torchvision.models.get_model_weights(name).DEFAULT
    network = build_fresh(name, device="meta")
    assert sum(parameter.numel() for parameter in network.parameters()) == weights.meta["num_params"]
    metrics = weights.meta["_metrics"]["COCO-val2017"]
    reported = CATALOG[name].card.reported
    assert reported is not None
    theirs = {f"{ {'kp': 'keypoint'}.get(k[:-4], k[:-4]) } AP": value for k, value in metrics.items()}
    assert reported.percentages == theirs
