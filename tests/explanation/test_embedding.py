"""Embeddings: features of data sets, components, nearest images, files and figures."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import convatlas as ca
from commands import Command, check_refused
from convatlas.core.network import feature_map, taps
from convatlas.engines.evaluation import compute_outputs
from convatlas.errors import DataError, EngineError, InputError, SpecError
from convatlas.explanation.features import feature_forward
from convatlas.explanation.nearest import neighbor_accuracy
from convatlas.inference.embed import embed
from convatlas.inference.model import Model
from convatlas.models.headless import without_classifier
from convatlas.models.own_module import wrap_module
from convatlas.train.run import Run
from random_detectors import header_for, random_detector
from random_video_model import random_video_model
from tiny_detection import TINY_SPECS, write_rectangles
from tiny_networks import build_tiny, of_each_kind, outputs, tiny
from video_files import moving_square, write_video


@pytest.fixture(scope="module")
def model(colored: Run) -> Model:
    return ca.load(colored.model_file)


@of_each_kind(("lenet5", "capsnet_reduced", "squeezenet1_1", "mobilenet_v2", "nasnet_a_mobile", "r3d_18_small"))
def test_features_are_the_input_of_the_classifier(name: str) -> None:
    network, x = build_tiny(name)
    headless = without_classifier(network, tiny(name), 7)
    features = outputs(headless, x)
    assert features.ndim == 2
    assert len(features) == len(x)
    kept = {parameter.data_ptr() for parameter in network.parameters()}
    assert {parameter.data_ptr() for parameter in headless.parameters()} <= kept
    assert outputs(network, x).shape == (2, 7)


def test_features_of_a_network_give_its_class_scores() -> None:
    network, x = build_tiny("mobilenet_v2")
    features = outputs(without_classifier(network, tiny("mobilenet_v2"), 7), x)
    torch.testing.assert_close(outputs(network.head.out, features), outputs(network, x))


def test_features_of_a_module_of_ones_own() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.fc = nn.Conv2d(3, 5, 3), nn.Linear(5, 2)

        def forward(self, x: Tensor) -> Tensor:
            scores: Tensor = self.fc(self.body(x).relu().mean((2, 3)))
            return scores

    network = wrap_module(Own(), (3, 16, 16))
    assert network.spec is not None
    headless = without_classifier(network, network.spec, 2)  # type: ignore[arg-type]
    x = torch.rand(2, 3, 16, 16)
    torch.testing.assert_close(outputs(network.module.fc, outputs(headless, x)), outputs(network, x))
    single = wrap_module(nn.Sequential(nn.Flatten(), nn.Linear(48, 2)), (3, 4, 4))
    assert outputs(without_classifier(single, single.spec, 2), torch.rand(2, 3, 4, 4)).shape == (2, 48)  # type: ignore[arg-type]


def test_embedding_of_a_data_set(model: Model, images: Path) -> None:
    found = embed(model, images)
    assert len(found) == 72
    assert found.features.shape == (72, model.module.head.get_submodule("out").in_features)  # type: ignore[arg-type]
    assert found.splits == ("train",) * 36 + ("val",) * 36
    assert found.labels[:2] == (Path(found.names[0]).parent.name, Path(found.names[1]).parent.name)
    accuracy = found.neighbor_accuracy()
    assert accuracy is not None
    assert (accuracy.n, accuracy.among) == (36, "train")
    assert accuracy.chance == pytest.approx(1 / 3)
    assert accuracy.accuracy > 0.8  # colors are easy
    plain = found.to_plain()
    assert plain["n"] == 72
    assert plain["counts"] == {"ant": 24, "bee": 24, "cat": 24}
    assert "72 images (train 36, val 36)" in repr(found)
    assert "by the 5 nearest of train; chance level 33.3%" in repr(found)


def test_a_layer_and_a_split(model: Model, images: Path) -> None:
    found = embed(model, images, layer="stages.0", split="val")
    assert set(found.splits) == {"val"}
    dataset, _ = model.load_split(images, split="val")
    assert dataset.val is not None
    pixels: Any = dataset.val.pixels
    inputs = model.header.preprocessing.normalize(pixels[torch.arange(36)])
    with torch.no_grad():
        maps = feature_map(taps(model.module, ["stages.0"], inputs)["stages.0"])
    torch.testing.assert_close(found.features, maps.flatten(2).mean(2))
    assert found.neighbor_accuracy() is not None
    assert found.neighbor_accuracy().among == ""  # type: ignore[union-attr]


def test_components_are_those_of_the_centered_features(model: Model, images: Path) -> None:
    found = embed(model, images)
    centered = (found.features - found.features.mean(0)).double()
    _, sizes, directions = torch.linalg.svd(centered, full_matrices=False)
    expected = centered @ directions[:2].T
    torch.testing.assert_close(found.components.abs().double(), expected.abs(), rtol=1e-3, atol=1e-3)
    shares = sizes.square() / sizes.square().sum()
    assert found.variance_shares == pytest.approx(shares[:2].tolist(), rel=1e-3)


def test_nearest_images(model: Model, images: Path, tmp_path: Path) -> None:
    found = embed(model, images)
    number = found.names.index(str(images / "val/bee/03.png"))
    by_number, by_file = found.nearest(number, 4), found.nearest(images / "val/bee/03.png", 4)
    assert [n.number for n in by_number.neighbors] == [n.number for n in by_file.neighbors]
    assert number not in [n.number for n in by_file.neighbors]
    a, b = found.features[number], found.features[by_number.neighbors[0].number]
    assert by_number.neighbors[0].similarity == pytest.approx(float(torch.cosine_similarity(a, b, 0)), abs=1e-5)
    assert by_file.pixels.shape == by_number.pixels.shape == by_number.images[0].shape
    by_file.figure(tmp_path / "sheet.png")
    assert (tmp_path / "sheet.png").stat().st_size > 1000
    assert len(found.nearest(0, 1000).neighbors) == 71
    assert found.nearest(0).table().columns == ("nearest image", "label", "split", "similarity")
    with pytest.raises(InputError, match=r"nearest: image must be a number in \[0, 71\], got 72"):
        found.nearest(72)
    assert found.nearest(np.int64(3), 2).neighbors == found.nearest(3, 2).neighbors
    with pytest.raises(DataError, match="got bool"):
        found.nearest(True)
    for count in (0, -1, 2.5):
        with pytest.raises(InputError, match=f"nearest: count must be an integer >= 1, got {count}"):
            found.nearest(0, count)  # type: ignore[arg-type]
        with pytest.raises(InputError, match=f"nearest: k must be an integer >= 1, got {count}"):
            found.neighbor_accuracy(count)  # type: ignore[arg-type]
    with pytest.raises(DataError, match=r"missing\.png"):
        found.nearest(tmp_path / "missing.png")


def test_files_of_features(model: Model, images: Path, tmp_path: Path) -> None:
    found = embed(model, images)
    found.save(tmp_path / "f.npz")
    with np.load(tmp_path / "f.npz") as arrays:
        assert arrays["names"].tolist() == list(found.names)
        assert arrays["labels"].tolist() == list(found.labels)
        assert arrays["splits"].tolist() == list(found.splits)
        assert np.array_equal(arrays["features"], found.features.numpy())
        assert arrays["components"].shape == (72, 2)
    parquet = pytest.importorskip("pyarrow.parquet")
    found.save(tmp_path / "f.parquet")
    table = parquet.read_table(tmp_path / "f.parquet")
    assert table.column_names == ["name", "label", "split", "features"]
    assert np.array_equal(np.array(table["features"].to_pylist(), dtype=np.float32), found.features.numpy())
    with pytest.raises(InputError, match=r"the suffix of a file of features must be .npz or .parquet, got .csv"):
        found.save(tmp_path / "f.csv")


def test_folders_without_labels(model: Model, images: Path, tmp_path: Path) -> None:
    found = embed(model, images / "val/bee")
    assert len(found) == 12
    assert set(found.labels) == {""}
    assert found.neighbor_accuracy() is None
    assert found.to_plain()["counts"] == {}
    found.figure(tmp_path / "plot.svg")
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(DataError, match="empty"):
        embed(model, empty)


def test_data_with_other_classes_and_in_memory(model: Model) -> None:
    random = np.random.default_rng(0)
    pixels = random.integers(0, 255, (20, 30, 30, 3), dtype=np.uint8)
    found = embed(model, (pixels, np.arange(20) % 4))
    assert len(set(found.labels)) == 4
    assert found.nearest(pixels[3]).neighbors[0].similarity == pytest.approx(1, abs=1e-4)
    assert len(found.nearest(0, 3).images) == 3


def test_boxes_with_a_classifier_and_with_a_detector(model: Model, tmp_path: Path) -> None:
    data = write_rectangles(tmp_path / "data")
    found = embed(model, data)
    assert not found.has_classes
    assert {"no objects", "1 red, 1 green"} <= set(found.labels)
    spec = TINY_SPECS["detect"]
    names = ("red", "green")
    detector = Model(random_detector(spec, classes=2), header_for(spec, classes=2))
    of_boxes = embed(detector, data)
    assert of_boxes.features.shape == (12, 64)
    batch = detector.module.first_inputs([torch.as_tensor(of_boxes.prepared.pixels[0]) / 255])  # type: ignore[index]
    with torch.no_grad():
        maps = taps(detector.module, ["stages.3"], batch)["stages.3"]
    torch.testing.assert_close(of_boxes.features[0], maps.mean((2, 3))[0], rtol=1e-4, atol=1e-5)  # type: ignore[union-attr]
    assert len(of_boxes.nearest(0, 2).neighbors) == len(names)
    with pytest.raises(SpecError, match="embed: layer must be on the main path of the network, got 'head'"):
        embed(detector, data, layer="head")


def test_videos(tmp_path: Path) -> None:
    pytest.importorskip("av")
    for number, name in enumerate(("clap", "jump", "wave")):
        for seed in range(2):
            frames = moving_square(24, seed=2 * number + seed, step=2 - 4 * (number % 2))
            write_video(tmp_path / name / f"{seed}.mp4", frames, rate=10)
    model = random_video_model()
    found = embed(model, tmp_path)
    assert found.noun == "video"
    assert found.features.shape == (6, 8)
    dataset, _ = model.load_split(tmp_path, split="all")
    forward = feature_forward(model.module, model.header)
    torch.testing.assert_close(found.features, compute_outputs(forward, dataset.whole).mean(1))
    near = found.nearest(tmp_path / "wave/1.mp4", 2)
    assert len(near.neighbors) == 2
    near.figure(tmp_path / "sheet.png")
    assert len(embed(model, tmp_path / "jump")) == 2


def test_the_accuracy_of_neighbors_is_that_of_scikit_learn() -> None:
    from sklearn.neighbors import KNeighborsClassifier

    torch.manual_seed(0)
    labels = [f"class {i % 3}" for i in range(90)]
    features = torch.randn(90, 6) + 1.2 * torch.nn.functional.one_hot(torch.arange(90) % 3, 6)
    splits = ["train"] * 60 + ["val"] * 30
    near = KNeighborsClassifier(5, metric="cosine").fit(features[:60], labels[:60])
    votes = near.predict_proba(features[60:])
    ties = int((np.sort(votes, 1)[:, -1] == np.sort(votes, 1)[:, -2]).sum())
    expected = float((near.predict(features[60:]) == np.array(labels[60:])).sum())
    found = neighbor_accuracy(features, labels, splits)
    assert found is not None
    assert abs(found.correct - expected) <= ties
    alone = neighbor_accuracy(features, labels, ["all"] * 90)
    assert alone is not None
    assert (alone.n, alone.among) == (90, "")


@pytest.mark.parametrize(
    "labels", [[""] * 8, ["a"] * 8, ["a", "b", *[""] * 6]], ids=["none", "one label", "too few labeled"]
)
def test_labels_that_cannot_be_compared(labels: Sequence[str]) -> None:
    assert neighbor_accuracy(torch.rand(8, 3), labels, ["train"] * 8) is None


def test_equal_and_single_features_have_no_components(model: Model, images: Path) -> None:
    found = copy.copy(embed(model, images / "val/bee"))
    object.__setattr__(found, "features", torch.ones(12, 4))
    assert torch.equal(found.components, torch.zeros(12, 2))
    assert found.variance_shares == (0.0, 0.0)


def test_what_cannot_be_embedded_is_one_line(model: Model, images: Path) -> None:
    with pytest.raises(SpecError, match=r"embed: layer must be on the main path .* got 'stage.1' \(did you mean st"):
        embed(model, images, layer="stage.1")
    with pytest.raises(DataError, match="split must be one of train, val, all, got 'test'"):
        embed(model, images, split="test")
    with pytest.raises(EngineError, match="an exported file contains no network"):
        embed(Model(None, model.header, model.engine), images)


def test_weights_that_are_not_finite(model: Model, images: Path) -> None:
    network = copy.deepcopy(model.module)
    with torch.no_grad():
        next(network.parameters()).fill_(1e38)
    with pytest.raises(ca.ConvatlasError, match="the outputs must be finite"):
        embed(Model(network, model.header), images)


def test_command(convatlas: Command, colored: Run, images: Path, tmp_path: Path) -> None:
    files: list[Any] = [tmp_path / name for name in ("f.npz", "plot.png", "sheet.png")]
    query = images / "val/cat/01.png"
    outcome = convatlas(
        "embed", colored.model_file, images, "--out", files[0], "--plot", files[1], "--nearest", query, "--count", 3,
        "--sheet", files[2],
    )  # fmt: skip
    assert outcome.code == 0, outcome
    assert "72 images (train 36, val 36)" in outcome.out
    assert outcome.out.count("/cat/") == 3
    assert all(file.is_file() for file in files)
    assert all(str(file) in outcome.err for file in files)


@pytest.mark.parametrize(
    ("more", "named"),
    [
        (["--sheet", "x.png"], "--sheet: needs --nearest"),
        (["--count", 2], "--count: needs --nearest"),
        (["--out", "x.csv"], "x.csv: the suffix of a file of features must be .npz or .parquet"),
        (["--plot", "x.gif"], "x.gif: the suffix of a drawing must be one of"),
        (["--nearest", "nothing.png"], "--nearest: nothing.png: no such file"),
        (["--layer", "stages.9"], "layer must be on the main path of the network, got 'stages.9'"),
    ],
)
def test_command_refuses(convatlas: Command, colored: Run, images: Path, more: list[Any], named: str) -> None:
    check_refused(convatlas("embed", colored.model_file, images, *more), named)
