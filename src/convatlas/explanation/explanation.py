"""The explanation of one prediction: a heat map, and how far it can be trusted."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from convatlas.draw.style import encode
from convatlas.errors import DataError, printable
from convatlas.explanation.control_maps import pool_map
from convatlas.explanation.faithfulness import Faithfulness
from convatlas.explanation.feature_maps import StageMaps
from convatlas.explanation.figure import Parts, draw_explanation
from convatlas.explanation.randomization import Randomization
from convatlas.tasks.prediction import Prediction
from convatlas.tasks.score import Score

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PLAIN_CLASSES = 5
"""Maximum number of classes of the prediction in plain data."""

PLAIN_CELLS = 32
"""Maximum height and width of a heat map in plain data."""


def _nothing(*size: int) -> Tensor:
    return torch.zeros(size)


@dataclass(frozen=True, repr=False, eq=False)
class Explanation:
    """Which parts of the network's view of an image speak for a score.

    source: the file, or its number. score: what is explained: the logit of a class, or the difference of two; None with
    an error. method: "grad-cam", "hires-cam", "layer-cam", "integrated-gradients" or "occlusion". layer: the tap whose
    maps are read, several joined by ", "; "" for methods that read pixels.
    heatmap: (h, w), of clips (frames, h, w), float32 in [0, 1]. view: the pixels that the network received, ([frames,]
    channels, h, w). grid: the size of the heat map before it was resized to the view.
    faithfulness: insertion and deletion curves. stages: the strongest feature maps of the stem and of each stage.
    completeness_error: of integrated gradients. randomization: the sanity check by random weights.
    An image that is unreadable has a prediction with an `error`, and an empty heat map.
    """

    source: str
    prediction: Prediction
    score: Score | None = None
    method: str = ""
    layer: str = ""
    heatmap: Tensor = field(default_factory=lambda: _nothing(0, 0))
    grid: tuple[int, ...] = (0, 0)
    view: Tensor = field(default_factory=lambda: _nothing(0, 0, 0).byte())
    faithfulness: Faithfulness | None = None
    stages: tuple[StageMaps, ...] = ()
    completeness_error: float | None = None
    randomization: Randomization | None = None

    @property
    def error(self) -> str:
        """Why there is no explanation; empty if there is one."""
        return self.prediction.error

    @property
    def label(self) -> str | None:
        """The class that is explained."""
        return None if self.score is None else self.score.label

    @property
    def insertion(self) -> float | None:
        """Area under the insertion curve; higher is better. None if it was not measured."""
        return None if self.faithfulness is None else self.faithfulness.heatmap.insertion_area

    @property
    def deletion(self) -> float | None:
        """Area under the deletion curve; lower is better. None if it was not measured."""
        return None if self.faithfulness is None else self.faithfulness.heatmap.deletion_area

    def text(self) -> str:
        """Return the explanation in a few lines."""
        return self.error or "\n".join(self.lines())

    def lines(self, name: str = "") -> list[str]:
        """Return what is explained, how, and how far it can be trusted. name: of the image, in place of `source`."""
        if self.score is None:
            return [self.error]
        likely = self.prediction.probability
        predicted = self.prediction.text + ("" if likely is None else f" ({likely:.1%})")
        where = f" at {self.layer}" if self.layer else ""
        lines = [f"{name or self.source}: {predicted}", f"{self.method}{where} for {self.score.text}"]
        if self.faithfulness is not None:
            lines[1] += f", confidence {float(self.faithfulness.heatmap.insertion[-1]):.2f}"
        lines = [printable(line) for line in lines]
        if self.heatmap.numel() and not self.heatmap.any():
            lines.append("the map is empty: no position speaks for the score")
        if self.faithfulness is not None:
            own = self.faithfulness.heatmap
            areas = f"insertion {own.insertion_area:.2f}, deletion {own.deletion_area:.2f}"
            lines.append(f"{areas}; {self.faithfulness.verdict}")
        if self.completeness_error is not None:
            lines.append(f"completeness error {self.completeness_error:.1%}")
        if self.randomization is not None:
            lines.append(self.randomization.verdict)
        return lines

    @property
    def parts(self) -> Parts:
        """What a figure or a page shows. Raises DataError for an image without explanation."""
        if self.score is None:
            raise DataError(self.error)
        lines = self.lines(printable(self.source).replace("\\", "/").rsplit("/", 1)[-1])
        return Parts(lines, self.score, self.view, self.heatmap, self.grid, self.faithfulness, self.stages)

    def figure(self, path: str | Path | None = None) -> Figure:
        """Return the image, the heat map, the curves and the feature maps by stage as one figure.

        path: also write it, as .svg, .png or .pdf. Raises DataError for an image without explanation, and InputError
        for another suffix.
        """
        return draw_explanation(self.parts, path=path)

    def plain_heatmap(self) -> list[Any] | None:
        """Return the heat map as rows of numbers with 4 decimals, on its grid of at most 32 x 32 cells."""
        if self.score is None:
            return None
        *frames, height, width = self.grid
        size = (*frames, *(min(cells, PLAIN_CELLS) for cells in (height, width)))
        values: list[Any] = _rounded(pool_map(self.heatmap, size).tolist())
        return values

    def to_plain(self) -> dict[str, Any]:
        """Return the explanation as plain data, with the most probable classes; None for what is unknown."""
        score = self.score
        return {
            "source": self.source, "prediction": self.prediction.with_top(PLAIN_CLASSES).to_plain(),
            "label": self.label, "against": None if score is None else score.against,
            "box": None if score is None or score.box is None else list(score.box),
            "method": self.method or None, "layer": self.layer or None,
            "insertion": self.insertion, "deletion": self.deletion,
            "faithfulness": None if self.faithfulness is None else self.faithfulness.to_plain(),
            "completeness_error": self.completeness_error,
            "randomization": None if self.randomization is None else self.randomization.to_plain(),
            "view": list(self.heatmap.shape) if score is not None else None,
            "heatmap": self.plain_heatmap(), "error": self.error or None,
        }  # fmt: skip

    def __repr__(self) -> str:
        return self.text()

    def _repr_png_(self) -> bytes | None:
        return None if self.score is None else encode(self.figure())


def _rounded(values: Any) -> Any:
    """Return nested lists of numbers with 4 decimals; None for a number that is not finite."""
    if isinstance(values, list):
        return [_rounded(value) for value in values]
    return round(values, 4) if math.isfinite(values) else None
