"""Published weights: what there is."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import cast

import torch

from convatlas.core.preprocessing import Interpolation, Preprocessing
from convatlas.errors import WeightsError, nearest
from convatlas.models.catalog import FAMILIES, variant
from convatlas.system.cache import cache_folder


@dataclass(frozen=True)
class Weights:
    """One published set of weights.

    network: our name. library, tag: who publishes it, and under which name. url: where it is. digest: the sha256, or
    as much of its beginning as was published; empty where nothing was. license: empty where none is stated.
    reported: what its publisher measured, such as {"ImageNet-1K acc@1": 80.858}. recipe: where its training is told.
    """

    network: str
    library: str
    tag: str
    url: str
    digest: str
    filename: str
    preprocessing: Preprocessing
    classes: tuple[str, ...]
    license: str = ""
    reported_metrics: Mapping[str, float] = field(default_factory=dict)
    recipe: str = ""

    @property
    def name(self) -> str:
        """What it is called here, such as "resnet50@torchvision:IMAGENET1K_V2"."""
        return f"{self.network}@{self.library}:{self.tag}"

    @property
    def channels(self) -> int:
        return self.preprocessing.channels

    @property
    def path(self) -> Path:
        """Where it is kept once it was fetched or imported."""
        return cache_folder() / "weights" / self.library / self.filename

    @property
    def file(self) -> Path | None:
        """The file where it is at hand: in the cache, or where torchvision itself keeps it; else None."""
        elsewhere = Path(torch.hub.get_dir()) / "checkpoints" / self.filename
        return next((path for path in (self.path, elsewhere) if path.is_file()), None)


LIBRARIES = ("torchvision", "timm")


def list_weights(network: str, library: str | None = None) -> list[Weights]:
    """Return what is published for a network of the catalog, by all libraries installed here; their best first."""
    peers = variant(network).peers
    if library is not None and library not in peers:
        raise WeightsError(f"{network}: {library} has no such network; {_offer(peers)}")
    found: list[Weights] = []
    for name, peer in peers.items():
        if library is None or library == name:
            found += _RECORDS[name](network, peer)
    return found


def _offer(peers: Mapping[str, str]) -> str:
    return f"published by {', '.join(peers)}" if peers else "no library publishes weights for it"


def find_weights(name: str) -> Weights:
    """Return published weights by name, "network@library:tag"; the tag DEFAULT is the library's best."""
    network, at, source = name.partition("@")
    library, colon, tag = source.partition(":")
    if not (at and colon and tag):
        raise WeightsError(f"{name!r} is no name of published weights: those are network@library:tag")
    if library not in LIBRARIES:
        raise WeightsError(f"unknown library {library!r}{nearest(library, LIBRARIES)}; known: {', '.join(LIBRARIES)}")
    known = {weights.tag: weights for weights in list_weights(network, library)}
    if tag == "DEFAULT" and known:
        return next(iter(known.values()))
    if not known and library == "timm" and find_spec("timm") is None:
        raise WeightsError(f"{name}: timm is not installed; pip install 'convatlas[hub]'")
    if tag not in known:
        told = ", ".join(known)
        raise WeightsError(f"{network}: {library} has no weights {tag!r}{nearest(tag, known)}; known: {told}")
    return known[tag]


@cache
def _torchvision(network: str, peer: str) -> list[Weights]:
    """Read torchvision's records (torchvision.models.WeightsEnum)."""
    import torchvision

    records = torchvision.models.get_model_weights(peer)
    rescaled = rescales(peer)
    found = []
    for record in sorted(records, key=lambda record: record is not records.DEFAULT):
        transforms, meta = record.transforms(), record.meta
        if not meta["categories"]:
            continue  # without class names there is nothing to say
        resize, crop = transforms.resize_size, transforms.crop_size
        interpolation = cast(Interpolation, transforms.interpolation.value)
        # these classes normalize once more, inside: to mean and deviation 0.5
        mean, std = ((0.5,) * 3, (0.5,) * 3) if rescaled else (tuple(transforms.mean), tuple(transforms.std))
        preprocessing = Preprocessing(
            resize=resize[0], crop=crop[0], interpolation=interpolation, mean=mean, std=std,
            antialias=bool(getattr(transforms, "antialias", True)),
        )  # fmt: skip
        url = str(record.url)
        digest = re.search(r"-([0-9a-f]{8,})\.", url)
        reported_metrics = {
            f"{data} {what}": value for data, all_ in meta["_metrics"].items() for what, value in all_.items()
        }
        found.append(Weights(
            network, "torchvision", record.name, url, digest[1] if digest else "", url.rsplit("/", 1)[-1],
            preprocessing, _different(meta["categories"]), meta.get("license", ""), reported_metrics, meta.get("recipe", ""),
        ))  # fmt: skip
    return found


def rescales(peer: str) -> bool:
    """Return whether torchvision's class of this builder normalizes its input once more (`transform_input`)."""
    import torchvision

    module = inspect.getmodule(torchvision.models.get_model_builder(peer))
    classes = [value for _, value in inspect.getmembers(module, inspect.isclass)]
    own = (value for value in classes if module is not None and value.__module__ == module.__name__)
    return any("transform_input" in inspect.signature(value).parameters for value in own)


def _different(names: list[str]) -> tuple[str, ...]:
    """Return the class names with repeated ones numbered: ImageNet has two cranes and two maillots."""
    seen: dict[str, int] = {}
    told = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        told.append(name if seen[name] == 1 else f"{name} ({seen[name]})")
    return tuple(told)


@cache
def _timm(network: str, peer: str) -> list[Weights]:
    """Read timm's configurations; those with other classes than ImageNet's 1,000 are left out. Empty without timm."""
    try:
        import timm
        from timm.models import get_pretrained_cfg
    except ImportError:
        return []
    from torchvision.models._meta import _IMAGENET_CATEGORIES

    found = []
    default = get_pretrained_cfg(peer)
    tags = [full.partition(".")[2] for full in timm.list_pretrained(f"{peer}.*")]
    for tag in sorted(tags, key=lambda tag: default is None or tag != default.tag):
        full = f"{peer}.{tag}"
        config = get_pretrained_cfg(full)
        if config is None or config.num_classes != 1000 or config.crop_mode != "center":
            continue
        size = config.input_size[-1]
        hub = f"{config.hf_hub_id}{full}" if str(config.hf_hub_id).endswith("/") else config.hf_hub_id
        # a file that is not of timm's own making carries the names of whoever made it; the hub has it under timm's
        own = config.url if "pytorch-image-models" in (config.url or "") or not config.hf_hub_id else ""
        url = own or f"https://huggingface.co/{hub}/resolve/main/model.safetensors"
        digest = re.search(r"-([0-9a-f]{8,})\.", own)
        preprocessing = Preprocessing(
            resize=int(size / config.crop_pct), crop=size, interpolation=config.interpolation,
            mean=tuple(config.mean), std=tuple(config.std),
        )  # fmt: skip
        found.append(Weights(
            network, "timm", tag, url, digest[1] if digest else "",
            url.rsplit("/", 1)[-1] if own else f"{full}.safetensors", preprocessing,
            _different(list(_IMAGENET_CATEGORIES)), config.license or "",
        ))  # fmt: skip
    return found


_RECORDS = {"torchvision": _torchvision, "timm": _timm}


def all_weights() -> Iterator[Weights]:
    """Yield all published weights of the whole catalog."""
    for family in FAMILIES.values():
        for name, row in family.variants.items():
            if row.peers:
                yield from list_weights(name)
