"""Training steps: micro-batches, EMA, class weights, clipping, freezing, rollback, out of memory; and runs of them."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from torch import Tensor, nn

import convatlas as ca
from convatlas.core.network import Network
from convatlas.errors import RunError, SpecError
from convatlas.models.catalog import CATALOG, build_fresh
from convatlas.tasks.known import Classification
from convatlas.tasks.targets import Batch, Targets
from convatlas.tasks.task import Task
from convatlas.train.cpu.execution import ExecutionPlan
from convatlas.train.cpu.tune import candidate_plans
from convatlas.train.fit import prepare_run
from convatlas.train.loop import train
from convatlas.train.lr_schedule import lr_at
from convatlas.train.optim import EMA, build_optimizer
from convatlas.train.recipe import RECIPES, Recipe, Schedule
from convatlas.train.resume import open_run
from convatlas.train.settings import ExecutionOptions
from convatlas.train.state import Epoch
from convatlas.train.step import Step, StepRunner
from tiny_networks import build_tiny

ONE_THREAD = ExecutionOptions(device="cpu", threads=1)
PLAIN = Recipe(epochs=1, batch=8)
TASK = Classification(tuple("abcdefg"))


class FixedBatches:
    """Stands for a BatchLoader: the same batches in every epoch."""

    def __init__(self, *batches: Batch, task: Task = TASK) -> None:
        self.batches, self.steps, self.task = batches, len(batches), task

    def epoch(self, epoch: int, *, start: int = 0) -> Iterator[Batch]:
        yield from self.batches[start:]


def batch_of(x: Tensor, classes: int = 7) -> Batch:
    numbers = torch.arange(len(x))
    return Batch(x, Targets(label=numbers % classes), numbers, len(x))


def steps_of(network: Network, recipe: Recipe, *batches: Batch, **how: Any) -> Iterator[Step]:
    loader: Any = FixedBatches(*batches)
    return train(network, build_optimizer(recipe, network), loader, recipe, seed=0, **how)


def gradients(network: Network, recipe: Recipe, batch: Batch, plan: ExecutionPlan) -> tuple[float, Sequence[Tensor]]:
    network.zero_grad()
    network.train()
    torch.manual_seed(0)
    _, loss = StepRunner(plan.place(network), TASK.with_loss(recipe.loss), recipe, plan).backward(batch)
    return loss.item(), [parameter.grad.clone() for parameter in network.parameters() if parameter.grad is not None]


# --- gradients of a batch


@pytest.mark.parametrize("micro_batch", [1, 3, 5, 8])
def test_gradients_of_micro_batches_add_up_to_those_of_the_batch(micro_batch: int) -> None:
    torch.manual_seed(0)
    network = build_fresh("lenet5_modern", classes=7, channels=1)
    batch = batch_of(torch.randn(8, 1, 32, 32))
    whole = gradients(network, PLAIN, batch, ExecutionPlan())
    parts = gradients(network, PLAIN.replaced({"micro_batch": micro_batch}), batch, ExecutionPlan())
    assert parts[0] == pytest.approx(whole[0], rel=1e-5)
    torch.testing.assert_close(parts[1], whole[1], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["lenet5_modern", "resnet18", "mobilenet_v2", "densenet121", "googlenet", "capsnet"])
def test_all_plans_compute_the_same_gradients(name: str) -> None:
    network, x = build_tiny(name, channels=CATALOG[name].preprocessing.channels)
    plans = candidate_plans(network, torch.device("cpu"), precision="float32")
    assert ("mkldnn" in {plan.memory_format for plan in plans}) == (name == "lenet5_modern")
    # mkldnn computes in float32; batch norms over a few pixels amplify rounding errors
    exact = torch.float32 if name == "lenet5_modern" else torch.float64
    recipe = RECIPES[CATALOG[name].recipe].replaced({"batch": 4})
    batch = batch_of(torch.cat([x, x.flip(0)]).to(exact))
    first, *others = (gradients(copy.deepcopy(network).to(exact), recipe, batch, plan) for plan in plans)
    for other in others:
        assert other[0] == pytest.approx(first[0], rel=1e-5)
        torch.testing.assert_close(other[1], first[1], rtol=1e-4, atol=1e-5)


def test_bfloat16_is_close_to_float32() -> None:
    network, x = build_tiny("resnet18")
    exact, rounded = (
        gradients(copy.deepcopy(network), PLAIN, batch_of(x), plan)[0]
        for plan in (ExecutionPlan(), ExecutionPlan(precision="bfloat16"))
    )
    assert rounded == pytest.approx(exact, rel=0.05)
    assert rounded != exact


# --- the parts of a step


def test_ema_equals_its_formula() -> None:
    network, x = build_tiny("cifar_resnet20")
    ema = EMA(network, 0.9)
    weights = [network.get_parameter("head.out.weight").detach().clone()]
    for step in steps_of(network, Recipe(epochs=1, batch=2, lr=0.1), *[batch_of(x)] * 4, ema=ema):
        assert not step.skipped
        weights.append(network.get_parameter("head.out.weight").detach().clone())
    expected = weights[0].double()
    for n, new in enumerate(weights[1:], 1):
        decay = min(0.9, (1 + n) / (10 + n))
        expected = decay * expected + (1 - decay) * new.double()
    torch.testing.assert_close(ema.network.get_parameter("head.out.weight").double(), expected, rtol=1e-5, atol=1e-7)


def test_class_weights_multiply_the_losses_of_their_images() -> None:
    network, x = build_tiny("cifar_resnet20")
    class_weights = torch.tensor([4.0, 1, 1, 1, 1, 1, 1])
    batch = batch_of(x)  # classes 0 and 1
    network.train()
    outputs = network(x)
    each = nn.functional.cross_entropy(outputs, batch.targets.tensor("label"), reduction="none")
    plain, weighted = (
        StepRunner(network, TASK, PLAIN, ExecutionPlan(), class_weights=weights).backward(batch)[1]
        for weights in (None, class_weights)
    )
    assert weighted.item() == pytest.approx(((4 * each[0] + each[1]) / 2).item(), rel=1e-5)
    assert plain.item() == pytest.approx(each.mean().item(), rel=1e-5)


@pytest.mark.parametrize("power", [0.5, 1.0])
def test_class_weights_are_powers_of_the_frequencies_and_their_mean_over_the_images_is_one(power: float) -> None:
    label = torch.tensor([0] * 8 + [1] * 2)
    weights = Classification(("a", "b")).class_weights(Targets(label=label), power)
    assert weights is not None
    assert float(weights[label].mean()) == pytest.approx(1)
    assert float(weights[1] / weights[0]) == pytest.approx(4**power)


def test_gradients_are_clipped_to_the_largest_norm() -> None:
    network, x = build_tiny("cifar_resnet20")
    before = copy.deepcopy(network.state_dict())
    recipe = Recipe(epochs=1, batch=2, lr=1.0, momentum=0.0, weight_decay=0.0, schedule="constant", grad_clip=1e-3)
    list(steps_of(network, recipe, batch_of(x)))
    moved = sum(float((p.detach() - before[name]).square().sum()) for name, p in network.named_parameters())
    assert moved**0.5 == pytest.approx(1e-3, rel=1e-2)


def test_layer_decay_lowers_the_learning_rate_towards_the_stem() -> None:
    network, _ = build_tiny("resnet18")
    groups = build_optimizer(Recipe(layer_decay=0.5), network).param_groups
    scales = [group["lr_scale"] for group in groups]
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    assert scales == sorted(scales, reverse=True)
    by_part = {names[id(group["params"][0])].split(".")[0]: group["lr_scale"] for group in groups}
    assert (by_part["head"], by_part["stem"]) == (1.0, 0.5**5)
    ids = [id(parameter) for group in groups for parameter in group["params"]]
    assert len(ids) == len(set(ids)) == len(names)


def test_only_the_head_is_trained_in_head_epochs() -> None:
    network, x = build_tiny("resnet18")
    before = copy.deepcopy(network.state_dict())
    steps = steps_of(network, Recipe(epochs=2, batch=2, lr=0.1, head_epochs=1, schedule="constant"), batch_of(x))
    next(steps)
    changed = {name for name, tensor in network.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {"head.out.weight", "head.out.bias"}
    next(steps)
    after = network.state_dict()
    assert not torch.equal(after["stem.conv.conv.weight"], before["stem.conv.conv.weight"])
    assert not torch.equal(after["stem.conv.norm.running_mean"], before["stem.conv.norm.running_mean"])


def test_freeze_bn_stats_keeps_running_statistics() -> None:
    network, x = build_tiny("resnet18")
    before = copy.deepcopy(network.state_dict())
    list(steps_of(network.train(), Recipe(epochs=1, batch=2, lr=0.1, freeze_bn_stats=True), batch_of(x)))
    after = network.state_dict()
    assert all(torch.equal(after[key], before[key]) for key in after if "running" in key)
    assert not torch.equal(after["stem.conv.norm.weight"], before["stem.conv.norm.weight"])


def test_a_nonfinite_step_is_rolled_back() -> None:
    network, x = build_tiny("resnet18")
    recipe = Recipe(epochs=1, batch=2, lr=0.1)
    steps = steps_of(network, recipe, batch_of(x), batch_of(x * float("nan")), batch_of(x))
    next(steps)
    before = copy.deepcopy(network.state_dict())
    skipped = next(steps)
    assert skipped.skipped
    assert skipped.metric_sums == ()
    assert all(torch.equal(tensor, before[key]) for key, tensor in network.state_dict().items())
    good = next(steps)
    assert not good.skipped
    assert good.loss == good.loss


def test_a_step_has_loss_and_metric_of_its_batch() -> None:
    network, x = build_tiny("cifar_resnet20")
    batch = batch_of(x)
    (step,) = steps_of(network, PLAIN, batch)
    label = batch.targets.tensor("label")
    assert step.loss == pytest.approx(nn.functional.cross_entropy(step.outputs, label).item(), rel=1e-5)
    assert step.metric_sums == (int((step.outputs.argmax(1) == label).sum()),)
    assert (step.number, step.epoch, step.lr) == (0, 0, lr_at(PLAIN, 0, 1))


@pytest.mark.parametrize("schedule", get_args(Schedule))
def test_the_learning_rate_rises_over_the_warm_up_and_ends_near_zero(schedule: Schedule) -> None:
    recipe = Recipe(epochs=20, lr=0.8, schedule=schedule, warmup=2.0)
    rates = [lr_at(recipe, step, 5) for step in range(100)]
    peak = rates.index(0.8)
    assert rates[: peak + 1] == pytest.approx([0.8 * (step + 1) / (peak + 1) for step in range(peak + 1)])
    assert peak == (24 if schedule == "onecycle" else 9)
    assert all(before >= after for before, after in pairwise(rates[peak:]))
    assert (rates[-1] == 0.8) if schedule == "constant" else (0 < rates[-1] < 0.01)


def test_more_epochs_change_nothing_before_the_decay_of_a_wsd_schedule() -> None:
    short, long = (Recipe(epochs=epochs, lr=0.8, schedule="wsd", warmup=2.0) for epochs in (20, 200))
    rates, longer = ([lr_at(recipe, step, 5) for step in range(100)] for recipe in (short, long))
    assert rates[:40] == longer[:40]
    assert rates[38:42] == [0.8, 0.8, pytest.approx(0.8, rel=0.01), pytest.approx(0.8, rel=0.01)]
    assert rates[70] == pytest.approx(0.4, rel=0.05)
    assert longer[99] == 0.8


def limit_memory(monkeypatch: pytest.MonkeyPatch, images: int) -> list[int]:
    """Let forward passes of more than `images` images fail as torch does; return the list of the sizes tried."""
    tried: list[int] = []
    forward = nn.Conv2d.forward

    def limited(layer: nn.Conv2d, x: Tensor) -> Tensor:
        tried.append(len(x))
        if len(x) > images:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 12 bytes")
        return forward(layer, x)

    monkeypatch.setattr(nn.Conv2d, "forward", limited)
    return tried


def test_when_out_of_memory_the_micro_batch_is_halved(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    network = build_fresh("lenet5_modern", classes=7, channels=1)
    other = copy.deepcopy(network)
    x = torch.randn(8, 1, 32, 32)
    recipe = Recipe(epochs=1, batch=8, lr=0.1)
    list(steps_of(other, recipe.replaced({"micro_batch": 2}), batch_of(x), batch_of(x)))
    tried = limit_memory(monkeypatch, 3)
    list(steps_of(network, recipe, batch_of(x), batch_of(x)))
    assert [size for size in tried if size > 3] == [8, 4]  # sizes that failed are not tried again
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), other.parameters(), strict=True))


def test_running_statistics_are_those_of_one_try(monkeypatch: pytest.MonkeyPatch) -> None:
    network, x = build_tiny("cifar_resnet20")
    other, x = copy.deepcopy(network), torch.cat([x, x.flip(0)])
    forward = nn.Linear.forward

    def limited(layer: nn.Linear, y: Tensor) -> Tensor:  # behind all batch norms
        if len(y) > 2:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 12 bytes")
        return forward(layer, y)

    list(steps_of(other, Recipe(epochs=1, batch=4, micro_batch=2), batch_of(x)))
    monkeypatch.setattr(nn.Linear, "forward", limited)
    list(steps_of(network, Recipe(epochs=1, batch=4), batch_of(x)))
    first, second = network.state_dict(), other.state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_out_of_memory_for_one_image_ends_the_training(monkeypatch: pytest.MonkeyPatch) -> None:
    network, x = build_tiny("cifar_resnet20")
    limit_memory(monkeypatch, 0)
    message = "out of memory for the network and 2 images .*; use a smaller --resolution or network"
    with pytest.raises(RunError, match=message):
        list(steps_of(network, Recipe(epochs=1, batch=2), batch_of(x)))


def test_other_errors_are_not_taken_for_out_of_memory() -> None:
    network, x = build_tiny("cifar_resnet20")
    with pytest.raises(RuntimeError, match="channels"):
        list(steps_of(network, Recipe(epochs=1, batch=2), batch_of(x[:, :2])))


@pytest.mark.parametrize(
    ("cause", "message"),
    [
        ("images", "first in the input images; check the data and its preprocessing"),
        (
            "weights",
            r"first in the weights \(stem.*weight\); use a lower learning rate than 0.05, or other initial weights",
        ),
        ("activation", "first in the output of stem.*; use a lower learning rate than 0.05"),
        ("gradient", "first in the gradient; use a lower learning rate than 0.05, or --set grad_clip=1"),
    ],
)
def test_too_many_nonfinite_steps_end_the_training(cause: str, message: str) -> None:
    network, x = build_tiny("resnet18")
    weight = next(network.parameters())
    if cause == "images":
        x = x * float("nan")
    elif cause == "weights":
        weight.data[0] = float("nan")
    elif cause == "activation":
        network.stem.get_submodule("conv.conv").register_forward_hook(lambda *values: values[2] * float("inf"))
    else:
        weight.register_hook(lambda gradient: gradient * float("nan"))
    with pytest.raises(RunError, match=f"10 steps up to step 9 .*{message}"):
        list(steps_of(network, Recipe(epochs=1, batch=2), *[batch_of(x)] * 12))


# --- runs


def test_a_run_ends_when_patience_is_exhausted(tmp_path: Path) -> None:
    overrides = {"epochs": 30, "lr": 0.0, "patience": 2}
    run = ca.fit("digits", "lenet5_modern", **overrides, out=tmp_path / "run", execution=ONE_THREAD)
    assert len(run.history) == 3
    assert run.state.finished
    assert open_run(tmp_path / "run").state.finished


def test_a_resumed_run_without_patience_left_trains_no_further_epoch(tmp_path: Path) -> None:
    overrides = {"epochs": 30, "lr": 0.0, "patience": 1}
    run = prepare_run("digits", "lenet5_modern", **overrides, out=tmp_path / "run", execution=ONE_THREAD)
    for event in run.steps():
        if isinstance(event, Epoch) and event.number == 2:
            break
    again = open_run(tmp_path / "run")
    list(again.steps())
    assert len(again.history) == 2


@pytest.fixture(scope="module")
def source(colored: Any) -> Path:
    """A model file of three classes."""
    return Path(colored.model_file)


def test_a_run_starts_from_weights_and_is_resumed_without_their_file(
    source: Path, images: Path, tmp_path: Path
) -> None:
    weights = tmp_path / "weights.safetensors"
    weights.write_bytes(source.read_bytes())
    recipe = RECIPES["finetune"].replaced({"epochs": 2, "batch": 8, "min_crop_area": 0.0})
    how: dict[str, Any] = {"weights": weights, "recipe": recipe, "execution": ONE_THREAD}
    whole = ca.fit(images, "lenet5_modern", out=tmp_path / "whole", **how)
    assert ca.load(whole.model_file).header.training.weights == str(weights)
    steps = prepare_run(images, "lenet5_modern", out=tmp_path / "interrupted", **how).steps()
    next(steps)
    steps.close()  # type: ignore[attr-defined]
    weights.unlink()
    resumed = ca.resume(tmp_path / "interrupted")
    left, right = (ca.load(run.model_file).module.state_dict() for run in (whole, resumed))
    assert all(torch.equal(left[key], right[key]) for key in left)


def test_the_head_is_kept_for_the_same_classes_and_fresh_for_others(
    source: Path, images: Path, own_images: Path, tmp_path: Path
) -> None:
    state = ca.load(source).module.state_dict()
    *_, head = (key for key in state if key.endswith("weight"))
    how: dict[str, Any] = {"weights": source, "execution": ONE_THREAD}
    same = prepare_run(images, "lenet5_modern", out=tmp_path / "same", **how).network.state_dict()
    assert all(torch.equal(same[key], state[key]) for key in state)
    for split in ("train", "val"):
        (own_images / split / "ant").rename(own_images / split / "wasp")
    other = prepare_run(own_images, "lenet5_modern", out=tmp_path / "other", **how).network.state_dict()
    assert {key for key in state if not torch.equal(other[key], state[key])} >= {head}
    assert sum(not torch.equal(other[key], state[key]) for key in state) <= 2


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"micro_batch": 100}, r"micro_batch must be <= batch \(64\), got 100"),
        ({"grad_clip": -1}, r"grad_clip must be a number >= 0, got -1\.0"),
        ({"class_weight_power": 2}, r"class_weight_power must be a number in \[0, 1\], got 2\.0"),
        ({"ema_decay": 1.0}, r"ema_decay must be a number in \[0, 0\.99999\], got 1\.0"),
        ({"layer_decay": 1.5}, r"layer_decay must be a number in \[0, 1\], got 1\.5"),
        ({"freeze_bn_stats": "frozen"}, "freeze_bn_stats must be true or false, got 'frozen'"),
        ({"head_epochs": 21}, r"head_epochs must be <= epochs \(20\), got 21"),
        ({"patience": -1}, "patience must be an integer >= 0, got -1"),
        ({"optimizer": "adam"}, "optimizer must be one of sgd, adamw, rmsprop, got 'adam'"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_impossible_recipes_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=f"Recipe: {message}"):
        Recipe().replaced(values)


def test_a_recipe_that_does_not_fit_the_network_leaves_no_run_directory(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="no residual branches"):
        ca.fit("digits", "lenet5_modern", recipe=Recipe(drop_path=0.1), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
