"""What is known about a network besides its table: history, category, reported metrics, defaults, upstream names."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from convatlas.core.preprocessing import Interpolation, Preprocessing
from convatlas.core.spec import Spec
from convatlas.errors import SpecError, nearest
from convatlas.models.keys import KeyMapping, Rules, spec_types

Category = Literal[
    "spatial exploitation", "depth", "multi-path", "width", "feature-map exploitation", "attention",
    "channel boosting", "efficiency", "search", "routing", "time", "detection", "own",
]  # fmt: skip
"""The idea a network is known for: the categories of Khan et al. 2020 (arXiv 1901.06032), and six more.

They are efficiency, (architecture) search, routing (capsules), time (the third axis of video networks), detection, and
own for networks that nobody published.
"""

CATEGORIES: tuple[Category, ...] = get_args(Category)

Library = Literal["torchvision", "timm"]
"""A library that publishes weights."""

LIBRARIES: tuple[Library, ...] = get_args(Library)

IMAGENET = "ImageNet-1K"

AUTHORS = "authors' repository"
"""The source of metrics that are not in the paper."""


@dataclass(frozen=True)
class ReportedMetrics:
    """Accuracy that others reported; never measured here.

    top1, top5: accuracy in percent on the validation or test images of `dataset`; None if not reported.
    box_ap, mask_ap, keypoint_ap: of detectors, COCO's average precision at IoU 0.50 to 0.95, in percent.
    source: who reported it, such as "paper" or "torchvision IMAGENET1K_V1".
    protocol: how the network was tested, such as "10 crops"; empty if one central crop of the default resolution.
    """

    top1: float | None = None
    top5: float | None = None
    dataset: str = IMAGENET
    source: str = "paper"
    protocol: str = ""
    box_ap: float | None = None
    mask_ap: float | None = None
    keypoint_ap: float | None = None

    def __post_init__(self) -> None:
        if not self.percentages:
            raise SpecError("ReportedMetrics: top1, top5 or an AP must be given")
        for name, value in self.percentages.items():
            if not 0 <= value <= 100:
                raise SpecError(f"ReportedMetrics: {name} must be a percentage in [0, 100], got {value}")

    @property
    def percentages(self) -> dict[str, float]:
        """Display name -> percentage of the metrics that are known."""
        values = {
            "top-1": self.top1, "top-5": self.top5, "box AP": self.box_ap, "mask AP": self.mask_ap,
            "keypoint AP": self.keypoint_ap,
        }  # fmt: skip
        return {name: value for name, value in values.items() if value is not None}

    @property
    def conditions(self) -> str:
        """Data set, source and protocol, such as "ImageNet-1K, paper, 10 crops"."""
        return ", ".join(filter(None, (self.dataset, self.source, self.protocol)))


def error_rate(percent: float, dataset: str, protocol: str = "") -> ReportedMetrics:
    """Return the metrics of a paper that prints the error rate, in percent."""
    return ReportedMetrics(round(100 - percent, 2), dataset=dataset, protocol=protocol)


@dataclass(frozen=True)
class Card:
    """The history of a network.

    categories: the ideas it is known for, the most important one first.
    innovation: what was new, in one sentence.
    reported: accuracy reported by the paper or by a library; None if there is none for this network.
    note: where the paper leaves a choice, and what was chosen here; other facts about the published network.
    family_title: the common name of this network and its variants; `title` by default.
    """

    title: str
    year: int
    paper: str
    categories: tuple[Category, ...]
    innovation: str
    reported: ReportedMetrics | None = None
    note: str = ""
    family_title: str = ""

    def __post_init__(self) -> None:
        if not self.categories or not set(self.categories) <= set(CATEGORIES):
            raise SpecError(
                f"Card {self.title}: categories must be among {', '.join(CATEGORIES)}, got {self.categories}"
            )

    @property
    def family(self) -> str:
        """The common name of this network and its variants."""
        return self.family_title or self.title

    def of(self, title: str, **changes: Any) -> Card:
        """Return the card of one variant of the family; another paper starts a family of its own.

        Reported metrics belong to one network: the variant has none unless they are given.
        """
        defaults = {"family_title": title if "paper" in changes else self.family, "reported": None}
        return dataclasses.replace(self, title=title, **(defaults | changes))


@dataclass(frozen=True, repr=False)
class Variant:
    """One row of the catalog: a spec, its card, and the defaults it is used with.

    upstream: the network's name in other libraries, such as {"timm": "seresnet50"}; empty if none has it.
    relatives: networks of timm with the same tensors, whose function differs in some cells of the spec: name -> those
        cells, such as {"tf_efficientnet_b0": {"padding": "same", "eps": 1e-3}}.
    transforms_input: torchvision's module normalizes its input once more (`transform_input`), so that its weights
        expect values in [-1, 1] and not the mean and deviation that its records state.
    """

    spec: Spec
    card: Card
    preprocessing: Preprocessing
    classes: int = 1000
    recipe: str = "default"
    upstream: Mapping[Library, str] = field(default_factory=dict)
    relatives: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    transforms_input: bool = False

    def __repr__(self) -> str:
        number = "1 class" if self.classes == 1 else f"{self.classes:,} classes"
        return f"<Variant {self.card.title} ({self.card.year}), {number}: {self.spec!r}>"

    @property
    def sources(self) -> list[tuple[Library, str]]:
        """(library, name there) of every network whose weights fit; first those with the function of this row."""
        relatives: list[tuple[Library, str]] = [("timm", name) for name in self.relatives]
        return [*self.upstream.items(), *relatives]

    def __post_init__(self) -> None:
        for library in self.upstream:
            if library not in LIBRARIES:
                raise SpecError(
                    f"{self.card.title}: upstream must name one of {', '.join(LIBRARIES)}, got "
                    f"{library!r}{nearest(library, LIBRARIES)}"
                )


@dataclass(frozen=True)
class Family:
    """The variants of one file by name, and the key rules of each library for their checkpoints."""

    variants: Mapping[str, Variant]
    key_mappings: Mapping[str, KeyMapping] = field(default_factory=dict)

    def rules(self, spec: Spec) -> dict[str, Rules]:
        """Return library -> key rules, of the libraries that have rules for this type of spec."""
        return {
            library: mapping(spec)
            for library, mapping in self.key_mappings.items()
            if isinstance(spec, spec_types(mapping))
        }


def torchvision_and_timm(name: str) -> dict[Library, str]:
    """Return the upstream names of a network that both libraries call `name`."""
    return {"torchvision": name, "timm": name}


IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def imagenet(
    spec: Spec,
    card: Card,
    *,
    upstream: Mapping[Library, str] | None = None,
    relatives: Mapping[str, Mapping[str, Any]] | None = None,
    crop_share: float = 0.875,
    scaling: Literal["mean and std", "-1 to 1"] = "mean and std",
    interpolation: Interpolation = "bilinear",
    transforms_input: bool = False,
) -> Variant:
    """Return a row for RGB images and ImageNet's 1,000 classes.

    crop_share: side of the central crop divided by the short side of the resized image.
    scaling: normalization by ImageNet's mean and standard deviation, or to [-1, 1] as in Google's networks.
    upstream, relatives, transforms_input: see `Variant`.
    """
    mean, std = (IMAGENET_MEAN, IMAGENET_STD) if scaling == "mean and std" else ((0.5,) * 3, (0.5,) * 3)
    crop = spec.resolution
    resize = max(crop, round(crop / crop_share))
    preprocessing = Preprocessing(resize=resize, crop=crop, interpolation=interpolation, mean=mean, std=std)
    return Variant(
        spec, card, preprocessing, upstream=upstream or {}, relatives=relatives or {}, transforms_input=transforms_input
    )


def cifar10(spec: Spec, card: Card) -> Variant:
    """Return a row for the 32-pixel RGB images and ten classes of CIFAR-10, normalized by its mean and deviation."""
    mean, std = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
    return Variant(spec, card, Preprocessing(resize=32, crop=32, mean=mean, std=std), classes=10)
