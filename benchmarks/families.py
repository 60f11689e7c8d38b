"""Each family against the same network of torchvision (or timm), interleaved in one process: build, run, train.

    python benchmarks/families.py [NAME ...] [--rounds 9] [--batch 4] [--threads 2] [--csv FILE]

Both sides hold the same weights. A round times both, in turn first; the number is the ratio of the medians, ours over
theirs, so that below 1 ours is faster. Forward runs in inference mode, training is forward and backward, in both memory
formats; `build` makes the network with fresh weights.
"""

from __future__ import annotations

import argparse
import csv
import inspect
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from convatlas.catalog import CATALOG, grow
from convatlas.keys import translate
from convatlas.weights import family_of

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
    library, peer = next(iter(CATALOG[name].peers.items()))
    if library == "timm":
        import timm

        return library, lambda: timm.create_model(peer)
    import torchvision

    builder = torchvision.models.get_model_builder(peer)
    options = {"aux_logits": False, "init_weights": True} if name in ("googlenet", "inception_v3") else {}
    assert not options or "init_weights" in inspect.getsource(inspect.getmodule(builder))  # type: ignore[arg-type]
    return library, lambda: builder(**options)


def interleaved(one: Callable[[], object], other: Callable[[], object], rounds: int) -> tuple[float, float]:
    """Return the median times of both, in seconds."""
    times: tuple[list[float], list[float]] = ([], [])
    for round_ in range(-1, rounds):  # the first one warms up
        for side in (0, 1) if round_ % 2 else (1, 0):
            start = time.perf_counter()
            (one, other)[side]()
            if round_ >= 0:
                times[side].append(time.perf_counter() - start)
    return statistics.median(times[0]), statistics.median(times[1])


def compare(name: str, *, rounds: int, batch: int) -> dict[str, float | str]:
    row = CATALOG[name]
    library, build = theirs(name)
    result: dict[str, float | str] = {"network": name, "library": library}
    mine, other = interleaved(lambda: grow(name), build, max(3, rounds // 3))
    result["build"] = mine / other
    ours, peer = grow(name), build()
    rules = family_of(row.spec).dialects[library](row.spec)
    ours.load_state_dict(translate(peer.state_dict(), rules, ours.state_dict()))
    x = torch.randn(batch, *ours.input_shape)
    labels = torch.arange(batch)
    for label, layout in FORMATS.items():
        if x.ndim == 5 and label == "channels_last":
            continue
        for network in (ours, peer):
            network.to(memory_format=layout)
        images = x.contiguous(memory_format=layout)

        def run(network: nn.Module, images: torch.Tensor = images) -> None:
            with torch.inference_mode():
                network(images)

        def train(network: nn.Module, images: torch.Tensor = images) -> None:
            nn.functional.cross_entropy(network(images), labels).backward()
            network.zero_grad()

        ours.eval(), peer.eval()
        mine, other = interleaved(lambda: run(ours), lambda: run(peer), rounds)
        result[f"{label} forward"], result[f"{label} forward ms"] = mine / other, 1e3 * mine
        ours.train(), peer.train()
        mine, other = interleaved(lambda: train(ours), lambda: train(peer), max(3, rounds * 2 // 3))
        result[f"{label} training"], result[f"{label} training ms"] = mine / other, 1e3 * mine
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=NAMES)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--csv", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    warnings.simplefilter("ignore")
    columns = ["build", *(f"{label} {what}" for label in FORMATS for what in ("forward", "training"))]
    print(
        f"ratio of medians, ours / theirs; batch {options.batch}, {options.rounds} rounds, {options.threads} threads, "
        f"torch {torch.__version__}"
    )
    print(f"{'network':22}{'library':13}" + "".join(f"{column:>23}" for column in columns))
    rows = []
    for name in options.names:
        rows.append(compare(name, rounds=options.rounds, batch=options.batch))
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
