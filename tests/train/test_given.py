"""Own modules: trained from their own weights, recorded without code, read back with a module of the same class."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

import convatlas as ca
from commands import Command, check_refused
from convatlas.core.cost import Totals, cost, totals_of
from convatlas.engines.folding import fold_norms
from convatlas.errors import CostError, EngineError, ModelFileError, RunError, SpecError
from convatlas.models.own_module import OwnModule, OwnNetwork, load_module, wrap_module
from convatlas.train.fit import prepare_run
from convatlas.train.optim import build_optimizer
from convatlas.train.recipe import get_recipe
from convatlas.train.run import Run
from convatlas.train.settings import DataOptions, ExecutionOptions

Y = np.arange(32) % 2
X = (np.random.default_rng(0).random((32, 8, 8, 3)) * 90 + 150 * Y[:, None, None, None]).astype(np.uint8)
HOW: dict[str, Any] = {"execution": ExecutionOptions(threads=1), "batch": 8, "epochs": 2, "max_shift": 0}


class Plain(nn.Module):
    """A network as a tutorial writes it: `view` refuses the memory format channels_last."""

    def __init__(self, classes: int = 2, channels: int = 3) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.drop = nn.Dropout(0.1)
        self.fc = nn.Linear(4 * 4 * 4, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.norm(self.conv(x))), 2)
        return self.fc(self.drop(x.view(x.size(0), -1)))  # type: ignore[no-any-return]


class Unusual(nn.Module):
    """Reads a chain by number, has tied weights, buffers, and a layer that is not used."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.LazyConv2d(4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.1))
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.second.weight = self.first.weight
        self.unused, self.out = nn.Linear(4, 4), nn.Linear(8, 2)
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        self.calls: Tensor
        self.register_buffer("one", torch.ones(1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.calls += 1
        x = self.body[1](self.body[0](x))
        before = x.mean((2, 3))
        after = self.body[3](self.body[2](x)).mean((2, 3))
        return self.out(torch.cat([before, self.second(self.first(after))], 1))  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def module() -> nn.Module:
    torch.manual_seed(0)
    return Plain()


@pytest.fixture(scope="module")
def run(module: nn.Module, tmp_path_factory: pytest.TempPathFactory, no_figures: None) -> Run:
    return ca.fit((X, Y), module, out=tmp_path_factory.mktemp("runs") / "plain", progress=False, **HOW)


def equal(a: nn.Module, b: nn.Module) -> bool:
    return all(map(torch.equal, a.state_dict().values(), b.state_dict().values()))


def test_a_copy_is_trained_and_the_file_has_the_names_of_the_module(module: nn.Module, run: Run) -> None:
    torch.manual_seed(0)
    assert equal(module, Plain())
    assert load_file(run.model_file).keys() == module.state_dict().keys()
    assert run.results["val"].score > 0.9
    spec = run.config.spec
    assert isinstance(spec, OwnModule)
    assert (spec.class_name, spec.channels, spec.outputs, spec.resolution) == ("Plain", 3, 2, 8)
    assert run.config.weights == "module Plain"


def test_the_file_needs_a_module_of_the_same_class(run: Run) -> None:
    with pytest.raises(ModelFileError, match=r"Plain is an own module, whose code is in no file; in Python, ca\.load"):
        ca.load(run.model_file)
    with pytest.raises(ModelFileError, match=r"and the 2 outputs .* got other tensors \(fc\.bias, fc\.weight\) and 3"):
        ca.load(run.model_file, module=Plain(3))
    with pytest.raises(ModelFileError, match="must be of the class Plain, as in the file, got one of Same"):
        ca.load(run.model_file, module=Same())
    with pytest.raises(ModelFileError, match="must be a torch module"):
        ca.load(run.model_file, module=Plain)  # type: ignore[arg-type]
    model = ca.load(run.model_file, module=Plain())
    assert equal(model.module, run.network)
    assert [each.to_plain()["label"] for each in model.predict(X[:4])] == ["0", "1", "0", "1"]
    assert ca.evaluate(run.model_file, (X, Y), module=Plain()).result.score > 0.9


@pytest.mark.parametrize("name", ["", "a.", "os.system('x')", "a" * 201, "two\nlines", "<b>x</b>"])
def test_the_name_of_the_class_in_a_file_is_a_name(name: str) -> None:
    with pytest.raises(SpecError, match="module must be the name of a class"):
        OwnModule(name, 3, 2, "0", 8)


def test_unusual_names_of_classes() -> None:
    spec = wrap_module(type("Any name", (Plain,), {})(), (3, 8, 8)).spec
    assert isinstance(spec, OwnModule)
    assert spec.class_name == "Any_name"
    load_module(type("Any name", (Plain,), {})(), spec)


def test_commands_say_so(run: Run, convatlas: Command) -> None:
    check_refused(convatlas("predict", run.model_file, "a.png"), "Plain is an own module, whose code is in no file")
    check_refused(convatlas("resume", run.folder), "Plain, whose code is in no file", "data=..., module=Plain(...))")


def test_export(run: Run, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    model = ca.load(run.model_file, module=Plain())
    ca.export(model, "onnx", tmp_path / "plain.onnx", check=(X, Y))
    exported = ca.load(tmp_path / "plain.onnx")
    assert exported.evaluate((X, Y)).result.score == model.evaluate((X, Y)).result.score
    with pytest.raises(EngineError, match="contains no network"):
        exported.module  # noqa: B018


def test_killed_and_resumed_it_equals_the_uninterrupted_one(
    module: nn.Module, run: Run, tmp_path: Path, no_figures: None
) -> None:
    part = prepare_run((X, Y), module, out=tmp_path / "run", **HOW)
    for number, _ in enumerate(part.steps()):
        if number == 2:
            part.save()
            break
    with pytest.raises(RunError, match=r"own module .*\.Plain, .* ca\.resume\(.*, data=\.\.\., module=Plain"):
        ca.resume(tmp_path / "run", progress=False)
    resumed = ca.resume(tmp_path / "run", data=(X, Y), module=Plain(), progress=False)
    assert equal(resumed.network, run.network)


@pytest.mark.parametrize("changed", [{"module": Plain(), "data": (X[::-1], Y)}, {"data": (X, Y), "module": Plain(4)}])
def test_resuming_refuses_other_data_and_modules(run: Run, changed: dict[str, Any]) -> None:
    with pytest.raises((RunError, SpecError), match=r"another fingerprint|must have the tensors"):
        ca.resume(run.folder, progress=False, **changed)


def test_unusual_modules(tmp_path: Path, no_figures: None) -> None:
    options = DataOptions(resolution=8)
    run = ca.fit(
        (X, Y), Unusual(), out=tmp_path / "run", progress=False, data_options=options, **HOW | {"recipe": "finetune"}
    )
    network = run.network
    assert isinstance(network, OwnNetwork)
    assert isinstance(network.module, Unusual)
    assert network.module.first.weight is network.module.second.weight
    loaded = ca.load(run.model_file, module=Unusual())
    assert equal(loaded.module, network)
    with torch.no_grad():
        x = torch.rand(2, 3, 8, 8)
        assert torch.allclose(fold_norms(network.eval())(x), network(x), atol=1e-6)


def test_frozen_parts_stay_frozen_and_keep_their_statistics(tmp_path: Path, no_figures: None) -> None:
    module = Plain().eval()
    module.conv.requires_grad_(False)
    module.norm.requires_grad_(False)
    run = ca.fit((X, Y), module, out=tmp_path / "run", progress=False, **HOW | {"recipe": "finetune"})
    state, before = load_file(run.model_file), module.state_dict()
    changed = [name for name, tensor in before.items() if not torch.equal(tensor, state[name])]
    assert changed == ["fc.weight", "fc.bias"]


def test_the_layer_that_runs_last_is_the_head() -> None:
    network = wrap_module(Plain(), (3, 8, 8))
    assert network.output_layer == "fc"
    scales = [group["lr_scale"] for group in build_optimizer(get_recipe("finetune"), network).param_groups]
    assert scales == [1.0, 1.0, 0.8, 0.8]
    network.freeze("stages")
    free = [name for name, parameter in network.module.named_parameters() if parameter.requires_grad]
    assert free == ["fc.weight", "fc.bias"]
    assert not network.train().module.norm.training  # type: ignore[union-attr]
    assert all(parameter.requires_grad for parameter in network.freeze(None).parameters())


def test_memory_format_and_type() -> None:
    assert not wrap_module(Plain(), (3, 8, 8)).takes_channels_last
    assert not wrap_module(Plain(channels=1), (1, 8, 8)).takes_channels_last
    assert wrap_module(Unusual(), (3, 8, 8)).takes_channels_last
    half = wrap_module(nn.DataParallel(Plain().half()), (3, 8, 8))
    assert {tensor.dtype for tensor in half.file_state().values()} == {torch.float32, torch.int64}


def test_cost_names_the_layer_without_a_rule() -> None:
    network = wrap_module(Plain(), (3, 8, 8))
    with pytest.raises(CostError, match=r"stages\.module \(Plain\): no cost rule"):
        cost(network)
    assert totals_of(network) == Totals(250, 8 * 8 * 4 * 27 + 64 * 2, (3, 8, 8))
    chain = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 2))
    assert cost(wrap_module(chain, (3, 8, 8))).macs == totals_of(wrap_module(chain, (3, 8, 8))).macs


class Keeping(Plain):
    """Keeps the output of a layer, has a lazy buffer, and sets a scale from the first images that it gets."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LazyBatchNorm2d()  # type: ignore[assignment]
        self.register_buffer("scale", torch.zeros(()))
        self.scale: Tensor

    def forward(self, x: Tensor) -> Tensor:
        if not self.scale:
            self.scale.copy_(x.detach().std())
        self.maps = self.conv(x)
        return super().forward(x) * self.scale


def test_a_module_with_state_of_its_last_forward_pass_is_copied(tmp_path: Path, no_figures: None) -> None:
    trained = wrap_module(Keeping(), (3, 8, 8))
    assert trained.module.scale == wrap_module(Keeping(), (3, 8, 8)).module.scale
    trained(torch.rand(2, 3, 8, 8))  # keeps a tensor that is part of a graph
    assert fold_norms(trained)(torch.rand(2, 3, 8, 8)).shape == (2, 2)
    assert equal(wrap_module(trained, (3, 8, 8)), trained)
    fresh = Keeping()
    fresh.norm = nn.BatchNorm2d(4)
    assert not wrap_module(fresh, (3, 8, 8)).module.scale


class Same(nn.Module):
    """Other code with the same tensors."""

    def __init__(self) -> None:
        super().__init__()
        plain = Plain()
        self.conv, self.norm, self.fc = plain.conv, plain.norm, plain.fc

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.norm(self.conv(x))[:, :, ::2, ::2].flatten(1))  # type: ignore[no-any-return]


class Squeezing(Plain):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).squeeze()


class Growing(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("memory", torch.zeros(0, 2))
        self.memory: Tensor

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        if self.training:
            self.memory = torch.cat([self.memory, y.detach()])
        return y


class Complex(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.phase = nn.Parameter(torch.ones(2, dtype=torch.complex64))

    def forward(self, x: Tensor) -> Tensor:
        return (super().forward(x) * self.phase).real


class Several(Plain):
    def forward(self, x: Tensor) -> Any:
        y = super().forward(x)
        return (y, y) if self.training else y


class Failing(Plain):
    def forward(self, x: Tensor) -> Tensor:
        raise KeyError("two\nlines")


class WithState(Plain):
    def get_extra_state(self) -> Any:
        return {"any": 1}

    def set_extra_state(self, state: Any) -> None: ...


@pytest.mark.parametrize(
    ("given", "changes", "problem"),
    [
        (Plain(5), {}, "must have 2 outputs, one for each class of arrays, got 5; replace its output layer, fc, by"),
        (ca.build("lenet5_modern", classes=0), {}, r"must have 2 outputs, .* got 84; ca\.build\(\.\.\., classes=2\)"),
        (Several(), {}, "in training mode: must return scores .* got tuple; switch its auxiliary outputs off"),
        (Failing(), {}, r"Failing: fails for images of shape \(2, 3, 8, 8\)"),
        (Squeezing(), {}, r"must return scores of shape \(1, classes\), got shape \(2,\)"),
        (Growing(), {}, "must not change names, types and shapes .* got other memory"),
        (Complex(), {}, "parameters must be real numbers, got complex ones: phase"),
        (torch.jit.ScriptModule(), {}, "must be a module in Python, got TorchScript"),
        (WithState(), {}, "state dict must consist of dense tensors, got others: _extra_state"),
        (Plain().to("meta"), {}, "its tensors must have values"),
        (Plain().requires_grad_(False), {}, "must have parameters that require gradients"),
        (Plain(), {"weights": "a.pth"}, "weights: must not be given with a module"),
        (Plain(), {"data_options": DataOptions(resolution=30)}, "fails for images of shape"),
        (Plain(), {"data_options": DataOptions(stem="cifar")}, "stem: must be default for a module"),
        (Plain(), {"drop_path": 0.1}, "drop_path must be null"),
        (Plain, {}, r"got the class Plain; create one, Plain\(\.\.\.\)"),
    ],
)
def test_what_is_refused_in_one_line(given: Any, changes: dict[str, Any], problem: str, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=problem):
        prepare_run((X, Y), given, out=tmp_path / "run", **HOW | changes)
    assert not (tmp_path / "run").exists()


def test_networks_of_the_catalog_keep_their_spec(tmp_path: Path) -> None:
    network = ca.build("lenet5_modern", classes=2, channels=3)
    run = prepare_run((X, Y), network, out=tmp_path / "built", **HOW)
    assert run.config.spec == ca.spec("lenet5_modern")
    assert equal(run.network, network)
    network.freeze("stem")
    frozen = prepare_run((X, Y), network, out=tmp_path / "frozen", **HOW)
    assert isinstance(frozen.config.spec, OwnModule)
    assert json.loads((tmp_path / "frozen" / "run.json").read_text())["spec"]["type"] == "OwnModule"


def test_cross_validation_starts_each_fold_from_the_module(tmp_path: Path, no_figures: None) -> None:
    result = ca.cross_validate((X, Y), Plain(), folds=2, out=tmp_path / "folds", progress=False, **HOW)
    again = ca.cross_validate((X, Y), Plain(), folds=2, out=tmp_path / "folds", progress=False, **HOW)
    assert result.scores == again.scores
