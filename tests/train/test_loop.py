"""What a step of training does: pieces, averages, weights of classes, stages that wait, steps that are taken back."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import convatlas as ca
from convatlas.core.network import Network
from convatlas.data.loader import Batch
from convatlas.errors import RunError, SpecError
from convatlas.models.catalog import CATALOG, build_fresh
from convatlas.system.autotune import CpuContention
from convatlas.train.cpu import execution, linear_fp32
from convatlas.train.cpu.execution import ExecutionPlan
from convatlas.train.fit import reopen, start
from convatlas.train.loop import EMA, StepRunner, train
from convatlas.train.recipe import RECIPES, Recipe
from convatlas.train.settings import Settings
from tiny_networks import grown, tiny

SETTINGS = Settings(threads=1, device="cpu")
PLAIN = Recipe(epochs=1, batch=8)


class Few:
    """A feed of a few given batches."""

    def __init__(self, *batches: Batch) -> None:
        self.batches, self.steps = batches, len(batches)

    def epoch(self, epoch: int, *, start: int = 0) -> Iterator[Batch]:
        yield from self.batches[start:]


def batch(x: Tensor, classes: int = 7) -> Batch:
    return Batch(x, torch.arange(len(x)) % classes, torch.arange(len(x)))


def trained(network: Network, recipe: Recipe, *batches: Batch, **how: Any) -> list[Any]:
    return list(train(network, recipe.build_optimizer(network), Few(*batches), recipe, seed=0, **how))  # type: ignore[arg-type]


def gradients(network: Network, recipe: Recipe, given: Batch, way: ExecutionPlan) -> tuple[float, list[Tensor]]:
    network.zero_grad()
    network.train()
    torch.manual_seed(0)
    _, loss = StepRunner(way.place(network), recipe, way).gradients(given)
    return loss.item(), [parameter.grad.clone() for parameter in network.parameters() if parameter.grad is not None]


# --- pieces and ways


@pytest.mark.parametrize("micro", [1, 3, 5, 8])
def test_gradients_of_pieces_add_up_to_those_of_the_batch(micro: int) -> None:
    torch.manual_seed(0)
    network = build_fresh("lenet5_modern", classes=7, channels=1)
    given = batch(torch.randn(8, 1, 32, 32))
    whole = gradients(network, PLAIN, given, ExecutionPlan())
    parts = gradients(network, PLAIN.replaced({"micro_batch": micro}), given, ExecutionPlan())
    assert parts[0] == pytest.approx(whole[0], rel=1e-5)
    torch.testing.assert_close(parts[1], whole[1], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["lenet5_modern", "resnet18", "mobilenet_v2", "densenet121", "googlenet", "capsnet"])
def test_every_way_computes_the_same_step(name: str) -> None:
    channels = CATALOG[name].preprocessing.channels
    network, x = grown(name, channels=channels)
    ways = execution.candidates(network, torch.device("cpu"), layout="auto", precision="float32", compiled=False)
    assert ("blocked" in {way.layout for way in ways}) == (name == "lenet5_modern")
    exact = (
        torch.float32 if name == "lenet5_modern" else torch.float64
    )  # blocks are float32; norms of a few pixels shake
    recipe = RECIPES[CATALOG[name].recipe].replaced({"batch": 4})
    given = batch(torch.cat([x, x.flip(0)]).to(exact))
    first, *others = (gradients(copy.deepcopy(network).to(exact), recipe, given, way) for way in ways)
    for other in others:
        assert other[0] == pytest.approx(first[0], rel=1e-5)
        torch.testing.assert_close(other[1], first[1], rtol=1e-4, atol=1e-5)


def test_bfloat16_is_near_and_its_loss_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    network, x = grown("resnet18")
    exact, rough = (
        gradients(copy.deepcopy(network), PLAIN, batch(x), ExecutionPlan(precision=precision))[0]
        for precision in ("float32", "bfloat16")  # type: ignore[arg-type]
    )
    assert rough == pytest.approx(exact, rel=0.05)
    assert rough != exact


@pytest.mark.parametrize(
    ("name", "how", "told"),
    [
        ("resnet18", {"layout": "blocked"}, "layout: blocked is not possible"),
        ("resnet18", {"layout": "diagonal"}, "layout: 'diagonal' is not one of auto"),
        ("resnet18", {"precision": "float8"}, "precision: 'float8' is not one of auto"),
        ("resnet18", {"precision": "bfloat16"}, "no bfloat16 of its own"),
        ("r3d_18", {"layout": "channels_last"}, "not possible"),
    ],
)
def test_ways_that_are_not_possible_are_refused(
    name: str, how: dict[str, str], told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(execution, "has_bfloat16", lambda _: False)
    network = build_fresh(tiny(name), classes=3, channels=3, device="meta")
    given = {"layout": "auto", "precision": "auto", "compiled": False, **how}
    with pytest.raises(RunError, match=told):
        execution.candidates(network, torch.device("cpu"), **given)  # type: ignore[arg-type]


def test_the_fastest_way_is_measured_once_and_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONVATLAS_CACHE", str(tmp_path))
    monkeypatch.setattr(execution, "SMALL_STEP", 0)
    monkeypatch.setattr(execution, "has_bfloat16", lambda _: False)
    monkeypatch.setattr(execution, "BUSY", 2.0)
    options = []

    def measured(network: Network, ways: list[ExecutionPlan], *_: object) -> dict[ExecutionPlan, float]:
        options.append(ways)
        return {way: 0.5 if way.layout == "contiguous" else 1.0 for way in ways}

    monkeypatch.setattr(execution, "_measured", measured)
    how: dict[str, Any] = {"classes": 3, "channels": 3, "batch": 4, "device": torch.device("cpu")}
    first, second = (execution.choose(tiny("resnet18"), **how) for _ in range(2))
    assert first.compute == second.compute == ExecutionPlan("contiguous")
    assert len(options) == 1
    assert execution.choose(tiny("resnet34"), **how).compute.layout == "contiguous"
    assert len(options) == 2
    (tmp_path / execution.REMEMBERED).write_text("not JSON")
    assert execution.choose(tiny("resnet18"), **how).compute == first.compute
    assert len(options) == 3
    monkeypatch.setattr(execution, "BUSY", -1.0)  # other work keeps the cores busy: not remembered
    for _ in range(2):
        execution.choose(tiny("resnet50"), **how)
    assert len(options) == 5


def test_the_share_of_other_processes_is_what_this_one_did_not_take() -> None:
    readings = iter([(1000.0, 400.0), (1010.0, 404.0)])
    others = CpuContention(lambda: next(readings))
    assert others.share() == pytest.approx(0.4, abs=0.05)
    assert 0 <= CpuContention().share() <= 1


def test_small_steps_are_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(execution, "_measured", lambda *_: pytest.fail("measured"))
    spec = CATALOG["lenet5_modern"].spec
    choice = execution.choose(spec, classes=10, channels=1, batch=64, device=torch.device("cpu"))
    assert (choice.compute.layout, choice.seconds) == ("blocked", {})


def test_real_measurements_name_every_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONVATLAS_CACHE", str(tmp_path))
    monkeypatch.setattr(execution, "SMALL_STEP", 0)
    before = torch.random.get_rng_state()
    how: dict[str, Any] = {"classes": 3, "channels": 3, "batch": 2, "device": torch.device("cpu")}
    torch.manual_seed(1)
    choice = execution.choose(tiny("googlenet"), **how)
    assert choice.compute in choice.seconds
    assert all(0 < seconds < 60 for seconds in choice.seconds.values())
    torch.random.set_rng_state(before)


# --- what is added to a step


def test_the_average_follows_its_formula() -> None:
    network, x = grown("cifar_resnet20")
    average = EMA(network, 0.9)
    weights = [network.get_parameter("head.out.weight").detach().clone()]
    recipe = Recipe(epochs=1, batch=2, lr=0.1)
    optimizer = recipe.build_optimizer(network)
    for step in train(network, optimizer, Few(*[batch(x)] * 4), recipe, seed=0, ema_decay=average):  # type: ignore[arg-type]
        assert not step.skipped
        weights.append(network.get_parameter("head.out.weight").detach().clone())
    expected = weights[0].double()
    for n, new in enumerate(weights[1:], 1):
        decay = min(0.9, (1 + n) / (10 + n))
        expected = decay * expected + (1 - decay) * new.double()
    torch.testing.assert_close(
        average.network.get_parameter("head.out.weight").double(), expected, rtol=1e-5, atol=1e-7
    )


def test_rare_classes_weigh_more_and_the_mean_weight_is_one() -> None:
    network, x = grown("cifar_resnet20")
    class_weights = torch.tensor([4.0, 1, 1, 1, 1, 1, 1])
    given = batch(x)  # classes 0 and 1
    plain, weighed = (
        StepRunner(network, PLAIN, ExecutionPlan(), weights).measure(network(x), given.labels)
        for weights in (None, class_weights)
    )
    each = nn.functional.cross_entropy(network(x), given.labels, reduction="none")
    assert weighed.item() == pytest.approx(((4 * each[0] + each[1]) / 2).item(), rel=1e-5)
    assert plain.item() == pytest.approx(each.mean().item(), rel=1e-5)


def test_a_long_gradient_is_shortened() -> None:
    network, x = grown("cifar_resnet20")
    before = copy.deepcopy(network.state_dict())
    recipe = Recipe(epochs=1, batch=2, lr=1.0, momentum=0.0, weight_decay=0.0, schedule="constant", grad_clip=1e-3)
    trained(network, recipe, batch(x))
    moved = sum(float((p.detach() - before[name]).square().sum()) for name, p in network.named_parameters())
    assert moved**0.5 == pytest.approx(1e-3, rel=1e-2)


def test_learning_rates_fall_towards_the_stem() -> None:
    network, _ = grown("resnet18")
    optimizer = Recipe(layer_decay=0.5).build_optimizer(network)
    shares = [group["share"] for group in optimizer.param_groups]
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    assert shares == sorted(shares, reverse=True)
    told = {names[id(group["params"][0])].split(".")[0]: group["share"] for group in optimizer.param_groups}
    assert (told["head"], told["stem"]) == (1.0, 0.5**5)
    held = [id(parameter) for group in optimizer.param_groups for parameter in group["params"]]
    assert len(held) == len(set(held)) == len(names)


def test_the_head_learns_alone_first_and_statistics_wait() -> None:
    network, x = grown("resnet18")
    before = copy.deepcopy(network.state_dict())
    recipe = Recipe(epochs=2, batch=2, lr=0.1, head_epochs=1, schedule="constant")
    steps = train(network, recipe.build_optimizer(network), Few(batch(x)), recipe, seed=0)  # type: ignore[arg-type]
    next(steps)
    changed = {name for name, tensor in network.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {"head.out.weight", "head.out.bias"}
    next(steps)
    after = network.state_dict()
    assert not torch.equal(after["stem.conv.conv.weight"], before["stem.conv.conv.weight"])
    assert not torch.equal(after["stem.conv.norm.running_mean"], before["stem.conv.norm.running_mean"])


def test_statistics_of_norms_can_be_kept() -> None:
    network, x = grown("resnet18")
    before = copy.deepcopy(network.state_dict())
    trained(network.train(), Recipe(epochs=1, batch=2, lr=0.1, freeze_bn_stats=True), batch(x))
    after = network.state_dict()
    assert all(torch.equal(after[key], before[key]) for key in after if "running" in key)
    assert not torch.equal(after["stem.conv.norm.weight"], before["stem.conv.norm.weight"])


def test_a_step_that_is_not_finite_is_taken_back() -> None:
    network, x = grown("resnet18")
    recipe = Recipe(epochs=1, batch=2, lr=0.1)
    steps = train(
        network, recipe.build_optimizer(network), Few(batch(x), batch(x * float("nan")), batch(x)), recipe, seed=0
    )  # type: ignore[arg-type]
    next(steps)
    before = copy.deepcopy(network.state_dict())
    assert next(steps).skipped
    assert all(torch.equal(tensor, before[key]) for key, tensor in network.state_dict().items())
    good = next(steps)
    assert not good.skipped
    assert good.loss == good.loss


def short_of_memory(monkeypatch: pytest.MonkeyPatch, most: int) -> list[int]:
    """Let a forward pass of more than so many images fail as torch does; returns the sizes that were tried."""
    tried: list[int] = []
    forward = nn.Conv2d.forward

    def limited(layer: nn.Conv2d, x: Tensor) -> Tensor:
        tried.append(len(x))
        if len(x) > most:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 12 bytes")
        return forward(layer, x)

    monkeypatch.setattr(nn.Conv2d, "forward", limited)
    return tried


def test_a_batch_that_does_not_fit_is_taken_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    network = build_fresh("lenet5_modern", classes=7, channels=1)
    other = copy.deepcopy(network)
    x = torch.randn(8, 1, 32, 32)
    recipe = Recipe(epochs=1, batch=8, lr=0.1)
    trained(other, recipe.replaced({"micro_batch": 2}), batch(x), batch(x))
    tried = short_of_memory(monkeypatch, 3)
    trained(network, recipe, batch(x), batch(x))
    assert [size for size in tried if size > 3] == [8, 4]  # what failed once is not tried again
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), other.parameters(), strict=True))


def test_one_image_that_does_not_fit_ends_the_training(monkeypatch: pytest.MonkeyPatch) -> None:
    network, x = grown("cifar_resnet20")
    short_of_memory(monkeypatch, 0)
    with pytest.raises(RunError, match="memory does not suffice for 1 images at once"):
        trained(network, Recipe(epochs=1, batch=2), batch(x))


def test_other_errors_are_not_taken_for_missing_memory() -> None:
    network, x = grown("cifar_resnet20")
    with pytest.raises(RuntimeError, match="channels"):
        trained(network, Recipe(epochs=1, batch=2), batch(x[:, :2]))


def test_steps_that_are_never_finite_end_the_training() -> None:
    network, x = grown("resnet18")
    bad = [batch(x * float("nan"))] * 12
    with pytest.raises(RunError, match=r"10 steps up to step 9 .* first in the input images"):
        trained(network, Recipe(epochs=1, batch=2), *bad)


# --- runs


def test_a_run_ends_when_nothing_gets_better(tmp_path: Path) -> None:
    recipe = RECIPES["default"].replaced({"epochs": 30, "lr": 0.0, "patience": 2})
    finished = ca.fit("digits", "lenet5_modern", recipe=recipe, out=tmp_path / "run", settings=SETTINGS)
    assert len(finished.state.history) == 3
    assert finished.state.finished
    again = reopen(tmp_path / "run")
    assert again.state.finished


def test_a_run_that_ran_out_of_patience_does_not_go_on(tmp_path: Path) -> None:
    recipe = RECIPES["default"].replaced({"epochs": 30, "lr": 0.0, "patience": 1})
    current = start("digits", "lenet5_modern", recipe=recipe, out=tmp_path / "run", settings=SETTINGS)
    for event in current.steps():
        if isinstance(event, dict) and event["epoch"] == 2:
            break
    again = reopen(tmp_path / "run")
    list(again.steps())
    assert len(again.state.history) == 2


@pytest.fixture(scope="module")
def source(colored: Any) -> Path:
    """A sealed model of three classes."""
    return Path(colored.model_file)


def test_weights_begin_a_run_and_a_resumed_one_does_not_need_their_file(
    source: Path, images: Path, tmp_path: Path
) -> None:
    weights = tmp_path / "weights.safetensors"
    weights.write_bytes(source.read_bytes())
    recipe = RECIPES["finetune"].replaced({"epochs": 2, "batch": 8, "min_crop_area": 0.0})
    how: dict[str, Any] = {"weights": weights, "recipe": recipe, "settings": SETTINGS}
    whole = ca.fit(images, "lenet5_modern", out=tmp_path / "whole", **how)
    assert ca.load(whole.model_file).header.training["weights"] == str(weights)
    steps = start(images, "lenet5_modern", out=tmp_path / "stopped", **how).steps()
    next(steps)
    steps.close()
    weights.unlink()
    resumed = ca.resume(tmp_path / "stopped")
    left, right = (ca.load(each.model_file).network.state_dict() for each in (whole, resumed))
    assert all(torch.equal(left[key], right[key]) for key in left)


def test_the_head_is_kept_for_the_same_classes_and_fresh_for_others(
    source: Path, images: Path, own_images: Path, tmp_path: Path
) -> None:
    state = ca.load(source).network.state_dict()
    *_, head = (key for key in state if key.endswith("weight"))
    how: dict[str, Any] = {"weights": source, "settings": SETTINGS}
    same = start(images, "lenet5_modern", out=tmp_path / "same", **how).network.state_dict()
    assert all(torch.equal(same[key], state[key]) for key in state)
    for split in ("train", "val"):
        (own_images / split / "ant").rename(own_images / split / "wasp")
    other = start(own_images, "lenet5_modern", out=tmp_path / "other", **how).network.state_dict()
    assert {key for key in state if not torch.equal(other[key], state[key])} >= {head}
    assert sum(not torch.equal(other[key], state[key]) for key in state) <= 2


@pytest.mark.parametrize(
    "values",
    [{"micro_batch": 100}, {"grad_clip": -1}, {"class_weight_power": 2}, {"ema_decay": 1.0}, {"layer_decay": 1.5}, {"freeze_bn_stats": "frozen"},
     {"head_epochs": 21}, {"patience": -1}, {"optimizer": "adam"}],
)  # fmt: skip
def test_recipes_that_make_no_sense_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(SpecError, match=f"recipe.{next(iter(values))}"):
        Recipe().replaced(values)


def test_a_recipe_that_is_not_for_the_network_leaves_no_folder_behind(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="no residual branches"):
        ca.fit("digits", "lenet5_modern", recipe=Recipe(drop_path=0.1), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_large_linear_layers_stay_in_float32() -> None:
    torch.manual_seed(0)
    head = nn.Sequential(nn.Linear(2048, 2048), nn.Linear(2048, 10))
    x = torch.randn(4, 2048)
    exact = head[0](x)
    linear_fp32.install(head)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(head[0](x), exact)
        assert head[0](x.bfloat16()).dtype == torch.float32
        assert head(x).dtype == torch.bfloat16
        execution.release(head)
        assert head[0](x).dtype == torch.bfloat16
