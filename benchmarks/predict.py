"""Answers about images: convatlas on each engine against eager torchvision and timm, interleaved in one process.

    python benchmarks/predict.py [NAME ...] [--batches 1,16] [--rounds 15] [--int8] [--memory] [--folder DATA]

Peers run under `torch.inference_mode` in evaluation mode on float32 tensors that are ready; convatlas starts from uint8
pixels and ends at the outputs, so it does more. `auto` is the engine that was chosen before, by the library itself.
Prints milliseconds (median over the rounds) and how many times the faster of the two peers, and of torchvision's, each
is. --memory: MiB of network and batches in a process of their own, above the imports. --folder: end to end on the files
of a folder, against the plain loop of torchvision's own recipe (open, transform, batch of 16, softmax).
"""

from __future__ import annotations

import argparse
import gc
import json
import multiprocessing
import random
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from convatlas.core.cost import cost
from convatlas.engines.onnx_graph import example
from convatlas.engines.select import ENGINES, installed
from convatlas.inference.benchmark import peak, untrained
from convatlas.inference.model import Model
from convatlas.models.catalog import CATALOG

DEFAULT = [
    "resnet50", "mobilenet_v2", "efficientnet_b0", "densenet121", "vgg16", "lenet5_modern", "resnet18", "googlenet",
    "mobilenet_v3_large", "resnext50_32x4d",
]  # fmt: skip


class Lenet5(torch.nn.Sequential):
    """LeNet-5 with ReLU and max pooling as tutorials write it, for which torchvision has no class."""

    def __init__(self) -> None:
        nn = torch.nn
        super().__init__(
            nn.Conv2d(1, 6, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2),
            nn.Flatten(), nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10),
        )  # fmt: skip


def upstream(name: str) -> dict[str, torch.nn.Module]:
    """Return the networks of the other libraries, with random weights."""
    import timm
    import torchvision

    row = CATALOG[name]
    found: dict[str, torch.nn.Module] = {}
    if name == "lenet5_modern":
        return {"torchvision": Lenet5().eval()}
    if "torchvision" in row.upstream:
        peer = row.upstream["torchvision"]
        extra = {"aux_logits": False, "init_weights": False} if peer in ("googlenet", "inception_v3") else {}
        found["torchvision"] = torchvision.models.get_model(peer, **extra).eval()
    if "timm" in row.upstream:
        found["timm"] = timm.create_model(row.upstream["timm"]).eval()
    elif name in timm.list_models():
        found["timm"] = timm.create_model(name).eval()
    return found


def timed(sides: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Return the median seconds of each side; all take a turn in every round, in random order."""
    for side in sides.values():
        side()
        side()
    taken: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name in random.sample(list(sides), len(sides)):
            time.sleep(0.01)  # the threads of the side before may still spin
            sides[name]()
            repeats, begun = 0, time.perf_counter()
            while repeats == 0 or time.perf_counter() - begun < 0.02:
                sides[name]()
                repeats += 1
            taken[name].append((time.perf_counter() - begun) / repeats)
    return {name: statistics.median(values) for name, values in taken.items()}


def measured(name: str, batch: int, rounds: int, *, int8: bool, weigh: bool) -> dict[str, Any]:
    """Return milliseconds and ratios of a network with `batch` images."""
    model = untrained(name)
    inputs = torch.randn(batch, *model.module.input_shape)
    pixels = example(model.header, batch)
    sides: dict[str, Callable[[], Any]] = {}
    for library, network in upstream(name).items():

        def eager(network: torch.nn.Module = network) -> Tensor:
            with torch.inference_mode():
                return network(inputs)

        sides[library] = eager
    for engine in ENGINES:
        if engine == "compile" or not installed(engine):
            continue
        chosen = model.choose(engine, batch=batch).engine
        sides[engine] = lambda chosen=chosen: chosen.outputs(pixels)  # type: ignore[misc]
    auto = model.choose("auto", batch=batch)
    if int8:
        sides["int8"] = _int8(model, batch, pixels)
    seconds = timed(sides, rounds)
    base = min(seconds[library] for library in ("torchvision", "timm") if library in seconds)
    vision = seconds.get("torchvision", base)
    seconds["auto"] = seconds[auto.way.engine]
    return {
        "name": name, "batch": batch, "auto": auto.way.engine,
        "ms": {side: 1000 * value for side, value in seconds.items()},
        "ratio": {side: vision / value for side, value in seconds.items()},
        "to_best_peer": {side: base / value for side, value in seconds.items()},
        "memory": {side: memory(name, side, batch) for side in sides if side != "int8"} if weigh else {},
    }  # fmt: skip


def memory(name: str, side: str, batch: int) -> float:
    """Return the MiB that a network and one batch take in a process of their own, above what is imported."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        return process.submit(_memory, name, side, batch).result()


def _memory(name: str, side: str, batch: int) -> float:
    if side in ENGINES:
        model = untrained(name)  # as large as the network itself, and let go below
        held = model.header
        before = peak()
        run = model.choose(side, batch=batch, count=0).engine.outputs
        inputs = example(held, batch)
        own = sum(tensor.numel() * 4 for tensor in model.module.state_dict().values()) / 2**20
    else:
        import timm  # noqa: F401
        import torchvision  # noqa: F401

        before, own = peak(), 0.0
        network = upstream(name)[side]
        inputs = _inputs(name, batch)
        run = torch.inference_mode()(network)
    run(inputs)
    run(inputs)
    return peak() - before + own


def _inputs(name: str, batch: int) -> Tensor:
    steps = CATALOG[name].preprocessing
    return torch.randn(batch, steps.channels, steps.resolution, steps.resolution)


def _int8(model: Model, batch: int, pixels: Tensor) -> Callable[[], Any]:
    """Return a run of the 8-bit graph with random weights: for its speed alone."""
    from convatlas.engines.onnx_graph import export_graph
    from convatlas.engines.onnxruntime import OnnxRuntimeEngine
    from convatlas.engines.openvino import OpenVinoEngine
    from convatlas.inference import quantize

    graph = quantize._static(export_graph(model.module, model.header), example(model.header, 8), [])
    data = graph.SerializeToString()
    engines = [OnnxRuntimeEngine(data), OpenVinoEngine(data, batch=batch)]
    best = min(engines, key=lambda engine: timed({"": lambda: engine.outputs(pixels)}, 3)[""])
    return lambda: best.outputs(pixels)


def end_to_end(folder: Path, name: str, rounds: int) -> dict[str, float]:
    """Return images/s over the files of a folder: the plain loop, and `Model.predict` on its own choice of engine."""
    import torchvision
    from PIL import Image
    from torchvision.transforms import v2

    from convatlas.data.readers.folder import images_in

    files = images_in(folder)
    network = torchvision.models.get_model(CATALOG[name].upstream["torchvision"]).eval()
    model = untrained(name)
    model = model.using("auto", batch=16)
    steps = model.header.preprocessing
    transform = v2.Compose([
        v2.Resize(steps.resize), v2.CenterCrop(steps.crop), v2.ToImage(), v2.ToDtype(torch.float32, scale=True),
        v2.Normalize(steps.mean, steps.std),
    ])  # fmt: skip

    @torch.inference_mode()
    def plain() -> None:
        for first in range(0, len(files), 16):
            images = [transform(Image.open(file).convert("RGB")) for file in files[first : first + 16]]
            network(torch.stack(images)).softmax(1).argmax(1)

    seconds = timed({"plain": plain, "convatlas": lambda: model.predict(files)}, rounds)
    print(f"end to end, {name}, {len(files)} files of {folder.name}, {model.engine}:")
    for side, value in seconds.items():
        print(f"  {side:10} {len(files) / value:8.1f} images/s")
    print(f"  ratio      {seconds['plain'] / seconds['convatlas']:8.2f}")
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=DEFAULT)
    parser.add_argument("--batches", default="1,16")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--int8", action="store_true")
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads; times torchvision's speed, (ms)")
    rows = []
    for name in given.names:
        if given.folder:
            end_to_end(given.folder, name, max(3, given.rounds // 5))
            continue
        for batch in map(int, given.batches.split(",")):
            gc.collect()
            row = measured(name, batch, given.rounds, int8=given.int8, weigh=given.memory)
            rows.append(row)
            told = "  ".join(f"{side} {ratio:.2f} ({row['ms'][side]:.1f})" for side, ratio in row["ratio"].items())
            room = "".join(f"  {side} {value:.0f} MiB" for side, value in row["memory"].items())
            gmacs = cost(untrained(name).own).macs / 1e9
            print(
                f"{name:20} {gmacs:5.2f} GMAC  b{batch:<3} {told}  auto = {row['auto']}"
                + f"  MiB: {room}" * bool(room),
                flush=True,
            )
    for side in ("torch", "auto"):
        ratios = sorted(row["ratio"][side] for row in rows)
        best = sorted(row["to_best_peer"][side] for row in rows)
        if ratios:
            print(f"{side}: median {statistics.median(ratios):.2f}, least {ratios[0]:.2f} of torchvision; "
                  f"median {statistics.median(best):.2f}, least {best[0]:.2f} of the faster peer")  # fmt: skip
    if given.json:
        given.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
