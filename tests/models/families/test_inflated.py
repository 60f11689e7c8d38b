"""Inflated networks: the layers of a network for images, over time; their sizes, and what cannot be inflated."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from convatlas.core.compose import Chain, Concat, Sum
from convatlas.core.cost import cost
from convatlas.core.network import Network
from convatlas.core.spec import Spec
from convatlas.errors import SpecError
from convatlas.layers.conv import ConvNorm, SqueezeExcitation
from convatlas.layers.inflation import inflate
from convatlas.models.catalog import CATALOG, build_fresh, measure, resolve
from convatlas.models.families.inflated import Inflated, on_body
from tiny_networks import CLASSIFIERS, tiny

BODIES = {
    type(CATALOG[name].spec).__name__: name
    for name in reversed(CLASSIFIERS)
    if CATALOG[name].spec.reads == "images"
}  # fmt: skip
"""Type of a spec -> its first network."""
REFUSED = {
    "boosted_resnet18": "a Frozen", "capsnet": "a PrimaryCapsules", "convnext_tiny": "a ChannelsLast",
    "convnet1989": "a ConstantPad2d", "lenet5": "a ScaledTanh", "nasnet_a_mobile": "a DuplicateState",
}  # fmt: skip


def network_of(*layers: nn.Module, size: int = 12) -> Network:
    """Return a network for images with these layers as its stem."""
    return Network(stem=Chain(*layers), stages=Chain(), head=Chain(), input_shape=(2, size, size))


@pytest.mark.parametrize(
    "kind", sorted(kind for kind, name in BODIES.items() if name not in REFUSED and not kind.startswith("LeNet"))
)  # fmt: skip
def test_any_body_of_plain_layers_can_be_inflated(kind: str) -> None:
    """The tensors have the names of the body's, and the kernels one more axis."""
    body = tiny(BODIES[kind])
    spec = Inflated(body, frames=4, resolution=body.resolution)
    network = build_fresh(spec, classes=5, channels=3, device="meta")
    flat = body.build(classes=5, channels=3)
    flat.auxiliary = nn.ModuleDict()
    ours, theirs = network.state_dict(), flat.state_dict()
    assert list(ours) == list(theirs)
    for name, tensor in ours.items():
        assert tensor.shape[:2] + tensor.shape[3:] == theirs[name].shape or tensor.shape == theirs[name].shape, name
    assert cost(network).parameters == sum(each.numel() for each in network.parameters())


@pytest.mark.parametrize("name", REFUSED)
def test_other_layers_are_refused_by_name(name: str) -> None:
    spec = CATALOG[name].spec
    with pytest.raises(SpecError, match=rf"^Inflated: \S+, {REFUSED[name]}, cannot be inflated; choose another body$"):
        build_fresh(Inflated(spec, resolution=spec.resolution), classes=5, channels=3, device="meta")


def test_a_linear_layer_on_all_pixels_is_refused_because_it_would_read_all_frames() -> None:
    with pytest.raises(SpecError, match=r"^Inflated: head.c5 \(Linear\): expects 256 features.*; choose another body$"):
        build_fresh(Inflated(CATALOG["lenet5_modern"].spec, resolution=28), device="meta")


@pytest.mark.parametrize("name", ["r3d_18", "fasterrcnn_resnet18_fpn"])
def test_a_body_that_is_no_classifier_of_images_is_refused(name: str) -> None:
    with pytest.raises(SpecError, match="body must be a classifier of images"):
        build_fresh(Inflated(CATALOG[name].spec))


def test_kernels_strides_and_pools_over_time() -> None:
    """The first layer with a stride has a stride over time, the second has none: its pooling keeps every frame."""
    network = network_of(
        nn.Conv2d(2, 4, 5, 2, 2, groups=2), nn.MaxPool2d(3, 2, 1), nn.Conv2d(4, 4, (1, 3), padding=(0, 1)),
        nn.AvgPool2d(3, 1, 1), nn.Conv2d(4, 6, 1), nn.Dropout2d(0.3), nn.AvgPool2d(2, 2),
    )  # fmt: skip
    inflate(network, kernel=None, strides=(2, 1, 3))
    assert isinstance(network.stem, Chain)
    stem: list[Any] = list(network.stem)
    assert [layer.kernel_size for layer in stem if hasattr(layer, "kernel_size")] == [
        (5, 5, 5), (1, 3, 3), (1, 1, 3), (3, 3, 3), (1, 1, 1), (2, 2, 2),
    ]  # fmt: skip
    assert [layer.stride for layer in stem if hasattr(layer, "stride")] == [
        (2, 2, 2), (1, 2, 2), (1, 1, 1), (1, 1, 1), (1, 1, 1), (3, 2, 2),
    ]  # fmt: skip
    assert (stem[0].padding, stem[1].padding, stem[3].padding) == ((2, 2, 2), (0, 1, 1), (1, 1, 1))
    assert stem[0].groups == 2
    assert isinstance(stem[5], nn.Dropout3d)
    assert network(torch.randn(1, 2, 12, 12, 12)).shape == (1, 6, 2, 1, 1)


def test_random_weights_are_as_large_as_those_of_the_body() -> None:
    """The variance of a kernel is divided by its frames; norms and kernels of one frame have the body's values."""
    torch.manual_seed(0)
    wide, single, norm = nn.Conv2d(2, 32, 5), nn.Conv2d(32, 32, 1), nn.BatchNorm2d(32)
    nn.init.normal_(wide.weight, std=0.3)
    nn.init.constant_(norm.weight, 0.25)
    network = network_of(wide, single, norm)
    inflate(network, kernel=3, strides=())
    assert isinstance(network.stem, Chain)
    layers: list[Any] = list(network.stem)
    assert layers[0].weight.std().item() == pytest.approx(0.3 / 3**0.5, rel=0.05)
    assert torch.equal(layers[0].bias, wide.bias)
    assert torch.equal(layers[1].weight[:, :, 0], single.weight)
    assert torch.equal(layers[2].weight, norm.weight)


def test_branches_have_the_same_stride_over_time() -> None:
    body = Chain(ConvNorm(2, 4, stride=2), SqueezeExcitation(4, 2), ConvNorm(4, 4, stride=2))
    pool = Chain(nn.AvgPool2d(2, 2), nn.AvgPool2d(2, 2), nn.Conv2d(2, 4, 1))
    network = network_of(Sum(body=body, skip=Concat(pool)), nn.MaxPool2d(3, 2, 1))
    inflate(network, kernel=3, strides=(1, 2, 2))
    network.input_shape = (2, 8, 16, 16)
    assert network.eval()(torch.randn(1, *network.input_shape)).shape == (1, 4, 2, 2, 2)
    assert cost(network).output.shape == (4, 2, 2, 2)


def test_auxiliary_classifiers_are_removed() -> None:
    spec = replace(CATALOG["googlenet"].spec, auxiliary=True)  # type: ignore[type-var]
    assert not build_fresh(Inflated(spec), classes=5, channels=3, device="meta").auxiliary


def test_i3d_has_the_receptive_fields_of_the_paper() -> None:
    """Carreira and Zisserman 2017, figure 3 prints frames, height and width behind the first three max pools."""
    signals = measure("i3d").signals
    fields = [signals[path].receptive_field for path in ("stem.pool1", "stem.pool2", "stages.1.pool")]
    assert fields == [(7, 11, 11), (11, 27, 27), (23, 75, 75)]
    assert signals["stages"].stride == (8, 32, 32)


def test_the_small_network_is_that_of_the_paper() -> None:
    """Kopuklu et al. 2019, table 4: 3.12 million parameters with the 600 classes of Kinetics-600."""
    assert round(measure("inflated_mobilenet_v2", classes=600).parameters / 1e6, 2) == 3.12


def test_clips_that_are_too_short_name_the_least_number_of_frames() -> None:
    spec = CATALOG["i3d"].spec
    assert isinstance(spec, Inflated)
    with pytest.raises(SpecError, match=r"^Inflated: frames must be >= 3 for this network, got 2$"):
        build_fresh(replace(spec, frames=2), device="meta")
    network = build_fresh(replace(spec, frames=3, resolution=32), classes=2, device="meta").eval()
    assert network(torch.zeros(1, *network.input_shape, device="meta")).shape == (1, 2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"time_kernel": 2}, "time_kernel must be odd, got 2"), ({"time_kernel": 0}, "time_kernel"),
        ({"time_strides": (1, 0)}, r"time_strides"), ({"frames": 0}, "frames must be an integer >= 1"),
        ({"resolution": 0}, "resolution must be"),
    ],
)  # fmt: skip
def test_wrong_cells_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        Inflated(CATALOG["resnet18"].spec).replaced(changes)


def test_a_spec_is_scaled_named_and_written() -> None:
    spec: Spec = on_body("inflated", CATALOG["resnet18"])
    assert isinstance(spec, Inflated)
    name, row = resolve(spec)
    assert name == "inflated-resnet18"
    assert row.preprocessing.mean == CATALOG["resnet18"].preprocessing.mean
    assert row.preprocessing.resolution == spec.resolution == 112
    scaled = spec.scaled(width=0.5, resolution=64)
    assert (scaled.resolution, scaled.body.resolution) == (64, 224)
    assert scaled.body == CATALOG["resnet18"].spec.scaled(width=0.5)
    mobile = on_body(CATALOG["inflated_mobilenet_v2"].spec, CATALOG["resnet18"])  # type: ignore[arg-type]
    assert (mobile.body, mobile.time_strides) == (CATALOG["resnet18"].spec, (1, 2, 2, 2, 2))


@pytest.mark.parametrize("name", ["se_resnet50", "cifar_resnet20", "efficientnet_lite0"])
def test_kernels_of_one_frame_compute_what_the_body_does(name: str) -> None:
    torch.manual_seed(0)
    spec = Inflated(tiny(name), time_kernel=1, frames=3, resolution=48)
    network = build_fresh(spec, classes=5, channels=3).eval()
    flat = spec.body.scaled(resolution=48).build(classes=5, channels=3).eval()
    state = network.state_dict()
    flat.load_state_dict({
        name: state[name].reshape(tensor.shape) for name, tensor in flat.state_dict().items()
    })  # fmt: skip
    image = torch.randn(2, 3, 48, 48)
    with torch.no_grad():
        clips: Tensor = network(image[:, :, None].expand(-1, -1, 3, -1, -1))
        torch.testing.assert_close(clips, flat(image), rtol=1e-4, atol=1e-5)
