"""The networks of the catalog that suit the data, with the input that they would be trained with."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from convatlas.core.cost import cost
from convatlas.core.spec import SMALL, Spec
from convatlas.data.decode.headers import read_header
from convatlas.data.source import Source
from convatlas.errors import DataError, SpecError
from convatlas.models.card import LIBRARIES
from convatlas.models.catalog import CATALOG, FAMILIES, Stem, adapted, build_fresh
from convatlas.train.initial_weights import NONE, cached_weights
from convatlas.train.settings import DataOptions
from convatlas.weights.pretrained import list_weights

MAX_SMALL_SIDE = 64
"""Shorter side in pixels up to which images are small: they get networks and stems for small images."""

MAX_FAMILIES = 8
"""Maximum number of networks of the catalog that compete, each of another family."""

PROBED_IMAGES = 50
"""Number of training images whose size is read."""


@dataclass(frozen=True)
class CatalogNetwork:
    """A network of the catalog with the input that it would be trained with.

    parameters, macs: for one image. weights: name of those that it starts from; empty for random ones. frames: of a
    clip, if they are not those of the network's row. latency_s: for one image, once it was measured.
    """

    name: str
    family: str
    stem: Stem
    resolution: int
    parameters: int
    macs: int
    weights: str = ""
    frames: int | None = None
    latency_s: float | None = None

    @property
    def spec(self) -> Spec:
        return adapted(CATALOG[self.name].spec, stem=self.stem, resolution=self.resolution, frames=self.frames)

    @property
    def reported_accuracy(self) -> float:
        """The best top-1 accuracy on ImageNet, in percent, that is reported for published weights; 0 if none is."""
        metrics = [weights.reported_metrics.items() for weights in list_weights(self.name)]
        return max((value for items in metrics for name, value in items if name.endswith("acc@1")), default=0.0)


def is_small(resolution: int) -> bool:
    """Return whether images of this many pixels get the stems for small images."""
    return resolution <= MAX_SMALL_SIDE


def input_side(source: Source, options: DataOptions) -> int:
    """Return the resolution of the options, or the median of the shorter sides of some training images, in pixels."""
    if options.resolution is not None:
        return options.resolution
    train = source.splits["train"]
    if train.pixels is not None:
        return round(statistics.median(map(min, train.sizes)))
    sides = []
    for name in train.names[:PROBED_IMAGES]:
        try:
            sides.append(min(read_header(Path(name)).size))
        except DataError:
            continue
    if not sides:
        raise DataError(f"{source.location}: none of the first {PROBED_IMAGES} images is readable")
    return int(statistics.median(sides))


def find_networks(source: Source, channels: int, options: DataOptions, weights: str) -> Iterator[CatalogNetwork]:
    """Yield the networks for images of this size, or for clips.

    weights: "auto": published or imported ones where they are cached, else random ones. "none": random ones.
    "torchvision" or "timm": only networks with cached weights of this library.
    """
    small_images = source.task.reads == "images" and is_small(input_side(source, options))
    for family, rows in FAMILIES.items():
        for name, row in rows.variants.items():
            if row.recipe != "default" or not type(source.task).fits(row.spec):
                continue
            for_small_images = row.spec.reads == "images" and is_small(row.spec.resolution)
            if for_small_images and not small_images:
                continue
            needs_stem = small_images and not for_small_images
            stem: Stem = "cifar" if needs_stem or options.stem == "cifar" else "default"
            resolution = options.resolution or (SMALL if needs_stem else row.spec.resolution)
            try:
                spec = adapted(row.spec, stem=stem, resolution=resolution, frames=options.frames)
                counted = cost(build_fresh(spec, classes=source.task.outputs, channels=channels, device="meta"))
            except SpecError:
                continue  # the family has no stem for small images, or is too deep for the resolution
            library = weights if weights in LIBRARIES else None
            initial = "" if weights == NONE else cached_weights(spec, network=name, stem=stem, library=library)
            if initial or library is None:
                yield CatalogNetwork(
                    name, family, stem, resolution, counted.parameters, counted.macs, initial, options.frames
                )


def largest_of_families(
    networks: Iterable[CatalogNetwork], latency_of: Callable[[CatalogNetwork], float | None]
) -> list[CatalogNetwork]:
    """Return of each family the network with the most MACs that is within the limits, at most `MAX_FAMILIES`.

    Of more, those with the best reported accuracy. latency_of: seconds for one image; None above the limits.
    """
    found: dict[str, CatalogNetwork] = {}
    for each in sorted(networks, key=lambda each: -each.macs):
        if each.family not in found and (seconds := latency_of(each)) is not None:
            found[each.family] = replace(each, latency_s=seconds)
    return sorted(found.values(), key=lambda each: (-each.reported_accuracy, -each.macs))[:MAX_FAMILIES]
