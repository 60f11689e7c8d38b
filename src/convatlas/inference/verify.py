"""Verify pretrained weights: measure them on labeled images or videos, and compare them with their own library."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from convatlas.core.preprocessing import Preprocessing
from convatlas.data.readers.media import MEDIA
from convatlas.errors import DataError, WeightsError
from convatlas.inference.labeled_files import LabeledFiles, list_labeled_files
from convatlas.inference.load import from_weights
from convatlas.inference.model import Model
from convatlas.inference.predict import check_finite
from convatlas.inference.upstream import Transform, build_upstream, build_upstream_of_imported, transform_of
from convatlas.models.catalog import variant
from convatlas.system.files import sha256, write_text
from convatlas.system.progress import Progress
from convatlas.tasks.classification.metrics import accuracy_interval
from convatlas.tasks.known import task_for
from convatlas.tasks.table import pluralize
from convatlas.weights.build import build
from convatlas.weights.fetch import NO_DIGEST, pull
from convatlas.weights.imported import ImportedWeights, find_imported, is_imported_name
from convatlas.weights.modelfile import Header, read_model_file
from convatlas.weights.open import open_weights
from convatlas.weights.pretrained import Weights, find_weights

BATCH = 16
"""Number of images in a batch; videos are computed one by one."""

IMAGE_AXES = 4
"""Of the inputs (n, channels, h, w) of a network that reads images."""


@dataclass(frozen=True)
class TopAccuracy:
    """How often the true class is the most probable one (top1), or among the five most probable ones (top5)."""

    n: int
    num_top1: int
    num_top5: int

    @property
    def top1(self) -> float:
        return self.num_top1 / self.n

    @property
    def top5(self) -> float:
        return self.num_top5 / self.n

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of top1."""
        return accuracy_interval(self.num_top1, self.n)

    def to_plain(self) -> dict[str, Any]:
        low, high = self.interval
        return {
            "n": self.n, "num_errors": self.n - self.num_top1, "accuracy": self.top1, "accuracy_low": low,
            "accuracy_high": high, "top5": self.top5,
        }  # fmt: skip

    @classmethod
    def of(cls, probabilities: Tensor, labels: Tensor) -> TopAccuracy:
        """Count correct predictions: probabilities (n, classes), labels (n,)."""
        correct = probabilities.topk(min(5, probabilities.shape[1])).indices == labels.unsqueeze(1)
        return cls(len(labels), int(correct[:, 0].sum()), int(correct.any(1).sum()))


@dataclass(frozen=True)
class UpstreamComparison:
    """The library's own module with its own transforms, on the same images or frames.

    num_same_top5: number of images, or videos, with the same five most probable classes in the same order.
    max_difference: largest difference of a probability.
    """

    library: str
    accuracy: TopAccuracy
    num_same_top5: int
    max_difference: float

    def to_plain(self) -> dict[str, Any]:
        return {
            "library": self.library, **self.accuracy.to_plain(), "num_same_top5": self.num_same_top5,
            "max_difference": self.max_difference,
        }  # fmt: skip


@dataclass(frozen=True)
class Verification:
    """What was measured with weights.

    protocol: how images are prepared. is_published_file: whether the file's SHA-256 is the published one; None if no
    digest is published. file_note: what that means, in words, or empty. upstream: None if no library has the network.
    remarks: on the data, such as files that are not used. noun: what was classified, "image" or "video".
    """

    weights: str
    sha256: str
    accuracy: TopAccuracy
    protocol: str
    reported_metrics: Mapping[str, float] = field(default_factory=dict)
    is_published_file: bool | None = None
    file_note: str = ""
    upstream: UpstreamComparison | None = None
    remarks: tuple[str, ...] = ()
    noun: str = "image"

    def to_plain(self) -> dict[str, Any]:
        """Return the verification as plain data."""
        return {
            "name": self.weights, **self.accuracy.to_plain(), "protocol": self.protocol,
            "reported_metrics": dict(self.reported_metrics), "sha256": self.sha256 or None,
            "is_published_file": self.is_published_file, "file_note": self.file_note or None,
            "upstream": None if self.upstream is None else self.upstream.to_plain(), "remarks": list(self.remarks),
        }  # fmt: skip

    def rows(self) -> list[tuple[str, ...]]:
        """Return (library, correct top-1, top-1, correct top-5, top-5) as text, for convatlas and for the library."""
        measured = {"convatlas": self.accuracy}
        if self.upstream:
            measured[self.upstream.library] = self.upstream.accuracy
        return [
            (name, f"{each.num_top1:,} of {each.n:,}", f"{each.top1:.2%}", f"{each.num_top5:,} of {each.n:,}",
             f"{each.top5:.2%}")
            for name, each in measured.items()
        ]  # fmt: skip

    def notes(self) -> list[str]:
        """Return further results, one a line."""
        low, high = self.accuracy.interval
        lines = [f"95 % interval of top-1: {low:.1%} to {high:.1%}"]
        if self.upstream:
            lines.append(
                f"same five most probable classes in the same order for {self.upstream.num_same_top5:,} of "
                f"{pluralize(self.accuracy.n, self.noun)}; maximum difference of a probability "
                f"{self.upstream.max_difference:.1e}"
            )
        if self.reported_metrics:
            lines.append(f"reported metrics: {format_metrics(self.reported_metrics)}")
        return [*lines, *self.remarks, f"sha256 {self.sha256}{self.file_note and f': {self.file_note}'}"]


def format_metrics(metrics: Mapping[str, float]) -> str:
    """Return metrics as text, such as "ImageNet-1K acc@1 80.858, ImageNet-1K acc@5 95.434"."""
    return ", ".join(f"{name} {value:g}" for name, value in metrics.items())


def append_row(result: Verification, command: str, path: Path) -> None:
    """Append a result to a CSV file, which is created if it does not exist; earlier rows are kept.

    Raises DataError for a file with other columns.
    """
    accuracy = result.accuracy
    low, high = accuracy.interval
    row = {
        "name": result.weights, "reported_metrics": format_metrics(result.reported_metrics),
        "n": accuracy.n, "accuracy": f"{accuracy.top1:.4f}", "accuracy_low": f"{low:.4f}",
        "accuracy_high": f"{high:.4f}", "top5": f"{accuracy.top5:.4f}", "protocol": result.protocol, "command": command,
        "sha256": result.sha256 + (result.file_note and f" ({result.file_note})"),
    }  # fmt: skip
    head, line = io.StringIO(), io.StringIO()
    csv.DictWriter(head, row, lineterminator="\n").writeheader()
    csv.DictWriter(line, row, lineterminator="\n").writerow(row)
    text = path.read_text(encoding="utf-8") if path.exists() else head.getvalue()
    if not text.startswith(head.getvalue()):
        raise DataError(f"{path}: the first line must be {head.getvalue().strip()}; choose another file to append to")
    write_text(path, text + line.getvalue())


def verify(
    name: str, folder: str | Path, *, file: str | Path | None = None, progress: Progress | None = None
) -> Verification:
    """Measure weights on labeled images or videos, and pretrained weights also with the library they come from.

    name: pretrained weights, "network@library:tag"; imported ones, "network@tag"; or a network of the catalog with the
        weights in `file`.
    folder: see `list_labeled_files`. Its class names are matched with those of the weights; a `file` without class
        names has the classes of the folder in alphabetical order.
    file: the weights, if they are not in the cache.
    Raises DataError for other classes, WeightsError for weights that cannot be used.
    """
    weights: Weights | None = None
    imported: ImportedWeights | None = None
    if file is None and is_imported_name(name):
        imported = find_imported(name)
        spec = imported.header.spec
    elif "@" in name:
        weights = find_weights(name)
        spec = weights.spec
    elif file is None:
        raise WeightsError(f"{name}: must be pretrained weights, network@library:tag, or a network with --file")
    else:
        spec = variant(name).spec
    files = list_labeled_files(folder, MEDIA[spec.reads])
    if imported is not None:
        path = imported.path
        model = Model(*read_model_file(path))
    elif weights is not None:
        path = pull(weights, progress=progress) if file is None else Path(file).expanduser()
        model = from_weights(weights, file=path)
    else:
        assert file is not None
        path = Path(file).expanduser()
        model = _build_from_file(name, path, files)
    labels = torch.tensor(files.labels_for(model.classes, folder))
    preprocessing = model.header.preprocessing
    transform = transform_of(preprocessing)
    probabilities = _compute_probabilities(
        model.module, transform, files.files, progress, f"evaluating {model.header.name}"
    )
    check_finite(probabilities, model.header.name, model.header.task.noun)

    def compare(library: str, network: nn.Module, transform: Transform) -> UpstreamComparison:
        expected = _compute_probabilities(network, transform, files.files, progress, f"evaluating {library}")
        top = min(5, probabilities.shape[1])
        same = (probabilities.topk(top).indices == expected.topk(top).indices).all(1)
        difference = float((probabilities - expected).abs().max())
        return UpstreamComparison(library, TopAccuracy.of(expected, labels), int(same.sum()), difference)

    result = Verification(
        name, sha256(path) if path.is_file() else "", TopAccuracy.of(probabilities, labels),
        describe_protocol(preprocessing), remarks=(files.ignored.text(),) if files.ignored else (),
        noun=model.header.task.noun,
    )  # fmt: skip
    if imported is not None:
        upstream = build_upstream_of_imported(imported, model.module)
        training = imported.header.training
        return replace(
            result, sha256=training.source_sha256, reported_metrics=training.reported_metrics,
            file_note=f"the imported file {training.source}", upstream=upstream and compare(*upstream, transform),
        )  # fmt: skip
    if weights is None:
        return result
    is_published = result.sha256.startswith(weights.sha256_prefix) if weights.sha256_prefix else None
    file_note = {True: "", False: "not the published file", None: NO_DIGEST}[is_published]
    return replace(
        result, reported_metrics=weights.reported_metrics, is_published_file=is_published, file_note=file_note,
        upstream=compare(weights.library, *build_upstream(weights, path)),
    )  # fmt: skip


def describe_protocol(preprocessing: Preprocessing) -> str:
    """Return in one line how images, or the frames of videos, are prepared."""
    steps, sampling = preprocessing, preprocessing.sampling
    antialias = "" if steps.antialias else ", not antialiased"
    resized = f"short side resized to {steps.resize} px"
    if steps.width is not None:
        resized = f"frames resized to {steps.resize} x {steps.width} px (height x width)"
    rotation = f", rotated by {steps.rotation} degrees" if steps.rotation else ""
    views = "no test-time augmentation"
    if sampling is not None:
        views = f"{pluralize(sampling.clips, 'evenly spaced clip')} of {sampling.text}"
    return f"{resized} ({steps.interpolation}{antialias}), central crop of {steps.crop} px{rotation}, {views}"


def _build_from_file(name: str, path: Path, files: LabeledFiles) -> Model:
    """Return the model of a checkpoint, with its own class names or those of the data."""
    row = variant(name)
    checkpoint = open_weights(path, row.spec, name=name, row=row)
    classes = checkpoint.class_names or files.classes or tuple(map(str, range(checkpoint.num_classes)))
    if len(classes) != checkpoint.num_classes:
        raise DataError(f"{path}: the data must have {checkpoint.num_classes:,} classes, got {len(classes)} folders")
    network = build(name, weights=path).eval()
    spec = checkpoint.spec_for(row.spec)
    return Model(network, Header(name, task_for(spec, classes), spec, checkpoint.preprocessing))


@torch.inference_mode()
def _compute_probabilities(
    network: nn.Module, transform: Transform, files: Sequence[Path], progress: Progress | None, what: str
) -> Tensor:
    """Return the softmax of the outputs, (n, classes); of a video, its mean over the clips."""
    rows: list[Tensor] = []
    parts: list[Tensor] = []
    for done, file in enumerate(files, start=1):
        parts.append(transform(file))
        if len(parts) < BATCH and parts[0].ndim == IMAGE_AXES and done < len(files):
            continue
        outputs = network(torch.cat(parts)).softmax(1)
        rows += [views.mean(0) for views in outputs.split(list(map(len, parts)))]
        parts = []
        if progress:
            progress(what, done, len(files))
    return torch.stack(rows)
