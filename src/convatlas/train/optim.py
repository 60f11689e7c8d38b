"""Parameter groups and optimizers."""

from __future__ import annotations

from torch import nn

from convatlas.core.network import Network


def param_groups_by_depth(network: Network) -> list[tuple[str, list[nn.Parameter]]]:
    """Return (path, parameters) from the input to the output: the stem, each stage, the head; empty ones left out.

    What only training uses comes with the head. For learning rates that fall with the distance from the output.
    """
    parts = [("stem", network.stem), *((f"stages.{name}", stage) for name, stage in network.stages.named_children())]
    groups = [(path, list(part.parameters())) for path, part in parts]
    last = [*network.head.parameters(), *network.auxiliary.parameters()]
    return [(path, parameters) for path, parameters in [*groups, ("head", last)] if parameters]
