"""The layer and the method are read off the tree of every classifier; other layers may be named."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from convatlas.core.preprocessing import Preprocessing
from convatlas.errors import InputError, SpecError
from convatlas.explanation.explain import explain_view
from convatlas.explanation.layers import choose_method
from convatlas.explanation.options import ExplainOptions
from convatlas.inference.model import Model
from convatlas.models.own_module import wrap_module
from convatlas.tasks.explained import Explained
from tiny_models import random_pixels, tiny_model
from tiny_networks import CLASSIFIERS

FAST = (
    "convnet1989", "lenet5", "alexnet", "vgg11", "resnet18", "densenet121", "squeezenet1_1", "mobilenet_v2",
    "nasnet_a_mobile", "capsnet_reduced", "boosted_resnet18", "r3d_18_small",
)  # fmt: skip


def explained_of(model: Model) -> Explained:
    return model.header.task.explained(model.module, model.header.preprocessing)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in FAST else pytest.mark.slow) for name in CLASSIFIERS]
)
def test_every_classifier_explains_an_image_without_being_told_a_layer(name: str) -> None:
    model = tiny_model(name)
    pixels = random_pixels(model)[0]
    options = ExplainOptions(faithfulness=False)
    result = explain_view(model.module, model.engine, model.header, pixels, "image", options)
    view = model.header.preprocessing.channels_first(pixels[None])[0]
    assert result.heatmap.shape == view.shape[1:]
    assert result.heatmap.dtype == torch.float32
    assert result.heatmap.min() >= 0
    assert result.heatmap.max() in (0, 1)
    assert result.layer in explained_of(model).paths
    assert result.label == result.prediction.text
    assert result.stages


@pytest.mark.parametrize(
    ("name", "method", "layer"),
    [
        ("resnet18", "grad-cam", "stages.3"), ("mobilenet_v2", "grad-cam", "head.conv"),
        ("squeezenet1_1", "grad-cam", "head.act"), ("preact_resnet18", "grad-cam", "head.act"),
        ("r3d_18_small", "grad-cam", "stages.3"), ("lenet5", "hires-cam", "stages.0"),
        ("vgg11", "hires-cam", "head.pool"), ("capsnet_reduced", "hires-cam", "stem"),
    ],
)  # fmt: skip
def test_default_layer_and_method(name: str, method: str, layer: str) -> None:
    assert choose_method(explained_of(tiny_model(name)), ExplainOptions()) == (method, (layer,))


def test_method_of_layers_that_are_not_in_front_of_global_pooling() -> None:
    explained = explained_of(tiny_model("resnet18"))
    both = ExplainOptions(layers=("stages.3", "stages.1", "stages.3"))
    assert choose_method(explained, both) == ("hires-cam", ("stages.3", "stages.1"))
    named = ExplainOptions(method="layer-cam", layers=("stages.1",))
    assert choose_method(explained, named) == ("layer-cam", ("stages.1",))
    assert choose_method(explained, ExplainOptions(method="occlusion")) == ("occlusion", ())


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ("stage.3", r"layer must be on the main path of the network, got 'stage.3' \(did you mean stages.3\?\)"),
        ("xyz", "got 'xyz'; such as stages.3"),
        (
            "head.pool",
            "layer must have a map, got 'head.pool' with an output of 128 x 1 x 1; .* map is stages.3",
        ),
        ("head", "layer must have a map, got 'head' with an output of 7;"),
    ],
)
def test_a_layer_that_is_not_there_or_has_no_map_is_refused(layer: str, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        choose_method(explained_of(tiny_model("resnet18")), ExplainOptions(layers=(layer,)))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"method": "occlusion", "layers": ("stages.1",)}, "layer must be left out with occlusion"),
        ({"method": "gradcam"}, "method must be one of auto.*grad-cam"),
        ({"steps": 0}, "steps must be an integer >= 1"),
        ({"object": -1}, "object must be an integer >= 0"),
    ],
)
def test_options_that_are_not_possible_are_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        ExplainOptions(**fields)  # type: ignore[arg-type]


class Own(nn.Module):
    """A network of one's own, whose layers are not on the main path."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.out = nn.Conv2d(3, 4, 3), nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.conv(x).relu().mean((2, 3)))


def test_an_own_module_is_explained_by_its_pixels() -> None:
    torch.manual_seed(0)
    steps = Preprocessing(12, 12, mean=(0.5,) * 3, std=(0.5,) * 3)
    explained = Explained(wrap_module(Own(), (3, 12, 12)).eval(), steps)
    assert explained.paths == ()
    assert choose_method(explained, ExplainOptions()) == ("integrated-gradients", ())
    with pytest.raises(SpecError, match="method must be integrated-gradients or occlusion for a network without maps"):
        choose_method(explained, ExplainOptions(method="grad-cam"))
    with pytest.raises(SpecError, match="last layer with a map is none"):
        choose_method(explained, ExplainOptions(layers=("stages.module",)))


def test_a_layer_without_cost_rule_has_maps() -> None:
    class Swish(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * x.sigmoid()

    model = copy.deepcopy(tiny_model("resnet18"))
    model.module.stem.add_module("swish", Swish())
    explained = explained_of(model)
    assert explained.default_layer == "stages.3"
    assert explained.shapes["stem"] == explained.shapes["stem.swish"]
