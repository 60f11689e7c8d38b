"""Search spaces around published networks: specs with choices in their cells, which read like the papers' tables.

The networks that a docstring names are points of the space at `width=1`. width: factor on all channels. small: with the
stem for images of up to 64 pixels, and with a choice of where the map is halved, or fewer stages.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from convatlas.core.choice import Choice, Template, choose
from convatlas.core.spec import Spec
from convatlas.errors import SearchError, nearest
from convatlas.models.catalog import SPEC_TYPES
from convatlas.models.families.densenet import DenseNet
from convatlas.models.families.efficientnet import EfficientNet, MBConvRow
from convatlas.models.families.mnasnet import MnasNet, MnasNetRow
from convatlas.models.families.mobilenet import BottleneckRow, MobileNetV2
from convatlas.models.families.mobilenet_v3 import BneckRow, MobileNetV3
from convatlas.models.families.regnet import RegNet
from convatlas.models.families.resnet import ResNet
from convatlas.search.space import SpecSpace
from convatlas.system.files import read_yaml


def mnasnet(*, width: float = 1.0, small: bool = False) -> Any:
    """MnasNet-A1 and -B1 (Tan et al. 2018, figure 7): kernel, expansion, channels, layers and gate of each row."""
    w, down = _channels(width), _halving(small)
    kernel, expand, gate = choose(3, 5), choose(3, 6), choose(0.0, 0.25)
    return MnasNet((
        MnasNetRow(3, 1, w(8, 16), 1),
        MnasNetRow(kernel, expand, w(16, 24, 32), choose(1, 2, 3), down(2), gate),
        MnasNetRow(kernel, expand, w(32, 40, 48), choose(1, 2, 3), 2, gate),
        MnasNetRow(kernel, expand, w(64, 80, 96), choose(1, 2, 3, 4), 2, gate),
        MnasNetRow(kernel, expand, w(80, 96, 112), choose(1, 2, 3), 1, gate),
        MnasNetRow(kernel, expand, w(128, 160, 192), choose(1, 2, 3, 4), down(2), gate),
        MnasNetRow(3, expand, w(192, 256, 320), 1),
    ), stem=w(16, 32), head=w(320, 640, 1280), small_stem=small, resolution=_resolution(small))  # fmt: skip


def efficientnet(*, width: float = 1.0, small: bool = False, fused: Any = False) -> Any:
    """EfficientNet-B0 (Tan and Le 2019, table 1), without stochastic depth, and with or without gates."""
    w, down = _channels(width), _halving(small)
    kernel, expand = choose(3, 5), choose(3, 4, 6)
    return EfficientNet((
        MBConvRow(1, 3, w(8, 16), 1),
        MBConvRow(expand, kernel, w(16, 24, 32), choose(1, 2, 3), down(2), fused),
        MBConvRow(expand, kernel, w(32, 40, 48), choose(1, 2, 3), 2, fused),
        MBConvRow(expand, kernel, w(64, 80, 96), choose(1, 2, 3, 4), 2),
        MBConvRow(expand, kernel, w(80, 96, 112), choose(1, 2, 3)),
        MBConvRow(expand, kernel, w(128, 160, 192), choose(1, 2, 3, 4), down(2)),
        MBConvRow(expand, 3, w(192, 256, 320), 1),
    ), stem=w(16, 32), head=w(320, 640, 1280), squeeze=choose(True, False), drop_path=0.0,
        small_stem=small, resolution=_resolution(small))  # fmt: skip


def mixed(*, width: float = 1.0, small: bool = False) -> Any:
    """EfficientNet-B0 and networks as EfficientNetV2: the early rows are MBConv or FusedMBConv."""
    return efficientnet(width=width, small=small, fused=choose(True, False))


def mobilenet_v2(*, width: float = 1.0, small: bool = False) -> Any:
    """MobileNet v2 (Sandler et al. 2018, table 2)."""
    w, down = _channels(width), _halving(small)
    expand = choose(3, 6)
    return MobileNetV2(rows=(
        BottleneckRow(1, w(8, 16), 1, 1),
        BottleneckRow(expand, w(16, 24, 32), choose(1, 2, 3), down(2)),
        BottleneckRow(expand, w(24, 32, 40), choose(1, 2, 3), 2),
        BottleneckRow(expand, w(48, 64, 80), choose(2, 3, 4), 2),
        BottleneckRow(expand, w(80, 96, 112), choose(1, 2, 3), 1),
        BottleneckRow(expand, w(128, 160, 192), choose(1, 2, 3), down(2)),
        BottleneckRow(expand, w(192, 256, 320), 1, 1),
    ), stem=w(16, 32), head=w(320, 640, 1280), small_stem=small, resolution=_resolution(small))  # fmt: skip


def mobilenet_v3(*, width: float = 1.0, small: bool = False) -> Any:
    """MobileNet v3 large (Howard et al. 2019, table 1)."""
    w, down = _channels(width), _halving(small)

    def row(kernel: int, expand: int, outputs: int, squeeze: bool, act: Any, stride: Any = 1) -> Any:
        other = 8 - kernel  # 5 for 3, and 3 for 5
        return BneckRow(
            choose(kernel, other), w(expand, expand // 2), w(outputs), choose(squeeze, not squeeze), act, stride
        )

    return MobileNetV3((
        (BneckRow(3, w(16), w(16), False, "RE"),),
        (row(3, 64, 24, False, "RE", down(2)), row(3, 72, 24, False, "RE")),
        (row(5, 72, 40, True, "RE", 2), row(5, 120, 40, True, "RE"), row(5, 120, 40, True, "RE")),
        (row(3, 240, 80, False, "HS", 2), row(3, 200, 80, False, "HS"), row(3, 184, 80, False, "HS"),
         row(3, 184, 80, False, "HS")),
        (row(3, 480, 112, True, "HS"), row(3, 672, 112, True, "HS")),
        (row(5, 672, 160, True, "HS", down(2)), row(5, 960, 160, True, "HS"), row(5, 960, 160, True, "HS")),
    ), head=(w(480, 960), w(640, 1280)), stem=w(16), small_stem=small, resolution=_resolution(small))  # fmt: skip


def residual(*, width: float = 1.0, small: bool = False) -> Any:
    """RegNetX-400MF and networks with gates, RegNetY (Radosavovic et al. 2020): X blocks with groups, as in ResNeXt."""
    w = _channels(width)
    return RegNet(
        (w(24, 32, 48), w(48, 64, 96), w(104, 160, 208), w(208, 384, 440)),
        (choose(1, 2), choose(1, 2, 3, 4), choose(2, 4, 7, 10), choose(2, 4, 8, 12)),
        group=choose(8, 16, 24), squeeze=choose(0.0, 0.25), stem=w(16, 32),
        small_stem=small, resolution=_resolution(small),
    )  # fmt: skip


def resnet(*, width: float = 1.0, small: bool = False) -> Any:
    """ResNet-18, -34 and -50 (He et al. 2015, table 1), with and without gates.

    small: ResNet-20 and -32 (section 4.2) at `width=0.25`, and wide ones (Zagoruyko and Komodakis 2016).
    """
    w = _channels(width)
    if small:
        depth = (1, 2, 3, 5)
        return ResNet(
            "basic", (choose(*depth), choose(*depth), choose(*depth)),
            (w(32, 64, 96), w(64, 128, 192, 256), w(128, 256, 384, 512)), stem=w(32, 64), squeeze=choose(0, 16),
            shortcut=choose("project", "pad"), small_stem=True, resolution=_resolution(small),
        )  # fmt: skip
    return ResNet(
        choose("basic", "bottleneck"), (choose(1, 2, 3), choose(1, 2, 4), choose(1, 2, 4, 6), choose(1, 2, 3)),
        (w(32, 48, 64), w(64, 96, 128), w(128, 192, 256), w(256, 384, 512)), stem=w(32, 64),
        squeeze=choose(0, 16), small_stem=small, resolution=_resolution(small),
    )  # fmt: skip


def densenet(*, width: float = 1.0, small: bool = False) -> Any:
    """DenseNet-121 (Huang et al. 2016, table 1)."""
    w = _channels(width)
    return DenseNet(
        (choose(2, 4, 6), choose(4, 8, 12), choose(8, 16, 24), choose(4, 8, 16)), growth=w(16, 24, 32),
        stem=w(32, 64), bottleneck=choose(2, 4), compression=choose(0.5, 1.0),
        small_stem=small, resolution=_resolution(small),
    )  # fmt: skip


SPACES: dict[str, Callable[..., Any]] = {
    "mnasnet": mnasnet, "efficientnet": efficientnet, "mixed": mixed, "mobilenet_v2": mobilenet_v2,
    "mobilenet_v3": mobilenet_v3, "residual": residual, "resnet": resnet, "densenet": densenet,
}  # fmt: skip
"""Every space by name."""

DEFAULT_SPACE = "resnet"
"""The space of a search without one: its networks learn much in little time on CPUs."""


def named_space(name: str, *, width: float = 1.0, small: bool = False) -> Any:
    """Return a space by name; raises SearchError that suggests the nearest name."""
    if name not in SPACES:
        raise SearchError(f"space: no space {name!r}{nearest(name, SPACES)}; there are {', '.join(SPACES)}")
    return SPACES[name](width=width, small=small)


def _channels(factor: float) -> Callable[..., Any]:
    """Return the function from numbers of channels to the choice of the scaled ones; a single one is no choice."""

    def widths(*channels: int) -> Any:
        rounded = channels if factor == 1 else tuple(Spec.round_width(factor * each) for each in channels)
        options = tuple(dict.fromkeys(rounded))
        return options[0] if len(options) == 1 else choose(*options)

    return widths


def _halving(small: bool) -> Callable[[int], Any]:
    """Return the function from a stride to itself, or for small images to a choice of it and 1."""
    return lambda stride: choose(stride, 1) if small else stride


def _resolution(small: bool) -> int:
    return 32 if small else 224


def space_at(space: str | Template | Any, width: float, small: bool, resolution: int) -> SpecSpace:
    """Return a named space at a width, or the given one, at a resolution in pixels."""
    template = given_space(space)
    if template is None:
        template = named_space(str(space or DEFAULT_SPACE), width=width, small=small)
    elif isinstance(template.values.get("resolution"), Choice):
        return SpecSpace(template)
    return SpecSpace(template.replaced({"resolution": resolution}))


def stated_resolution(space: str | Template | Any) -> int | None:
    """Return the resolution that a space of the user states; None for a named one, and for a choice of resolutions."""
    template = given_space(space)
    resolution = None if template is None else template.values.get("resolution")
    return resolution if isinstance(resolution, int) else None


def given_space(space: str | Template | Any) -> Template | None:
    """Return the space of a file, or the template itself; None for a named space. Raises SearchError."""
    if isinstance(space, str) and (not space or space in SPACES or not Path(space).suffix):
        return None
    template = read_space(Path(space)) if isinstance(space, str) else space
    if not isinstance(template, Template):
        raise SearchError(f"space: must be a name or a spec with choices, got {space!r}")
    return template


def read_space(path: Path) -> Template:
    """Read a space from a YAML or JSON file: a spec with {choose: [...]} in its cells; raises SearchError."""
    plain = read_yaml(path, SearchError)
    kind = plain.get("type") if isinstance(plain, Mapping) else None
    if not isinstance(kind, str) or kind not in SPEC_TYPES:
        raise SearchError(f"{path}: type must be the name of a spec, such as ResNet, got {kind!r}")
    template: Any = SPEC_TYPES[kind].from_plain(plain, where=str(path), known=SPEC_TYPES)
    if not isinstance(template, Template):
        raise SearchError(f"{path}: has no choices; write {{choose: [3, 5]}} instead of a value")
    return template
