"""What a network computes inside: filters, feature maps, receptive field, exciting regions, a maximized image."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from convatlas.draw.style import encode
from convatlas.explanation.activation_maximization import MaximizedImage
from convatlas.explanation.feature_figure import draw_features
from convatlas.explanation.feature_maps import StageMaps
from convatlas.explanation.filters import Filters
from convatlas.explanation.receptive_field import ReceptiveField
from convatlas.explanation.top_regions import TopRegions

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, repr=False)
class FeatureView:
    """The features of one image, and of one channel of a layer. Prints as text; notebooks show the figure.

    source: the image. model: the name of the model. view: ([frames,] channels, h, w), from 0 to 255: what the network
    reads. filters: of the first convolution; None without convolutions. stages: the strongest feature maps of the stem
    and of each stage. receptive_field: of a unit of the channel; None for a network without maps. top_regions: of a
    data set, if one was given. maximized: if it was asked for. unreadable: errors of images of the data set.
    """

    source: str
    model: str
    view: Tensor
    filters: Filters | None
    stages: tuple[StageMaps, ...]
    receptive_field: ReceptiveField | None
    top_regions: TopRegions | None = None
    maximized: MaximizedImage | None = None
    unreadable: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        """The file and the model in a few words."""
        return f"{Path(self.source).name}, by {self.model}"

    def lines(self) -> list[str]:
        """Return the features in words, one line each."""
        lines = [self.title]
        if self.filters is not None:
            lines.append(f"first convolution {self.filters.path}: {self.filters.text}")
        if self.receptive_field is not None:
            lines += self.receptive_field.lines()
        if self.top_regions is not None:
            lines.append(self.top_regions.text)
        if self.maximized is not None:
            lines += self.maximized.lines()
        return lines

    def text(self) -> str:
        return "\n".join(self.lines())

    def figure(self, path: str | Path | None = None) -> Figure:
        """Return everything as one figure. path: also write it, as .svg, .png or .pdf.

        Raises InputError for another suffix.
        """
        return draw_features(
            self.title, self.view, self.filters, self.stages, self.receptive_field, self.top_regions, self.maximized,
            path=path,
        )  # fmt: skip

    def to_plain(self) -> dict[str, Any]:
        """Return the features as plain data; images and maps are attributes only."""
        stages = [
            {
                "layer": stage.path, "shape": [stage.count, *stage.maps.shape[1:]], "channels": list(stage.channels),
                "strengths": list(stage.strengths),
            }
            for stage in self.stages
        ]  # fmt: skip
        return {
            "source": self.source, "model": self.model, "filters": _plain(self.filters), "stages": stages,
            "receptive_field": _plain(self.receptive_field), "top_regions": _plain(self.top_regions),
            "maximized": _plain(self.maximized), "unreadable": list(self.unreadable),
        }  # fmt: skip

    def __repr__(self) -> str:
        return self.text()

    def _repr_png_(self) -> bytes:
        return encode(self.figure())


def _plain(part: Filters | ReceptiveField | TopRegions | MaximizedImage | None) -> dict[str, Any] | None:
    return None if part is None else part.to_plain()
