"""Inference speed: convatlas on each engine against torchvision and timm in eager mode, interleaved in one process.

    python benchmarks/predict.py [NAME ...] [--batches 1,16] [--rounds 15] [--int8] [--memory] [--json FILE]
    python benchmarks/predict.py [NAME ...] --folder IMAGES [--rounds 15] [--float32]

The modules of torchvision and timm run in inference mode on preloaded tensors: in float32 and the default memory
format, in float32 and channels_last, and, if the processor has it, under bfloat16 autocast in channels_last. convatlas
runs in float32 from uint8 pixels to outputs; `auto` is the engine that the library chooses. Prints milliseconds
(medians), and the ratio of the fastest float32 module of the others, and of their fastest in any precision, to each.
--memory: peak MiB of loading and two batches in a process of its own, above that of the imports.
--folder: end to end over the files of a folder, against two loops: open, transform, batches of 16, softmax in the main
process, and the same from a DataLoader with one persistent worker for each core.
"""

from __future__ import annotations

import argparse
import gc
import json
import multiprocessing
import os
import statistics
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
import torchvision
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms import v2

from baseline import add_float32_option, bfloat16_autocast
from convatlas.core.cost import cost
from convatlas.data.readers.image_files import images_in
from convatlas.engines.deploy import example_pixels
from convatlas.engines.network_engine import ENGINES
from convatlas.engines.onnx_graph import export_graph
from convatlas.engines.onnxruntime import OnnxRuntimeEngine
from convatlas.engines.openvino import OpenVinoEngine
from convatlas.engines.select import installed_engines
from convatlas.inference.benchmark import build_untrained, peak_memory_mib
from convatlas.inference.model import Model
from convatlas.inference.quantize import quantize_static
from convatlas.models.catalog import CATALOG
from convatlas.system.devices import supports_bfloat16
from interleave import medians, time_interleaved

DEFAULT = [
    "resnet50", "mobilenet_v2", "efficientnet_b0", "densenet121", "vgg16", "lenet5_modern", "resnet18", "googlenet",
    "mobilenet_v3_large", "resnext50_32x4d",
]  # fmt: skip

MIN_SECONDS, PAUSE_S = 0.02, 0.01
"""A side is repeated for the first within a round; before it, threads of the previous one have the second to stop."""

END_TO_END_BATCH = 16
CALIBRATION_IMAGES = 8

Sides = dict[str, Callable[[], object]]


class LeNet5(nn.Sequential):
    """LeNet-5 with ReLU and max pooling as tutorials write it; torchvision has none."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(1, 6, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2),
            nn.Flatten(), nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10),
        )  # fmt: skip


def upstream_modules(name: str) -> dict[str, nn.Module]:
    """Return the modules of other libraries, with random weights."""
    import timm

    if name == "lenet5_modern":
        return {"torchvision": LeNet5().eval()}
    upstream = CATALOG[name].upstream
    modules: dict[str, nn.Module] = {}
    if "torchvision" in upstream:
        peculiar = upstream["torchvision"] in ("googlenet", "inception_v3")
        options = {"aux_logits": False, "init_weights": False} if peculiar else {}
        modules["torchvision"] = torchvision.models.get_model(upstream["torchvision"], **options).eval()
    timm_name = upstream.get("timm", name)
    if timm_name in timm.list_models():
        modules["timm"] = timm.create_model(timm_name).eval()
    return modules


def random_inputs(name: str, batch: int) -> Tensor:
    steps = CATALOG[name].preprocessing
    return torch.randn(batch, steps.channels, steps.resolution, steps.resolution)


@torch.inference_mode()
def run_module(module: nn.Module, inputs: Tensor, *, bfloat16: bool = False) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
        return module(inputs)


def upstream_sides(name: str, batch: int) -> Sides:
    """Return the sides of other libraries; the names of those in bfloat16 end in "bfloat16"."""
    inputs = random_inputs(name, batch)
    fast_inputs = inputs.to(memory_format=torch.channels_last)
    sides: Sides = {}
    for library, module in upstream_modules(name).items():
        fast = upstream_modules(name)[library].to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        sides[library] = partial(run_module, module, inputs)
        sides[f"{library} channels_last"] = partial(run_module, fast, fast_inputs)
        if supports_bfloat16(torch.device("cpu")):
            sides[f"{library} bfloat16"] = partial(run_module, fast, fast_inputs, bfloat16=True)
    return sides


def convatlas_sides(model: Model, batch: int, *, int8: bool) -> tuple[Sides, str]:
    """Return the sides of convatlas by engine, and the engine that "auto" chooses."""
    pixels = example_pixels(model.header, batch)
    sides: Sides = {}
    for engine in installed_engines():
        sides[engine] = partial(model.choose(engine, batch=batch).engine.outputs, pixels)
    auto = model.choose("auto", batch=batch).config.engine
    if int8:
        sides["int8"] = int8_side(model, batch, pixels)
    return sides, auto


def int8_side(model: Model, batch: int, pixels: Tensor) -> Callable[[], object]:
    """Return the int8 graph with random weights on the faster engine: for its speed alone."""
    graph = quantize_static(
        export_graph(model.module, model.header), example_pixels(model.header, CALIBRATION_IMAGES), []
    )
    data = graph.SerializeToString()
    engines = {"onnxruntime": OnnxRuntimeEngine(data), "openvino": OpenVinoEngine(data, batch=batch)}
    sides: Sides = {name: partial(engine.outputs, pixels) for name, engine in engines.items()}
    seconds = medians(time_interleaved(sides, 3))
    return sides[min(seconds, key=seconds.__getitem__)]


class Row(NamedTuple):
    """A network with one batch size: milliseconds by side, and the ratios of the others' fastest times to them."""

    name: str
    batch: int
    auto: str
    ms: dict[str, float]
    to_float32: dict[str, float]
    to_fastest: dict[str, float]
    memory_mib: dict[str, float]


def measure(name: str, batch: int, rounds: int, *, int8: bool, memory: bool) -> Row:
    model = build_untrained(name)
    upstream = upstream_sides(name, batch)
    ours, auto = convatlas_sides(model, batch, int8=int8)
    seconds = medians(
        time_interleaved({**upstream, **ours}, rounds, min_seconds=MIN_SECONDS, pause_s=PAUSE_S, warmup=0)
    )
    float32 = min(seconds[side] for side in upstream if not side.endswith("bfloat16"))
    fastest = min(seconds[side] for side in upstream)
    seconds["auto"] = seconds[auto]
    measured = [side for side in (*upstream, *ours) if " " not in side and side != "int8"] if memory else []
    return Row(
        name, batch, auto,
        ms={side: 1000 * value for side, value in seconds.items()},
        to_float32={side: float32 / value for side, value in seconds.items()},
        to_fastest={side: fastest / value for side, value in seconds.items()},
        memory_mib={side: memory_mib(name, side, batch) for side in measured},
    )  # fmt: skip


def memory_mib(name: str, side: str, batch: int) -> float:
    """Return the peak memory of a side in a process of its own, above that of the imports."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        return process.submit(_memory_mib, name, side, batch).result()


def _memory_mib(name: str, side: str, batch: int) -> float:
    import timm  # noqa: F401

    if side in ENGINES:
        model = build_untrained(name)  # stands for the file that the weights come from
        num_bytes = sum(tensor.numel() * tensor.element_size() for tensor in model.module.state_dict().values())
        before = peak_memory_mib() - num_bytes / 2**20
        run = partial(model.choose(side, batch=batch, count=0).engine.outputs, example_pixels(model.header, batch))
    else:
        before = peak_memory_mib()
        run = partial(run_module, upstream_modules(name)[side], random_inputs(name, batch))
    run()
    run()
    return peak_memory_mib() - before


def print_row(row: Row) -> None:
    gmacs = cost(build_untrained(row.name).module).macs / 1e9
    print(f"{row.name}, {gmacs:.2f} GMACs, batch {row.batch}, auto = {row.auto}")
    for side, ms in row.ms.items():
        memory = f"  {row.memory_mib[side]:6.0f} MiB" if side in row.memory_mib else ""
        print(
            f"  {side:<26} {ms:9.2f} ms  {row.to_float32[side]:6.2f}  {row.to_fastest[side]:6.2f}{memory}", flush=True
        )


def print_summary(rows: list[Row]) -> None:
    for side in ("torch", "auto"):
        for what, ratios in (
            ("the fastest float32 module", [row.to_float32[side] for row in rows]),
            ("the fastest module", [row.to_fastest[side] for row in rows]),
        ):
            print(f"{side} against {what}: median {statistics.median(ratios):.2f}, minimum {min(ratios):.2f}")


class ImageFiles(torch.utils.data.Dataset):
    """Image files, opened and transformed."""

    def __init__(self, files: list[Path], transform: Callable[[Image.Image], Tensor]) -> None:
        self.files, self.transform = files, transform

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, number: int) -> Tensor:
        return self.transform(Image.open(self.files[number]).convert("RGB"))


def compare_end_to_end(folder: Path, name: str, rounds: int, *, float32: bool) -> None:
    """Print images/s over the files of a folder: two loops of plain PyTorch, and `Model.predict`."""
    files = images_in(folder)
    module = torchvision.models.get_model(CATALOG[name].upstream["torchvision"]).eval()
    memory_format = torch.contiguous_format if float32 else torch.channels_last
    module = module.to(memory_format=memory_format)
    model = build_untrained(name).using("auto", batch=END_TO_END_BATCH)
    steps = model.header.preprocessing
    data = ImageFiles(files, v2.Compose([
        v2.Resize(steps.resize), v2.CenterCrop(steps.crop), v2.ToImage(), v2.ToDtype(torch.float32, scale=True),
        v2.Normalize(steps.mean, steps.std),
    ]))  # fmt: skip
    workers = os.cpu_count() or 1

    @torch.inference_mode()
    def classify(batches: Iterable[Tensor]) -> None:
        for batch in batches:
            with bfloat16_autocast(float32=float32):
                module(batch.to(memory_format=memory_format)).float().softmax(1).argmax(1)

    loaders = {
        "main process": torch.utils.data.DataLoader(data, END_TO_END_BATCH),
        f"DataLoader, {workers} workers": torch.utils.data.DataLoader(
            data, END_TO_END_BATCH, num_workers=workers, persistent_workers=True
        ),
    }
    sides: Sides = {label: partial(classify, loader) for label, loader in loaders.items()}
    sides["convatlas"] = lambda: model.predict(files)
    seconds = medians(time_interleaved(sides, rounds))
    print(f"end to end, {name}, {len(files)} files of {folder}, convatlas on {model.engine}:")
    for side, value in seconds.items():
        print(f"  {side:<24} {len(files) / value:8.1f} images/s")
    fastest = min(value for side, value in seconds.items() if side != "convatlas")
    print(f"  convatlas / fastest other = {fastest / seconds['convatlas']:.2f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=DEFAULT)
    parser.add_argument("--batches", default="1,16")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--int8", action="store_true")
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--json", type=Path)
    add_float32_option(parser)
    arguments = parser.parse_args()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, median of {arguments.rounds} rounds")
    if arguments.folder:
        for name in arguments.names:
            compare_end_to_end(arguments.folder, name, max(3, arguments.rounds // 5), float32=arguments.float32)
        return
    print("columns: ms; fastest float32 module of the others / side; fastest module of the others / side")
    rows = []
    for name in arguments.names:
        for batch in map(int, arguments.batches.split(",")):
            gc.collect()
            rows.append(measure(name, batch, arguments.rounds, int8=arguments.int8, memory=arguments.memory))
            print_row(rows[-1])
    print_summary(rows)
    if arguments.json:
        arguments.json.write_text(json.dumps([row._asdict() for row in rows], indent=1))


if __name__ == "__main__":
    main()
