"""Files of latencies: measured on one machine, used by searches on another one."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from convatlas.core.spec import Spec
from convatlas.errors import SearchError, brief
from convatlas.models.catalog import resolve
from convatlas.search.catalog_networks import is_small
from convatlas.search.contestant import largest_baselines
from convatlas.search.counts import Counts
from convatlas.search.latency import MIN_FITTED, LatencyMeter, LatencyModel
from convatlas.search.spaces import given_space, space_at
from convatlas.system.cache import cache_folder
from convatlas.system.files import write_text
from convatlas.system.progress import Progress
from convatlas.tasks.known import task_for

WIDTHS = (1.0, 0.75, 0.5, 0.25)
"""Widths of the networks that are measured, in turn."""


def fit_latency_model(
    specs: Sequence[Spec], others: Sequence[Spec], meter: LatencyMeter, channels: int, progress: Progress | None = None
) -> LatencyModel:
    """Measure networks on this machine, while no training of convatlas runs, and fit a model to them.

    Its error is that on `specs`; `others` have other kinds of layers.
    """
    both = (*specs, *others)
    measured = meter.measure_alone(both, progress=progress)
    counts = [Counts.of(spec, classes=meter.task.outputs, channels=channels) for spec in both]
    timed = [(each, latency.seconds) for each, latency in zip(counts, measured, strict=True)]
    return LatencyModel.fit(
        timed[: len(specs)], timed[len(specs) :],
        engine=meter.engine, threads=meter.threads, unstable=sum(not each.is_stable for each in measured),
    )  # fmt: skip


def record_latency(
    space: str, *, resolution: int, channels: int, classes: int, number: int, engine: str, threads: int, seed: int = 0,
    progress: Progress | None = None,
) -> LatencyModel:  # fmt: skip
    """Measure hand-made networks, and random ones of a space in turn of each width, and fit a model to them.

    number: of different networks with the hand-made ones, or fewer if the space has fewer.
    """
    random = np.random.default_rng(seed)
    small, drawn = is_small(resolution), list[list[Spec]]()
    for width in WIDTHS if given_space(space) is None else WIDTHS[:1]:  # a space of the user has one width
        at_width = space_at(space, width, small, resolution)
        drawn.append([at_width.value(at_width.decode(codes)) for codes in at_width.sample(number, random)])
    in_turn = [spec for turn in itertools.zip_longest(*drawn) for spec in turn if spec is not None]
    hand_made = largest_baselines(resolution=resolution, small=small)
    different = list({json.dumps(spec.to_plain()): spec for spec in in_turn}.values())
    specs = different[: max(MIN_FITTED, number - len(hand_made))]
    specs = [specs[i] for i in random.permutation(len(specs))]
    _, row = resolve(specs[0])
    preprocessing = row.preprocessing.for_resolution(resolution).for_channels(channels)
    meter = LatencyMeter(preprocessing, task_for(specs[0], tuple(map(str, range(classes)))), engine, threads)
    return fit_latency_model(specs, hand_made, meter, channels, progress)


def write_latency_model(model: LatencyModel, path: Path) -> None:
    """Write a model as JSON."""
    write_text(path, json.dumps(model.to_plain(), indent=1) + "\n")


def read_latency_model(name: str) -> LatencyModel:
    """Read a model from a file, or the imported one of that name; raises SearchError."""
    path = Path(name)
    if not path.suffix and path.name == name and not path.is_file():
        path = _imported(name)
    try:
        plain = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SearchError(
            f"{path}: unreadable ({brief(error)}); `convatlas latency record` writes such a file"
        ) from error
    return LatencyModel.from_plain(plain, where=str(path))


def import_latency_model(file: Path, name: str) -> LatencyModel:
    """Keep a model in the cache under a name, and return it."""
    if not name or not name.replace("-", "").replace("_", "").isalnum():
        raise SearchError(f"latency: the name must be letters, digits, - and _, got {name!r}")
    model = read_latency_model(str(file))
    _imported(name).parent.mkdir(parents=True, exist_ok=True)
    write_latency_model(model, _imported(name))
    return model


def _imported(name: str) -> Path:
    return cache_folder() / "latency" / f"{name}.json"
