"""Each family against the same network of torchvision (or timm), interleaved in one process: build, run, train.

    python benchmarks/families.py [NAME ...] [--rounds 3] [--builds 4] [--batch 4] [--threads 2] [--csv FILE]

Both sides hold the same weights. A round times both, in turn first; the number is the ratio of the medians, ours over
theirs, so that below 1 ours is faster. Networks are built several times, in turn first, because where weights come to
lie in memory moves the times of one build by 5 %. Forward runs in inference mode, training is forward and backward, in
both memory formats; `build` makes the network with fresh weights.
"""

from __future__ import annotations

import argparse
import csv
import inspect
import statistics
import sys
import time
import warnings
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import nn

from convatlas.models.catalog import CATALOG, build_fresh
from convatlas.models.keys import remap_keys
from convatlas.weights.read import family_of

# one network for each family that another library has, the one that is used most
NAMES = (
    "alexnet", "vgg11_bn", "googlenet", "inception_v3", "inception_v4", "inception_resnet_v2", "xception", "resnet18",
    "resnet50", "resnext50_32x4d", "se_resnet50", "resnetv2_50", "densenet121", "squeezenet1_1", "mobilenet_v1",
    "mobilenet_v2", "mobilenet_v3_large", "shufflenet_v2_x1_0", "mnasnet1_0", "efficientnet_b0", "efficientnet_v2_s",
    "regnet_y_1_6gf", "convnext_tiny", "nasnet_a_large", "r3d_18",
)  # fmt: skip
FORMATS = {"nchw": torch.contiguous_format, "channels_last": torch.channels_last}


def theirs(name: str) -> tuple[str, Callable[[], nn.Module]]:
    """Return the library and the function that builds its network."""
    library, peer = next(iter(CATALOG[name].upstream.items()))
    if library == "timm":
        import timm

        return library, lambda: timm.create_model(peer)
    import torchvision

    builder = torchvision.models.get_model_builder(peer)
    options = {"aux_logits": False, "init_weights": True} if name in ("googlenet", "inception_v3") else {}
    assert not options or "init_weights" in inspect.getsource(inspect.getmodule(builder))  # type: ignore[arg-type]
    return library, lambda: builder(**options)


Times = tuple[list[float], list[float]]
"""Of ours and of theirs, in seconds."""


def interleave(one: Callable[[], object], other: Callable[[], object], rounds: int, times: Times) -> None:
    for round_ in range(-1, rounds):  # the first one warms up
        for side in (0, 1) if round_ % 2 else (1, 0):
            start = time.perf_counter()
            (one, other)[side]()
            if round_ >= 0:
                times[side].append(time.perf_counter() - start)


def run(network: nn.Module, images: torch.Tensor) -> None:
    with torch.inference_mode():
        network(images)


def train(network: nn.Module, images: torch.Tensor) -> None:
    nn.functional.cross_entropy(network(images), torch.arange(len(images))).backward()
    network.zero_grad()


def compare(name: str, *, rounds: int, builds: int, batch: int) -> dict[str, float | str]:
    row = CATALOG[name]
    library, build = theirs(name)
    rules = family_of(row.spec).key_mappings[library](row.spec)
    times: dict[str, Times] = defaultdict(lambda: ([], []))
    for number in range(builds):
        interleave(partial(build_fresh, name), build, rounds, times["build"])
        peer = build() if number % 2 else None
        ours = build_fresh(name)
        peer = peer or build()
        ours.load_state_dict(remap_keys(peer.state_dict(), rules, ours.state_dict()))
        x = torch.randn(batch, *ours.input_shape)
        for label, layout in FORMATS.items():
            if x.ndim == 5 and label == "channels_last":
                continue
            images = x.contiguous(memory_format=layout)
            for what, work in (("forward", run), ("training", train)):
                for network in (ours, peer):
                    network.to(memory_format=layout).train(what == "training")
                interleave(partial(work, ours, images), partial(work, peer, images), rounds, times[f"{label} {what}"])
    result: dict[str, float | str] = {"network": name, "library": library}
    for what, (mine, other) in times.items():
        result[what] = statistics.median(mine) / statistics.median(other)
        result[f"{what} ms"] = 1e3 * statistics.median(mine)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=NAMES)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--builds", type=int, default=4)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--csv", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    warnings.simplefilter("ignore")
    columns = ["build", *(f"{label} {what}" for label in FORMATS for what in ("forward", "training"))]
    print(
        f"ratio of medians, ours / theirs; batch {options.batch}, {options.builds} builds of {options.rounds} rounds, "
        f"{options.threads} threads, torch {torch.__version__}"
    )
    print(f"{'network':22}{'library':13}" + "".join(f"{column:>23}" for column in columns))
    rows = []
    for name in options.names:
        rows.append(compare(name, rounds=options.rounds, builds=options.builds, batch=options.batch))
        cells = (f"{rows[-1][c]:.3f}" if c in rows[-1] else "" for c in columns)
        print(f"{name:22}{rows[-1]['library']:13}" + "".join(f"{cell:>23}" for cell in cells), flush=True)
    ratios = [float(row[c]) for row in rows for c in columns if c in row]
    print(f"{len(ratios)} ratios: median {statistics.median(ratios):.3f}, largest {max(ratios):.3f}")
    if options.csv:
        with options.csv.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(max(rows, key=len)), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    sys.exit(main())
