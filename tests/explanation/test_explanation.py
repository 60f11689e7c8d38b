"""Explanations as text, plain data, figures and pages."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from convatlas.errors import DataError, InputError
from convatlas.explanation.explanation import Explanation
from convatlas.explanation.faithfulness import Curves, Faithfulness
from convatlas.explanation.feature_maps import StageMaps
from convatlas.explanation.page import Explanations
from convatlas.explanation.randomization import Randomization
from convatlas.tasks.classification.base import ClassPrediction
from convatlas.tasks.score import Score
from convatlas.tasks.video.prediction import VideoPrediction

BEE = ClassPrediction("shots/bee.png", "", {"bee": 0.9, "ant": 0.1}, ("bee",))
UNREADABLE = Explanation("gone.png", ClassPrediction("gone.png", "gone.png: no such file"))


def curves(start: float, end: float) -> Curves:
    return Curves(torch.linspace(start, end, 17), torch.linspace(end, start, 17) * 0.4)


def explanation(*frames: int, size: int = 32, grid: tuple[int, ...] = (4, 4), **how: Any) -> Explanation:
    """Return an explanation of an image, or of a clip."""
    torch.manual_seed(0)
    maps = StageMaps("stages.0", (2, 0), torch.rand(2, *frames, 8, 8), 6, (0.2, 0.1))
    given: dict[str, Any] = {
        "source": "shots/bee.png", "prediction": BEE, "score": Score("bee", 1, "ant", 0), "method": "grad-cam",
        "layer": "stages.0", "heatmap": torch.rand(*frames, size, size), "grid": grid,
        "view": torch.randint(0, 256, (*frames, 3, size, size), dtype=torch.uint8),
        "faithfulness": Faithfulness(curves(0, 0.9), curves(0.3, 0.9), curves(0.2, 0.9)), "stages": (maps,),
    }  # fmt: skip
    return Explanation(**(given | how))


def test_an_explanation_says_what_is_explained_and_how_far_it_can_be_trusted() -> None:
    found = explanation(completeness_error=0.021, randomization=Randomization({"stem": 0.1}))
    assert found.label == "bee"
    assert found.insertion == pytest.approx(0.45)
    assert found.deletion == pytest.approx(0.18)
    assert repr(found).splitlines() == [
        "shots/bee.png: bee (90.0%)",
        "grad-cam at stages.0 for bee and not ant, confidence 0.90",
        "insertion 0.45, deletion 0.18; insertion minus deletion 0.27, no better than an edge map (0.33) and a random "
        "map (0.36): do not rely on this map",
        "completeness error 2.1%",
        "rank correlation with the map of random weights 0.10: the map depends on the weights",
    ]
    assert "the map is empty" in explanation(heatmap=torch.zeros(32, 32)).text()


def test_plain_data_has_the_heat_map_on_its_grid() -> None:
    found = explanation()
    plain = json.loads(json.dumps(found.to_plain(), allow_nan=False))
    assert (plain["label"], plain["against"], plain["layer"]) == ("bee", "ant", "stages.0")
    assert plain["prediction"] == BEE.to_plain()
    assert plain["view"] == [32, 32]
    assert torch.tensor(plain["heatmap"]).shape == (4, 4)
    assert plain["heatmap"][0][0] == pytest.approx(float(found.heatmap[:8, :8].mean()), abs=1e-4)
    assert plain["faithfulness"]["edges"]["difference"] == pytest.approx(0.33)
    fine = explanation(size=48, grid=(48, 48)).to_plain()["heatmap"]
    assert torch.tensor(fine).shape == (32, 32)
    assert torch.tensor(explanation(3, grid=(2, 4, 4)).to_plain()["heatmap"]).shape == (2, 4, 4)


def test_an_unreadable_image_has_no_figure() -> None:
    assert UNREADABLE.text() == UNREADABLE.error == "gone.png: no such file"
    plain = UNREADABLE.to_plain()
    assert (plain["error"], plain["heatmap"], plain["label"]) == ("gone.png: no such file", None, None)
    assert set(plain) == set(explanation().to_plain())
    assert UNREADABLE._repr_png_() is None
    with pytest.raises(DataError, match=r"gone\.png: no such file"):
        UNREADABLE.figure()


def test_a_figure_shows_image_map_curves_and_feature_maps(tmp_path: Path) -> None:
    figure: Any = explanation().figure(tmp_path / "bee.png")
    assert Image.open(tmp_path / "bee.png").size[0] > 500
    titles = [axes.get_title("left") for part in (figure, *figure.subfigs) for axes in part.axes]
    assert {"image", "heat map (outline: half of the maximum)"} <= set(titles)
    assert {"insertion, area 0.45", "deletion, area 0.18"} <= set(titles)
    lines = next(axes for part in figure.subfigs for axes in part.axes if axes.lines).lines
    assert len({line.get_linestyle() for line in lines}) == len({line.get_marker() for line in lines}) == 3
    with pytest.raises(InputError, match="suffix"):
        explanation().figure(tmp_path / "bee.jpg")
    assert [path.name for path in tmp_path.iterdir()] == ["bee.png"]


@pytest.mark.parametrize("parts", [{}, {"stages": ()}, {"stages": (), "faithfulness": None}])
def test_texts_end_inside_the_figure(parts: dict[str, Any]) -> None:
    prediction = replace(BEE, labels=("a long name of a class that is printed in bold " * 4,))
    figure: Any = explanation(prediction=prediction, **parts).figure()
    figure.draw_without_rendering()
    assert figure.texts
    assert all(text.get_window_extent().x1 <= figure.bbox.x1 for text in figure.texts)


def test_a_figure_of_a_clip_is_a_strip_of_frames() -> None:
    clip = explanation(8, grid=(4, 4, 4), prediction=VideoPrediction("a.mp4", "", {"bee": 1.0}, ("bee",)))
    image, heatmap = clip.parts.image(), clip.parts.map()
    assert image.shape == heatmap.shape
    assert image.shape[-1] > 5 * image.shape[-2]
    figure = clip.figure()
    assert figure.get_figwidth() > figure.get_figheight()


def test_a_box_is_drawn_on_image_and_map() -> None:
    score = Score("bee", 1, box=(10.0, 10.0, 40.0, 40.0), size=(64, 64))
    plain, boxed = (explanation(size=64, score=each).parts for each in (Score("bee", 1), score))
    for draw in ("image", "map"):
        corner = getattr(boxed, draw)()
        assert corner.shape[0] == 3
        assert corner.shape[1:] != getattr(plain, draw)().shape[1:] or not torch.equal(corner, getattr(plain, draw)())


def test_a_page_is_self_contained_and_lists_errors(tmp_path: Path) -> None:
    explanations = Explanations([explanation(), UNREADABLE, explanation(source="shots/<b>.png", stages=())])
    explanations.page(tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert not re.search(r'(src|href)="(?!data:)', page)
    assert "<script" not in page
    assert page.count("<figure class=plot>") == 5  # two images, two plots, one figure of feature maps
    assert "gone.png: no such file" in page
    assert "&lt;b&gt;.png" in page
    assert "These maps are no better than edge maps and random maps: do not rely on them." in page


@pytest.mark.parametrize("name", ["page.png", "page", "."])
def test_a_page_has_the_suffix_of_a_page(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match=r"the suffix of a page must be \.html, got "):
        Explanations([UNREADABLE]).page(tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_explanations_print_as_a_table() -> None:
    explanations = Explanations([explanation(), UNREADABLE])
    text = repr(explanations)
    assert text.splitlines()[0].split()[:3] == ["image", "prediction", "explained"]
    assert "grad-cam at stages.0" in text
    assert "no such file" in text
    assert isinstance(explanations[:1], Explanations)
    assert "<table>" in explanations._repr_html_()
    assert repr(Explanations()) == "no explanations"
