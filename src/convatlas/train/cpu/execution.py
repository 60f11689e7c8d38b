"""How a step of training is carried out: layout and precision of its tensors, compilation, memory.

These decide how long a step takes and the last bits of its result, and nothing else.
"""

from __future__ import annotations

import ctypes
import platform
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from functools import cache
from typing import Literal, TypeVar, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from convatlas.core.compose import Chain
from convatlas.core.cost import cost
from convatlas.core.network import Network
from convatlas.core.spec import Spec
from convatlas.errors import RunError
from convatlas.models.catalog import build_fresh
from convatlas.system.autotune import MAX_OTHER_CPU_SHARE, CpuContention, TuningCache
from convatlas.train.cpu import depthwise_bf16, fused_norm, linear_fp32

Layout = Literal["contiguous", "channels_last", "blocked"]
"""How activations lie in memory: channel after channel, pixel after pixel, or in oneDNN's blocks of channels."""

Precision = Literal["float32", "bfloat16"]
"""Of convolutions and matrix products; weights, norms and losses are float32 in any case."""

Value = TypeVar("Value", bound=str)

_BLOCKED = (nn.Sequential, Chain, nn.Conv2d, nn.MaxPool2d, nn.ReLU)


@dataclass(frozen=True)
class ExecutionPlan:
    """One way to carry out the steps of a training.

    kernels: norms and activations by kernels of our own, where a C compiler is at hand (see `train.norms`).
    """

    layout: Layout = "channels_last"
    precision: Precision = "float32"
    compiled: bool = False
    kernels: bool = True

    def __str__(self) -> str:
        return f"{self.layout}, {self.precision}" + ", compiled" * self.compiled

    def place(self, network: Network) -> Network:
        """Bring the weights of a network into the layout, and choose its kernels; returns the network."""
        release(network)
        device = next(network.parameters()).device
        if self.own_norms(device):
            fused_norm.install(network)
        if device.type == "cpu" and self.precision == "bfloat16" and not self.compiled:
            linear_fp32.install(network)
            if self.layout == "channels_last":
                depthwise_bf16.install(network)
        lasting = torch.channels_last if self.layout == "channels_last" else torch.contiguous_format
        return network.to(memory_format=lasting)

    def own_norms(self, device: torch.device) -> bool:
        """Return whether norms are computed by our kernels on the device, if there are any."""
        return device.type == "cpu" and self.kernels and self.layout == "channels_last" and not self.compiled

    def arithmetic(self, device: torch.device) -> AbstractContextManager[object]:
        """Return the context in which a step's forward pass runs."""
        return torch.autocast(device.type, torch.bfloat16) if self.precision == "bfloat16" else nullcontext()

    def forward(self, network: Network) -> Callable[[Tensor], Tensor]:
        """Return a forward pass of `network` in this way, for the same function and the same parameters."""
        if self.layout == "blocked":
            return _blocked(network)
        return torch.compile(network) if self.compiled else network


def release(network: nn.Module) -> None:
    """Give a network torch's own layers back, whatever stands in for them while it trains."""
    for layer in network.modules():
        layer.__dict__.pop("forward", None)


def fits_blocks(network: Network, device: torch.device) -> bool:
    """Return whether the network can train in oneDNN's blocked layout on the device.

    Only plain convolutions, max pooling and ReLU have forward and backward passes there.
    """
    body = (*network.stem.modules(), *network.stages.modules())
    fits = all(type(layer) in _BLOCKED and _plain(layer) for layer in body)
    return device.type == "cpu" and fits and not network.auxiliary and torch.backends.mkldnn.is_available()


def _plain(layer: nn.Module) -> bool:
    """Return whether a layer's settings are among those that oneDNN's own layers know."""
    if isinstance(layer, nn.Conv2d):
        return layer.padding_mode == "zeros" and not isinstance(layer.padding, str)
    if isinstance(layer, nn.MaxPool2d):
        return layer.dilation in (1, (1, 1)) and not (layer.ceil_mode or layer.return_indices)
    return True


def _blocked(network: Network) -> Callable[[Tensor], Tensor]:
    """Return the forward pass with stem and stages in blocks: eight or sixteen channels side by side.

    Pooling and ReLU stay in that layout, which makes small networks faster (docs/results.md).
    """
    stem, stages, head = network.stem, network.stages, network.head

    def forward(x: Tensor) -> Tensor:
        features: Tensor = stages(stem(x.to_mkldnn()))
        output: Tensor = head(features.to_dense())
        return output

    return forward


def has_bfloat16(device: torch.device) -> bool:
    """Return whether the device computes in bfloat16 itself; where it does not, bfloat16 is 5 to 15 times slower."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return device.type == "cpu" and bool(torch.cpu._is_avx512_bf16_supported())


def keep_heap() -> None:
    """Let the C library keep the memory that torch gives back, instead of returning it to the system.

    The large tensors of every step are otherwise mapped and cleared anew, page by page (benchmarks/train_step.py has
    the gain). Only glibc knows these two settings; they hold for the whole process. Where its memory is limited (ulimit
    -v) nothing is kept: oneDNN would find none.
    """
    if sys.platform != "win32":
        import resource

        if resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY:
            return
    if has_glibc():
        mmap_max, trim_threshold = -4, -1  # malloc.h
        libc = ctypes.CDLL(None)
        libc.mallopt(mmap_max, 0)
        libc.mallopt(trim_threshold, 2**31 - 1)


def trim_heap() -> None:
    """Give the memory that is kept, and not in use, back to the system."""
    if has_glibc():
        ctypes.CDLL(None).malloc_trim(0)


@cache
def has_glibc() -> bool:
    return sys.platform == "linux" and platform.libc_ver()[0] == "glibc"


REMEMBERED = "compute.json"

SMALL_STEP = 3e9
"""Multiply-adds of a step below which nothing is measured: the first candidate is taken."""

ENOUGH, CLOSE = 1.0, 1.15
"""Seconds after which ways that were measured once are not measured again, but for those so close to the best one."""

SLOW_AT_FIRST, SLOW = 3.0, 1.3
"""A way that took so many times the best one's time is not measured again: in the first turn, and in later ones."""

WORTH = 0.95
"""Another way than the first candidate must take at most this share of its time."""


@dataclass(frozen=True)
class Choice:
    """The way that was chosen, and the seconds that a step took in each of those that were tried; none if known."""

    execution: ExecutionPlan
    seconds: dict[ExecutionPlan, float]


def candidates(
    network: Network, device: torch.device, *, layout: str, precision: str, compiled: bool, kernels: bool = True
) -> list[ExecutionPlan]:
    """Return the ways to be tried for a network, the usual one first; "auto" leaves a choice open.

    Raises RunError for a way that is not possible with this network or on this device.
    """
    images = len(network.input_shape) == 3
    layouts: list[Layout] = ["channels_last", "contiguous"] if images else ["contiguous"]
    if fits_blocks(network, device) and not compiled and precision != "bfloat16":
        layouts.insert(0, "blocked")
    precisions: list[Precision] = ["float32", "bfloat16"] if has_bfloat16(device) else ["float32"]
    impossible = f"layout: {layout} is not possible with this network, device and precision"
    slow = f"precision: this {device.type} has no bfloat16 of its own and would be many times slower"
    layouts = _asked("layout", layout, get_args(Layout), layouts, impossible)
    precisions = _asked("precision", precision, get_args(Precision), precisions, slow)
    return [
        ExecutionPlan(layout, precision, compiled, kernels)
        for precision in precisions
        for layout in layouts
        if not (layout == "blocked" and precision == "bfloat16")
    ]


def _asked(what: str, value: str, known: Sequence[str], possible: list[Value], refusal: str) -> list[Value]:
    """Return what is possible, or of it the value that was asked for; raises RunError where there is no such."""
    if value == "auto":
        return possible
    if value not in known:
        raise RunError(f"{what}: {value!r} is not one of auto, {', '.join(known)}")
    if value not in possible:
        raise RunError(refusal)
    return [each for each in possible if each == value]


def choose(
    spec: Spec, *, classes: int, channels: int, batch: int, device: torch.device,
    layout: str = "auto", precision: str = "auto", compiled: bool = False, kernels: bool = True,
) -> Choice:  # fmt: skip
    """Return the fastest way for steps of `batch` images on this machine: measured once, then remembered.

    It is remembered in the cache folder, so that a training repeated on the same machine is the same to the last bit;
    not so what was measured while other work kept the cores busy.
    """
    network = build_fresh(spec, classes=classes, channels=channels, device="meta")
    ways = candidates(network, device, layout=layout, precision=precision, compiled=compiled, kernels=kernels)
    macs = cost(network).macs
    if len(ways) == 1 or 3 * macs * batch < SMALL_STEP:
        return Choice(ways[0], {})
    compiler = fused_norm.compiler(network) if device.type == "cpu" and kernels else "none"
    remembered = TuningCache(
        REMEMBERED, device, spec.to_plain(), classes, channels, batch, [asdict(w) for w in ways], compiler
    )
    known = remembered.choice()
    for way in ways:
        if known == asdict(way):
            return Choice(way, {})
    # steps of about a tenth of a second where cores are few, and of less memory than the training will need
    size = max(2, min(batch // 2, round(3e9 / macs)))
    network = build_fresh(spec, classes=classes, channels=channels).to(device)
    others = CpuContention()
    seconds = _measured(network, ways, size, classes, device)
    del network
    trim_heap()
    best = min(ways, key=seconds.__getitem__)
    chosen = best if seconds[best] <= WORTH * seconds[ways[0]] else ways[0]
    if others.share() <= MAX_OTHER_CPU_SHARE:
        remembered.keep(asdict(chosen))
    return Choice(chosen, seconds)


def _measured(
    network: Network, ways: list[ExecutionPlan], batch: int, classes: int, device: torch.device
) -> dict[ExecutionPlan, float]:
    """Return the shortest time of a forward and backward pass in each way: in turns, one to warm up and up to three.

    Ways that are clearly slower are left out of later turns. Infinite for ways for which memory does not suffice.
    """
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(batch, *network.input_shape, generator=generator).to(device)
    labels = torch.randint(classes, (batch,), generator=generator).to(device)
    seconds = dict.fromkeys(ways, float("inf"))
    left = list(ways)
    network.train()
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        first = time.perf_counter()
        for turn in range(4):
            latest: dict[ExecutionPlan, float] = {}
            for way in left:
                begun = time.perf_counter()
                try:
                    _pass(network, way, inputs, labels, device)
                    latest[way] = time.perf_counter() - begun
                except (RuntimeError, MemoryError) as error:
                    if not out_of_memory(error):
                        raise
                    seconds[way] = float("inf")
                network.zero_grad()
            if turn:
                seconds |= {way: min(seconds[way], taken) for way, taken in latest.items()}
            best = min(latest.values(), default=0.0)
            late = turn > 0 and time.perf_counter() - first > ENOUGH
            limit = CLOSE if late else SLOW if turn else SLOW_AT_FIRST
            left = [way for way, taken in latest.items() if taken <= limit * best]
            if len(left) == 1:
                seconds[left[0]] = min(seconds[left[0]], latest[left[0]])
                break
    return seconds


def _pass(network: Network, way: ExecutionPlan, inputs: Tensor, labels: Tensor, device: torch.device) -> None:
    """Go through a network forward and backward."""
    forward = way.forward(way.place(network))
    with way.arithmetic(device):
        if network.auxiliary:
            _, loss = network.loss(inputs, labels, F.cross_entropy)
        else:
            loss = F.cross_entropy(forward(inputs).float(), labels)
    loss.backward()
    loss.item()  # waits for the device


def out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that memory did not suffice; torch has no type of its own for it on CPUs."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(words in str(error) for words in NO_MEMORY)


NO_MEMORY = ("allocate memory", "could not create a primitive", "could not create a memory object")
"""What torch and oneDNN say then."""
