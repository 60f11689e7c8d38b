"""The processes of one training: who does which share, and how their sums come together."""

from __future__ import annotations

import atexit
import os
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import PrefixStore, Store, TCPStore  # type: ignore[attr-defined]
from torch.nn import functional as F

from convatlas.errors import RunError, brief
from convatlas.system.progress import Progress

Value = TypeVar("Value")

TIMEOUT = timedelta(minutes=10)
"""How long a process waits for the others."""


@dataclass(frozen=True)
class Distributed:
    """This process among the `count` of a training, which `torchrun` started; alone by default.

    Each takes every `count`-th image of a batch and of a split. Sums over the shares are those over the whole,
    so batch, loss, statistics of norms and metrics are what one process has, but for the order of the sums.
    store: where each process counts how often it came to a meeting, so that one that stays away can be named.
    """

    rank: int = 0
    world_size: int = 1
    store: Store | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> Distributed:
        return self  # a copy of a network has the same company

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes files and prints."""
        return self.rank == 0

    def shard(self, items: Tensor) -> Tensor:
        """Return this process's part of the items; it may be empty."""
        return items[self.rank :: self.world_size]

    def all_reduce(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its sum over all processes."""
        if self.world_size == 1 or not tensors:
            return
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        self._collective(lambda: dist.all_reduce(flat))
        for tensor, part in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(part.view_as(tensor))

    def all_gather(self, part: Tensor, count: int) -> Tensor:
        """Return the rows of all processes, in the order of the `count` items that were shared out."""
        if self.world_size == 1:
            return part
        whole = part.new_zeros(count, *part.shape[1:])
        whole[self.rank :: self.world_size] = part
        self._collective(lambda: dist.all_reduce(whole))  # all others have zeros there: exact
        return whole

    def broadcast(self, value: Value | None) -> Value:
        """Return what the first process says, everywhere."""
        box: list[Any] = [value]
        if self.world_size > 1:
            self._collective(lambda: dist.broadcast_object_list(box))
        found: Value = box[0]
        return found

    def barrier(self) -> None:
        """Wait until all processes are here; raises RunError that names one that is not."""
        if self.world_size > 1:
            self._collective(lambda: dist.all_reduce(torch.zeros(1)))

    def rank0_first(self, work: Callable[[Progress], Value], progress: Progress | None) -> Value:
        """Return what `work` returns: first the first process does it, then the others, who find what it left behind.

        It may take as long as it likes, while it tells of its progress. Raises RunError if that stops.
        """
        store = self.store
        if store is None:
            return work(progress or (lambda *_: None))
        turn, told = store.add(f"done/{self.rank}", 0) + 1, time.monotonic()

        def going(what: str, done: int, total: int) -> None:
            nonlocal told
            if time.monotonic() - told > 1:
                told = time.monotonic()
                store.add("going", 1)
            if progress:
                progress(what, done, total)

        if not self.is_main:
            self._wait_for([0], turn)
        result = work(going)
        store.add(f"done/{self.rank}", 1)
        self._wait_for(range(self.world_size), turn)
        return result

    def _wait_for(self, distributed: Iterable[int], turn: int) -> None:
        """Wait until these processes have done so many works, or none makes progress any more."""
        assert self.store is not None
        seen, since = -1, time.monotonic()
        try:
            while waiting := [rank for rank in distributed if self.store.add(f"done/{rank}", 0) < turn]:
                if (going := self.store.add("going", 0)) != seen:
                    seen, since = going, time.monotonic()
                if time.monotonic() - since > TIMEOUT.total_seconds():
                    who = f"process {' and '.join(map(str, waiting))}"
                    raise RunError(f"process {self.rank} of {self.world_size}: {who} did not get ready; start again")
                time.sleep(0.05)
        except RuntimeError as error:  # the store is gone
            raise RunError(f"process {self.rank} of {self.world_size}: another process ended; start again") from error

    def _collective(self, meet: Any) -> None:
        try:
            self.mark_arrival()
            meet()
        except RuntimeError as error:
            raise self.straggler_error(error) from error

    def mark_arrival(self) -> None:
        """Tell the others that this process is about to meet them."""
        if self.store:
            self.store.add(f"came/{self.rank}", 1)

    def straggler_error(self, error: RuntimeError) -> RunError:
        """Return an error that names the processes that came to fewer meetings than this one."""
        late: list[str] = []
        if self.store:
            with suppress(RuntimeError):  # it may be gone, too
                came = [self.store.add(f"came/{rank}", 0) for rank in range(self.world_size)]
                late = [str(rank) for rank, times in enumerate(came) if times < came[self.rank]]
        who = f"process {' and '.join(late)}" if late else "another process"
        return RunError(
            f"process {self.rank} of {self.world_size}: {who} did not come ({brief(error)}); "
            "`convatlas resume` goes on from the last checkpoint"
        )


def init_distributed(device: torch.device) -> Distributed:
    """Return the place of this process among those that `torchrun` started; alone where it did not."""
    if device.type == "cuda":
        torch.cuda.set_device(device)
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        return Distributed()
    if not dist.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        try:
            dist.init_process_group(backend, timeout=TIMEOUT)
        except (RuntimeError, ValueError) as error:
            raise RunError(f"the processes of torchrun cannot meet: {brief(error)}") from error
        atexit.register(_shutdown)
    # the store of the processes' own meeting place; torchrun counts its restarts
    place = TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), timeout=TIMEOUT)
    name = "/".join(os.environ.get(f"TORCHELASTIC_{what}", "") for what in ("RUN_ID", "RESTART_COUNT"))
    return Distributed(dist.get_rank(), count, PrefixStore(f"convatlas/{name}", place))


def _shutdown() -> None:
    """Take leave before Python ends: gloo's threads may still hold tensors, and abort a process that is half gone."""
    if dist.is_initialized():
        with suppress(RuntimeError):
            dist.destroy_process_group()


def sync_batch_norms(network: nn.Module, distributed: Distributed) -> None:
    """Let the batch norms of a network see the batches of all processes while they train."""
    for layer in network.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            layer.forward = partial(_synchronized, distributed, layer)  # type: ignore[method-assign]


class _Sum(torch.autograd.Function):
    """The sum over all processes; the gradient of what each gave is the sum of their gradients."""

    @staticmethod
    def forward(context: Any, x: Tensor, distributed: Distributed) -> Tensor:
        context.distributed = distributed
        return _sum(x.clone(), distributed)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _sum(gradient.clone(), context.distributed), None


def _sum(x: Tensor, distributed: Distributed) -> Tensor:
    """Replace x by its sum over all processes; these many meetings are not counted one by one."""
    try:
        dist.all_reduce(x)
    except RuntimeError as error:
        raise distributed.straggler_error(error) from error
    return x


def _sum_of_all(x: Tensor, distributed: Distributed) -> Tensor:
    total: Tensor = _Sum.apply(x, distributed)
    return total


def _synchronized(distributed: Distributed, layer: nn.modules.batchnorm._BatchNorm, x: Tensor) -> Tensor:
    """Batch norm over the images of all processes: two sums, so that the variance does not cancel."""
    if not layer.training:
        return F.batch_norm(x, layer.running_mean, layer.running_var, layer.weight, layer.bias, False, 0.0, layer.eps)
    axes = [0, *range(2, x.ndim)]
    shape = (1, -1, *[1] * (x.ndim - 2))
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    count = _sum(wide.new_tensor([x.numel() // x.shape[1]]), distributed)
    mean = _sum_of_all(wide.sum(axes), distributed) / count
    centerd = wide - mean.view(shape)
    variance = _sum_of_all(centerd.square().sum(axes), distributed) / count
    if layer.running_mean is not None and layer.running_var is not None and layer.num_batches_tracked is not None:
        with torch.no_grad():
            layer.num_batches_tracked.add_(1)
            momentum = layer.momentum if layer.momentum is not None else 1.0 / float(layer.num_batches_tracked)
            layer.running_mean.lerp_(mean, momentum)
            layer.running_var.lerp_(variance * count / (count - 1), momentum)
    y = centerd * (variance + layer.eps).rsqrt().view(shape)
    if layer.weight is not None:
        y = y * layer.weight.view(shape) + layer.bias.view(shape)
    normed: Tensor = y.to(x.dtype)
    return normed
