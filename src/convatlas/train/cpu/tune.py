"""Autotuning of training: time a step under each execution plan, and store which plan is the fastest."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, get_args

import torch

from convatlas.core.cost import totals_of
from convatlas.core.memory_format import CHANNELS_LAST
from convatlas.core.network import Network
from convatlas.core.spec import Spec
from convatlas.errors import RunError
from convatlas.system.autotune import TimingRules, TuningCache, min_times, time_candidates
from convatlas.system.devices import is_out_of_memory, supports_bfloat16
from convatlas.system.load import LoadMeter
from convatlas.train.cpu import fused_norm
from convatlas.train.cpu.execution import ExecutionPlan, MemoryFormat, Precision, supports_mkldnn
from convatlas.train.cpu.memory import trim_heap

CACHE_FILE = "execution.json"

MIN_MACS_TO_TUNE = 3e9
"""Minimum MACs of a step (forward and backward, whole batch) that are timed; below, the first plan is used."""

TIMED_MACS = 3e9
"""MACs of the forward pass that is timed: a step then takes about a tenth of a second per plan on few cores."""

MAX_RELATIVE_TIME = 0.95
"""Another plan than the first candidate must take at most this share of its time."""

TIMING = TimingRules(
    max_turns=3, min_turns=1, max_seconds=1.0, max_slowdown=1.3, max_warm_up_slowdown=3.0, jitter_s=0.0, jitter_turns=0
)

Value = TypeVar("Value", bound=str)


@dataclass(frozen=True)
class PlanChoice:
    """The chosen plan, why it was chosen, and the seconds of a step under each plan that was timed.

    seconds: infinite for plans that ran out of memory; empty if nothing was timed.
    """

    plan: ExecutionPlan
    reason: str
    seconds: dict[ExecutionPlan, float]


def candidate_plans(
    network: Network, device: torch.device, *, memory_format: str = "auto", precision: str = "auto",
    compiled: bool = False, fused_norms: bool = True,
) -> list[ExecutionPlan]:  # fmt: skip
    """Return the plans that a network can train with on a device, the usual one first; "auto" allows all values.

    Raises RunError for a value that is unknown, or not possible with this network or device.
    """
    channels_last = 1 + len(network.input_shape) in CHANNELS_LAST and network.takes_channels_last
    formats: list[MemoryFormat] = ["channels_last", "contiguous"] if channels_last else ["contiguous"]
    if supports_mkldnn(network, device) and not compiled and precision != "bfloat16":
        formats.insert(0, "mkldnn")
    precisions: list[Precision] = ["float32", "bfloat16"] if supports_bfloat16(device) else ["float32"]
    formats = _select(
        "memory_format", memory_format, get_args(MemoryFormat), formats, "not possible with this network, device and "
        "precision; use auto",
    )  # fmt: skip
    precisions = _select(
        "precision", precision, get_args(Precision), precisions,
        f"emulated on this {device.type} and many times slower; use auto or float32",
    )  # fmt: skip
    return [
        ExecutionPlan(each, precision, compiled, fused_norms)
        for precision in precisions
        for each in formats
        if not (each == "mkldnn" and precision == "bfloat16")
    ]


def _select(field: str, value: str, known: Sequence[str], possible: list[Value], problem: str) -> list[Value]:
    if value == "auto":
        return possible
    if value not in known:
        raise RunError(f"{field}: must be auto, {', '.join(known)}, got {value}")
    if value not in possible:
        raise RunError(f"{field}: {value} is {problem}")
    return [each for each in possible if each == value]


def choose_plan(
    network: Network, spec: Spec, *, classes: int, batch: int, device: torch.device, memory_format: str = "auto",
    precision: str = "auto", compiled: bool = False, fused_norms: bool = True,
) -> PlanChoice:  # fmt: skip
    """Return the fastest plan for steps of `batch` images on this machine: timed once, then read from the cache.

    network: built from `spec`; a copy of it is timed.
    From the cache, a repeated training uses the same plan and is equal to the last bit; a timing that other processes
    disturbed is used until the machine is quiet. Raises RunError for values that are not possible; see
    `candidate_plans`.
    """
    plans = candidate_plans(
        network, device, memory_format=memory_format, precision=precision, compiled=compiled, fused_norms=fused_norms
    )
    macs = totals_of(network).macs
    if len(plans) == 1:
        return PlanChoice(plans[0], "the only possible plan", {})
    if 3 * macs * batch < MIN_MACS_TO_TUNE:
        return PlanChoice(plans[0], "the default; steps are too short to time", {})
    compiler = fused_norm.compiler_version(network) if device.type == "cpu" and fused_norms else "none"
    cache = TuningCache(
        CACHE_FILE, device, spec.to_plain(), classes, network.input_shape[0], batch,
        [plan.to_plain() for plan in plans], compiler,
    )  # fmt: skip
    cached = cache.load()
    for plan in plans:
        if cached and cached.choice == plan.to_plain() and cached.is_usable():
            return PlanChoice(plan, "the fastest plan in an earlier timing on this machine", {})
    meter = LoadMeter()
    timed_batch = num_timed_images(network, batch)
    seconds = _time_plans(copy.deepcopy(network).to(device), plans, timed_batch, classes, device)
    trim_heap()
    best = min(plans, key=seconds.__getitem__)
    chosen = best if seconds[best] <= MAX_RELATIVE_TIME * seconds[plans[0]] else plans[0]
    cache.store(chosen.to_plain(), meter.share())
    if chosen == best and seconds[best] < float("inf"):
        return PlanChoice(chosen, "the fastest plan", seconds)
    return PlanChoice(chosen, f"the default; no other plan saves {1 - MAX_RELATIVE_TIME:.0%} of its time", seconds)


def num_timed_images(network: Network, batch: int) -> int:
    """Return the number of images of a timed step: fewer than in training, which takes less time and memory."""
    return max(2, min(batch // 2, round(TIMED_MACS / totals_of(network).macs)))


def _time_plans(
    network: Network, plans: list[ExecutionPlan], batch: int, classes: int, device: torch.device
) -> dict[ExecutionPlan, float]:
    """Return the shortest seconds of a forward and backward pass under each plan; infinite if out of memory."""
    step = timed_step(network, batch, classes, device)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        return min_times(time_candidates(plans, step, rules=TIMING, is_failure=is_out_of_memory))


def timed_step(network: Network, batch: int, classes: int, device: torch.device) -> Callable[[ExecutionPlan], None]:
    """Return a function that runs a forward and a backward pass of `batch` random images under a plan.

    It changes the network's gradients and buffers, and torch's random state.
    """
    network.train()
    loss_of = network.example_loss(batch, classes, device)

    def step(plan: ExecutionPlan) -> None:
        network.zero_grad()
        forward: Callable[..., Any] = plan.forward(plan.place(network))
        with plan.autocast(device):
            loss = loss_of(forward)
        loss.backward()
        loss.item()  # waits for the device

    return step
