"""The figure of features: one section for each thing that is shown, below each other."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from convatlas.draw.feature_maps import CAPTION, CELL, plot_feature_maps, size_of_maps
from convatlas.draw.regions import filter_image, gray_strip, plot_filters, show, with_regions
from convatlas.draw.style import INK, NOTE, default_settings, label, new_figure, save_figure
from convatlas.explanation.activation_maximization import MaximizedImage
from convatlas.explanation.feature_maps import StageMaps
from convatlas.explanation.figure import map_rows
from convatlas.explanation.filters import Filters, to_grays
from convatlas.explanation.receptive_field import ReceptiveField
from convatlas.explanation.top_regions import TopRegions

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDTH = 9.4
"""Width of the figure in inches."""

MAPS_TITLE = "strongest feature maps by stage: black is the smallest value of a map, white the largest"

MAX_FILTERS, MAX_MAPS = 96, 12
"""Maximum number of filters, and of feature maps of a stage, that are drawn."""

Section = tuple[float, Callable[[Any], None]]
"""Height in inches, and a function that draws into a subfigure."""


@default_settings()
def draw_features(
    title: str, view: Tensor, filters: Filters | None, stages: Sequence[StageMaps],
    receptive_field: ReceptiveField | None, top_regions: TopRegions | None, maximized: MaximizedImage | None,
    *, path: str | Path | None = None,
) -> Figure:  # fmt: skip
    """Draw what is not None: image and filters, maps by stage, receptive field, regions, and the maximized image."""
    sections = [_head(title), _view_and_filters(view, filters)]
    if stages:
        sections.append(_stages(stages))
    if receptive_field is not None:
        sections.append(_receptive_field(view, receptive_field))
    if top_regions is not None and top_regions.regions:
        sections.append(_regions(top_regions))
    if maximized is not None:
        sections.append(_maximized(maximized))
    heights = [height for height, _ in sections]
    figure = new_figure(WIDTH, sum(heights))
    areas = figure.subfigures(len(sections), 1, height_ratios=heights, squeeze=False)[:, 0]
    for area, (_, draw) in zip(areas, sections, strict=True):
        area.set_facecolor("none")
        draw(area)
    return save_figure(figure, path)


def _head(title: str) -> Section:
    def draw(area: Any) -> None:
        area.text(0.01, 0.5, label(title, 120), fontsize=11, weight="bold", color=INK, va="center")

    return 0.35, draw


def _aspect(pixels: Tensor) -> float:
    """Return width over height of an image, or of the strip of a clip's frames."""
    frames = min(6, len(pixels)) if pixels.ndim == 4 else 1
    return frames * pixels.shape[-1] / pixels.shape[-2]


def _view_and_filters(view: Tensor, filters: Filters | None) -> Section:
    """Return the view beside the filters; of clips, which are wide, above them."""
    is_clip = view.ndim == 4
    title = f"network's view of the {'video' if is_clip else 'image'}"
    if is_clip:
        heights = [WIDTH / _aspect(view) + 0.3, 1.9]
    else:
        width = min(2.3 * _aspect(view), 0.45 * WIDTH)
        heights = [width / _aspect(view) + 0.3]

    def draw(area: Any) -> None:
        if filters is None:
            areas = [area]
        elif is_clip:
            areas = list(area.subfigures(2, 1, height_ratios=heights))
        else:
            areas = list(area.subfigures(1, 2, width_ratios=(width + 0.1, WIDTH - width - 0.1)))
        share = 1.0 if is_clip or filters is not None else (width + 0.1) / WIDTH
        axes = areas[0].add_axes((0.04 * share, 0.02, 0.95 * share, 1 - 0.28 / heights[0]))
        axes.set_anchor("NW")
        show(axes, with_regions(view), title)
        if filters is not None:
            space = (WIDTH, heights[1]) if is_clip else (WIDTH - width - 0.1, heights[0])
            _plot_filters(areas[1], filters, *space)

    return sum(heights) if filters is not None else heights[0], draw


def _plot_filters(area: Any, filters: Filters, width: float, height: float) -> None:
    shown = [filter_image(to_grays(weights)) for weights in filters.weights[:MAX_FILTERS]]
    more = f", the first {MAX_FILTERS} shown" if len(filters.weights) > MAX_FILTERS else ""
    title = f"first convolution, {filters.path}: {filters.text}{more}; mid gray is a weight of 0"
    plot_filters(area, shown, title=title, width=width, height=height)


def _stages(stages: Sequence[StageMaps]) -> Section:
    rows = [row._replace(maps=row.maps[:MAX_MAPS], notes=row.notes[:MAX_MAPS]) for row in map_rows(stages)]
    width, height = size_of_maps(rows, min(CELL, (WIDTH - CAPTION) / max(len(row.maps) for row in rows)))
    heights = (0.2, height + 0.05)
    more = f"; the first {MAX_MAPS} of each stage shown" if any(len(stage.maps) > MAX_MAPS for stage in stages) else ""

    def draw(area: Any) -> None:
        head, maps = area.subfigures(2, 1, height_ratios=heights)
        head.text(0.01, 0.5, MAPS_TITLE + more, fontsize=7.5, color=NOTE, va="center")
        if width < WIDTH:
            maps, _ = maps.subfigures(1, 2, width_ratios=(width, WIDTH - width))
        plot_feature_maps(maps, rows)

    return sum(heights), draw


def _receptive_field(view: Tensor, field: ReceptiveField) -> Section:
    aspect = _aspect(view)
    is_clip = view.ndim == 4
    side = WIDTH / aspect if is_clip else min(2.5, 0.33 * WIDTH / aspect)
    height = 2 * side + 1.5 if is_clip else side + 0.45
    panels = [
        ("what the unit can depend on (outer box); its cell of the map (inner box)",
         with_regions(view, field.view_region, field.cell)),
        ("what it does depend on: square root of the gradient", with_regions(
            gray_strip(field.gradient.sqrt()), field.view_region)),
    ]  # fmt: skip
    right = WIDTH - 2 * (side * aspect + 0.35)
    notes = "\n".join(
        piece
        for line in field.lines()
        for piece in textwrap.wrap(label(line, 400), 150 if is_clip else int(15 * right))
    )

    def draw(area: Any) -> None:
        for i, (title, image) in enumerate(panels):
            if is_clip:
                place = (0.01, 1 - ((i + 1) * (side + 0.2)) / height, 0.98, side / height)
            else:
                place = (0.01 + i * (side * aspect + 0.35) / WIDTH, 0.02, side * aspect / WIDTH, side / height)
            axes = area.add_axes(place)
            axes.set_anchor("NW")
            show(axes, image, textwrap.fill(title, 150 if is_clip else 44))
        x, y = (0.01, 0.9 / height) if is_clip else (0.01 + 1 - right / WIDTH, 1 - 0.35 / height)
        area.text(x, y, notes, fontsize=7.5, color=INK, va="top", linespacing=1.35)

    return height, draw


def _regions(found: TopRegions) -> Section:
    """Return the crops in rows; the strips of clips are wide and low."""
    is_clip = found.regions[0].crop.ndim == 4
    columns = min(len(found.regions), 2 if is_clip else 9)
    rows = -(-len(found.regions) // columns)
    cell = WIDTH / columns if is_clip else min(1.6, WIDTH / columns)
    tall = cell / min(_aspect(region.crop) for region in found.regions) if is_clip else cell
    height = 0.3 + rows * (tall + 0.35)

    def draw(area: Any) -> None:
        area.text(0.01, 1 - 0.12 / height, label(found.text, 200), fontsize=7.5, color=NOTE, va="center")
        for i, region in enumerate(found.regions):
            row, column = divmod(i, columns)
            bottom = height - 0.25 - row * (tall + 0.35) - tall
            place = (column * cell / WIDTH + 0.01, bottom / height, (cell - 0.12) / WIDTH, (tall - 0.05) / height)
            axes = area.add_axes(place)
            axes.set_anchor("SW")
            note = f"{region.value:.3g}\n{label(_short(region.source), int(20 * cell))}"
            show(axes, with_regions(region.crop, region.cell), note=note)

    return height, draw


def _short(source: str) -> str:
    """Return the name of a file without folder and suffix; the number of a clip stays."""
    return re.sub(r"\.\w{2,5}(?=$|, clip)", "", Path(source).name)


def _maximized(image: MaximizedImage) -> Section:
    aspect = _aspect(image.pixels)
    is_clip = image.pixels.ndim == 4
    side = WIDTH / aspect if is_clip else 2.5

    def draw(area: Any) -> None:
        place = (0.01, 0.9 / height, 0.98, side / height) if is_clip else (0.01, 0.02, side / WIDTH, side / height)
        axes = area.add_axes(place)
        axes.set_anchor("NW")
        show(axes, with_regions(image.pixels), label(f"activation maximization: {image.target}", 100))
        lines = [piece for line in image.lines() for piece in textwrap.wrap(label(line, 400), 140 if is_clip else 90)]
        x, y = (0.01, 0.8 / height) if is_clip else (0.04 + side / WIDTH, 1 - 0.35 / height)
        area.text(x, y, "\n".join(lines), fontsize=7.5, color=INK, va="top", linespacing=1.35)

    height = side + (1.2 if is_clip else 0.4)
    return height, draw
