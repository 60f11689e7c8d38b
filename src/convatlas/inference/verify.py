"""Verify pretrained weights: measure them on labeled images, and compare them with the library they come from."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from convatlas.core.preprocessing import Preprocessing
from convatlas.data.decode.pixels import read_image
from convatlas.errors import DataError, WeightsError
from convatlas.inference.labeled_images import LabeledImages, list_labeled_images
from convatlas.inference.model import Model, from_weights
from convatlas.inference.predict import check_finite
from convatlas.inference.upstream import Transform, build_upstream, build_upstream_of_imported
from convatlas.models.catalog import variant
from convatlas.system.files import sha256, write_text
from convatlas.system.progress import Progress
from convatlas.tasks.classification.metrics import accuracy_interval
from convatlas.tasks.known import Classification
from convatlas.weights.build import build
from convatlas.weights.fetch import NO_DIGEST, pull
from convatlas.weights.imported import ImportedWeights, find_imported, is_imported_name
from convatlas.weights.modelfile import Header, read_model_file
from convatlas.weights.open import open_weights
from convatlas.weights.pretrained import Weights, find_weights

BATCH = 16


@dataclass(frozen=True)
class TopAccuracy:
    """Number of images whose class is the most probable one (top1), or among the five most probable ones (top5)."""

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
    """The library's own module with its own transforms, on the same images.

    num_same_top5: number of images with the same five most probable classes in the same order.
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
    remarks: on the images, such as files that are not used.
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
                f"{self.accuracy.n:,} images; maximum difference of a probability {self.upstream.max_difference:.1e}"
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
    """Measure weights on labeled images, and pretrained weights also with the library they come from.

    name: pretrained weights, "network@library:tag"; imported ones, "network@tag"; or a network of the catalog with the
        weights in `file`.
    folder: see `list_labeled_images`. Its class names are matched with those of the weights; a `file` without class
        names has the classes of the folder in alphabetical order.
    file: the weights, if they are not in the cache.
    Raises DataError for other classes, WeightsError for weights that cannot be used.
    """
    images = list_labeled_images(folder)
    remarks = (images.ignored.text(),) if images.ignored else ()
    weights: Weights | None = None
    imported: ImportedWeights | None = None
    if file is None and is_imported_name(name):
        imported = find_imported(name)
        path = imported.path
        model = Model(*read_model_file(path))
    elif "@" in name:
        weights = find_weights(name)
        path = pull(weights, progress=progress) if file is None else Path(file).expanduser()
        model = from_weights(weights, file=path)
    elif file is None:
        raise WeightsError(f"{name}: must be pretrained weights, network@library:tag, or a network with --file")
    else:
        path = Path(file).expanduser()
        model = _build_from_file(name, path, images)
    labels = torch.tensor(images.labels_for(model.classes, folder))
    preprocessing = model.header.preprocessing
    probabilities = _compute_probabilities(
        model.module, _transform(preprocessing), images.files, progress, f"evaluating {model.header.name}"
    )
    check_finite(probabilities, model.header.name)
    accuracy, protocol = TopAccuracy.of(probabilities, labels), describe_protocol(preprocessing)

    def compare(library: str, network: nn.Module, transform: Transform) -> UpstreamComparison:
        expected = _compute_probabilities(network, transform, images.files, progress, f"evaluating {library}")
        top = min(5, probabilities.shape[1])
        same = (probabilities.topk(top).indices == expected.topk(top).indices).all(1)
        difference = float((probabilities - expected).abs().max())
        return UpstreamComparison(library, TopAccuracy.of(expected, labels), int(same.sum()), difference)

    if imported is not None:
        upstream = build_upstream_of_imported(imported, model.module)
        training = imported.header.training
        return Verification(
            name, training.source_sha256, accuracy, protocol, training.reported_metrics,
            file_note=f"the imported file {training.source}",
            upstream=upstream and compare(*upstream, _transform(preprocessing)), remarks=remarks,
        )  # fmt: skip
    digest = sha256(path) if path.is_file() else ""
    if weights is None:
        return Verification(name, digest, accuracy, protocol, remarks=remarks)
    is_published = digest.startswith(weights.sha256_prefix) if weights.sha256_prefix else None
    file_note = {True: "", False: "not the published file", None: NO_DIGEST}[is_published]
    network, transform = build_upstream(weights, path)
    return Verification(
        name, digest, accuracy, protocol, weights.reported_metrics, is_published, file_note,
        compare(weights.library, network, transform), remarks,
    )  # fmt: skip


def describe_protocol(preprocessing: Preprocessing) -> str:
    """Return in one line how images are prepared."""
    antialias = "" if preprocessing.antialias else ", not antialiased"
    rotation = f", rotated by {preprocessing.rotation} degrees" if preprocessing.rotation else ""
    return (
        f"short side resized to {preprocessing.resize} px ({preprocessing.interpolation}{antialias}), "
        f"central crop of {preprocessing.crop} px{rotation}, no test-time augmentation"
    )


def _build_from_file(name: str, path: Path, images: LabeledImages) -> Model:
    """Return the model of a checkpoint, with its own class names or those of the images."""
    row = variant(name)
    checkpoint = open_weights(path, row.spec, name=name, row=row)
    classes = checkpoint.class_names or images.classes or tuple(map(str, range(checkpoint.num_classes)))
    if len(classes) != checkpoint.num_classes:
        raise DataError(f"{path}: the data must have {checkpoint.num_classes:,} classes, got {len(classes)} folders")
    network = build(name, weights=path).eval()
    spec = checkpoint.spec_for(row.spec)
    return Model(network, Header(name, Classification(classes), spec, checkpoint.preprocessing))


def _transform(preprocessing: Preprocessing) -> Transform:
    def read(file: Path) -> Tensor:
        pixels = preprocessing.resize_and_crop(read_image(file, preprocessing.channels))
        return preprocessing.normalize(pixels[None])[0]

    return read


@torch.inference_mode()
def _compute_probabilities(
    network: nn.Module, transform: Transform, files: Sequence[Path], progress: Progress | None, what: str
) -> Tensor:
    """Return the softmax of the outputs, (n, classes)."""
    rows = []
    for start in range(0, len(files), BATCH):
        inputs = torch.stack([transform(file) for file in files[start : start + BATCH]])
        rows.append(network(inputs).softmax(1))
        if progress:
            progress(what, min(start + BATCH, len(files)), len(files))
    return torch.cat(rows)
