"""Engines and exported files of networks that read clips: the same probabilities, and the checks of exported files."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from convatlas.core.clips import ClipSampling
from convatlas.core.preprocessing import Preprocessing
from convatlas.engines import deploy, onnx_file, onnx_graph, onnxruntime, openvino, openvino_files, select
from convatlas.engines import torch as torch_engine
from convatlas.engines.folding import fold_norms
from convatlas.engines.select import choose_engine
from convatlas.engines.torch import TorchEngine
from convatlas.errors import EngineError, ModelFileError
from convatlas.inference.load import load
from convatlas.inference.model import Model
from convatlas.models.catalog import CATALOG
from convatlas.models.families.video_resnet import VideoResNet
from convatlas.tasks.known import VideoClassification
from convatlas.tasks.task import Calibration
from convatlas.weights.modelfile import Header
from tiny_networks import tiny
from upstream import scramble

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("openvino")

FRAMES, SIZE = 5, 20
SPECS = {
    "r3d": VideoResNet(("3d",) * 4, stem=(4,)),
    "mc3": VideoResNet(("3d", "2d", "2d", "2d"), stem=(4,)),
    "r2plus1d": VideoResNet(("2+1d",) * 4, stem=(3, 4)),
    "bottleneck": VideoResNet(("3d",) * 4, stem=(4,), block="bottleneck", stem_frames=7, stem_pool=True),
}


def small_clip_model(kind: str) -> Model:
    """Return a network with random weights and statistics of its norms."""
    spec = SPECS[kind].replaced(
        {"depths": (1,) * 4, "widths": (4, 4, 8, 8), "frames": FRAMES, "resolution": SIZE}
    )  # fmt: skip
    torch.manual_seed(0)
    network = spec.build(classes=3, channels=3).eval()
    scramble(network)
    steps = Preprocessing(
        resize=23, width=31, crop=SIZE, antialias=False, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4),
        sampling=ClipSampling(FRAMES, 12.5, 3),
    )  # fmt: skip
    task = VideoClassification(("clap", "jump", "wave"))
    return Model(network, Header(kind, task, spec, steps, Calibration(temperature=1.7)))


def random_clips(count: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (count, FRAMES, 3, SIZE, SIZE), dtype=torch.uint8, generator=generator)


@cache
def export_graph(kind: str) -> Any:
    model = small_clip_model(kind)
    return onnx_graph.export_graph(model.module, model.header)


SLOW = [pytest.param(kind, marks=() if kind == "r2plus1d" else pytest.mark.slow) for kind in SPECS]
"""The network that has the layers of the others, too, and the others with `-m slow`: an export takes seconds."""


@pytest.mark.parametrize("kind", SLOW)
def test_every_engine_has_the_same_outputs_for_any_number_of_clips(kind: str) -> None:
    model, graph, clips = small_clip_model(kind), export_graph(kind), random_clips()
    header = model.header
    with torch.inference_mode():
        expected = model.module(header.preprocessing.normalize(clips))
    data = graph.SerializeToString()
    session = onnxruntime.OnnxRuntimeEngine(data)
    engines: list[Any] = [
        *(TorchEngine(model.module, header, memory_format=each) for each in ("channels_last", "contiguous")),
        session, openvino.OpenVinoEngine(data, batch=16),
    ]  # fmt: skip
    for engine in engines:
        for part in (slice(None), slice(1), slice(1, 3)):
            outputs = engine.outputs(clips[part])
            assert (outputs - expected[part]).abs().max() <= 1e-4 * expected.abs().max(), engine.name
    probabilities, _ = session.decoded(clips)
    assert (probabilities - (expected / 1.7).softmax(1)).abs().max() < 1e-5


@pytest.mark.parametrize("kind", SLOW)
def test_the_graph_has_known_operators_and_one_axis_of_any_size(kind: str) -> None:
    graph = export_graph(kind)
    assert {node.op_type for node in graph.graph.node} <= onnx_file.OPERATORS
    shapes = [
        [size.dim_param or size.dim_value for size in value.type.tensor_type.shape.dim]
        for value in (*graph.graph.input, *graph.graph.output)
    ]
    assert shapes == [["batch", FRAMES, 3, SIZE, SIZE], ["batch", 3], ["batch", 3]]


@pytest.mark.parametrize("kind", SPECS)
def test_norms_are_folded_into_convolutions_over_time_and_space(kind: str) -> None:
    model = small_clip_model(kind)
    convolutions = [layer for layer in model.module.modules() if isinstance(layer, nn.Conv3d)]
    folded = fold_norms(model.module)
    assert not any(isinstance(layer, nn.BatchNorm3d) for layer in folded.modules())
    assert sum(isinstance(layer, nn.Conv3d) for layer in folded.modules()) == len(convolutions)


def test_the_torch_engine_normalizes_as_preprocessing_does() -> None:
    model, clips = small_clip_model("r3d"), random_clips()
    engine = TorchEngine(model.module, model.header)
    engine.network = nn.Flatten()
    assert torch.equal(engine.outputs(clips), model.header.preprocessing.normalize(clips).flatten(1))


def test_single_clips_are_computed_in_a_batch_of_two_on_cpus() -> None:
    model, clips, sizes = small_clip_model("r3d"), random_clips(), []
    engine = TorchEngine(model.module, model.header)
    network = engine.network
    engine.network = lambda inputs: sizes.append(len(inputs)) or network(inputs)
    together = engine.outputs(clips)
    torch.testing.assert_close(torch.cat([engine.outputs(clip[None]) for clip in clips]), together)
    assert sizes == [3, 2, 2, 2]


def test_clips_are_described_for_other_programs() -> None:
    header = small_clip_model("r3d").header
    text = deploy.describe_header(header)["input"]
    assert text == (
        "pixels: uint8 (batch, 5, 3, 20, 20), values in [0, 255], RGB; frame k of n is what the video displays k / "
        "12.5 s after its start; 3 clips of 5 frames, whose probabilities are averaged, begin at the frames i * (n - "
        "5) / 2, rounded down, for i = 0 to 2; apply the rotation of the video; frame by frame, resize (bilinear, not "
        "antialiased, in float32, then rounded, halves to the even number) to a height of 23 px and a width of 31 px; "
        "crop 20 x 20 px from top (height - 20) / 2 and left (width - 20) / 2, halves rounded to the even number"
    )
    one = header.preprocessing.replaced({"sampling": ClipSampling(FRAMES, 12.5, 1)})
    assert "; one clip of 5 frames begins at frame (n - 5) / 2, rounded down; " in deploy.describe_input(one)
    assert torch_engine.describe_inputs(random_clips(2)) == "2 clips of 5 frames of 20 px"


def test_a_single_clip_is_measured_to_choose_an_engine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    model = small_clip_model("mc3")
    sizes: list[int] = []

    def measure(engines: dict[Any, Any], _: Header, batch: int) -> dict[Any, float]:
        sizes.append(batch)
        return dict.fromkeys(engines, float("inf"))

    monkeypatch.setenv("CONVATLAS_CACHE", str(tmp_path))
    monkeypatch.setattr(select, "NetworkEngine", lambda config, *_, **__: config)
    monkeypatch.setattr(select, "time_engines", measure)
    with pytest.raises(EngineError, match="no engine can run a batch of 1 clip; use a smaller batch"):
        choose_engine("auto", model.module, model.header, batch=4, macs=10**9)
    assert sizes == [1]


# --- exported files


def seal(graph: Any, path: Path) -> Path:
    onnx_file.add_checksum(graph)
    path.write_bytes(graph.SerializeToString())
    return path


def test_exported_files_are_read(tmp_path: Path) -> None:
    model, graph, clips = small_clip_model("r2plus1d"), export_graph("r2plus1d"), random_clips()
    openvino_files.write_model(graph, tmp_path / "x.xml")
    for path in (seal(copy.deepcopy(graph), tmp_path / "x.onnx"), tmp_path / "x.xml"):
        opened = load(path)
        assert opened.header == model.header
        torch.testing.assert_close(opened.engine.outputs(clips), model.engine.outputs(clips), atol=1e-4, rtol=0)


HEADERS = {
    "frames": (lambda h: (h["spec"].update(frames=6), h["preprocessing"]["sampling"].update(frames=6)), "any, 6, 3"),
    "resolution": (lambda h: (h["spec"].update(resolution=22), h["preprocessing"].update(crop=22)), "5, 3, 22, 22"),
    "images": (lambda h: h["preprocessing"].update(sampling=None), "preprocessing"),
    "other frames": (lambda h: h["preprocessing"]["sampling"].update(frames=6), "preprocessing"),
    "no frames": (lambda h: h["preprocessing"]["sampling"].update(frames=0), "frames"),
    "task of images": (
        lambda h: h["task"].update(type="Classification"),
        "task must be for a network that reads clips",
    ),
}


@pytest.mark.parametrize("case", HEADERS)
def test_headers_that_do_not_fit_the_graph_are_refused(case: str, tmp_path: Path) -> None:
    graph = copy.deepcopy(export_graph("r2plus1d"))
    change, message = HEADERS[case]
    entry = next(entry for entry in graph.metadata_props if entry.key == "convatlas")
    header = json.loads(entry.value)
    change(header)
    entry.value = json.dumps(header)
    with pytest.raises(ModelFileError, match=message) as refused:
        load(seal(graph, tmp_path / "x.onnx"))
    assert "\n" not in str(refused.value)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, row in CATALOG.items() if row.spec.reads == "clips"])
def test_every_engine_has_the_same_outputs_for_the_catalog(name: str) -> None:
    row = CATALOG[name]
    spec = tiny(name).replaced({"frames": min(8, tiny(name).frames)})
    network = spec.build(classes=3, channels=3).eval()
    scramble(network)
    steps = replace(row.preprocessing, sampling=ClipSampling(spec.frames, 15.0)).for_resolution(spec.resolution)
    header = Header(name, VideoClassification(("clap", "jump", "wave")), spec, steps)
    clips = torch.randint(0, 256, (3, *steps.item_shape), dtype=torch.uint8)
    with torch.inference_mode():
        expected = network(steps.normalize(clips))
    graph = onnx_graph.export_graph(network, header)
    assert {node.op_type for node in graph.graph.node} <= onnx_file.OPERATORS
    data = graph.SerializeToString()
    engines: list[Any] = [
        TorchEngine(network, header), onnxruntime.OnnxRuntimeEngine(data), openvino.OpenVinoEngine(data, batch=1)
    ]  # fmt: skip
    for engine in engines:
        assert (engine.outputs(clips) - expected).abs().max() <= 1e-3 * expected.abs().max(), engine.name


@pytest.mark.slow
def test_torch_compile_has_the_same_outputs() -> None:
    model, clips = small_clip_model("r2plus1d"), random_clips()
    compiled = TorchEngine(model.module, model.header, compiled=True, batch=1)
    torch.testing.assert_close(compiled.outputs(clips), model.engine.outputs(clips), atol=1e-4, rtol=0)
