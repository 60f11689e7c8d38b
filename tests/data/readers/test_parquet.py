"""Parquet tables that hold the images themselves, as Hugging Face and others write them."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from convatlas.core.preprocessing import Preprocessing
from convatlas.data.open import open_data
from convatlas.data.source import Source
from convatlas.errors import DataError, MachineError

arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")

STRUCT = arrow.struct([("bytes", arrow.binary()), ("path", arrow.string())])
NAMES = {"info": {"features": {"img": {"_type": "Image"}, "label": {"names": ["bee", "ant"], "_type": "ClassLabel"}}}}


def png(shade: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((4, 4, 3), shade, np.uint8)).save(buffer, "png")
    return buffer.getvalue()


IMAGES = [png(shade) for shade in (10, 20, 30, 40)]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CONVATLAS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "parquet"


def write(path: Path, columns: dict[str, Any], metadata: Any = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    table = arrow.table(columns)
    if metadata is not None:
        text = metadata if isinstance(metadata, bytes) else json.dumps(metadata).encode()
        table = table.replace_schema_metadata({b"huggingface": text})
    parquet.write_table(table, path)
    return path


def structs(
    images: Sequence[bytes | None] = IMAGES, paths: Sequence[str | None] = ("0.png", "1 a.png", None, "")
) -> Any:
    return arrow.array([{"bytes": b, "path": p} for b, p in zip(images, paths, strict=True)], STRUCT)


def shades(source: Source) -> dict[int, str]:
    """Return {gray value: class} of the training images."""
    data = source.load(Preprocessing(resize=4, crop=4).for_channels(source.channels))
    labels = data.train.targets.tensor("label").tolist()
    return {int(data.train.pixels[i, 0, 0, 0]): source.classes[label] for i, label in enumerate(labels)}


@pytest.mark.parametrize("metadata", [NAMES, None, {"info": []}, {"info": {"features": {"label": []}}}])
def test_images_and_names_of_classes_are_read(tmp_path: Path, cache: Path, metadata: Any) -> None:
    path = write(tmp_path / "hf.parquet", {"img": structs(), "label": [0, 1, 0, 1]}, metadata)
    bee, ant = ("bee", "ant") if metadata == NAMES else ("0", "1")
    for _ in range(2):  # written into the cache, and read from there
        assert shades(open_data(path)) == {10: bee, 20: ant, 30: bee, 40: ant}
    assert {file.name for file in cache.glob("*.images/*")} == {
        "00000001-0.png",
        "00000002-1_a.png",
        "00000003",
        "00000004",
    }


def test_an_interrupted_extraction_is_continued(tmp_path: Path, cache: Path) -> None:
    path = write(tmp_path / "hf.parquet", {"img": structs(), "label": [0, 1, 0, 1]})
    before = open_data(path)
    (entry,) = cache.glob("*.table")
    entry.write_text("")
    (entry.with_suffix(".images") / "00000003").unlink()
    assert open_data(path).splits["train"].names == before.splits["train"].names
    assert len(shades(open_data(path))) == 4


def test_images_of_the_least_recently_used_table_are_deleted(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels = [0, 1, 0, 1]
    tables = [write(tmp_path / f"{i}.parquet", {"img": structs([png(i)] * 4), "label": labels}) for i in range(3)]
    room = tables[0].stat().st_size + 6 * len(png(0))  # for the images of one table, and another one
    monkeypatch.setattr("convatlas.data.readers.parquet_rows.CACHE_LIMIT", room)
    open_data(tables[0])
    for mark in cache.glob(".*"):  # as if the process had ended
        mark.unlink()
    kept = open_data(tables[1]).splits["train"].names
    open_data(tables[2])
    assert len(list(cache.glob("*.images"))) == 2
    assert all(Path(name).exists() for name in kept)
    with pytest.raises(MachineError, match=r"do not fit beside .* in use"):
        open_data(tables[0])


def test_a_moved_table_has_the_same_fingerprint(tmp_path: Path) -> None:
    path = write(tmp_path / "hf.parquet", {"image": structs(), "label": [0, 1, 0, 1]})
    steps = Preprocessing(resize=4, crop=4).for_channels(3)
    before = open_data(path).load(steps).fingerprint()
    assert open_data(path.rename(tmp_path / "other.parquet")).load(steps).fingerprint() == before


def test_bytes_are_images_or_text(tmp_path: Path) -> None:
    labels = arrow.array([b"ant", b"bee", b"ant", b"bee"])
    source = open_data(write(tmp_path / "bytes.parquet", {"image": arrow.array(IMAGES), "label": labels}))
    assert shades(source) == {10: "ant", 20: "bee", 30: "ant", 40: "bee"}
    for i, image in enumerate(IMAGES):
        (tmp_path / f"{i}.png").write_bytes(image)
    files = arrow.array([f"{i}.png".encode() for i in range(4)])
    assert shades(open_data(write(tmp_path / "files.parquet", {"image": files, "label": labels}))) == shades(source)


def test_a_path_stands_for_missing_bytes(tmp_path: Path) -> None:
    (tmp_path / "own.png").write_bytes(png(90))
    images = structs([*IMAGES[:3], None], ["a", "b", "c", "own.png"])
    path = write(tmp_path / "hf.parquet", {"image": images, "label": [0, 1, 0, 1]})
    assert set(shades(open_data(path))) == {10, 20, 30, 90}


@pytest.mark.parametrize("inside", ["", "data"])
def test_a_folder_of_shards_has_splits(tmp_path: Path, inside: str) -> None:
    folder = tmp_path / "hub" / inside
    for i, name in enumerate(["train-00000-of-00002", "train-00001-of-00002", "validation-00000-of-00001"]):
        images = [png(50 * i + shade) for shade in (1, 2, 3, 4)]
        write(folder / f"{name}.parquet", {"img": structs(images), "label": [0, 1, 0, 1]}, NAMES)
    source = open_data(tmp_path / "hub")
    assert (source.name, source.classes) == ("hub", ("ant", "bee"))
    assert {split: len(samples) for split, samples in source.splits.items()} == {"train": 8, "val": 4}


def test_shards_have_the_same_columns(tmp_path: Path) -> None:
    write(tmp_path / "train-0.parquet", {"img": structs(), "label": [0, 1, 0, 1]})
    write(tmp_path / "train-1.parquet", {"img": structs(), "labels": ["a", "b", "a", "b"]})
    with pytest.raises(
        DataError, match=r"train-1\.parquet: must have the columns of .*train-0\.parquet, got labels, file"
    ):
        open_data(tmp_path)


@pytest.mark.parametrize(
    ("columns", "metadata", "told"),
    [
        ({"img": structs(), "label": [0, 1, 0, -1]}, NAMES, "line 4: no label"),
        ({"img": structs(), "label": [0, 1, 0, None]}, NAMES, "line 4: no label"),
        ({"img": structs(), "label": [0.0, 1.0, 0.0, float("nan")]}, None, "line 4: no label"),
        ({"img": structs(), "label": [0, 1, 0, 7]}, NAMES, r"line 4: label must be in \[0, 1\], got 7"),
        ({"img": structs(), "label": [0, 1, 0, 1]}, b"[" * 50_000, "Hugging Face metadata cannot be read"),
        ({"img": structs(), "label": [0, 1, 0, 1]}, b"\xff", "Hugging Face metadata cannot be read"),
        ({"img": structs(), "label": [0, 1, 0, 1]},
         {"info": {"features": {"label": {"names": [1], "_type": "ClassLabel"}}}}, "must be texts"),
        ({"img": structs([*IMAGES[:3], None], ["", "", "", None]), "label": [0, 1, 0, 1]}, None,
         "line 4: there is no image in the column img"),
        ({"left": structs(), "right": structs(), "label": [0, 1, 0, 1]}, None, "left, right hold images"),
        ({"file": arrow.array([[b"a"]] * 4), "label": ["a"] * 4}, None, "line 1: .*does not exist"),
        ({"img": arrow.array([{"bytes": 5}] * 4), "label": ["a"] * 4}, None, "there is no column file, path"),
        ({"img": structs(), "label": [b"\xff"] * 4}, None, "line 1: label must be text"),
        ({"img": structs(), "label": [0, 1, 0, 1], "Label": [0, 1, 0, 1]}, None, "two columns label"),
    ],
)  # fmt: skip
def test_rows_that_cannot_be_used_are_named(tmp_path: Path, columns: dict[str, Any], metadata: Any, told: str) -> None:
    with pytest.raises(DataError, match=told) as error:
        open_data(write(tmp_path / "hf.parquet", columns, metadata))
    assert str(error.value).isprintable()


@pytest.mark.parametrize(
    "damage", [lambda raw: raw[:-30], lambda raw: raw[:40] + b"\xff" * 40 + raw[80:], lambda _: b""]
)
def test_damaged_tables_are_one_line(tmp_path: Path, damage: Any) -> None:
    path = write(tmp_path / "hf.parquet", {"img": structs(), "label": [0, 1, 0, 1]})
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError, match="not a Parquet table") as error:
        open_data(path)
    assert str(error.value).isprintable()
