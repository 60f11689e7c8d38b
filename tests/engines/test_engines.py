"""Engines: equal outputs of torch with folded norms, ONNX Runtime and OpenVINO, and a choice by measurement."""

from __future__ import annotations

import copy
import dataclasses
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import nn

from convatlas.core.network import Network
from convatlas.engines import deploy, onnx_file, onnx_graph, onnxruntime, openvino, select
from convatlas.engines.folding import fold_norms
from convatlas.engines.network_engine import ENGINES, EngineConfig, NetworkEngine
from convatlas.engines.select import choose_engine
from convatlas.engines.torch import TorchEngine, run_in_full_batches
from convatlas.errors import EngineError, ModelFileError
from convatlas.models.catalog import CATALOG, FAMILIES
from convatlas.system import autotune, extras
from convatlas.system.autotune import TimingRules
from convatlas.system.load import LoadMeter
from convatlas.tasks.known import Classification
from convatlas.tasks.task import Calibration
from convatlas.weights.modelfile import Header
from tiny_networks import build_tiny, of_each_kind, outputs, tiny
from upstream import scramble

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

CLASSIFIERS = [name for name, row in CATALOG.items() if row.spec.predicts == "classes"]
IMAGES = [name for name in CLASSIFIERS if CATALOG[name].spec.reads == "images"]
ONE_OF_A_FAMILY = [next(name for name in IMAGES if CATALOG[name].card.family == family) for family in FAMILIES
                   if any(CATALOG[name].card.family == family for name in IMAGES)]  # fmt: skip


def small_model(name: str) -> tuple[Network, Header]:
    """Return a small network with initial weights, and a header for it."""
    row, spec = CATALOG[name], tiny(name)
    network, _ = build_tiny(name, channels=row.preprocessing.channels)
    settle(network)
    steps = row.preprocessing.for_resolution(spec.resolution)
    return network, Header(name, Classification(tuple("abcdefg")), spec, steps, Calibration(temperature=1.7))


@torch.no_grad()
def settle(network: Network) -> None:
    """Set the statistics of the norms from some inputs, and scale the outputs so that classes differ.

    Otherwise deep networks amplify rounding errors without bound.
    """
    torch.manual_seed(0)
    inputs = torch.randn(24, *network.input_shape)
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.reset_running_stats()
            layer.momentum = None
            layer.train()
    network(inputs)
    deviation = network.eval()(inputs).std()
    last = [layer for layer in network.head.modules() if isinstance(layer, nn.Linear | nn.Conv2d)][-1:]
    for layer in last:
        layer.weight.mul_(2 / deviation)


def pixels_for(header: Header, count: int = 3) -> torch.Tensor:
    steps, generator = header.preprocessing, torch.Generator().manual_seed(1)
    shape = (count, steps.channels, steps.resolution, steps.resolution)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


def compute_float64(network: Network, header: Header, pixels: torch.Tensor) -> torch.Tensor:
    """Return the outputs computed in float64: their distance from float32 is the scale for differences of engines."""
    with torch.inference_mode():
        inputs = header.preprocessing.normalize(pixels).double()
        return cast(torch.Tensor, copy.deepcopy(network).double()(inputs)).float()


def close(left: torch.Tensor, right: torch.Tensor) -> bool:
    """Return whether outputs are equal up to rounding, which deep networks with random weights amplify."""
    return bool((left - right).abs().max() <= 2e-3 * right.abs().max())


@of_each_kind(CLASSIFIERS)
def test_a_folded_network_has_the_same_outputs_and_does_not_change_the_original(name: str) -> None:
    network, x = build_tiny(name, channels=CATALOG[name].preprocessing.channels)
    scramble(network)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    expected = outputs(network, x)
    twin = fold_norms(network, memory_format=torch.channels_last)
    assert close(outputs(twin, x), expected)
    assert all(torch.equal(value, network.state_dict()[key]) for key, value in before.items())
    norms = (nn.BatchNorm2d, nn.BatchNorm3d)
    assert sum(isinstance(layer, norms) for layer in twin.modules()) <= 0.6 * sum(
        isinstance(layer, norms) for layer in network.modules()
    )
    assert not any(isinstance(layer, nn.Dropout) for chain in twin.stages.modules() for layer in chain.children())


def test_a_folded_network_shares_memory_but_no_parameters() -> None:
    network, _ = build_tiny("vgg11")
    twin = fold_norms(network)
    mine, copies = (
        [layer.weight for layer in each.modules() if isinstance(layer, nn.Linear)] for each in (network, twin)
    )
    assert [weight.data_ptr() for weight in mine] == [weight.data_ptr() for weight in copies]
    assert not {id(weight) for weight in network.parameters()} & {id(weight) for weight in twin.parameters()}
    assert all(weight.requires_grad for weight in network.parameters())
    assert not any(weight.requires_grad for weight in twin.parameters())


def check_engines(name: str) -> None:
    network, header = small_model(name)
    pixels = pixels_for(header)
    with torch.inference_mode():
        expected = network(header.preprocessing.normalize(pixels))
    graph = onnx_graph.export_graph(network, header)
    assert {node.op_type for node in graph.graph.node} <= onnx_file.OPERATORS
    data = graph.SerializeToString()
    session = onnxruntime.OnnxRuntimeEngine(data)
    engines: list[Any] = [TorchEngine(network, header, memory_format="contiguous"), session]
    if (
        importlib.util.find_spec("openvino") and name != "nin_imagenet"
    ):  # at 48 px its last feature maps differ in size there
        engines.append(openvino.OpenVinoEngine(data, batch=2))
    rounding = (expected - compute_float64(network, header, pixels)).abs().max()
    for engine in engines:
        off = (engine.outputs(pixels) - expected).abs().max()
        assert off <= max(1e-4 * expected.abs().max(), 20 * rounding), engine.name
    probabilities = torch.from_numpy(session.run(pixels, deploy.PROBABILITIES)[0])
    assert (probabilities - (expected / 1.7).softmax(1)).abs().max() <= max(1e-4, 20 * rounding)


@pytest.mark.parametrize("name", ONE_OF_A_FAMILY)
def test_every_engine_has_the_same_outputs(name: str) -> None:
    check_engines(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in IMAGES if name not in ONE_OF_A_FAMILY])
def test_every_engine_has_the_same_outputs_for_the_rest_of_the_catalog(name: str) -> None:
    check_engines(name)


@pytest.fixture(scope="module")
def small() -> tuple[Network, Header]:
    return small_model("lenet5_modern")


@pytest.fixture(scope="module")
def graph(small: tuple[Network, Header]) -> Any:
    return onnx_graph.export_graph(*small)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_a_graph_takes_any_number_of_images(small: tuple[Network, Header], graph: Any, count: int) -> None:
    pixels = pixels_for(small[1], count)
    expected = TorchEngine(*small).outputs(pixels)
    assert close(onnxruntime.OnnxRuntimeEngine(graph.SerializeToString()).outputs(pixels), expected)


def test_the_last_batch_is_padded() -> None:
    sizes = []

    def run(part: torch.Tensor) -> torch.Tensor:
        sizes.append(len(part))
        return part.flatten(1).sum(1, keepdim=True)

    pixels = torch.arange(14.0).view(7, 1, 1, 2)
    assert torch.equal(run_in_full_batches(run, pixels, 3), run(pixels))
    assert sizes[:3] == [3, 3, 3]


def test_metadata_of_a_graph(small: tuple[Network, Header], graph: Any, tmp_path: Path) -> None:
    path = tmp_path / "x.onnx"
    path.write_bytes(graph.SerializeToString())
    header, read = onnx_file.read_graph(path)
    assert header == small[1]
    metadata = {entry.key: entry.value for entry in read.metadata_props}
    assert metadata["classes"] == '["a", "b", "c", "d", "e", "f", "g"]'
    assert f"{small[1].preprocessing.resolution}" in metadata["input"]
    assert read.opset_import[0].version == onnx_graph.OPSET


def foreign_operator(model: Any) -> None:
    model.graph.node[0].op_type = "Loop"


def foreign_domain(model: Any) -> None:
    model.graph.node[0].domain = "com.example"


def external_weights(model: Any) -> None:
    tensor = model.graph.initializer[0]
    tensor.data_location = onnx.TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", "../../etc/passwd"


def other_output(model: Any) -> None:
    model.graph.output[0].name = "other"


@pytest.mark.parametrize(
    ("change", "message"),
    [(foreign_operator, "Loop"), (foreign_domain, "operators"), (external_weights, "another file"),
     (other_output, "export it again")],
)  # fmt: skip
def test_a_foreign_graph_is_refused_even_with_a_checksum(
    graph: Any, tmp_path: Path, change: Callable[[Any], None], message: str
) -> None:
    model = type(graph)()
    model.CopyFrom(graph)
    change(model)
    onnx_file.add_checksum(model)
    path = tmp_path / "x.onnx"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ModelFileError, match=message):
        onnx_file.read_graph(path)


@pytest.mark.parametrize("seed", range(40))
def test_a_damaged_graph_is_refused(graph: Any, tmp_path: Path, seed: int) -> None:
    data = bytearray(graph.SerializeToString())
    generator = torch.Generator().manual_seed(seed)
    for place in torch.randint(0, len(data), (1 + seed % 4,), generator=generator).tolist():
        data[place] ^= 1 + seed
    path = tmp_path / "x.onnx"
    path.write_bytes(data[: len(data) // 2] if seed % 8 == 7 else data)
    with pytest.raises(ModelFileError) as refused:
        onnx_file.read_graph(path)
    assert str(path) in str(refused.value)
    assert "\n" not in str(refused.value)


def test_graphs_are_cached(small: tuple[Network, Header], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CONVATLAS_CACHE", str(tmp_path))
    made = onnx_graph.load_or_export(*small)
    monkeypatch.setattr(onnx_graph, "export_graph", lambda *_: pytest.fail("exported again"))
    assert onnx_graph.load_or_export(*small) == made
    (file,) = (tmp_path / "graphs").iterdir()
    file.write_bytes(b"damaged")
    with pytest.raises(pytest.fail.Exception):
        onnx_graph.load_or_export(*small)
    monkeypatch.undo()
    monkeypatch.setenv("CONVATLAS_CACHE", str(tmp_path))
    monkeypatch.setattr(onnx_graph, "MAX_CACHE_BYTES", len(made))
    onnx_graph.load_or_export(
        small[0], dataclasses.replace(small[1], calibration=Calibration(temperature=2.0))
    )  # another graph
    assert len(list((tmp_path / "graphs").iterdir())) == 1


# --- the choice


class Fake:
    """An engine that only has a name."""

    def __init__(self, name: str) -> None:
        self.name = name


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, float]:
    """Seconds of a batch by engine, to be filled by the test; the cache is empty."""
    monkeypatch.setenv("CONVATLAS_CACHE", str(tmp_path))
    monkeypatch.setattr(LoadMeter, "share", lambda _: 0.0)
    seconds: dict[str, float] = {}
    monkeypatch.setattr(select, "NetworkEngine", lambda config, *_, **__: Fake(config.engine))
    monkeypatch.setattr(
        select, "time_engines",
        lambda engines, *_: {each: seconds[each.engine] + (each.memory_format == "contiguous") for each in engines},
    )  # fmt: skip
    return seconds


def test_the_fastest_engine_is_measured_once_and_stored(
    small: tuple[Network, Header], clock: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock |= {"torch": 3.0, "onnxruntime": 1.0, "openvino": 2.0}
    first = choose_engine("auto", *small, batch=4, macs=10**9)
    assert first.engine.name == "onnxruntime"
    assert "onnxruntime: the fastest of onnxruntime 1000.0 ms" in str(first)
    clock["onnxruntime"] = 9.0
    again = choose_engine("auto", *small, batch=4, macs=10**9)
    assert (again.engine.name, again.seconds) == ("onnxruntime", {})
    assert "in an earlier measurement" in str(again)
    assert choose_engine("auto", *small, batch=5, macs=10**9).engine.name == "openvino"


def test_a_measurement_beside_other_processes_is_repeated_on_a_quiet_machine(
    small: tuple[Network, Header], clock: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock |= {"torch": 3.0, "onnxruntime": 1.0, "openvino": 2.0}
    load: list[float] = [0.9]
    lines: list[str] = []
    monkeypatch.setattr(LoadMeter, "share", lambda _: load[0])
    monkeypatch.setattr(autotune, "measure_load", lambda: load[0])

    def choose(count: int | None = None) -> str:
        return choose_engine("auto", *small, batch=6, macs=10**9, count=count, log=lines.append).engine.name

    assert choose() == "onnxruntime"
    clock["torch"] = 0.5
    assert choose() == "onnxruntime"
    load[0] = 0.0
    assert choose(count=1) == "onnxruntime"  # too little work to measure again
    assert choose() == "torch"
    clock["openvino"] = 0.1
    load[0] = 0.9
    assert choose() == "torch"
    assert len(lines) == 2
    assert "measuring once which engine is the fastest for batches of 6: torch, onnxruntime" in lines[0]


def test_nothing_is_measured_for_few_images(small: tuple[Network, Header], clock: dict[str, float]) -> None:
    clock |= {"torch": 3.0, "onnxruntime": 1.0, "openvino": 2.0}
    assert choose_engine("auto", *small, batch=1, macs=10**9, count=3).config == EngineConfig("torch", "channels_last")
    assert choose_engine("auto", *small, batch=1, macs=10**9, count=10_000).engine.name == "onnxruntime"
    assert choose_engine("auto", *small, batch=1, macs=10**9, count=3).engine.name == "onnxruntime"  # now it is stored


def test_an_engine_that_cannot_run_a_network_is_skipped(
    small: tuple[Network, Header], clock: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock |= {"torch": 3.0, "openvino": 2.0}

    def start(config: EngineConfig, *_: object, **__: object) -> Fake:
        if config.engine == "onnxruntime":
            raise EngineError("cannot")
        return Fake(config.engine)

    monkeypatch.setattr(select, "NetworkEngine", start)
    chosen = choose_engine("auto", *small, batch=4, macs=10**9)
    assert chosen.failures == {"onnxruntime": "cannot"}
    assert chosen.engine.name != "onnxruntime"
    with pytest.raises(EngineError, match="cannot"):
        choose_engine("onnxruntime", *small, batch=4, macs=1)


def test_the_first_run_of_a_turn_is_not_timed(small: tuple[Network, Header], monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine is slow right after another one, whose threads still spin."""
    now = [0.0]
    last: list[str] = []

    class Spinning(Fake):
        def outputs(self, pixels: torch.Tensor) -> None:
            now[0] += 9.0 if last[-1:] != [self.name] else {"a": 1.0, "b": 2.0}[self.name]
            last.append(self.name)

    monkeypatch.setattr(autotune.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(select, "TIMING", TimingRules(max_seconds=200.0, max_slowdown=3.0, prime=True))
    a, b = EngineConfig("a"), EngineConfig("b")
    assert select.time_engines({a: Spinning("a"), b: Spinning("b")}, small[1], 1) == {a: 1.0, b: 2.0}  # type: ignore[dict-item]


def test_one_thread_is_tried_for_tiny_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    assert EngineConfig("torch", "channels_last", 1) in select.engine_configs("torch", one_thread=True)
    assert {each.threads for each in select.engine_configs("torch", one_thread=False)} == {0}


def test_real_engines_are_compared(
    small: tuple[Network, Header], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CONVATLAS_CACHE", str(tmp_path))
    monkeypatch.setattr(select, "TIMING", TimingRules(max_seconds=0.05, max_slowdown=100.0))
    chosen = choose_engine("auto", *small, batch=2, macs=10**6)
    assert {each.engine for each in chosen.seconds} >= {"torch", "onnxruntime"}
    assert close(chosen.engine.outputs(pixels_for(small[1])), TorchEngine(*small).outputs(pixels_for(small[1])))


def test_unknown_and_missing_engines_are_refused(
    small: tuple[Network, Header], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(EngineError, match=r"must be one of auto, torch, .*, got 'tensorrt'"):
        NetworkEngine(EngineConfig("tensorrt"), *small, batch=1)
    monkeypatch.setattr(extras.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(EngineError, match=r"pip install 'convatlas\[onnx\]'"):
        choose_engine("onnxruntime", *small, batch=1, macs=1)
    assert {each.engine for each in select.engine_configs("auto", one_thread=False)} == {"torch"}


def test_engine_names_are_the_documented_ones() -> None:
    assert ENGINES == ("torch", "compile", "onnxruntime", "openvino")


@pytest.mark.slow
def test_a_compiled_network_gives_the_same() -> None:
    network, header = small_model("resnet18")
    pixels = pixels_for(header, 5)
    engine = NetworkEngine(EngineConfig("compile"), network, header, batch=2)
    assert close(engine.outputs(pixels), TorchEngine(network, header).outputs(pixels))
