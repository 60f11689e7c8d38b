"""Data-parallel training: the ranks started by torchrun, their collectives, and batch norms over all ranks."""

from __future__ import annotations

import atexit
import os
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import PrefixStore, Store, TCPStore  # type: ignore[attr-defined]
from torch.nn import functional as F

from convatlas.core.ragged import Outputs
from convatlas.errors import RunError, brief
from convatlas.system.progress import Progress
from convatlas.train.swap_forward import swap_forward

Value = TypeVar("Value")

TIMEOUT = timedelta(minutes=10)
"""Maximum time that a rank waits for the others."""

HEARTBEAT_S = 1.0
"""Minimum seconds between two heartbeats of a rank that works while others wait."""

POLL_S = 0.05
"""Polling interval in seconds while a rank waits for others."""


@dataclass(frozen=True)
class Distributed:
    """This process among the `world_size` ranks of a training; a single rank by default.

    Each rank takes every `world_size`-th image of a batch and of a split. Gradients, losses and batch-norm statistics
    are sums over all ranks, so all results equal those of one process, except for the order of summation.
    store: counts the collectives that each rank has entered, so that a straggler can be named.
    """

    rank: int = 0
    world_size: int = 1
    store: Store | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> Distributed:
        return self  # copies of a network, such as its EMA, use the same process group

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, which writes files and prints."""
        return self.rank == 0

    def shard(self, items: Tensor) -> Tensor:
        """Return this rank's share of the items (n, ...); it may be empty."""
        return items[self.rank :: self.world_size]

    def all_reduce(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its sum over all ranks, in place."""
        if self.world_size == 1 or not tensors:
            return
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        self._collective(lambda: dist.all_reduce(flat))
        for tensor, part in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(part.view_as(tensor))

    def all_gather(self, part: Outputs, count: int) -> Outputs:
        """Return the rows of all ranks (count, ...), or their items, in the order of the items before `shard`."""
        if self.world_size == 1:
            return part
        if isinstance(part, list):
            order = [i for rank in range(self.world_size) for i in range(rank, count, self.world_size)]
            items = dict(zip(order, self.chain(part), strict=True))
            return [items[i] for i in range(count)]
        whole = part.new_zeros(count, *part.shape[1:])
        whole[self.rank :: self.world_size] = part
        self._collective(lambda: dist.all_reduce(whole))  # exact: all other ranks have zeros there
        return whole

    def chain(self, items: list[Value]) -> list[Value]:
        """Return the items of all ranks, one rank after the other."""
        if self.world_size == 1:
            return items
        parts: list[Any] = [None] * self.world_size
        self._collective(lambda: dist.all_gather_object(parts, items))
        return [item for part in parts for item in part]

    def broadcast(self, value: Value | None) -> Value:
        """Return rank 0's value on all ranks."""
        box: list[Any] = [value]
        if self.world_size > 1:
            self._collective(lambda: dist.broadcast_object_list(box))
        received: Value = box[0]
        return received

    def barrier(self) -> None:
        """Wait for all ranks; raises RunError that names a rank that timed out."""
        if self.world_size > 1:
            self._collective(lambda: dist.all_reduce(torch.zeros(1)))

    def rank0_first(self, work: Callable[[Progress], Value], progress: Progress | None) -> Value:
        """Run `work` on rank 0, then on the other ranks, which can use the files that rank 0 wrote; return its result.

        `work` may take any time as long as it reports progress. Raises RunError if a rank reports none for `TIMEOUT`.
        """
        store = self.store
        if store is None:
            return work(progress or (lambda *_: None))
        turn, last = store.add(f"done/{self.rank}", 0) + 1, time.monotonic()

        def report(what: str, done: int, total: int) -> None:
            nonlocal last
            if time.monotonic() - last > HEARTBEAT_S:
                last = time.monotonic()
                store.add("heartbeat", 1)
            if progress:
                progress(what, done, total)

        if not self.is_main:
            self._wait_for([0], turn)
        result = work(report)
        store.add(f"done/{self.rank}", 1)
        self._wait_for(range(self.world_size), turn)
        return result

    def _wait_for(self, ranks: Iterable[int], turn: int) -> None:
        """Wait until these ranks have finished `turn` calls of `rank0_first`."""
        assert self.store is not None
        heartbeat, since = -1, time.monotonic()
        try:
            while waiting := [rank for rank in ranks if self.store.add(f"done/{rank}", 0) < turn]:
                if (latest := self.store.add("heartbeat", 0)) != heartbeat:
                    heartbeat, since = latest, time.monotonic()
                if time.monotonic() - since > TIMEOUT.total_seconds():
                    raise RunError(f"{self}: {_name(waiting)} timed out while preparing; start again")
                time.sleep(POLL_S)
        except RuntimeError as error:  # the store was on a rank that exited
            raise RunError(f"{self}: another rank exited while preparing; start again") from error

    def _collective(self, run: Callable[[], Any]) -> None:
        try:
            self.mark_arrival()
            run()
        except RuntimeError as error:
            raise self.straggler_error(error) from error

    def mark_arrival(self) -> None:
        """Count that this rank enters a collective."""
        if self.store:
            self.store.add(f"arrived/{self.rank}", 1)

    def straggler_error(self, error: RuntimeError) -> RunError:
        """Return an error that names the ranks that entered fewer collectives than this one."""
        late: list[int] = []
        if self.store:
            with suppress(RuntimeError):  # the store may be unreachable, too
                arrivals = [self.store.add(f"arrived/{rank}", 0) for rank in range(self.world_size)]
                late = [rank for rank, count in enumerate(arrivals) if count < arrivals[self.rank]]
        return RunError(
            f"{self}: {_name(late)} timed out ({brief(error)}); `convatlas resume` continues from the last checkpoint"
        )

    def __str__(self) -> str:
        return f"rank {self.rank} of {self.world_size}"


def _name(ranks: Sequence[int]) -> str:
    if not ranks:
        return "another rank"
    return ("rank " if len(ranks) == 1 else "ranks ") + " and ".join(map(str, ranks))


def init_distributed(device: torch.device) -> Distributed:
    """Join the process group of torchrun, and return this rank; a single rank without torchrun.

    Uses gloo, and NCCL for tensors on GPUs. Raises RunError if the process group cannot be initialized.
    """
    if device.type == "cuda":
        torch.cuda.set_device(device)
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    if world_size == 1:
        return Distributed()
    if not dist.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        try:
            dist.init_process_group(backend, timeout=TIMEOUT)
        except (RuntimeError, ValueError) as error:
            raise RunError(f"torchrun: cannot initialize the process group: {brief(error)}") from error
        atexit.register(_shutdown)
    # a client of torchrun's own store; the prefix separates the restarts of a job
    store = TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), timeout=TIMEOUT)
    job = "/".join(os.environ.get(f"TORCHELASTIC_{what}", "") for what in ("RUN_ID", "RESTART_COUNT"))
    return Distributed(dist.get_rank(), world_size, PrefixStore(f"convatlas/{job}", store))


def _shutdown() -> None:
    """Destroy the process group before Python exits: gloo threads that still hold tensors may abort the process."""
    if dist.is_initialized():
        with suppress(RuntimeError):
            dist.destroy_process_group()


def sync_batch_norms(network: nn.Module, distributed: Distributed) -> None:
    """Let the batch norms of a network use the statistics of all ranks in training mode.

    torch.nn.SyncBatchNorm needs GPUs.
    """
    for layer in network.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            swap_forward(layer, _sync_forward, distributed)


class _AllReduce(torch.autograd.Function):
    """The sum over all ranks; the gradient of each rank's input is the sum of the gradients of all ranks."""

    @staticmethod
    def forward(context: Any, x: Tensor, distributed: Distributed) -> Tensor:
        context.distributed = distributed
        return _sum_in_place(x.clone(), distributed)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _sum_in_place(gradient.clone(), context.distributed), None


def _sum_in_place(x: Tensor, distributed: Distributed) -> Tensor:
    """Replace x by its sum over all ranks. These collectives are not counted: there are several for each layer."""
    try:
        dist.all_reduce(x)
    except RuntimeError as error:
        raise distributed.straggler_error(error) from error
    return x


def _differentiable_sum(x: Tensor, distributed: Distributed) -> Tensor:
    total: Tensor = _AllReduce.apply(x, distributed)
    return total


def _sync_forward(layer: nn.modules.batchnorm._BatchNorm, distributed: Distributed, x: Tensor) -> Tensor:
    """Batch norm of x (n, c, ...) over all ranks; n may be 0 on some.

    Two all-reduces, first the mean and then the squared deviations: a variance from E[x^2] - E[x]^2 would cancel.
    """
    if not layer.training:
        return F.batch_norm(x, layer.running_mean, layer.running_var, layer.weight, layer.bias, False, 0.0, layer.eps)
    axes = [0, *range(2, x.ndim)]
    shape = (1, -1, *[1] * (x.ndim - 2))
    x_float = x.to(torch.promote_types(x.dtype, torch.float32))
    count = _sum_in_place(x_float.new_tensor([x.numel() // x.shape[1]]), distributed)
    mean = _differentiable_sum(x_float.sum(axes), distributed) / count
    centered = x_float - mean.view(shape)
    variance = _differentiable_sum(centered.square().sum(axes), distributed) / count
    if layer.running_mean is not None and layer.running_var is not None and layer.num_batches_tracked is not None:
        with torch.no_grad():
            layer.num_batches_tracked.add_(1)
            momentum = layer.momentum if layer.momentum is not None else 1.0 / float(layer.num_batches_tracked)
            layer.running_mean.lerp_(mean, momentum)
            layer.running_var.lerp_(variance * count / (count - 1), momentum)
    y = centered * (variance + layer.eps).rsqrt().view(shape)
    if layer.weight is not None:
        y = y * layer.weight.view(shape) + layer.bias.view(shape)
    normalized: Tensor = y.to(x.dtype)
    return normalized
