"""Integrated gradients and occlusion equal what can be computed by hand, and need captum only when they are used."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import Tensor, nn

from convatlas.core.compose import Chain
from convatlas.core.network import Network
from convatlas.core.preprocessing import Preprocessing
from convatlas.errors import EngineError
from convatlas.explanation.attribution import integrated_gradients, occlusion
from convatlas.explanation.explain import explain_view
from convatlas.explanation.options import ExplainOptions
from convatlas.tasks.explained import Explained
from tiny_models import random_pixels, tiny_model

SIZE = 14
STEPS = Preprocessing(SIZE, SIZE, mean=(0.5, 0.5), std=(0.25, 0.25))

pytest.importorskip("captum")


def linear_network() -> Network:
    torch.manual_seed(0)
    head = Chain(flat=nn.Flatten(), out=nn.Linear(2 * SIZE * SIZE, 3))
    return Network(stem=nn.Identity(), stages=Chain(), head=head, input_shape=(2, SIZE, SIZE)).eval()


def test_integrated_gradients_of_a_linear_network_are_weights_times_inputs() -> None:
    explained = Explained(linear_network(), STEPS)
    pixels = torch.randint(0, 256, (1, 2, SIZE, SIZE), dtype=torch.uint8)
    found = integrated_gradients(explained, pixels, lambda x: explained.outputs(x)[:, 1], steps=2)
    weight = explained.network.get_submodule("head.out").get_parameter("weight")[1].detach().view(2, SIZE, SIZE)
    expected = (weight * explained.inputs(pixels)[0]).sum(0).clamp(min=0)
    torch.testing.assert_close(found.values, expected / expected.max())
    assert found.grid == (SIZE, SIZE)
    assert found.completeness_error == pytest.approx(0, abs=1e-4)


def test_completeness_error_falls_with_the_number_of_steps() -> None:
    model = tiny_model("lenet5_modern")
    explained = model.header.task.explained(model.module, model.header.preprocessing)
    pixels = random_pixels(model, 1)
    few, many = (
        integrated_gradients(explained, pixels, lambda x: explained.outputs(x)[:, 0], steps=steps).completeness_error
        for steps in (1, 200)
    )
    assert few is not None
    assert many is not None
    assert many < 0.02
    assert many < few


def test_batches_of_steps_change_nothing() -> None:
    model = tiny_model("mobilenet_v2")
    explained = model.header.task.explained(model.module, model.header.preprocessing)
    pixels = random_pixels(model, 1)
    one, all_at_once = (
        integrated_gradients(explained, pixels, lambda x: explained.outputs(x)[:, 0], steps=8, batch=batch).values
        for batch in (1, 8)
    )
    torch.testing.assert_close(one, all_at_once, rtol=1e-3, atol=1e-4)
    assert all(parameter.grad is None for parameter in model.module.parameters())


def test_occlusion_finds_the_pixels_that_count() -> None:
    pixels = torch.full((1, SIZE, SIZE), 10, dtype=torch.uint8)
    pixels[0, 8:10, 4:6] = 250
    calls: list[tuple[torch.dtype, int]] = []

    def brightness(batch: Tensor) -> Tensor:
        calls.append((batch.dtype, len(batch)))
        return batch[:, 0, 8:10, 4:6].float().mean((1, 2))

    found = occlusion(pixels, brightness, batch=5)
    assert found.values.shape == (SIZE, SIZE)
    assert found.grid == (13, 13)  # squares of 2 pixels, one pixel apart
    assert found.values[8:10, 4:6].min() > 0.4
    assert found.values[8:10, 4:6].max() == 1
    found.values[7:11, 3:7] = 0
    assert not found.values.any()
    assert {dtype for dtype, _ in calls} == {torch.uint8}
    assert max(count for _, count in calls) == 5


@pytest.mark.parametrize("size", [(70, 70), (8, 300), (140, 20)])
def test_occlusion_takes_as_many_passes_for_any_shape(size: tuple[int, int]) -> None:
    pixels, calls = torch.zeros(1, *size, dtype=torch.uint8), []

    def brightness(batch: Tensor) -> Tensor:
        calls.append(len(batch))
        return batch.float().mean((1, 2, 3))

    assert occlusion(pixels, brightness).values.shape == size
    assert 120 < sum(calls) < 250


def test_occlusion_of_a_clip_finds_the_frames_that_count() -> None:
    clip = torch.full((8, 1, SIZE, SIZE), 10, dtype=torch.uint8)
    clip[4:6, :, 6:8, 6:8] = 250
    found = occlusion(clip, lambda batch: batch[:, 4:6, 0, 6:8, 6:8].float().mean((1, 2, 3)))
    assert found.values.shape == (8, SIZE, SIZE)
    assert found.grid == (4, 7, 7)
    assert (found.values[4:6, 6:8, 6:8] == 1).all()
    found.values[4:6, 6:8, 6:8] = 0
    assert not found.values.any()


@pytest.mark.parametrize("method", ["integrated-gradients", "occlusion"])
def test_pixel_methods_say_how_captum_is_installed(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "captum.attr", None)
    model = tiny_model("lenet5_modern")
    options = ExplainOptions(method=method, faithfulness=False)  # type: ignore[arg-type]
    with pytest.raises(EngineError, match=rf"explain: {method}: captum is not installed; pip install 'convatlas"):
        explain_view(model.module, model.engine, model.header, random_pixels(model)[0], "x", options)
    explain_view(
        model.module, model.engine, model.header, random_pixels(model)[0], "x", ExplainOptions(faithfulness=False)
    )
