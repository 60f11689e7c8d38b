"""Explanations of batches of pixels: the same as one by one, with the errors of single images."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from convatlas.errors import DataError, EngineError, SpecError
from convatlas.explanation.cam import grad_cam
from convatlas.explanation.explain import Explainer, explain_view
from convatlas.explanation.explanation import Explanation
from convatlas.explanation.heatmap import scale_to_one
from convatlas.explanation.options import ExplainOptions
from convatlas.inference.model import Model
from convatlas.tasks.explained import gradients
from tiny_models import CLASSES, random_pixels, tiny_model

NAMES = ("one", "two", "three")


@pytest.fixture(scope="module")
def model() -> Model:
    return tiny_model("resnet18")


def explain(model: Model, pixels: Tensor, **how: Any) -> list[Explanation | DataError]:
    options = ExplainOptions(**{"faithfulness": False, **how})
    return Explainer(model.module, model.engine, model.header, options).explain(pixels, NAMES[: len(pixels)])


def only(results: list[Explanation | DataError]) -> list[Explanation]:
    return [each for each in results if isinstance(each, Explanation)]


def test_images_of_a_batch_are_explained_as_they_are_alone(model: Model) -> None:
    pixels = random_pixels(model, 3)
    together = only(explain(model, pixels))
    assert [each.source for each in together] == list(NAMES)
    options = ExplainOptions(faithfulness=False)
    for each, view in zip(together, pixels, strict=True):
        alone = explain_view(model.network, model.engine, model.header, view, each.source, options)
        torch.testing.assert_close(each.heatmap, alone.heatmap, rtol=1e-4, atol=1e-4)
        assert (each.label, each.layer, each.method) == (alone.label, "stages.3", "grad-cam")
        assert torch.equal(each.view, view)
        assert [stage.path for stage in each.stages] == [stage.path for stage in alone.stages]


def test_the_prediction_is_that_of_the_engine(model: Model) -> None:
    pixels = random_pixels(model, 3)
    decoded = model.header.task.decode(model.engine.outputs(pixels), model.header.calibration)
    for each, row in zip(only(explain(model, pixels)), decoded, strict=True):
        assert each.prediction.text == CLASSES[int(row.argmax())]
        assert each.prediction.probability == pytest.approx(float(row.max()), abs=1e-4)


def test_the_difference_of_two_classes_is_explained(model: Model) -> None:
    pixels = random_pixels(model, 1)
    (found,) = only(explain(model, pixels, label="c", against="e", method="grad-cam"))
    explained = model.header.task.explained(model.module, model.header.preprocessing)
    maps, outputs = explained.capture(explained.inputs(pixels), ["stages.3"])
    slopes = gradients(outputs[:, 2] - outputs[:, 4], maps)
    cam = grad_cam(maps["stages.3"], slopes["stages.3"]).detach()
    torch.testing.assert_close(found.heatmap, scale_to_one(explained.on_view(scale_to_one(cam), pixels))[0])
    assert found.score is not None
    assert found.score.text == "c and not e"


@pytest.mark.parametrize("method", ["grad-cam", "occlusion"])
def test_an_image_without_explanation_does_not_stop_the_others(model: Model, method: str) -> None:
    pixels = random_pixels(model, 3)
    labels = [each.label for each in only(explain(model, pixels))]
    results = explain(model, pixels, against=labels[0], method=method, stages=False)
    for name, label, result in zip(NAMES, labels, results, strict=True):
        if label == labels[0]:
            assert isinstance(result, DataError)
            assert f"{name}: explain: against must differ from the explained class" in str(result)
        else:
            assert isinstance(result, Explanation)


def test_outputs_that_are_not_finite_have_no_explanation() -> None:
    model = copy.deepcopy(tiny_model("mobilenet_v2"))
    with torch.no_grad():
        model.module.head.get_parameter("out.bias")[0] = torch.nan
    (result,) = explain(model, random_pixels(model, 1))
    assert isinstance(result, DataError)
    assert str(result) == "one: the network computes NaN or infinity for this image"
    with pytest.raises(DataError, match="NaN or infinity"):
        explain_view(model.module, model.engine, model.header, random_pixels(model)[0], "one", ExplainOptions())


@pytest.mark.parametrize("without", [torch.no_grad, torch.inference_mode])
def test_gradients_are_computed_where_the_caller_turned_them_off(model: Model, without: Any) -> None:
    pixels = random_pixels(model, 1)
    (expected,) = only(explain(model, pixels))
    with without():
        (found,) = only(explain(model, random_pixels(model, 1)))
    assert torch.equal(found.heatmap, expected.heatmap)


def test_an_empty_map_has_no_sanity_check() -> None:
    model = copy.deepcopy(tiny_model("resnet18"))
    with torch.no_grad():
        model.module.head.get_parameter("out.weight").zero_()
    (found,) = only(explain(model, random_pixels(model, 1), randomize=True))
    assert not found.heatmap.any()
    assert found.randomization is None
    assert "the map is empty" in found.text()


def test_several_layers_are_named(model: Model) -> None:
    (found,) = only(explain(model, random_pixels(model, 1), layers=("stages.3", "stages.1"), method="layer-cam"))
    assert found.layer == "stages.3, stages.1"
    assert found.grid == (6, 6)
    with pytest.raises(SpecError, match=r"got 'stages.7' \(did you mean stages"):
        explain(model, random_pixels(model, 1), layers=("stages.7",))


@pytest.mark.parametrize("method", ["auto", "grad-cam", "integrated-gradients"])
def test_an_exported_file_has_no_gradients(model: Model, method: Any) -> None:
    explainer = Explainer(None, model.engine, model.header, ExplainOptions(method=method))
    with pytest.raises(EngineError, match="method must be occlusion for an exported file, which has no gradients"):
        explainer.explain(random_pixels(model, 1), NAMES[:1])


def test_occlusion_on_an_engine_equals_that_of_the_network(model: Model) -> None:
    pytest.importorskip("captum")
    options = ExplainOptions(method="occlusion", faithfulness=False)
    pixels = random_pixels(model, 1)
    (own,), (exported,) = (
        Explainer(network, model.engine, model.header, options).explain(pixels, NAMES[:1])
        for network in (model.network, None)
    )
    assert isinstance(own, Explanation)
    assert isinstance(exported, Explanation)
    assert torch.equal(own.heatmap, exported.heatmap)
    assert own.stages
    assert not exported.stages


@pytest.mark.parametrize("method", ["grad-cam", "integrated-gradients", "occlusion"])
def test_images_of_many_bits_are_explained(model: Model, method: str) -> None:
    pytest.importorskip("captum")
    steps = model.header.preprocessing.replaced({"window": [0.0, 1.0]})
    header = dataclasses.replace(model.header, preprocessing=steps)
    deep = Model(model.module, header)
    (found,) = only(explain(deep, random_pixels(model, 1).float(), method=method, faithfulness=True))
    (expected,) = only(explain(model, random_pixels(model, 1), method=method, faithfulness=True))
    torch.testing.assert_close(found.heatmap, expected.heatmap, rtol=1e-2, atol=1e-2)
