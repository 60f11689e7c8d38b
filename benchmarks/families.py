"""Build and inference speed of each family against the same network of torchvision or timm, interleaved.

    python benchmarks/families.py [NAME ...] [--rounds 3] [--builds 4] [--batch 4] [--threads 2] [--bfloat16]
        [--csv FILE]

Both networks have the same weights, memory format and precision. The number is the ratio of the median times,
convatlas / upstream: below 1, convatlas is faster. Networks are built several times, in alternating order, because the
addresses of the weights in memory change the times of one build by up to 5 %. `build`: the network with fresh weights.
`forward`: in evaluation and inference mode. `training`: forward and backward. The last two run in both memory formats.
"""

from __future__ import annotations

import argparse
import csv
import inspect
import statistics
import warnings
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import nn

from convatlas.models.catalog import CATALOG, build_fresh
from convatlas.models.keys import remap_keys
from convatlas.weights.match import rules_of
from interleave import Times, medians, time_interleaved

# the most used network of each family that another library has
NAMES = (
    "alexnet", "vgg11_bn", "googlenet", "inception_v3", "inception_v4", "inception_resnet_v2", "xception", "resnet18",
    "resnet50", "resnext50_32x4d", "se_resnet50", "resnetv2_50", "densenet121", "squeezenet1_1", "mobilenet_v1",
    "mobilenet_v2", "mobilenet_v3_large", "shufflenet_v2_x1_0", "mnasnet1_0", "efficientnet_b0", "efficientnet_v2_s",
    "regnet_y_1_6gf", "convnext_tiny", "nasnet_a_large", "r3d_18",
)  # fmt: skip

MEMORY_FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
COLUMNS = ("build", *(f"{name} {mode}" for name in MEMORY_FORMATS for mode in ("forward", "training")))

Row = dict[str, float | str]


def upstream_builder(name: str) -> tuple[str, Callable[[], nn.Module]]:
    """Return the library that has the network, and a function that builds its module."""
    library, upstream = next(iter(CATALOG[name].upstream.items()))
    if library == "timm":
        import timm

        return library, partial(timm.create_model, upstream)
    import torchvision

    builder = torchvision.models.get_model_builder(upstream)
    options = {"aux_logits": False, "init_weights": True} if name in ("googlenet", "inception_v3") else {}
    assert not options or "init_weights" in inspect.getsource(inspect.getmodule(builder))  # type: ignore[arg-type]
    return library, partial(builder, **options)


def forward(network: nn.Module, images: torch.Tensor, autocast: torch.autocast) -> None:
    with torch.inference_mode(), autocast:
        network(images)


def train(network: nn.Module, images: torch.Tensor, autocast: torch.autocast) -> None:
    with autocast:
        loss = nn.functional.cross_entropy(network(images).float(), torch.arange(len(images)))
    loss.backward()
    network.zero_grad()


def build_pair(
    name: str, build: Callable[[], nn.Module], library: str, *, upstream_first: bool
) -> dict[str, nn.Module]:
    """Return both networks with the weights of the upstream one."""
    spec = CATALOG[name].spec
    upstream = build() if upstream_first else None
    ours = build_fresh(name)
    upstream = upstream or build()
    rules = rules_of(spec)[library]
    ours.load_state_dict(remap_keys(upstream.state_dict(), rules, ours.state_dict()))
    return {"convatlas": ours, "upstream": upstream}


def compare(name: str, *, rounds: int, builds: int, batch: int, bfloat16: bool) -> Row:
    """Return the ratios of the median times, and milliseconds of convatlas, by column."""
    library, build = upstream_builder(name)
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=bfloat16)
    times: dict[str, Times] = defaultdict(lambda: {"convatlas": [], "upstream": []})

    def measure(column: str, sides: dict[str, Callable[[], object]]) -> None:
        for side, seconds in time_interleaved(sides, rounds).items():
            times[column][side] += seconds

    for number in range(builds):
        measure("build", {"convatlas": partial(build_fresh, name), "upstream": build})
        pair = build_pair(name, build, library, upstream_first=number % 2 == 1)
        x = torch.randn(batch, *pair["convatlas"].input_shape)  # type: ignore[misc]
        for label, memory_format in MEMORY_FORMATS.items():
            if x.ndim == 5 and label == "channels_last":
                continue
            images = x.contiguous(memory_format=memory_format)
            for mode, work in (("forward", forward), ("training", train)):
                for network in pair.values():
                    network.to(memory_format=memory_format).train(mode == "training")
                measure(f"{label} {mode}", {side: partial(work, net, images, autocast) for side, net in pair.items()})
    row: Row = {"network": name, "library": library}
    for column, each in times.items():
        seconds = medians(each)
        row[column] = seconds["convatlas"] / seconds["upstream"]
        row[f"{column} ms"] = 1000 * seconds["convatlas"]
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=NAMES)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--builds", type=int, default=4)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--bfloat16", action="store_true", help="run both networks under bfloat16 autocast")
    parser.add_argument("--csv", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    warnings.simplefilter("ignore")
    print(
        f"ratio of medians, convatlas / upstream; batch {arguments.batch}, {arguments.builds} builds of "
        f"{arguments.rounds} rounds, {arguments.threads} threads, {'bfloat16' if arguments.bfloat16 else 'float32'}, "
        f"torch {torch.__version__}"
    )
    print(f"{'network':22}{'library':13}" + "".join(f"{column:>24}" for column in COLUMNS))
    rows = []
    for name in arguments.names:
        row = compare(
            name, rounds=arguments.rounds, builds=arguments.builds, batch=arguments.batch, bfloat16=arguments.bfloat16
        )
        rows.append(row)
        cells = (f"{row[column]:.3f}" if column in row else "" for column in COLUMNS)
        print(f"{name:22}{row['library']:13}" + "".join(f"{cell:>24}" for cell in cells), flush=True)
    ratios = [float(row[column]) for row in rows for column in COLUMNS if column in row]
    print(f"{len(ratios)} ratios: median {statistics.median(ratios):.3f}, largest {max(ratios):.3f}")
    if arguments.csv:
        with arguments.csv.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(max(rows, key=len)), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    main()
