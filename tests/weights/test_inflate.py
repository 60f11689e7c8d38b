"""Inflation: a still video has the features of the image; sources of weights, and what cannot be inflated."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from convatlas.core.network import Network, taps
from convatlas.core.spec import Spec
from convatlas.errors import ConvatlasError, WeightsError
from convatlas.models.catalog import CATALOG, build_fresh, resolve
from convatlas.models.families.inflated import Inflated
from convatlas.models.families.resnet import ResNet
from convatlas.models.families.video_resnet import VideoResNet
from convatlas.tasks.known import Classification
from convatlas.train.initial_weights import choose_weights
from convatlas.weights import pretrained
from convatlas.weights.build import build
from convatlas.weights.inflate import Inflation, image_network, inflate_kernel
from convatlas.weights.modelfile import Header, write_model_file
from convatlas.weights.open import open_weights
from convatlas.weights.pretrained import find_weights
from upstream import scramble, theirs

SIZES: dict[str, Any] = {"depths": (1, 1, 1, 1), "widths": (4, 8, 8, 16)}
FLAT = {block: ResNet(block, **SIZES, stem=4, resolution=32) for block in ("basic", "bottleneck")}  # type: ignore[arg-type]
CLIPS = VideoResNet(("3d",) * 4, **SIZES, stem=(4,), stem_pool=True, frames=8, resolution=32)
IMAGENET = Path(__file__).parents[2] / "../shared/data/weights/mobilenet_v2_imagenet_torchvision_naming.pth"


def image_network_of(spec: VideoResNet, folder: Path) -> tuple[Network, Path]:
    """Return the counterpart of a network for images, with random weights and statistics, and its checkpoint."""
    flat = build_fresh(FLAT[spec.block], classes=5, channels=3).eval()
    scramble(flat)
    path = folder / f"{spec.block}.pt"
    torch.save(flat.state_dict(), path)
    return flat, path


def still(image: Tensor, frames: int) -> Tensor:
    return image[:, :, None].expand(-1, -1, frames, -1, -1)


def maps_of(network: Network, x: Tensor, path: str = "stages.3") -> Tensor:
    with torch.no_grad():
        maps = taps(network.eval(), [path], x)[path]
    assert isinstance(maps, Tensor)
    return maps


@pytest.mark.parametrize("block", ["basic", "bottleneck"])
@pytest.mark.parametrize(
    ("inflate", "changes"),
    [
        ("center", {}), ("center", {"stem_frames": 7}), ("center", {"kinds": ("3d", "2d", "2d", "2d")}),
        ("mean", {"kinds": ("2d",) * 4, "stem_frames": 1}), ("center", {"kinds": ("2d",) * 4, "stem_frames": 1}),
    ],
)  # fmt: skip
def test_scores_of_a_still_video_are_those_of_the_image(
    block: Any, inflate: Inflation, changes: dict[str, Any], tmp_path: Path
) -> None:
    """With "center" or kernels of one frame, no kernel reads a border of zeros over time."""
    spec = replace(CLIPS, block=block, **changes)
    flat, path = image_network_of(spec, tmp_path)
    network = build(spec, weights=path, inflate=inflate).eval()
    image = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(network(still(image, 8)), flat(image), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kinds", [("3d", "3d", "2d", "2d"), ("3d",) * 4])
def test_in_the_interior_of_a_still_video_the_maps_are_those_of_the_image(kinds: Any, tmp_path: Path) -> None:
    """With "mean", frames near the first and the last one read zeros beyond them."""
    spec = replace(CLIPS, kinds=kinds, frames=128)
    flat, path = image_network_of(spec, tmp_path)
    network = build(spec, weights=path, inflate="mean")
    image = torch.randn(1, 3, 32, 32)
    expected, maps = maps_of(flat, image), maps_of(network, still(image, 128))
    middle = maps.shape[2] // 2
    torch.testing.assert_close(maps[:, :, middle], expected, rtol=1e-4, atol=1e-5)
    assert (maps[:, :, 0] - expected).abs().max() > 0.01


@pytest.mark.parametrize("frames", [1, 3, 7])
def test_slices_of_a_kernel(frames: int) -> None:
    kernel = torch.randn(4, 2, 3, 3)
    mean, center = (inflate_kernel(kernel, frames, inflate) for inflate in ("mean", "center"))
    assert mean.shape == center.shape == (4, 2, frames, 3, 3)
    torch.testing.assert_close(mean.sum(2), kernel)
    assert all(torch.equal(mean[:, :, i], mean[:, :, 0]) for i in range(frames))
    assert torch.equal(center.sum(2), kernel)
    assert torch.equal(center[:, :, frames // 2], kernel)


@pytest.mark.parametrize(("name", "counterpart"), [
    ("r3d_18", "resnet18"), ("mc3_18", "resnet18"), ("f_r2d_18", "resnet18"), ("r3d_34", "resnet34"),
    ("r3d_50", "resnet50"), ("i3d", "googlenet"), ("inflated_mobilenet_v2", "mobilenet_v2"),
])  # fmt: skip
def test_networks_and_their_counterparts_have_tensors_of_the_same_names(name: str, counterpart: str) -> None:
    found, row = image_network(CATALOG[name].spec, "mean")
    assert (found, row) == (counterpart, CATALOG[counterpart])
    clips, images = (build_fresh(each, classes=3, channels=3, device="meta").state_dict() for each in (name, row.spec))
    assert list(clips) == list(images)


def test_weights_bring_their_statistics_and_classes_and_the_row_its_frames(tmp_path: Path) -> None:
    """Weights of a model file."""
    flat, _ = image_network_of(CLIPS, tmp_path)
    steps = replace(resolve(FLAT["basic"])[1].preprocessing.for_resolution(32), mean=(0.1, 0.2, 0.3), rotation=180)
    header = Header(name="flat", task=Classification(tuple("abcde")), spec=FLAT["basic"], preprocessing=steps)
    write_model_file(tmp_path / "flat.safetensors", flat, header)
    name, row = resolve(CLIPS)
    checkpoint = open_weights(tmp_path / "flat.safetensors", CLIPS, name=name, row=row, inflate="mean")
    expected = replace(row.preprocessing, mean=(0.1, 0.2, 0.3), std=steps.std, rotation=180)
    assert checkpoint.preprocessing == expected
    assert checkpoint.preprocessing.sampling == row.preprocessing.sampling
    assert checkpoint.class_names == tuple("abcde")
    assert checkpoint.note.endswith("kernels inflated over time (mean)")


def test_other_classes_get_a_new_head_and_other_channels_other_first_kernels(tmp_path: Path) -> None:
    flat, path = image_network_of(CLIPS, tmp_path)
    network = build(CLIPS, weights=path, inflate="center", classes=3, channels=1, input_channels="sum")
    ours, theirs_ = network.state_dict(), flat.state_dict()
    assert ours["head.out.weight"].shape == (3, 16)
    first = "stem.conv.conv.weight"
    assert torch.equal(ours[first][:, :, 1], theirs_[first].mean(1, keepdim=True) * 3)
    body = "stages.1.0.sum.body.conv2.conv.weight"
    assert torch.equal(ours[body][:, :, 1], theirs_[body])


def test_a_checkpoint_without_a_classifier_is_inflated(tmp_path: Path) -> None:
    flat, path = image_network_of(CLIPS, tmp_path)
    torch.save({name: each for name, each in flat.state_dict().items() if not name.startswith("head.")}, path)
    with pytest.raises(WeightsError, match="give classes, their number in the new head"):
        build(CLIPS, weights=path, inflate="mean")
    network = build(CLIPS, weights=path, inflate="mean", classes=2)
    assert network.state_dict()["head.out.weight"].shape == (2, 16)


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of torchvision's ResNet-18 in the cache, with random weights."""
    monkeypatch.setenv("CONVATLAS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    peer = theirs("resnet18", "torchvision")
    scramble(peer)
    record = find_weights("resnet18@torchvision:IMAGENET1K_V1")
    record.cache_path.parent.mkdir(parents=True)
    torch.save(peer.state_dict(), record.cache_path)
    digest = hashlib.sha256(record.cache_path.read_bytes()).hexdigest()[:8]
    records = [replace(record, sha256_prefix=digest)]
    monkeypatch.setitem(pretrained._RECORDS, "torchvision", lambda name, _: records if name == "resnet18" else [])
    return record.cache_path


def test_published_weights_of_images_by_name(published: Path) -> None:
    name, spec = "resnet18@torchvision:IMAGENET1K_V1", CATALOG["f_r2d_18"].spec
    for weights in (name, "torchvision:IMAGENET1K_V1", "DEFAULT", "auto"):
        assert choose_weights(weights, spec, network="f_r2d_18", inflate="mean").name == name
    network = build("f_r2d_18", weights="DEFAULT", inflate="mean")
    kernel = torch.load(published, weights_only=True)["conv1.weight"]
    assert torch.equal(network.state_dict()["stem.conv.conv.weight"].squeeze(2), kernel)
    assert network.state_dict()["head.out.weight"].shape == (1000, 512)


def test_random_weights_are_not_inflated() -> None:
    for weights in ("none", None):
        with pytest.raises(WeightsError, match="inflate: needs weights, got mean with random ones"):
            choose_weights(weights, CATALOG["r3d_18"].spec, network="r3d_18", inflate="mean")
    with pytest.raises(WeightsError, match=r"inflate: needs weights, but .*do not fit its changed spec"):
        choose_weights("auto", CATALOG["r3d_18_small"].spec, network="r3d_18_small", inflate="mean")


@pytest.mark.parametrize(
    ("network", "options", "message"),
    [
        ("r2plus1d_18", {"inflate": "mean"}, r'^inflate: not possible for .* split into space and time \("2\+1d"\)'),
        ("resnet18", {"inflate": "mean"}, "^inflate: must not be given, because ResNet reads images"),
        (CLIPS, {"inflate": "middle"}, "^inflate: must be mean or center, got 'middle'$"),
        (CLIPS, {}, "has kernels of images, and VideoResNet reads clips; .* inflate mean or center"),
        (replace(CLIPS, widths=(4, 8, 8, 24)), {"inflate": "mean"}, "does not fit this ResNet|shape"),
        (CLIPS, {"inflate": "mean", "weights": None}, "inflate needs weights, got 'mean' without any"),
        ("r3d_18", {"weights": "resnet18@torchvision:IMAGENET1K_V1"}, "of resnet18, not of r3d_18; to use weights of"),
        ("r3d_18", {"weights": "resnet50@torchvision:IMAGENET1K_V1", "inflate": "mean"}, "resnet50, not of resnet18"),
    ],
)  # fmt: skip
def test_what_cannot_be_inflated_is_refused_in_one_line(
    network: str | Spec, options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    _, path = image_network_of(CLIPS, tmp_path)
    with pytest.raises(ConvatlasError, match=message) as caught:
        build(network, **{"weights": path, **options})
    assert "\n" not in str(caught.value)


def test_cells_of_the_weights_are_those_of_the_body(tmp_path: Path) -> None:
    """Weights of timm with other constants in the norms, and without auxiliary classifiers."""
    body = CATALOG["mobilenet_v2"].spec.scaled(width=0.25, resolution=32).replaced({"eps": 1e-3})
    flat = build_fresh(body, classes=4, channels=3).eval()
    scramble(flat)
    header = Header(
        name="flat", task=Classification(tuple("abcd")), spec=body,
        preprocessing=resolve(body)[1].preprocessing.for_resolution(32),
    )  # fmt: skip
    write_model_file(tmp_path / "flat.safetensors", flat, header)
    spec = Inflated(body.replaced({"eps": 1e-5}), frames=4, resolution=32)
    network = build(spec, weights=tmp_path / "flat.safetensors", inflate="center").eval()
    assert network.spec == replace(spec, body=replace(spec.body, eps=1e-3))  # type: ignore[call-arg]
    image = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(network(still(image, 4)), flat(image), rtol=1e-4, atol=1e-5)


@pytest.mark.skipif(not IMAGENET.is_file(), reason=f"the weights are not there ({IMAGENET})")
def test_real_weights_of_mobilenet_v2_keep_their_scores() -> None:
    flat = build("mobilenet_v2", weights=IMAGENET, resolution=64).eval()
    network = build("inflated_mobilenet_v2", weights=IMAGENET, inflate="center", resolution=64).eval()
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected, scores = flat(image), network(still(image, 16))
    assert (scores - expected).abs().max() < 1e-4 * expected.abs().max()
