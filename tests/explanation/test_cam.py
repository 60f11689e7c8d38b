"""Class activation maps equal their formulas and captum's, and leave the network as it was."""

from __future__ import annotations

import copy
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from convatlas.core.compose import Pair
from convatlas.core.network import feature_map, taps
from convatlas.explanation.cam import grad_cam, heatmaps_of, hires_cam, layer_cam
from convatlas.explanation.explain import Explainer
from convatlas.explanation.heatmap import scale_to_one
from convatlas.explanation.layers import choose_method
from convatlas.explanation.options import ExplainOptions
from convatlas.inference.model import Model
from convatlas.tasks.explained import Explained, gradients
from tiny_models import random_pixels, tiny_model
from tiny_networks import count_swapped

Maps = dict[str, Tensor]


def explained_of(model: Model) -> Explained:
    return model.header.task.explained(model.module, model.header.preprocessing)


def capture(model: Model, *layers: str) -> tuple[Maps, Maps, Tensor]:
    """Return the maps of layers, the gradients of the most probable classes, and the outputs."""
    explained = explained_of(model)
    maps, outputs = explained.capture(explained.inputs(random_pixels(model)), layers)
    return maps, gradients(outputs.amax(1), maps), outputs


@pytest.mark.parametrize("name", ["mobilenet_v2", "resnet18", "vgg11"])
def test_maps_equal_those_of_captum(name: str) -> None:
    captum = pytest.importorskip("captum.attr")
    model = tiny_model(name)
    explained = explained_of(model)
    inputs = explained.inputs(random_pixels(model))
    for layer in (explained.default_layer, "stages.1"):
        maps, found, outputs = capture(model, layer)
        module, classes = model.module.get_submodule(layer), outputs.argmax(1)
        expected = captum.LayerGradCam(model.module, module).attribute(inputs, classes, relu_attributions=True)
        torch.testing.assert_close(grad_cam(maps[layer], found[layer]), expected[:, 0], rtol=0, atol=1e-5)
        products = captum.LayerGradientXActivation(model.module, module).attribute(inputs, classes)
        torch.testing.assert_close(
            hires_cam(maps[layer], found[layer]), products.sum(1).clamp(min=0), rtol=0, atol=1e-5
        )


@pytest.mark.parametrize("space", [(3, 2), (2, 3, 2)])
def test_maps_equal_their_formulas(space: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    a, g = torch.randn(2, 4, *space).double(), torch.randn(2, 4, *space).double()
    axes = tuple(range(2, 2 + len(space)))
    formulas: list[tuple[Callable[[Tensor, Tensor], Tensor], Tensor]] = [
        (grad_cam, g.mean(axes, keepdim=True) * a), (hires_cam, g * a), (layer_cam, g.clamp(min=0) * a),
    ]  # fmt: skip
    for function, products in formulas:
        torch.testing.assert_close(function(a, g), products.sum(1).clamp(min=0))


def test_grad_cam_equals_hires_cam_in_front_of_global_pooling() -> None:
    maps, found, _ = capture(tiny_model("resnet18"), "stages.3")
    a, g = maps["stages.3"], found["stages.3"]
    torch.testing.assert_close(grad_cam(a, g), hires_cam(a, g))


@pytest.mark.parametrize("name", ["resnet18", "nasnet_a_mobile", "densenet121", "capsnet_reduced", "r3d_18_small"])
def test_captured_maps_are_those_of_taps_and_outputs_those_of_the_network(name: str) -> None:
    model = tiny_model(name)
    explained = explained_of(model)
    inputs = explained.inputs(random_pixels(model))
    for layer in explained.paths[:: max(1, len(explained.paths) // 3)]:
        maps, outputs = explained.capture(inputs, [layer])
        assert torch.equal(maps[layer], feature_map(taps(model.module, [layer], inputs)[layer]))
        assert torch.equal(outputs, model.module(inputs))


def test_gradients_of_maps_are_those_of_the_network_behind_them() -> None:
    model = tiny_model("nasnet_a_mobile")
    explained = explained_of(model)
    inputs = explained.inputs(random_pixels(model))
    layer = explained.paths[len(explained.paths) // 2]
    maps, outputs = explained.capture(inputs, [layer])
    found = gradients(outputs[:, 0], maps)[layer]
    features = taps(model.module, [layer], inputs)[layer]
    leaf = feature_map(features).detach().requires_grad_()
    behind = model.module.forward_from(layer, features._replace(now=leaf) if isinstance(features, Pair) else leaf)
    (expected,) = torch.autograd.grad(behind[:, 0].sum(), leaf)
    torch.testing.assert_close(found, expected)


def test_maps_that_are_overwritten_are_kept() -> None:
    layer = "stem.conv.norm"  # ReLU overwrites its output
    maps, found, _ = capture(tiny_model("resnet18"), layer)
    assert (maps[layer] < 0).any()
    assert (found[layer][maps[layer] < 0] == 0).all()


def test_several_layers_are_averaged_over_the_view() -> None:
    model = tiny_model("resnet18")
    explained, pixels = explained_of(model), random_pixels(model)
    layers = ("stages.1", "stages.3")
    maps, found, _ = capture(model, *layers)
    (fused, _) = heatmaps_of(explained, "layer-cam", maps, found, pixels)
    views = [
        explained.on_view(scale_to_one(layer_cam(maps[path], found[path]).detach()), pixels)[:1] for path in layers
    ]
    torch.testing.assert_close(fused.values, scale_to_one((views[0] + views[1]) / 2)[0])
    assert fused.values.shape == pixels.shape[-2:]
    assert fused.grid == maps["stages.1"].shape[2:]


def test_a_rotated_input_has_a_map_over_the_image() -> None:
    model = tiny_model("mobilenet_v1")
    steps = model.header.preprocessing.replaced({"rotation": 180})
    rotated, upright = Explained(model.module, steps), explained_of(model)
    pixels = random_pixels(model)
    maps = torch.rand(2, 2, 2)
    turned = upright.on_view(maps, pixels).flip(-2, -1)
    assert torch.equal(rotated.on_view(maps, pixels), turned)


def test_a_map_of_zeros_stays_zero() -> None:
    maps = torch.stack([torch.zeros(2, 2), torch.tensor([[0.0, 2.0], [1.0, 4.0]])])
    assert scale_to_one(maps).tolist() == [[[0, 0], [0, 0]], [[0, 0.5], [0.25, 1]]]


def test_the_network_stays_as_it_was() -> None:
    model = copy.deepcopy(tiny_model("resnet18"))
    network = model.module.freeze("stages.0")
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    flags = [parameter.requires_grad for parameter in network.parameters()]
    modes = [layer.training for layer in network.modules()]
    capture(model, "stages.1", "stages.3")
    assert [parameter.requires_grad for parameter in network.parameters()] == flags
    assert all(parameter.grad is None for parameter in network.parameters())
    assert [layer.training for layer in network.modules()] == modes
    assert not any(layer._forward_hooks or layer._backward_hooks for layer in network.modules())
    assert count_swapped(network) == 0
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


def test_a_network_in_training_mode_is_explained_in_evaluation_mode() -> None:
    model = copy.deepcopy(tiny_model("mobilenet_v2"))
    expected = capture(model, "stages.3")
    model.module.train()
    statistics = [tensor.clone() for tensor in model.module.buffers()]
    _, found, outputs = capture(model, "stages.3")
    assert torch.equal(outputs, expected[2])
    assert torch.equal(found["stages.3"], expected[1]["stages.3"])
    assert all(layer.training for layer in model.module.modules())
    assert all(map(torch.equal, model.module.buffers(), statistics))
    own = {tensor.data_ptr() for tensor in model.module.parameters()}
    assert {tensor.data_ptr() for tensor in explained_of(model).network.parameters()} == own


def test_threads_explain_one_network_at_the_same_time() -> None:
    model = tiny_model("resnet18")
    layers = [path for path in explained_of(model).paths if path.startswith("stages.")][:6]
    expected = [capture(model, layer)[1][layer] for layer in layers]
    with ThreadPoolExecutor(4) as pool:
        found = pool.map(lambda layer: capture(model, layer)[1][layer], layers)
    assert all(map(torch.equal, found, expected))


def test_layers_up_to_the_first_path_run_without_gradients() -> None:
    model = tiny_model("mobilenet_v2")
    explained = explained_of(model)
    _, outputs = explained.capture(explained.inputs(random_pixels(model)), [explained.default_layer])
    nodes: list[Any] = [outputs.grad_fn]
    for node in nodes:
        nodes += [following for following, _ in node.next_functions if following is not None]
    names = {type(node).__name__ for node in nodes}
    assert any("Mean" in name or "Pool" in name for name in names)
    assert not any("Convolution" in name for name in names)


def test_one_pass_forward_explains_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("mobilenet_v2")
    pixels, calls = random_pixels(model, 5), []
    convolve = nn.Conv2d.forward

    def counted(layer: nn.Conv2d, x: Tensor) -> Tensor:
        calls.append(len(x))
        return convolve(layer, x)

    monkeypatch.setattr(nn.Conv2d, "forward", counted)
    options = ExplainOptions(faithfulness=False)
    assert choose_method(explained_of(model), options) == ("grad-cam", ("head.conv",))
    Explainer(model.module, model.engine, model.header, options).explain(pixels, list("abcde"))
    convolutions = sum(isinstance(layer, nn.Conv2d) for layer in model.module.modules())
    assert calls == [5] * convolutions
