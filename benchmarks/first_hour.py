"""Seconds of a newcomer's first commands on a quiet machine, and beside one busy process per core.

    python benchmarks/first_hour.py [--data FOLDER] [--weights FILE] [--rounds 2]

The commands: fine-tuning MobileNetV2 on a folder of 244 images for two epochs, the prediction of one image by its name
and on standard input, and `convatlas list`. Each runs in a process of its own, with the environment of a terminal. A
training before the rounds fills the cache and writes the model. In every round each command runs on the quiet machine
and beside the busy processes, in turns. Printed are the shortest times, their ratios, and how much of the CPU processes
of others used meanwhile: above a few percent, the quiet times are not those of a quiet machine.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from convatlas.system.cores import count_cores
from convatlas.system.load import WAIT_VARIABLES, LoadMeter, describe_load

SHARED = Path(__file__).parents[2] / "shared" / "data"
WEIGHTS = SHARED / "weights" / "mobilenet_v2_imagenet_torchvision_naming.pth"

MAX_BUSY_RATIO, MAX_STDIN_RATIO = 2.5, 1.3
"""Goals: a busy machine against a quiet one, and standard input against a file."""


class Commands:
    """Runs convatlas in a temporary folder with a cache of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {name: value for name, value in os.environ.items() if name not in WAIT_VARIABLES}
        self.environment["CONVATLAS_CACHE"] = str(folder / "cache")

    def run(self, *arguments: object, stdin: Path | None = None) -> None:
        """Run a command; ends the benchmark with its output if it fails."""
        command = [sys.executable, "-m", "convatlas", *map(str, arguments)]
        with open(stdin or os.devnull, "rb") as file:
            done = subprocess.run(
                command, stdin=file, capture_output=True, cwd=self.folder, env=self.environment, check=False
            )
        if done.returncode:
            sys.exit(f"{' '.join(command)}: {done.stderr.decode(errors='replace')}")


@contextmanager
def busy_cores() -> Iterator[None]:
    """Run one process per core that does nothing but use it."""
    processes = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count_cores())]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def measure(commands: dict[str, Callable[[], None]], rounds: int) -> dict[str, tuple[float, float]]:
    """Return the shortest seconds of each command, quiet and beside busy processes."""
    times: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in commands}
    meters = []
    for number in range(rounds):
        for name, run in commands.items():
            meter = LoadMeter()
            times[name][0].append(seconds(run))
            meters.append(meter.share())
            with busy_cores():
                times[name][1].append(seconds(run))
            print(f"  round {number + 1}, {name}: {times[name][0][-1]:.1f} s, {times[name][1][-1]:.1f} s", flush=True)
    print(f"while quiet: {describe_load(sum(meters) / len(meters))} (at most {max(meters):.0%})")
    return {name: (min(quiet), min(busy)) for name, (quiet, busy) in times.items()}


def seconds(run: Callable[[], None]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=SHARED / "hymenoptera", help="image folder with train and val")
    parser.add_argument("--weights", type=Path, default=WEIGHTS, help="checkpoint of mobilenet_v2")
    parser.add_argument("--rounds", type=int, default=2)
    arguments = parser.parse_args()
    data, weights = arguments.data.resolve(), arguments.weights.resolve()
    for path in (data, weights):
        if not path.exists():
            sys.exit(f"{path}: does not exist; give --data and --weights")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        command = Commands(folder)
        fit = ("fit", data, "--model", "mobilenet_v2", "--weights", weights)
        command.run(*fit, "--epochs", 1, "--out", "first")
        model = folder / "first" / "model.safetensors"
        image = next(path for path in sorted((data / "val").rglob("*")) if path.is_file())
        runs = iter(range(10**6))
        commands: dict[str, Callable[[], None]] = {
            "fit, 2 epochs": lambda: command.run(*fit, "--epochs", 2, "--out", f"run-{next(runs)}"),
            "predict FILE": lambda: command.run("predict", model, image),
            "predict -": lambda: command.run("predict", model, "-", stdin=image),
            "list": lambda: command.run("list"),
        }
        times = measure(commands, arguments.rounds)
    print(f"{'command':<15} {'quiet':>8} {'busy':>8} {'ratio':>6}   goal: at most {MAX_BUSY_RATIO}")
    for text, (quiet, busy) in times.items():
        print(f"{text:<15} {quiet:>6.1f} s {busy:>6.1f} s {busy / quiet:>6.2f}")
    ratios = [times["predict -"][i] / times["predict FILE"][i] for i in range(2)]
    print(
        f"standard input against a file: {ratios[0]:.2f} quiet, {ratios[1]:.2f} busy (goal: at most {MAX_STDIN_RATIO})"
    )


if __name__ == "__main__":
    main()
