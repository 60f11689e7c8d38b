"""A model's header in words: classes, input, metrics, training."""

from __future__ import annotations

from collections.abc import Mapping

from convatlas.core.preprocessing import Preprocessing
from convatlas.errors import listed
from convatlas.tasks.result_page import metric_name
from convatlas.tasks.table import pluralize
from convatlas.tasks.task import Calibration, Task
from convatlas.weights.modelfile import Header
from convatlas.weights.training_record import TrainingRecord

MAX_CLASSES = 8
"""Maximum number of classes that are listed by name."""

COLORS = {1: "grayscale", 3: "RGB"}


def describe_task(task: Task) -> str:
    """Return the task and its first classes."""
    return f"{task.name}, {pluralize(len(task.classes), 'class')}: {listed(task.classes, MAX_CLASSES)}"


def describe_preprocessing(steps: Preprocessing) -> str:
    """Return how an image becomes the input, in the order of the steps."""
    color = COLORS.get(steps.channels, f"{steps.channels} channels")
    if steps.max_size is not None:
        return (
            f"{color}, whole images of any size; the network resizes the short side to {steps.resize} px, but the long "
            f"side to {steps.max_size} px at most, and standardizes value / 255"
        )
    filter_name = f"{steps.interpolation}{', antialiased' * steps.antialias}"
    size = f"short side resized to {steps.resize} px" if steps.width is None else (
        f"resized to {steps.resize} x {steps.width} px"
    )  # fmt: skip
    parts = [f"{color}; {size} ({filter_name})"]
    if steps.sampling is not None:
        clips = pluralize(steps.sampling.clips, "clip")
        parts.insert(0, f"{clips} of {steps.sampling.text}")
    parts.append(f"center crop of {steps.crop} x {steps.crop} px")
    if steps.pad:
        parts.append(f"border of {steps.pad} px of value {steps.fill}")
    if steps.window is not None:
        low, high = steps.window
        parts.append(f"values from {low:.4g} to {high:.4g} of the largest one become 0 to 1")
    mean, std = (" ".join(f"{value:.4g}" for value in values) for values in (steps.mean, steps.std))
    parts.append(f"(value / 255 - mean {mean}) / std {std}")
    if steps.rotation:
        parts.append(f"rotated by {steps.rotation} degrees")
    return ", ".join(parts)


def describe_calibration(calibration: Calibration) -> str:
    """Return what was fitted on val; empty if nothing was."""
    temperature, thresholds = calibration.temperature, calibration.thresholds
    parts = [f"temperature {temperature:.3f}"] if temperature != Calibration().temperature else []
    if thresholds:
        low, high = f"{min(thresholds):.2f}", f"{max(thresholds):.2f}"
        parts.append(f"threshold {low}" if low == high else f"thresholds of {low} to {high}")
    return "; ".join(parts)


def headline(task: Task) -> str:
    """Return the name of the metric by which epochs and runs are compared."""
    return task.progress_columns[-1].key.partition("_")[2]


def describe_interval(name: str, metrics: Mapping[str, float | int], form: str) -> str:
    """Return the 95 % interval of a metric in brackets, after a space; empty if it has none."""
    low, high = metrics.get(f"{name}_low"), metrics.get(f"{name}_high")
    return "" if low is None or high is None else f" (95 % interval {low:{form}} to {high:{form}})"


def describe_score(task: Task, metrics: Mapping[str, float | int]) -> str:
    """Return the headline metric of a split with its 95 % interval and the number of images; empty if there is none."""
    name = headline(task)
    if name not in metrics:
        return ""
    form = task.progress_columns[-1].form
    interval = describe_interval(name, metrics, form)
    images = f" on {pluralize(int(metrics['n']), task.noun)}" if "n" in metrics else ""
    return f"{metric_name(name)} {metrics[name]:{form}}{interval}{images}"


def describe_header(header: Header) -> dict[str, str]:
    """Return what a model is, in a few lines: name -> text."""
    return {
        "network": f"{header.name}, {header.spec.resolution} px",
        "task": describe_task(header.task),
        **{split: describe_score(header.task, metrics) for split, metrics in header.metrics.items()},
        "data": header.training.data,
        "license": header.license,
    }


def describe_split(training: TrainingRecord) -> str:
    """Return how the val split was made, if the data had none; empty if nothing was split off."""
    if training.fold is not None:
        return f"fold {training.fold[0]} of {training.fold[1]} is val"
    return f"{training.val_share:.0%} of the training images are val if the data has no val split"
