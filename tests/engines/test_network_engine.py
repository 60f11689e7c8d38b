"""Engines of networks: the network is not changed, its present weights are used, by any number of threads."""

from __future__ import annotations

import copy
import pickle
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from test_engines import pixels_for, small_model
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

from convatlas.core.network import Network
from convatlas.engines import onnx_file, onnx_graph, openvino_files
from convatlas.engines.engine import Engine
from convatlas.engines.evaluation import eager_forward
from convatlas.engines.folding import fold_norms
from convatlas.engines.network_engine import EngineConfig, NetworkEngine
from convatlas.engines.onnxruntime import OnnxRuntimeEngine
from convatlas.engines.openvino import OpenVinoEngine
from convatlas.engines.weights_state import WeightsState
from convatlas.errors import EngineError
from convatlas.inference.load import load
from convatlas.inference.model import Ensemble, Model
from convatlas.system.signal_stack import signal_stack
from convatlas.weights.modelfile import Header

pytest.importorskip("onnxruntime")
pytest.importorskip("openvino")

BATCH = 4
ENGINES = ["torch", "onnxruntime", "openvino", pytest.param("compile", marks=pytest.mark.slow)]


def model_of(name: str = "lenet5_modern") -> tuple[Network, Header]:
    return small_model(name)


@cache
def shared_model() -> tuple[Network, Header]:
    """A network that no test changes."""
    return small_model("lenet5_modern")


def start(engine: str, network: Network, header: Header) -> NetworkEngine:
    return NetworkEngine(EngineConfig(engine), network, header, batch=BATCH)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Exported files of `shared_model`."""
    folder = tmp_path_factory.mktemp("exported")
    (folder / "x.onnx").write_bytes(onnx_graph.load_or_export(*shared_model()))
    openvino_files.write_model(onnx_file.read_graph(folder / "x.onnx")[1], folder / "x.xml")
    return {"onnx": folder / "x.onnx", "xml": folder / "x.xml"}


def expected(network: Network, header: Header, pixels: Tensor) -> Tensor:
    return eager_forward(network, header.preprocessing)(pixels)


# --- threads

Run = Callable[[Tensor], Tensor]


def predictor(kind: str, exported: dict[str, Path]) -> Run:
    """Return a function from pixels to probabilities or outputs, which threads share."""
    network, header = shared_model()
    if kind in ("onnx", "xml"):
        return load(exported[kind]).engine.outputs
    if kind != "ensemble":
        return start(kind, network, header).outputs
    models = [Model(network, header, start(engine, network, header)) for engine in ("torch", "openvino")]
    ensemble = Ensemble((*models, load(exported["xml"])))

    def predict(pixels: Tensor) -> Tensor:
        predictions = ensemble.predict(list(pixels), batch=BATCH)
        rows = [prediction.to_plain()["probabilities"] for prediction in predictions]
        return torch.tensor([[row[name] for name in header.classes] for row in rows])

    return predict


@pytest.mark.parametrize("kind", [*ENGINES, "onnx", "xml", "ensemble"])
def test_threads_get_the_outputs_of_one_thread(kind: str, exported: dict[str, Path]) -> None:
    run = predictor(kind, exported)
    pixels = pixels_for(shared_model()[1], 48)
    parts = [pixels[i : i + 1 + i % (BATCH + 1)] for i in range(40)]  # of one to five images
    alone = [run(part) for part in parts]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(1 if kind == "ensemble" else 5):
            together = list(pool.map(run, parts))
            for one, other in zip(alone, together, strict=True):
                torch.testing.assert_close(other, one, atol=1e-6, rtol=0)


# --- the weights change


def train_a_step(network: Network) -> None:
    optimizer = torch.optim.SGD(network.parameters(), lr=0.5)
    network.loss(torch.randn(4, *network.input_shape), torch.arange(4), nn.functional.cross_entropy)[1].backward()
    optimizer.step()


@torch.no_grad()
def change_in_place(network: Network) -> None:
    list(network.parameters())[-1].add_(1.0)


def load_other_weights(network: Network) -> None:
    network.load_state_dict({key: value * 1.5 for key, value in network.state_dict().items()})


def change_data(network: Network) -> None:
    next(network.parameters()).data.mul_(2.0)


def change_numpy(network: Network) -> None:
    next(network.parameters()).detach().numpy()[...] *= 2


def assign_data(network: Network) -> None:
    first = next(network.parameters())
    first.data = first.data * 2


def replace_a_layer(network: Network) -> None:
    parent = network.get_submodule("head")
    name = [name for name, layer in parent.named_children() if isinstance(layer, nn.Linear)][-1]
    torch.manual_seed(3)
    parent._modules[name] = nn.Linear(parent._modules[name].in_features, 7)  # type: ignore[union-attr, arg-type]


def replace_activations(network: Network) -> None:
    for parent in network.modules():
        for name, layer in parent.named_children():
            if isinstance(layer, nn.ReLU | nn.ReLU6 | nn.Tanh):
                setattr(parent, name, nn.Sigmoid())


CHANGES: list[Callable[[Network], Any]] = [
    train_a_step, change_in_place, load_other_weights, change_data, change_numpy, assign_data, replace_a_layer,
    replace_activations, Network.double,
]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("name", ["lenet5_modern", "mobilenet_v2"])
def test_changes_of_the_weights_are_noticed(change: Callable[[Network], Any], name: str) -> None:
    network, header = model_of(name)
    pixels = pixels_for(header)
    engine = start("torch", network, header)
    before = engine.outputs(pixels)
    running = engine.running()
    assert torch.equal(engine.outputs(pixels), before)
    assert engine.running() is running  # it is not started again without need
    change(network)
    after = engine.outputs(pixels)
    assert not torch.allclose(after, before) or change is Network.double
    fresh = start("torch", network, header).outputs(pixels)
    assert torch.equal(after, fresh)


@pytest.mark.parametrize("engine", ENGINES)
def test_every_engine_has_the_present_weights(engine: str) -> None:
    network, header = model_of()
    pixels = pixels_for(header)
    model = Model(network, header).using(engine, batch=BATCH)
    assert torch.allclose(model.engine.outputs(pixels), expected(network, header, pixels), atol=1e-4)
    load_other_weights(network)
    assert torch.allclose(model.engine.outputs(pixels), expected(network, header, pixels), atol=1e-4)


@pytest.mark.skipif(sys.platform != "linux", reason="sigaltstack of Linux")
@pytest.mark.parametrize("engine", ENGINES)
def test_the_stack_of_signal_handlers_is_kept(engine: str) -> None:
    """OpenVINO leaves one that is freed; with it, Ctrl-C is a segmentation fault."""
    before = signal_stack()
    network, header = model_of()
    Model(network, header).using(engine, batch=BATCH).engine.outputs(pixels_for(header))
    after = signal_stack()
    assert (after.start, after.flags, after.size) == (before.start, before.flags, before.size)


def test_networks_of_another_type_run() -> None:
    network, header = model_of()
    engine, pixels = start("torch", network, header), pixels_for(header)
    for change in (Network.bfloat16, Network.double, Network.float):
        change(network)
        exact = expected(copy.deepcopy(network).float(), header, pixels)
        assert torch.allclose(engine.outputs(pixels), exact, atol=0.1 if change is Network.bfloat16 else 1e-4)


def test_statistics_of_norms_belong_to_the_weights() -> None:
    network, header = model_of("resnet18")
    engine = start("torch", network, header)
    before = engine.running()
    with torch.no_grad():
        network.train()(torch.randn(4, *network.input_shape))
    assert engine.running() is not before


def test_weights_that_are_not_finite_are_not_a_change() -> None:
    network, _ = model_of()
    with torch.no_grad():
        next(network.parameters()).fill_(float("nan"))
    assert WeightsState(network).is_current()


# --- the network does not change


LOOKS: dict[str, Callable[[Model], Any]] = {
    "torch": lambda model: model.engine.outputs(pixels_for(model.header)),
    "predict": lambda model: model.predict(pixels_for(model.header)[0]),
    "eager": lambda model: expected(model.module, model.header, pixels_for(model.header)),
    "fold": lambda model: fold_norms(model.module),
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),
    "openvino": lambda model: model.using("openvino", batch=2).engine.outputs(pixels_for(model.header)),
}


def ignore(*_: object) -> None:
    """A hook."""


def state_of(network: Network) -> list[Any]:
    tensors = [*network.parameters(), *network.buffers()]
    return [
        [(id(p), p.requires_grad, p.dtype, p.device, p._version, p.data_ptr(), p.stride()) for p in tensors],
        [(id(layer), layer.training, dict(layer._forward_hooks)) for layer in network.modules()],
        torch.get_rng_state().tolist(),
    ]


@pytest.mark.parametrize(
    ("name", "look"),
    [(name, look) for name in ("lenet5", "mobilenet_v2") for look in LOOKS if look != "openvino"]
    + [("lenet5_modern", "openvino")],
)
def test_a_look_changes_nothing(name: str, look: str) -> None:
    network, header = model_of(name)
    network.train().freeze("stem")
    network.head.register_forward_hook(ignore)
    before = state_of(network)
    weights = [tensor.clone() for tensor in network.state_dict().values()]
    LOOKS[look](Model(network, header))
    assert state_of(network) == before
    assert all(map(torch.equal, weights, network.state_dict().values()))
    learning = [parameter for parameter in network.parameters() if parameter.requires_grad]
    assert learning
    network(torch.randn(2, *network.input_shape)).sum().backward()
    assert all(parameter.grad is not None for parameter in learning)


@pytest.mark.parametrize("freeze", ["stem", "stages.0", "stages.1"])
def test_frozen_networks_run(freeze: str) -> None:
    network, header = model_of("mobilenet_v2")
    pixels = pixels_for(header)
    before = expected(network, header, pixels)
    network.freeze(freeze)
    assert torch.allclose(start("torch", network, header).outputs(pixels), before, atol=1e-4)


def weight_norm(layer: nn.Conv2d) -> None:
    parametrizations.weight_norm(layer)


def old_weight_norm(layer: nn.Conv2d) -> None:
    nn.utils.weight_norm(layer)


def pruned(layer: nn.Conv2d) -> None:
    prune.l1_unstructured(layer, "weight", amount=0.5)


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
@pytest.mark.parametrize("derive", [weight_norm, old_weight_norm, pruned])
def test_weights_that_are_computed_are_kept(derive: Callable[[nn.Conv2d], None]) -> None:
    network, header = model_of("mobilenet_v2")
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            derive(layer)
    pixels = pixels_for(header)
    engine = start("torch", network, header)
    assert torch.allclose(engine.outputs(pixels), expected(network, header, pixels), atol=1e-3)
    change_in_place(network)
    assert torch.allclose(engine.outputs(pixels), expected(network, header, pixels), atol=1e-3)


def test_evaluation_keeps_the_mode_of_every_layer() -> None:
    network, header = model_of("resnet18")
    network.train()
    network.stages[0].eval()
    modes = [layer.training for layer in network.modules()]
    expected(network, header, pixels_for(header))
    assert [layer.training for layer in network.modules()] == modes


# --- copies


@pytest.mark.parametrize("kind", [*ENGINES, "onnx", "xml"])
@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_models_are_copied_and_hashed(
    kind: str, duplicate: Callable[[Model], Model], exported: dict[str, Path]
) -> None:
    network, header = shared_model()
    pixels = pixels_for(header)
    model = load(exported[kind]) if kind in ("onnx", "xml") else Model(network, header).using(kind, batch=BATCH)
    outputs = model.engine.outputs(pixels)
    twin = duplicate(model)
    assert torch.equal(twin.engine.outputs(pixels), outputs)
    assert twin.engine.name == model.engine.name
    assert str(twin.engine) == str(model.engine)
    assert twin.header == model.header
    assert {model: 1, twin: 2}[model] == 1
    assert model == model != twin
    assert hash(Ensemble((model,))) == hash(Ensemble((model,)))


def test_a_deep_copy_has_a_network_of_its_own() -> None:
    network, header = model_of()
    model = Model(network, header).using("torch")
    pixels = pixels_for(header)
    before = model.engine.outputs(pixels)
    twin = copy.deepcopy(model)
    load_other_weights(twin.module)
    assert torch.equal(model.engine.outputs(pixels), before)
    assert not torch.allclose(twin.engine.outputs(pixels), before)


# --- no images, and failures


@pytest.mark.parametrize("kind", [*ENGINES, "onnx", "xml"])
def test_no_images_give_no_outputs(kind: str, exported: dict[str, Path]) -> None:
    network, header = shared_model()
    engine = load(exported[kind]).engine if kind in ("onnx", "xml") else start(kind, network, header)
    assert engine.outputs(pixels_for(header, 0)).shape == (0, 7)


@pytest.mark.slow
def test_no_images_of_capsnet() -> None:
    network, header = model_of("capsnet")
    for engine in ("torch", "onnxruntime", "openvino"):
        assert start(engine, network, header).outputs(pixels_for(header, 0)).shape == (0, 7)


@pytest.mark.parametrize("kind", [OnnxRuntimeEngine, OpenVinoEngine])
def test_failures_of_a_runtime_are_one_line(kind: Any) -> None:
    graph = onnx_graph.load_or_export(*shared_model())
    engine: Engine = kind(graph, batch=BATCH) if kind is OpenVinoEngine else kind(graph)
    with pytest.raises(EngineError, match=f"engine {engine.name}: cannot run this graph") as failure:
        engine.outputs(torch.zeros(2, 3, 5, 5))
    assert "\n" not in str(failure.value)
    assert engine.outputs(pixels_for(shared_model()[1], 2)).shape == (2, 7)  # it still works
    with pytest.raises(EngineError, match=f"engine {engine.name}"):
        kind(b"no graph", batch=1) if kind is OpenVinoEngine else kind(b"no graph")


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("out of memory\nof 3 GiB"), MemoryError()])
def test_out_of_memory_in_torch_is_one_line(error: Exception) -> None:
    network, header = model_of()
    engine = start("torch", network, header)

    def fail(_: Tensor) -> None:
        raise error

    engine.running().network = fail  # type: ignore[attr-defined]
    with pytest.raises(EngineError, match="engine torch: out of memory for a batch of 3 images of 32 px"):
        engine.outputs(pixels_for(header))
