"""Properties of every network of the catalog: parts, gradients, copies, export, smallest resolution."""

from __future__ import annotations

import copy
import io
import pickle
import shutil

import pytest
import torch
from torch import nn

from convatlas.errors import SpecError
from convatlas.models.catalog import CATALOG
from convatlas.weights.build import build
from tiny_networks import build_tiny, every_network, one_of_each_spec, outputs, tiny


@every_network
def test_network_has_the_three_named_parts(name: str) -> None:
    network, _ = build_tiny(name)
    assert [part for part, _ in network.named_children()] == ["stem", "stages", "head", "auxiliary"]


@every_network
def test_default_preprocessing_gives_the_resolution_of_the_spec(name: str) -> None:
    assert CATALOG[name].preprocessing.resolution == CATALOG[name].spec.resolution


@every_network
def test_forward_gives_finite_scores(name: str) -> None:
    network, x = build_tiny(name)
    y = outputs(network, x)
    assert y.shape == (2, 7)
    assert y.isfinite().all()


@every_network
def test_images_of_a_batch_are_independent(name: str) -> None:
    network, x = build_tiny(name)
    both, one = outputs(network, x), outputs(network, x[:1])
    # fresh weights let the activations of very deep networks grow
    torch.testing.assert_close(both[:1], one, rtol=1e-4, atol=1e-5 * float(both.abs().max()))


@every_network
def test_every_parameter_gets_a_finite_gradient(name: str) -> None:
    network, x = build_tiny(name)
    _, loss = network.train().loss(x, torch.tensor([0, 1]), nn.functional.cross_entropy)
    loss.backward()
    for path, parameter in network.named_parameters():
        if not parameter.requires_grad:
            assert path.startswith("stem.boost.learner"), path
            continue
        assert parameter.grad is not None, path
        assert parameter.grad.isfinite().all(), path


@every_network
def test_same_seed_gives_the_same_weights(name: str) -> None:
    torch.testing.assert_close(build_tiny(name)[0].state_dict(), build_tiny(name)[0].state_dict(), rtol=0, atol=0)


@every_network
def test_deepcopy_has_equal_outputs_and_weights_of_its_own(name: str) -> None:
    network, x = build_tiny(name)
    copied = copy.deepcopy(network)
    assert torch.equal(outputs(copied, x), outputs(network, x))
    assert copied.input_shape == network.input_shape
    assert {p.data_ptr() for p in copied.parameters()}.isdisjoint(p.data_ptr() for p in network.parameters())


@every_network
def test_pickle_has_equal_outputs(name: str) -> None:
    network, x = build_tiny(name)
    assert torch.equal(outputs(pickle.loads(pickle.dumps(network)), x), outputs(network, x))


@every_network
def test_state_dict_determines_the_outputs(name: str) -> None:
    network, x = build_tiny(name)
    file = io.BytesIO()
    torch.save(network.state_dict(), file)
    file.seek(0)
    other = build(tiny(name), classes=7, channels=3).eval()
    other.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(outputs(other, x), outputs(network, x))


@every_network
def test_channels_last_gives_equal_outputs(name: str) -> None:
    network, x = build_tiny(name)
    if x.ndim != 4:
        pytest.skip("channels_last is for images; clips have another memory format")
    expected = outputs(network, x)
    last = torch.channels_last
    torch.testing.assert_close(
        outputs(network.to(memory_format=last), x.to(memory_format=last)), expected, rtol=1e-5, atol=1e-5
    )


@every_network
def test_meta_device_builds_shapes_without_memory(name: str) -> None:
    network = build(tiny(name), classes=37, channels=3, device="meta")
    assert all(tensor.is_meta for tensor in network.state_dict().values())
    assert network(torch.zeros(2, *network.input_shape, device="meta")).shape == (2, 37)


@pytest.mark.parametrize("name", one_of_each_spec())
def test_export_has_equal_outputs(name: str) -> None:
    network, x = build_tiny(name)
    exported = torch.export.export(network, (x,)).module()
    torch.testing.assert_close(outputs(exported, x), outputs(network, x))


@pytest.mark.parametrize("name", one_of_each_spec())
def test_compile_traces_the_whole_graph(name: str) -> None:
    network, x = build_tiny(name)
    torch.compiler.reset()
    compiled = torch.compile(network, fullgraph=True, backend="eager")
    torch.testing.assert_close(outputs(compiled, x), outputs(network, x))


@pytest.mark.skipif(not any(map(shutil.which, ("g++", "clang++", "c++"))), reason="no C++ compiler for inductor")
def test_inductor_has_equal_outputs() -> None:
    network, x = build_tiny("lenet5")
    torch.compiler.reset()
    compiled = torch.compile(network, fullgraph=True)
    torch.testing.assert_close(outputs(compiled, x), outputs(network, x), rtol=1e-4, atol=1e-4)


@every_network
def test_smallest_resolution_runs(name: str) -> None:
    spec = CATALOG[name].spec
    small = tiny(name).scaled(resolution=spec.minimum)
    assert small.minimum == spec.minimum
    network = build(small, classes=7, channels=3)
    assert network.input_shape[-2:] == (spec.minimum, spec.minimum)
    assert outputs(network.eval(), torch.zeros(2, *network.input_shape)).shape == (2, 7)


@every_network
def test_one_pixel_less_than_the_smallest_is_refused(name: str) -> None:
    spec = CATALOG[name].spec
    with pytest.raises(SpecError, match="resolution"):
        spec.scaled(resolution=spec.minimum - 1)


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
@every_network
def test_minimum_is_not_larger_than_the_layers_need(name: str) -> None:
    spec = tiny(name).scaled()
    smaller = spec.minimum - 1
    if hasattr(spec, "body"):
        pytest.skip("its minimum is that of the body")
    inner = getattr(spec, "backbone", spec)
    object.__setattr__(inner, "resolution", smaller)  # past the check of the spec
    with pytest.raises((RuntimeError, ValueError, ArithmeticError)):
        spec.build(classes=7, channels=3)(torch.zeros(2, *spec.input_shape(3)))
