"""What published weights claim, and what they do here: measured on labeled images, beside their own library."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from PIL import Image
from torch import Tensor

from convatlas.core.preprocessing import Preprocessing
from convatlas.data.decode.pixels import read_image
from convatlas.data.readers.folder import images_in
from convatlas.errors import DataError, WeightsError, brief, nearest
from convatlas.inference.model import Model, from_weights
from convatlas.models.catalog import variant
from convatlas.system.files import sha256, write_text
from convatlas.system.progress import Progress
from convatlas.weights.build import build
from convatlas.weights.fetch import pull
from convatlas.weights.modelfile import Header
from convatlas.weights.open import open_weights
from convatlas.weights.pretrained import Weights, find_weights
from convatlas.weights.read import load_tensors

LABELS = "labels.csv"
"""The table that says which class an image shows: columns `file` and `index`."""


@dataclass(frozen=True)
class Photos:
    """Labelled images: their files and classes, and the names of the classes where folders give them."""

    files: tuple[Path, ...]
    labels: tuple[int, ...]
    classes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Verification:
    """One row of the ledger.

    right1, right5: images whose class is the most probable one, or among the five most probable.
    published: whether the file is the one that was published, as far as its digest is known.
    peer: the same of the library's own class and transforms, and on how many images the five most probable
    classes are the same, in the same order; None where there is no such library.
    difference: the largest difference between the two of any probability. protocol: how images were prepared.
    """

    name: str
    digest: str
    count: int
    right1: int
    right5: int
    reported_metrics: str
    published: bool = True
    library: str = ""
    peer: tuple[int, int, int] | None = None
    difference: float = 0.0
    protocol: str = ""

    @property
    def top1(self) -> float:
        return self.right1 / self.count

    @property
    def top5(self) -> float:
        return self.right5 / self.count

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of top-1 (Wilson)."""
        z, n, p = 1.959964, self.count, self.top1
        middle, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
        scale = 1 + z * z / n
        return (middle - half) / scale, (middle + half) / scale


def protocol(steps: Preprocessing) -> str:
    """Say in one line how images are prepared."""
    smooth = "" if steps.antialias else ", not antialiased"
    return f"short side to {steps.resize} px ({steps.interpolation}{smooth}), center {steps.crop} px, one view"


def record(row: Verification, command: str, path: Path) -> None:
    """Add a row to a ledger, a CSV file, which is made where it is not there; a row is never changed.

    Raises DataError for a file that is no ledger.
    """
    low, high = row.interval
    told = {
        "weights": row.name, "reported_metrics": row.reported_metrics, "measured_top1": f"{row.top1:.4f}",
        "measured_top5": f"{row.top5:.4f}", "n": row.count, "top1_low": f"{low:.4f}", "top1_high": f"{high:.4f}",
        "protocol": row.protocol, "command": command, "sha256": row.digest,
    }  # fmt: skip
    head = io.StringIO()
    csv.DictWriter(head, told, lineterminator="\n").writeheader()
    text = path.read_text(encoding="utf-8") if path.exists() else head.getvalue()
    if not text.startswith(head.getvalue()):
        raise DataError(f"{path}: is no ledger; its first line should be {head.getvalue().strip()}")
    line = io.StringIO()
    csv.DictWriter(line, told, lineterminator="\n").writerow(told)
    write_text(path, text + line.getvalue())


def find_images(folder: str | Path) -> Photos:
    """Return the labeled images of a folder: by its labels.csv, or by its folders, one for each class.

    With labels.csv, the files lie beside it or in `images/`. Raises DataError for files and labels that are not there.
    """
    folder = Path(folder)
    table = folder / LABELS
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder")
    if table.is_file():
        try:
            with table.open(encoding="utf-8", newline="") as lines:
                reader = csv.DictReader(lines)
                columns = reader.fieldnames or ()
                if not {"file", "index"} <= set(columns):
                    raise DataError(f"{table}: expected the columns file and index, found {', '.join(columns)}")
                rows = [(row["file"] or "", row["index"] or "") for row in reader]
        except UnicodeDecodeError as error:
            raise DataError(f"{table}: is not UTF-8 text ({error.reason} at byte {error.start})") from error
        bad = next(((line, index) for line, (_, index) in enumerate(rows, 2) if not index.isdecimal()), None)
        if bad:
            raise DataError(f"{table}: line {bad[0]}: {bad[1]!r} is no class index")
        if not rows:
            raise DataError(f"{table}: holds no images")
        paths = [next((p for p in (folder / f, folder / "images" / f) if p.is_file()), folder / f) for f, _ in rows]
        missing = [path for path in paths if not path.is_file()]
        if missing:
            raise DataError(f"{missing[0]}: named in {table}, but not there")
        return Photos(tuple(paths), tuple(int(index) for _, index in rows))
    inside = {
        entry.name: images_in(entry)
        for entry in sorted(folder.iterdir()) if entry.is_dir() and not entry.name.startswith(".")
    }  # fmt: skip
    classes = [name for name, paths in inside.items() if paths]
    found = [(path, label) for label, name in enumerate(classes) for path in inside[name]]
    if not found:
        raise DataError(f"{folder}: holds neither {LABELS} nor folders of images, one for each class")
    return Photos(tuple(path for path, _ in found), tuple(label for _, label in found), tuple(classes))


def verify(
    name: str, folder: str | Path, *, file: str | Path | None = None, progress: Progress | None = None
) -> Verification:
    """Measure weights on the labeled images of a folder, and their own library's class beside them.

    name: published weights, "network@library:tag", whose class names the folders of the data have; or a network, with a
        `file` for it, where the folders are its classes in order of their names, or the table counts them.
    file: the weights where they are not in the cache; its tensors are those of the library.
    """
    photos = find_images(folder)
    weights: Weights | None = None
    if "@" in name:
        weights = find_weights(name)
        path = pull(weights, progress=progress) if file is None else Path(file)
        model = from_weights(weights, file=path)
    elif file is None:
        raise WeightsError(f"{name}: give published weights, network@library:tag, or a file")
    else:
        path = Path(file)
        model = _of_file(name, path, photos)
    labels = torch.tensor(_labels(photos, model.classes, folder))
    ours = _probabilities(model, photos, progress)
    right1, right5 = _right(ours, labels)
    digest, how = sha256(path), protocol(model.header.preprocessing)
    if weights is None:
        return Verification(name, digest, len(labels), right1, right5, reported_metrics="", protocol=how)
    reported_metrics = ", ".join(f"{what} {value:g}" for what, value in weights.reported_metrics.items())
    theirs = _peer(weights, path, photos, progress)
    top = min(5, ours.shape[1])
    same = int((ours.topk(top).indices == theirs.topk(top).indices).all(1).sum())
    return Verification(
        name, digest, len(labels), right1, right5, reported_metrics, digest.startswith(weights.digest), weights.library,
        (*_right(theirs, labels), same), float((ours - theirs).abs().max()), how,
    )  # fmt: skip


def _labels(photos: Photos, classes: Sequence[str], folder: str | Path) -> list[int]:
    """Return the number of each image's class among those of the network, by the name of its folder."""
    for name in photos.classes:
        if name not in classes:
            raise DataError(f"{Path(folder) / name}: {name} is no class of these weights{nearest(name, classes)}")
    numbers = [classes.index(photos.classes[label]) if photos.classes else label for label in photos.labels]
    if max(numbers) >= len(classes):
        raise DataError(f"{folder}: class {max(numbers)} is beyond the {len(classes)} classes of these weights")
    return numbers


def _of_file(name: str, path: Path, photos: Photos) -> Model:
    """Return the model of a file whose classes are the folders, unless it is sealed and knows their names."""
    row = variant(name)
    given = open_weights(path, row.spec, name=name, row=row)
    classes = given.names or photos.classes or tuple(map(str, range(given.classes)))
    if len(classes) != given.classes:
        raise DataError(f"{path}: holds {given.classes} classes, the data has {len(classes)} folders")
    network = build(name, weights=path).eval()
    header = Header(
        name=name, spec=row.spec, classes=classes, preprocessing=given.preprocessing, criterion="cross_entropy"
    )
    return Model(network, header)


def _right(probabilities: Tensor, labels: Tensor) -> tuple[int, int]:
    """Return how many labels are the most probable class, and among the five most probable."""
    top = probabilities.topk(min(5, probabilities.shape[1])).indices == labels.unsqueeze(1)
    return int(top[:, 0].sum()), int(top.any(1).sum())


@torch.inference_mode()
def _probabilities(model: Model, photos: Photos, progress: Progress | None) -> Tensor:
    steps = model.header.preprocessing

    def prepared(path: Path) -> Tensor:
        return steps.normalize(steps.geometry(read_image(path, steps.channels))[None])[0]

    return _run(model.own, prepared, photos, progress, f"reading with {model.header.name}")


def _peer(weights: Weights, path: Path, photos: Photos, progress: Progress | None) -> Tensor:
    """Return the probabilities of the library's own class with its own transforms."""
    peer = variant(weights.network).peers[weights.library]
    network: Any
    transform: Any
    try:
        if weights.library == "torchvision":
            import torchvision

            record = torchvision.models.get_model_weights(peer)[weights.tag]
            transform = record.transforms()
            # the library fills its class itself, with its own corrections of old names, from the file at hand
            with patch("torchvision.models._api.load_state_dict_from_url", lambda *_, **__: load_tensors(path)):
                network = torchvision.models.get_model(peer, weights=record)
        else:
            import timm

            full = f"{peer}.{weights.tag}"
            network = timm.create_model(full, pretrained=True, pretrained_cfg_overlay={"file": str(path)})
            transform = timm.data.create_transform(**timm.data.resolve_data_config(network.pretrained_cfg))
    except (RuntimeError, KeyError, ValueError) as error:
        raise WeightsError(f"{path}: {weights.library} cannot fill its own {peer} with it ({brief(error)})") from error

    def prepared(path: Path) -> Tensor:
        image: Tensor = transform(Image.open(path).convert("RGB"))
        return image

    with torch.inference_mode():
        return _run(network.eval(), prepared, photos, progress, f"reading with {weights.library}")


def _run(
    network: torch.nn.Module, prepared: Callable[[Path], Tensor], photos: Photos, progress: Progress | None, what: str
) -> Tensor:
    """Return the softmax of the outputs, (images, classes), 16 images at a time."""
    rows = []
    files: Sequence[Path] = photos.files
    for start in range(0, len(files), 16):
        rows.append(network(torch.stack([prepared(path) for path in files[start : start + 16]])).softmax(1))
        if progress:
            progress(what, min(start + 16, len(files)), len(files))
    return torch.cat(rows)
