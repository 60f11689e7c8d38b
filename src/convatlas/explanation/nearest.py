"""Nearest images by the cosine similarity of features, and how often they have the label of an image."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from convatlas.core.table import Table
from convatlas.draw.contact_sheet import Captioned, captioned_images
from convatlas.draw.frame_strip import frame_strip
from convatlas.errors import InputError, printable
from convatlas.tasks.classification.metrics import accuracy_interval

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NEIGHBORS = 5
"""Default number of nearest images whose labels are compared."""

MAX_QUERIES = 2000
"""Maximum number of images whose nearest images are searched to measure the accuracy."""

QUERY_BATCH = 256
"""Images whose similarities to all others are in memory at once."""

COLUMNS, STRIP_COLUMNS = 5, 2
"""Images, and strips of frames, in a row of a contact sheet."""


@dataclass(frozen=True)
class Neighbor:
    """An image of the data: its number, name, label and split, and its cosine similarity to another image."""

    number: int
    name: str
    label: str
    split: str
    similarity: float

    def to_plain(self) -> dict[str, Any]:
        return {
            "name": self.name, "label": self.label or None, "split": self.split, "similarity": self.similarity,
        }  # fmt: skip


@dataclass(frozen=True, repr=False, eq=False)
class NearestImages:
    """The nearest images of one image, the nearest first.

    name, pixels: of the image. images: the pixels of each neighbor, as the network receives them.
    """

    name: str
    pixels: Tensor
    neighbors: tuple[Neighbor, ...]
    images: tuple[Tensor, ...]
    noun: str = "image"

    def figure(self, path: str | Path | None = None) -> Figure:
        """Return a contact sheet: the image, then its neighbors with label and similarity.

        path: also write it, as .svg, .png or .pdf.
        """
        first = Captioned(_to_array(self.pixels), f"the {self.noun}", Path(self.name).name)
        others = [
            Captioned(_to_array(pixels), each.label, f"{each.similarity:.3f}  {Path(each.name).name}")
            for each, pixels in zip(self.neighbors, self.images, strict=True)
        ]
        columns = COLUMNS if self.pixels.ndim == 3 else STRIP_COLUMNS
        return captioned_images([first, *others], columns=columns, path=path)

    def table(self) -> Table:
        """Return the neighbors as a table."""
        rows = [(printable(n.name), printable(n.label), n.split, f"{n.similarity:.3f}") for n in self.neighbors]
        return Table((f"nearest {self.noun}", "label", "split", "similarity"), tuple(rows), frozenset((3,)))

    def to_plain(self) -> dict[str, Any]:
        return {"source": self.name, "nearest": [each.to_plain() for each in self.neighbors]}

    def __repr__(self) -> str:
        return repr(self.table())

    def _repr_html_(self) -> str:
        return self.table()._repr_html_()


def _to_array(pixels: Tensor) -> NDArray[Any]:
    """Return an image (channels, h, w), or clips (..., channels, h, w) as a strip of frames, as an array."""
    strip = frame_strip(pixels) if pixels.ndim > 3 else pixels
    shown = strip[:3] if len(strip) >= 3 else strip[:1]
    array: NDArray[Any] = shown.round().clamp(0, 255).byte().permute(1, 2, 0).numpy()
    return array


@dataclass(frozen=True)
class NeighborAccuracy:
    """How often most of the nearest images of an image have its label.

    correct, n: numbers of images. k: number of nearest images. chance: share of the most frequent label. among: the
    split of the nearest images; "" if they are all other images of the data.
    """

    correct: int
    n: int
    k: int
    chance: float
    among: str = ""

    @property
    def accuracy(self) -> float:
        return self.correct / self.n

    @property
    def text(self) -> str:
        """The accuracy in one line."""
        low, high = accuracy_interval(self.correct, self.n)
        among = f"the {self.k} nearest of {self.among}" if self.among else f"the {self.k} nearest others"
        bias = "" if self.among else "; optimistically biased if the network was trained on some of them"
        return (
            f"{self.accuracy:.1%}, {self.correct:,} of {self.n:,} (95 % interval {low:.1%} to {high:.1%}), by {among}; "
            f"chance level {self.chance:.1%}{bias}"
        )

    def to_plain(self) -> dict[str, Any]:
        low, high = accuracy_interval(self.correct, self.n)
        return {
            "accuracy": self.accuracy, "interval": [low, high], "correct": self.correct, "n": self.n, "k": self.k,
            "chance": self.chance, "among": self.among or None,
        }  # fmt: skip


def neighbor_accuracy(
    features: Tensor, labels: Sequence[str], splits: Sequence[str], k: int = NEIGHBORS
) -> NeighborAccuracy | None:
    """Return how often most of the k nearest images have the label of an image.

    None without two labels, and if there are not more than k images with one.
    features: (n, d). Of data with a train split and others, the images are those of the others, and the nearest images
    are of train; otherwise they are all other images. Of more than `MAX_QUERIES` images, evenly spaced ones are
    measured. Ties go to the label with the higher similarities. Raises InputError unless k is at least 1.
    """
    check_count(k, "k")
    others = [i for i, split in enumerate(splits) if split != "train"]
    is_split = 0 < len(others) < len(splits)
    candidates = [i for i, split in enumerate(splits) if labels[i] and (not is_split or split == "train")]
    queries = [i for i in (others if is_split else candidates) if labels[i]]
    queries = queries[:: -(-len(queries) // MAX_QUERIES) or 1]
    known = sorted(set(labels))
    if len(set(filter(None, labels))) < 2 or not queries or len(candidates) <= k:
        return None
    numbers = torch.tensor([known.index(label) for label in labels])
    normalized, pool = F.normalize(features, dim=1), torch.tensor(candidates)
    correct = 0
    for part in torch.tensor(queries).split(QUERY_BATCH):
        similarity = normalized[part] @ normalized[pool].T
        similarity[part[:, None] == pool] = -torch.inf
        found = similarity.topk(k)
        votes = F.one_hot(numbers[pool[found.indices]], len(known)).float()
        votes = votes.sum(1) + (votes * found.values[..., None]).sum(1) / (k + 1)
        correct += int((votes.argmax(1) == numbers[part]).sum())
    most = Counter(labels[i] for i in queries).most_common(1)[0][1]
    return NeighborAccuracy(correct, len(queries), k, most / len(queries), "train" if is_split else "")


def check_count(count: int, name: str) -> None:
    """Raise InputError unless a number of images is an integer >= 1."""
    if type(count) is not int or count < 1:
        raise InputError(f"nearest: {name} must be an integer >= 1, got {count}")
