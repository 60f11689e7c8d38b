"""The embedding of a data set: features of its images, their principal components, the nearest images of one."""

from __future__ import annotations

import io
import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from convatlas.core.table import Table
from convatlas.data.dataset import Images, UnreadableImage
from convatlas.draw.embedding import draw_embedding
from convatlas.errors import InputError
from convatlas.explanation.nearest import (
    NEIGHBORS,
    NearestImages,
    Neighbor,
    NeighborAccuracy,
    check_count,
    neighbor_accuracy,
)
from convatlas.system.extras import import_optional
from convatlas.system.files import atomic
from convatlas.tasks.table import pluralize

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMATS = (".npz", ".parquet")
"""Suffixes of files of features."""

ReadImage = Callable[[Any], tuple[str, Tensor, Tensor]]
"""Returns the name of an image or video, its features (d,), and its pixels as the network receives them."""


@dataclass(frozen=True, repr=False, eq=False)
class Embedding:
    """Features of the images or videos of a data set, in its order.

    names: the file, or the name in the data, of each. labels: its target as text; "" if it has none. splits: of each.
    features: (n, d) float32. layer: the tap that they are read from; "" for the input of the layer that computes class
    scores. model, data: their names. noun: "image" or "video". has_classes: whether each label is one class, not a text
    such as "2 person, 1 dog". prepared: the images as the network receives them. read: reads another image.
    unreadable, remarks: of the data; see `Dataset`.
    """

    names: tuple[str, ...]
    labels: tuple[str, ...]
    splits: tuple[str, ...]
    features: Tensor
    layer: str
    model: str
    data: str
    noun: str
    has_classes: bool
    prepared: Images
    read: ReadImage
    unreadable: tuple[UnreadableImage, ...] = ()
    remarks: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.names)

    @cached_property
    def _fitted(self) -> tuple[Tensor, tuple[float, float]]:
        from sklearn.decomposition import PCA

        count = min(2, *self.features.shape)
        if len(self) < 2 or not bool((self.features != self.features[0]).any()):
            return torch.zeros(len(self), 2), (0.0, 0.0)
        fitted = PCA(count, random_state=0)
        places = torch.from_numpy(fitted.fit_transform(self.features.double().numpy())).float()
        shares = [*map(float, fitted.explained_variance_ratio_), 0.0]
        return F.pad(places, (0, 2 - count)), (shares[0], shares[1])

    @property
    def components(self) -> Tensor:
        """The first two principal components of each image, (n, 2)."""
        return self._fitted[0]

    @property
    def variance_shares(self) -> tuple[float, float]:
        """The shares of the variance of the features that the two components have."""
        return self._fitted[1]

    def nearest(self, image: Any, count: int = 9) -> NearestImages:
        """Return the nearest images of one, by the cosine similarity of their features.

        image: its number in the data, or an image or video of any kind that `Model.predict` takes. An image of the data
        is not among its own neighbors. count: of neighbors, at least 1. Raises DataError for an unreadable image, and
        InputError for a number that is not there.
        """
        check_count(count, "count")
        if isinstance(image, int | np.integer) and not isinstance(image, bool):
            number = int(image)
            if not 0 <= number < len(self):
                raise InputError(f"nearest: image must be a number in [0, {len(self) - 1}], got {number}")
            name, features, pixels, same = self.names[number], self.features[number], self._pixels(number), [number]
        else:
            name, features, pixels = self.read(image)
            path = os.path.realpath(name)
            same = [i for i, other in enumerate(self.names) if other == name or os.path.realpath(other) == path]
        similarity = F.normalize(self.features, dim=1) @ F.normalize(features, dim=0)
        similarity[same] = -torch.inf
        found = similarity.topk(min(count, len(self) - len(same)))
        neighbors = tuple(
            Neighbor(i, self.names[i], self.labels[i], self.splits[i], value)
            for i, value in zip(found.indices.tolist(), found.values.tolist(), strict=True)
        )
        images = tuple(self._pixels(each.number) for each in neighbors)
        return NearestImages(name, pixels, neighbors, images, self.noun)

    def _pixels(self, number: int) -> Tensor:
        pixels: Any = self.prepared.pixels
        image: Tensor = pixels[number]
        return image

    def neighbor_accuracy(self, k: int = NEIGHBORS) -> NeighborAccuracy | None:
        """Return how often most of the k nearest images have the label of an image; see `nearest.neighbor_accuracy`."""
        return neighbor_accuracy(self.features, self.labels, self.splits, k) if self.has_classes else None

    def figure(self, path: str | Path | None = None) -> Figure:
        """Return the images as points at their two principal components, each label with its marker.

        path: also write it, as .svg, .png or .pdf.
        """
        title = f"{self.data}: features of {self.model}, {self.source}"
        return draw_embedding(
            self.components.numpy(), self.labels, self.variance_shares, title=title, noun=self.noun, path=path
        )

    @property
    def source(self) -> str:
        """Where the features are read, in words."""
        where = f"layer {self.layer}" if self.layer else "input of the classifier"
        return f"{where}, {pluralize(self.features.shape[1], 'value')}"

    def save(self, path: str | Path) -> None:
        """Write names, labels, splits and features to a file, .npz or .parquet.

        An .npz file has the arrays names, labels, splits (n,), features (n, d) and components (n, 2); a .parquet file a
        row for each image. Raises InputError for another suffix.
        """
        path = Path(path)
        check_features_path(path)
        written = io.BytesIO()
        texts = {"names": self.names, "labels": self.labels, "splits": self.splits}
        if path.suffix.lower() == ".npz":
            arrays: dict[str, Any] = {name: np.array(values, dtype=np.str_) for name, values in texts.items()}
            np.savez(
                written, **arrays, features=self.features.numpy(), components=self.components.numpy(),
                layer=np.array(self.layer), model=np.array(self.model), data=np.array(self.data),
            )  # fmt: skip
        else:
            self._write_parquet(written, path)
        with atomic(path) as file:
            file.write(written.getvalue())

    def _write_parquet(self, file: io.BytesIO, path: Path) -> None:
        arrow = import_optional("pyarrow", "convatlas[data]", where=path, error=InputError)
        parquet = import_optional("pyarrow.parquet", "convatlas[data]", where=path, error=InputError)
        flat = arrow.array(self.features.flatten().numpy(), arrow.float32())
        columns = {
            "name": list(self.names), "label": [label or None for label in self.labels], "split": list(self.splits),
            "features": arrow.FixedSizeListArray.from_arrays(flat, self.features.shape[1]),
        }  # fmt: skip
        about = {"layer": self.layer, "model": self.model, "data": self.data}
        parquet.write_table(arrow.table(columns).replace_schema_metadata(about), file)

    def to_plain(self) -> dict[str, Any]:
        """Return what is known of the embedding as plain data, without the features."""
        accuracy = self.neighbor_accuracy()
        return {
            "model": self.model, "data": self.data, "n": len(self), "layer": self.layer or None,
            "dimensions": self.features.shape[1], "counts": dict(Counter(filter(None, self.labels)).most_common()),
            "splits": dict(Counter(self.splits)), "variance_shares": list(self.variance_shares),
            "neighbor_accuracy": None if accuracy is None else accuracy.to_plain(),
        }  # fmt: skip

    def table(self) -> Table:
        """Return the embedding in a few lines."""
        first, second = self.variance_shares
        splits = Counter(self.splits)
        accuracy = self.neighbor_accuracy()
        labels = len(set(filter(None, self.labels)))
        by_split = ", ".join(f"{name} {count:,}" for name, count in splits.items())
        return Table.of_pairs({
            "data": f"{self.data}, {pluralize(len(self), self.noun)}{f' ({by_split})' if len(splits) > 1 else ''}",
            "labels": f"{labels:,}" if labels else "",
            "features": f"{self.model}, {self.source}",
            "two components": f"{first:.1%} and {second:.1%} of the variance",
            "nearest images": "" if accuracy is None else f"label correct for {accuracy.text}",
        })  # fmt: skip

    def __repr__(self) -> str:
        return repr(self.table())

    def _repr_html_(self) -> str:
        return self.table()._repr_html_()


def check_features_path(path: Path) -> None:
    """Raise InputError for a suffix that is not in `FORMATS`."""
    if path.suffix.lower() not in FORMATS:
        known, suffix = " or ".join(FORMATS), path.suffix or "none"
        raise InputError(f"{path}: the suffix of a file of features must be {known}, got {suffix}")
