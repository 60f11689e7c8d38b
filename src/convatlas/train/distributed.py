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

PATIENCE = timedelta(minutes=10)
"""How long a process waits for the others."""


@dataclass(frozen=True)
class Ranks:
    """This process among the `count` of a training, which `torchrun` started; alone by default.

    Each takes every `count`-th picture of a batch and of a split. Sums over the shares are those over the whole,
    so batch, loss, statistics of norms and metrics are what one process has, but for the order of the sums.
    store: where each process counts how often it came to a meeting, so that one that stays away can be named.
    """

    rank: int = 0
    count: int = 1
    store: Store | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> Ranks:
        return self  # a copy of a network has the same company

    @property
    def first(self) -> bool:
        """Whether this is the process that writes files and prints."""
        return self.rank == 0

    def share(self, items: Tensor) -> Tensor:
        """Return this process's part of the items; it may be empty."""
        return items[self.rank :: self.count]

    def sum(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its sum over all processes."""
        if self.count == 1 or not tensors:
            return
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        self._met(lambda: dist.all_reduce(flat))
        for tensor, part in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(part.view_as(tensor))

    def gathered(self, part: Tensor, count: int) -> Tensor:
        """Return the rows of all processes, in the order of the `count` items that were shared out."""
        if self.count == 1:
            return part
        whole = part.new_zeros(count, *part.shape[1:])
        whole[self.rank :: self.count] = part
        self._met(lambda: dist.all_reduce(whole))  # all others have zeros there: exact
        return whole

    def told(self, value: Value | None) -> Value:
        """Return what the first process says, everywhere."""
        box: list[Any] = [value]
        if self.count > 1:
            self._met(lambda: dist.broadcast_object_list(box))
        found: Value = box[0]
        return found

    def wait(self) -> None:
        """Wait until all processes are here; raises RunError that names one that is not."""
        if self.count > 1:
            self._met(lambda: dist.all_reduce(torch.zeros(1)))

    def in_turn(self, work: Callable[[Progress], Value], progress: Progress | None) -> Value:
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

        if not self.first:
            self._await([0], turn)
        result = work(going)
        store.add(f"done/{self.rank}", 1)
        self._await(range(self.count), turn)
        return result

    def _await(self, ranks: Iterable[int], turn: int) -> None:
        """Wait until these processes have done so many works, or none makes progress any more."""
        assert self.store is not None
        seen, since = -1, time.monotonic()
        try:
            while waiting := [rank for rank in ranks if self.store.add(f"done/{rank}", 0) < turn]:
                if (going := self.store.add("going", 0)) != seen:
                    seen, since = going, time.monotonic()
                if time.monotonic() - since > PATIENCE.total_seconds():
                    who = f"process {' and '.join(map(str, waiting))}"
                    raise RunError(f"process {self.rank} of {self.count}: {who} did not get ready; start again")
                time.sleep(0.05)
        except RuntimeError as error:  # the store is gone
            raise RunError(f"process {self.rank} of {self.count}: another process ended; start again") from error

    def _met(self, meet: Any) -> None:
        try:
            self.come()
            meet()
        except RuntimeError as error:
            raise self.left_alone(error) from error

    def come(self) -> None:
        """Tell the others that this process is about to meet them."""
        if self.store:
            self.store.add(f"came/{self.rank}", 1)

    def left_alone(self, error: RuntimeError) -> RunError:
        """Return an error that names the processes that came to fewer meetings than this one."""
        late: list[str] = []
        if self.store:
            with suppress(RuntimeError):  # it may be gone, too
                came = [self.store.add(f"came/{rank}", 0) for rank in range(self.count)]
                late = [str(rank) for rank, times in enumerate(came) if times < came[self.rank]]
        who = f"process {' and '.join(late)}" if late else "another process"
        return RunError(
            f"process {self.rank} of {self.count}: {who} did not come ({brief(error)}); "
            "`convatlas resume` goes on from the last checkpoint"
        )


def joined(device: torch.device) -> Ranks:
    """Return the place of this process among those that `torchrun` started; alone where it did not."""
    if device.type == "cuda":
        torch.cuda.set_device(device)
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        return Ranks()
    if not dist.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        try:
            dist.init_process_group(backend, timeout=PATIENCE)
        except (RuntimeError, ValueError) as error:
            raise RunError(f"the processes of torchrun cannot meet: {brief(error)}") from error
        atexit.register(_left)
    # the store of the processes' own meeting place; torchrun counts its restarts
    place = TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), timeout=PATIENCE)
    name = "/".join(os.environ.get(f"TORCHELASTIC_{what}", "") for what in ("RUN_ID", "RESTART_COUNT"))
    return Ranks(dist.get_rank(), count, PrefixStore(f"convatlas/{name}", place))


def _left() -> None:
    """Take leave before Python ends: gloo's threads may still hold tensors, and abort a process that is half gone."""
    if dist.is_initialized():
        with suppress(RuntimeError):
            dist.destroy_process_group()


def synchronise_norms(network: nn.Module, ranks: Ranks) -> None:
    """Let the batch norms of a network see the batches of all processes while they train."""
    for layer in network.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            layer.forward = partial(_synchronised, ranks, layer)  # type: ignore[method-assign]


class _Sum(torch.autograd.Function):
    """The sum over all processes; the gradient of what each gave is the sum of their gradients."""

    @staticmethod
    def forward(context: Any, x: Tensor, ranks: Ranks) -> Tensor:
        context.ranks = ranks
        return _sum(x.clone(), ranks)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _sum(gradient.clone(), context.ranks), None


def _sum(x: Tensor, ranks: Ranks) -> Tensor:
    """Replace x by its sum over all processes; these many meetings are not counted one by one."""
    try:
        dist.all_reduce(x)
    except RuntimeError as error:
        raise ranks.left_alone(error) from error
    return x


def _sum_of_all(x: Tensor, ranks: Ranks) -> Tensor:
    total: Tensor = _Sum.apply(x, ranks)
    return total


def _synchronised(ranks: Ranks, layer: nn.modules.batchnorm._BatchNorm, x: Tensor) -> Tensor:
    """Batch norm over the pictures of all processes: two sums, so that the variance does not cancel."""
    if not layer.training:
        return F.batch_norm(x, layer.running_mean, layer.running_var, layer.weight, layer.bias, False, 0.0, layer.eps)
    axes = [0, *range(2, x.ndim)]
    shape = (1, -1, *[1] * (x.ndim - 2))
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    count = _sum(wide.new_tensor([x.numel() // x.shape[1]]), ranks)
    mean = _sum_of_all(wide.sum(axes), ranks) / count
    centred = wide - mean.view(shape)
    variance = _sum_of_all(centred.square().sum(axes), ranks) / count
    if layer.running_mean is not None and layer.running_var is not None and layer.num_batches_tracked is not None:
        with torch.no_grad():
            layer.num_batches_tracked.add_(1)
            momentum = layer.momentum if layer.momentum is not None else 1.0 / float(layer.num_batches_tracked)
            layer.running_mean.lerp_(mean, momentum)
            layer.running_var.lerp_(variance * count / (count - 1), momentum)
    y = centred * (variance + layer.eps).rsqrt().view(shape)
    if layer.weight is not None:
        y = y * layer.weight.view(shape) + layer.bias.view(shape)
    normed: Tensor = y.to(x.dtype)
    return normed
