"""Published weights: what they are, where they are kept, and how they get into our networks.

Preprocessing, classes, licence, claimed accuracy and digest come from the records of the libraries that publish them.
"""

from __future__ import annotations

import inspect
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, cast, get_args

import safetensors.torch
import torch
from torch import Tensor

from convatlas import modelfile
from convatlas.card import Family, Variant
from convatlas.catalog import FAMILIES, Stem, adapted, grow, resolve, variant
from convatlas.download import Progress, fetch, sha256
from convatlas.errors import DataError, WeightsError, brief, nearest
from convatlas.files import atomic, cache_folder
from convatlas.joins import Network
from convatlas.keys import Dialect, rename, translate
from convatlas.preprocessing import Interpolation, Preprocessing
from convatlas.specs import Spec, diff

First = Literal["sum", "mean", "repeat"]
"""How kernels for other numbers of channels are made from those for the published ones.

sum: every channel reads the sum of the published kernels, divided by the number of channels: a grey picture gives the
outputs that its RGB copy gave. mean: every channel reads their mean. repeat: the published kernels in turn (R, G, B, R,
...), times old / new number of channels; fewer channels than were published read the sum, as above.
"""


@dataclass(frozen=True)
class Weights:
    """One published set of weights.

    network: our name. library, tag: who publishes it, and under which name. url: where it is. digest: the sha256, or
    as much of its beginning as was published; empty where nothing was. licence: empty where none is stated.
    claimed: what its publisher measured, such as {"ImageNet-1K acc@1": 80.858}. recipe: where its training is told.
    """

    network: str
    library: str
    tag: str
    url: str
    digest: str
    filename: str
    preprocessing: Preprocessing
    classes: tuple[str, ...]
    licence: str = ""
    claimed: Mapping[str, float] = field(default_factory=dict)
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


def published(network: str, library: str | None = None) -> list[Weights]:
    """Return what is published for a network of the catalogue, by all libraries installed here; their best first."""
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


def find(name: str) -> Weights:
    """Return published weights by name, "network@library:tag"; the tag DEFAULT is the library's best."""
    network, at, source = name.partition("@")
    library, colon, tag = source.partition(":")
    if not (at and colon and tag):
        raise WeightsError(f"{name!r} is no name of published weights: those are network@library:tag")
    if library not in LIBRARIES:
        raise WeightsError(f"unknown library {library!r}{nearest(library, LIBRARIES)}; known: {', '.join(LIBRARIES)}")
    known = {weights.tag: weights for weights in published(network, library)}
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
        # these classes normalise once more, inside: to mean and deviation 0.5
        mean, std = ((0.5,) * 3, (0.5,) * 3) if rescaled else (tuple(transforms.mean), tuple(transforms.std))
        preprocessing = Preprocessing(
            resize=resize[0], crop=crop[0], interpolation=interpolation, mean=mean, std=std,
            antialias=bool(getattr(transforms, "antialias", True)),
        )  # fmt: skip
        url = str(record.url)
        digest = re.search(r"-([0-9a-f]{8,})\.", url)
        claimed = {f"{data} {what}": value for data, all_ in meta["_metrics"].items() for what, value in all_.items()}
        found.append(Weights(
            network, "torchvision", record.name, url, digest[1] if digest else "", url.rsplit("/", 1)[-1],
            preprocessing, _different(meta["categories"]), meta.get("license", ""), claimed, meta.get("recipe", ""),
        ))  # fmt: skip
    return found


def rescales(peer: str) -> bool:
    """Return whether torchvision's class of this builder normalises its input once more (`transform_input`)."""
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


def pull(weights: Weights, *, progress: Progress | None = None) -> Path:
    """Fetch weights that are not at hand, check their digest, and return the file.

    This is the only place that uses the network, and only when called. Raises WeightsError if it is switched off.
    """
    at_hand = weights.file
    if at_hand is not None and sha256(at_hand).startswith(weights.digest):
        return at_hand
    try:
        path = fetch([weights.url], weights.path, weights.digest, progress=progress)
    except DataError as error:
        raise WeightsError(
            f"{error}; on a machine without a network: convatlas weights import {weights.name} FILE"
        ) from error
    _check_fit(weights, path)
    return path


def _check_fit(weights: Weights, path: Path) -> None:
    """Raise WeightsError unless the tensors of a file are those of the network, under the library's names."""
    spec, channels = variant(weights.network).spec.scaled(resolution=weights.preprocessing.size), weights.channels
    given = Checkpoint(load_tensors(path), len(weights.classes), channels, path, weights.preprocessing, weights.library)
    fitting(spec, given, grow(spec, classes=given.classes, channels=channels, device="meta").state_dict())


def import_file(weights: Weights, file: str | Path) -> Path:
    """Copy a file that was brought here by hand to where `pull` would have put it, after checking its digest."""
    file = Path(file)
    if not file.is_file():
        raise WeightsError(f"{file}: no such file")
    found = sha256(file)
    if not found.startswith(weights.digest):
        raise WeightsError(
            f"{file}: not the published file: its sha256 begins {found[:8]}, the one of {weights.name} {weights.digest}"
        )
    _check_fit(weights, file)
    try:
        weights.path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WeightsError(f"{weights.path.parent}: cannot be written: {error.strerror or error}") from error
    with file.open("rb") as source, atomic(weights.path) as target:
        shutil.copyfileobj(source, target)
    return weights.path


def load_tensors(path: str | Path) -> dict[str, Tensor]:
    """Read the tensors of a checkpoint (.safetensors, or torch's format without running any code).

    Wrappers such as {"state_dict": ...} and the prefix "module." are taken off.
    """
    path = Path(path)
    if not path.is_file():
        raise WeightsError(f"{path}: no such file")
    try:
        with path.open("rb") as file:
            plain = file.read(9)[8:] == b"{"  # safetensors: a length of 8 bytes, then JSON
        whole: Any = (
            safetensors.torch.load_file(path) if plain else torch.load(path, map_location="cpu", weights_only=True)
        )
    except Exception as error:  # a reader of foreign bytes raises whatever it stumbles over
        raise WeightsError(f"{path}: damaged, or not a checkpoint of tensors ({brief(error)})") from error
    for wrapper in ("state_dict", "model", "model_state_dict"):
        if isinstance(whole, Mapping) and isinstance(whole.get(wrapper), Mapping):
            whole = whole[wrapper]
    if not (isinstance(whole, Mapping) and whole and all(isinstance(value, Tensor) for value in whole.values())):
        raise WeightsError(f"{path}: holds no dictionary of tensors")
    prefix = "module." if all(key.startswith("module.") for key in whole) else ""
    return {key.removeprefix(prefix): tensor for key, tensor in whole.items()}


def family_of(spec: Spec) -> Family:
    """Return the family whose file defines this kind of spec."""
    for family in FAMILIES.values():
        if any(type(row.spec) is type(spec) for row in family.variants.values()):
            return family
    raise WeightsError(f"{type(spec).__name__} belongs to no family")


def fitting(spec: Spec, given: Checkpoint, expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of a checkpoint under our names: by its library's rules, or by the first that fit exactly.

    Raises WeightsError that tells for each of them what does not fit.
    """
    failures: dict[str, list[str]] = {}
    for library, rules in _dialects(spec).items():
        if given.library in (None, library):
            try:
                return translate(given.tensors, rules(spec), expected)
            except WeightsError as error:
                failures.setdefault(str(error), []).append(library)
    told = "; of ".join(f"{', '.join(libraries)}: {error}" for error, libraries in failures.items())
    raise WeightsError(f"{given.where}: does not fit this {type(spec).__name__}; under the names of {told}")


def build(
    network: str | Spec,
    *,
    classes: int | None = None,
    channels: int | None = None,
    stem: Stem = "own",
    resolution: int | None = None,
    weights: str | Path | None = None,
    first: First = "repeat",
    device: str | torch.device = "cpu",
) -> Network:
    """Grow a network from its name or its spec, with fresh weights drawn from torch's generator, or with given ones.

    classes: outputs; the number of the weights, or else the paper's, where left out.
    channels: channels of the input image, likewise.
    stem: "small" for images of up to 64 pixels, where the network has such a stem.
    resolution: height and width of the input in pixels, instead of the network's own.
    weights: "torchvision:TAG" or "timm:TAG", fetched if they are not at hand; or a file: a sealed model file, or a
        checkpoint of a library or of ours.
    first: with other channels than those of the weights, how the first kernels are made from theirs.
    Other `classes` than those of the weights get a fresh head; everything else must fit to the last tensor.
    Returns a Network: (batch, channels, resolution, resolution) in, (batch, classes) out.
    """
    if weights is None:
        return grow(network, classes=classes, channels=channels, stem=stem, resolution=resolution, device=device)
    if first not in get_args(First):
        raise WeightsError(f"build: first is one of {', '.join(get_args(First))}, not {first!r}")
    name, row = resolve(network)
    spec = adapted(row.spec, stem=stem, resolution=resolution)
    given = opened(weights, spec, name=name, row=row)
    grown = grow(
        spec, classes=given.classes if classes is None else classes,
        channels=given.channels if channels is None else channels, device=device,
    )  # fmt: skip
    fill(grown, spec, given, first=first)
    return grown


@dataclass(frozen=True)
class Checkpoint:
    """The tensors of a network of so many classes and channels; `library` is whose names they carry, if that is known.

    where: what to call it in an error. preprocessing: what its pictures went through. names: of its classes, if known.
    """

    tensors: Mapping[str, Tensor]
    classes: int
    channels: int
    where: object
    preprocessing: Preprocessing
    library: str | None = None
    names: tuple[str, ...] = ()


def opened(weights: str | Path, spec: Spec, *, name: str, row: Variant) -> Checkpoint:
    """Return what `weights` names: "library:tag", a sealed model file, or a checkpoint file."""
    source, path = str(weights), Path(weights)
    library, colon, _ = source.partition(":")
    if colon and library in LIBRARIES:
        record = find(f"{name.removesuffix('-custom')}@{source}")
        tensors = load_tensors(pull(record))
        steps, names = record.preprocessing, record.classes
        return Checkpoint(tensors, len(names), record.channels, record.name, steps, library, names)
    if colon and not path.exists() and len(library) > 1:
        raise WeightsError(f"unknown library {library!r}{nearest(library, LIBRARIES)}, and no such file: {source}")
    if modelfile.is_model_file(path):
        sealed, header = modelfile.load(path)
        if header.spec.scaled(resolution=spec.resolution) != spec:
            cells = diff(spec, header.spec).items()
            told = ", ".join(f"{cell} {theirs} instead of {ours}" for cell, (ours, theirs) in cells)
            raise WeightsError(f"{path}: holds another network than {name}: {told}")
        steps, names = header.preprocessing, header.classes
        return Checkpoint(sealed.state_dict(), len(names), steps.channels, path, steps, "convatlas", names)
    tensors = load_tensors(path)
    for dialect, rules in _dialects(spec).items():
        named = {name: tensor for key, tensor in tensors.items() if (name := rename(key, rules(spec)))}
        if sizes := _sizes(spec, named):
            return Checkpoint(tensors, *sizes, path, row.preprocessing, dialect)
    # which will not fit, and say why
    return Checkpoint(tensors, row.classes, row.preprocessing.channels, path, row.preprocessing)


def _dialects(spec: Spec) -> dict[str, Dialect]:
    """Return the key rules that a checkpoint may need: none, if it is ours, or those of a library."""
    return {"convatlas": lambda _: (), **family_of(spec).dialects}


def _sizes(spec: Spec, named: Mapping[str, Tensor]) -> tuple[int, int] | None:
    """Return the classes and channels of a checkpoint under our names; None if it has not the names of this network.

    They are read off the first tensor whose shape depends on them.
    """
    base, more_classes, more_channels = (
        grow(spec, classes=classes, channels=channels, device="meta").state_dict()
        for classes, channels in ((2, 1), (3, 1), (2, 2))
    )
    counted = {key for key in base if key.endswith(".num_batches_tracked")}
    if base.keys() - counted != named.keys() - counted:
        return None

    def read(other: Mapping[str, Tensor], unit: int) -> int:
        key = next(key for key in base if base[key].shape != other[key].shape)
        axis = next(i for i, (a, b) in enumerate(zip(base[key].shape, other[key].shape, strict=True)) if a != b)
        held = named[key].shape[axis] if axis < named[key].ndim else 0
        return max(1, int(held * unit // base[key].shape[axis]))

    return read(more_classes, 2), read(more_channels, 1)


def fill(network: Network, spec: Spec, given: Checkpoint, *, first: First = "repeat", fresh_head: bool = False) -> None:
    """Put the tensors of a checkpoint into a network of the same spec.

    What belongs to other classes stays as it was drawn, and so does what paints images of other channels (CapsNet's
    decoder). `fresh_head` says that the classes are others even if they are as many. Kernels that read other channels
    are made by the rule `first`.
    Raises WeightsError if anything else does not fit, to the last tensor.
    """
    expected, by_class, by_channel = (
        grow(spec, classes=given.classes + classes, channels=given.channels + channels, device="meta").state_dict()
        for classes, channels in ((0, 0), (1, 0), (0, 1))
    )
    state = network.state_dict()
    channels = network.input_shape[0]
    for key, tensor in fitting(spec, given, expected).items():
        wanted = state[key].shape
        if wanted == tensor.shape:
            if not (fresh_head and by_class[key].shape != tensor.shape):
                state[key] = tensor
        elif by_channel[key].shape != tensor.shape and tensor.ndim >= 4 and tensor.shape[1] == given.channels:
            state[key] = adapted_kernel(tensor, channels, first)
        elif by_class[key].shape == tensor.shape and not key.startswith("auxiliary."):
            raise WeightsError(
                f"{given.where}: {key} cannot be made for {channels} channels from {given.channels}; "
                "give pictures of as many channels as the weights read"
            )
    network.load_state_dict(state)


def adapted_kernel(kernel: Tensor, channels: int, first: First) -> Tensor:
    """Return kernels (out, channels, ...) made from kernels (out, old channels, ...) by the rule `first`."""
    old = kernel.shape[1]
    if first == "repeat" and channels >= old:
        return kernel.index_select(1, torch.arange(channels) % old) * (old / channels)
    mean = kernel.mean(1, keepdim=True)
    each = mean if first == "mean" else mean * (old / channels)
    return each.expand(-1, channels, *kernel.shape[2:]).clone()


def every() -> Iterator[Weights]:
    """Yield all published weights of the whole catalogue."""
    for family in FAMILIES.values():
        for name, row in family.variants.items():
            if row.peers:
                yield from published(name)
