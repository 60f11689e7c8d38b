"""Channel boosting: nothing changes at step 0, learners learn without labels and then stay as they are."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from convatlas.errors import SpecError
from convatlas.models.catalog import CATALOG, build_fresh, resolve
from convatlas.models.families.boosted import Autoencoder, Boosted, Truncated, fit_autoencoder, fit_projection
from convatlas.tasks.known import Classification
from convatlas.weights.modelfile import Header, read_model_file, write_model_file
from tiny_networks import CLASSIFIERS, tiny

# the clips of the video networks have learners of their own kind, and ConvNet 1989 begins with a border of -1
OTHERS = ("ConvNet1989", "Boosted", "VideoResNet", "Inflated")
KINDS = {type(CATALOG[name].spec).__name__: name for name in CLASSIFIERS}
BACKBONES = sorted(name for kind, name in KINDS.items() if kind not in OTHERS)


def small(code: int = 3) -> Autoencoder:
    return Autoencoder(code=code, width=8)


@pytest.mark.parametrize("name", BACKBONES)
def test_outputs_of_any_backbone_are_unchanged_bit_for_bit(name: str) -> None:
    torch.manual_seed(0)
    spec = tiny(name)
    network = spec.build(classes=5, channels=3).eval()
    x = torch.randn(2, *network.input_shape)
    with torch.no_grad():
        expected = network(x).clone()
        boosted = Boosted(spec, (small(), Truncated(tiny("cifar_resnet20"), code=2))).around(network).eval()
        assert torch.equal(boosted(x), expected)


def test_new_kernels_learn_and_learners_do_not() -> None:
    torch.manual_seed(0)
    network = Boosted(tiny("resnet18"), (small(),)).build(classes=5, channels=3).train()
    frozen = {k: v.clone() for k, v in network.state_dict().items() if ".learner1." in k}
    optimizer = torch.optim.SGD([p for p in network.parameters() if p.requires_grad], lr=0.1)
    _, loss = network.loss(torch.randn(4, *network.input_shape), torch.arange(4), F.cross_entropy)
    loss.backward()
    optimizer.step()
    state = network.state_dict()
    assert all(torch.equal(state[key], value) for key, value in frozen.items())
    assert any(".boost.conv." in key and state[key].abs().sum() > 0 for key in state)


def test_autoencoder_learns_to_paint_images_without_labels() -> None:
    torch.manual_seed(0)
    pattern = torch.randn(1, 3, 16, 16)
    images = torch.randn(64, 1, 1, 1) * pattern + 0.1 * torch.randn(64, 3, 16, 16)
    learner = Autoencoder(code=4, width=8).build((3, 16, 16))
    losses = fit_autoencoder(learner, images, epochs=30, batch=16, lr=1e-2)
    assert losses[-1] < 0.7 * losses[0]
    codes = learner(images)
    assert codes.shape == (64, 4, 16, 16)
    torch.testing.assert_close(codes.mean((0, 2, 3)), torch.zeros(4), atol=0.05, rtol=0)
    torch.testing.assert_close(codes.var((0, 2, 3)), torch.ones(4), atol=0.1, rtol=0)
    assert not any(parameter.requires_grad for parameter in learner.parameters())


def test_autoencoder_of_a_seed_is_the_same_twice() -> None:
    images = torch.randn(32, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    learners = []
    for _ in range(2):
        torch.manual_seed(3)
        learners.append(Autoencoder(code=2, width=4).build((3, 16, 16)))
        fit_autoencoder(learners[-1], images, epochs=2, seed=5)
    one, other = (learner.state_dict() for learner in learners)
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_projection_keeps_the_directions_of_largest_variance() -> None:
    torch.manual_seed(0)
    learner = Truncated(tiny("cifar_resnet20"), stages=1, code=3).build((3, 32, 32)).eval()
    images = torch.randn(24, 3, 32, 32)
    fit_projection(learner, images)
    body, project = learner.get_submodule("body"), learner.get_submodule("project")
    assert isinstance(project, nn.Conv2d)
    maps = body(images).movedim(1, -1).flatten(0, 2).double()
    _, values, vectors = torch.linalg.svd(maps - maps.mean(0), full_matrices=False)
    kernel = project.weight.flatten(1).double()
    torch.testing.assert_close((kernel @ vectors[:3].T).abs(), torch.eye(3, dtype=torch.float64), atol=1e-3, rtol=0)
    assert values[0] > 0


def test_truncated_network_has_the_given_number_of_stages() -> None:
    spec = tiny("resnet18")
    learner = Truncated(spec, stages=2, code=4).build((3, 48, 48))
    assert len(learner.get_submodule("body.stages")) == 2  # type: ignore[arg-type]
    with pytest.raises(SpecError, match=r"stages must be in \[0, 4\], got 9"):
        Truncated(spec, stages=9).build((3, 48, 48))


def test_model_file_of_a_boosted_network_contains_its_learners(tmp_path: Path) -> None:
    spec = Boosted(tiny("cifar_resnet20"), (small(), Truncated(tiny("resnet18"), code=2)))
    network = build_fresh(spec, classes=4, channels=3).eval()
    steps = CATALOG["cifar_resnet20"].preprocessing
    header = Header(name="boosted", spec=spec, task=Classification(tuple("abcd")), preprocessing=steps)
    write_model_file(tmp_path / "model.safetensors", network, header)
    loaded, read = read_model_file(tmp_path / "model.safetensors")
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(loaded(x), network(x))
    assert read.spec == spec


def test_boosting_scales_with_its_backbone() -> None:
    spec = Boosted(tiny("resnet18"), (Autoencoder(code=8, width=16),))
    scaled = spec.scaled(width=2, resolution=64)
    assert (scaled.resolution, scaled.learners[0].code) == (64, 16)
    assert scaled.minimum == spec.backbone.minimum


def test_a_network_without_a_first_convolution_is_refused() -> None:
    with pytest.raises(SpecError, match="must begin with a convolution"):
        Boosted(CATALOG["convnet1989"].spec).build(classes=10, channels=1)


def test_unfreezing_the_network_leaves_the_learners_frozen() -> None:
    network = Boosted(tiny("resnet18"), (small(),)).build(classes=5, channels=3)
    frozen = {name for name, parameter in network.named_parameters() if not parameter.requires_grad}
    assert frozen
    assert all(".learner1." in name for name in frozen)
    for to in ("stages.0", "stages.1", None):
        network.freeze(to)
    assert {name for name, parameter in network.named_parameters() if not parameter.requires_grad} == frozen


def test_a_boosted_network_has_the_defaults_of_the_network_inside() -> None:
    name, row = resolve(Boosted(CATALOG["alexnet"].spec))
    assert (name, row.classes, row.preprocessing) == ("boosted-alexnet", 1000, CATALOG["alexnet"].preprocessing)
    _, gray = resolve(Boosted(CATALOG["lenet5"].spec))
    assert (gray.preprocessing.channels, gray.recipe) == (1, CATALOG["lenet5"].recipe)


@pytest.mark.parametrize(
    "spec",
    [Boosted(CATALOG["r3d_18"].spec), Boosted(tiny("resnet18"), (Truncated(CATALOG["nasnet_a_mobile"].spec),)),
     Boosted(tiny("resnet18"), (Truncated(CATALOG["capsnet"].spec, stages=2),)),
     Boosted(tiny("resnet18"), (Truncated(tiny("cifar_resnet20"), code=4096),)),
     Boosted(CATALOG["boosted_cifar_resnet20"].spec, (Truncated(CATALOG["inception_v3"].spec),))],
)  # fmt: skip
def test_learners_that_have_no_maps_for_the_image_are_refused(spec: Boosted) -> None:
    with pytest.raises(SpecError):
        spec.build(classes=5, channels=3)


def test_each_kind_of_learner_has_its_own_training() -> None:
    images = torch.randn(4, 3, 32, 32)
    with pytest.raises(SpecError, match="must be an autoencoder; use fit_projection"):
        fit_autoencoder(Truncated(tiny("cifar_resnet20"), code=2).build((3, 32, 32)), images)
    with pytest.raises(SpecError, match="must be a truncated network; use fit_autoencoder"):
        fit_projection(small().build((3, 32, 32)), images)
