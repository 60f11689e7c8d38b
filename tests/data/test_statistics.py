"""The range of values of training images: without missing data, and from a cache that may be damaged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from convatlas.data.decode.pixels import read_image, read_shares
from convatlas.data.manifest import Manifest
from convatlas.data.open import open_data
from convatlas.data.statistics import Statistics, file_statistics
from convatlas.errors import DataError
from convatlas.system.cache import cache_folder
from image_files import tiff

RANDOM = np.random.default_rng(0)


def with_nodata(values: NDArray[Any], text: str, **options: Any) -> bytes:
    return tiff(values, extratags=[(42113, 2, len(text) + 1, text, True)], **options)


@pytest.mark.parametrize(
    ("dtype", "marker", "text"),
    [
        (np.float32, -9999, "-9999"), (np.float64, -9999, "-9999.0"), (np.float32, -9999, "-9999,0"),
        (np.float32, np.finfo(np.float32).min, "-3.4028234663852886e+38"), (np.float32, np.finfo(np.float32).min, None),
        (np.float32, np.nan, "nan"), (np.uint16, 0, "0"), (np.uint16, 65535, "65535"), (np.int16, -32768, "-32768"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("channels", [1, 3, 5])
def test_missing_data_does_not_decide_the_window(
    tmp_path: Path, dtype: type, marker: float, text: str | None, channels: int
) -> None:
    shape = (8, 9, channels) if channels > 1 else (8, 9)
    options = {"photometric": "rgb" if channels == 3 else "minisblack", "planarconfig": "contig"}
    options = options if channels > 1 else {"photometric": "minisblack"}
    names, kept = [], []
    for i in range(4):
        values = RANDOM.integers(1000, 2000, shape).astype(dtype)
        missing = np.zeros(shape, bool)
        missing[:3, : i + 1] = True
        kept.append(values[~missing])
        values[missing] = marker
        names.append(str(tmp_path / f"{i}.tif"))
        Path(names[-1]).write_bytes(with_nodata(values, text, **options) if text else tiff(values, **options))
    full = 1 if np.dtype(dtype).kind == "f" else np.iinfo(dtype).max
    found = file_statistics(names, channels, Manifest("x"), high_bit_depth=True, where="x")
    low, high = min(k.min() for k in kept) / full, max(k.max() for k in kept) / full
    assert found.window == pytest.approx((low, high), rel=1e-4)
    assert all(0.4 < mean < 0.6 for mean in found.mean)
    pixels = read_image(names[0], channels, found.window)
    assert pixels[:, :3, 0].max() <= (255 if full == 1 else 0)  # black, or the darkest value of its image
    assert pixels[:, :3, 0].max() < 20
    again = file_statistics(names, channels, Manifest("x"), high_bit_depth=True, where="x")
    assert again == found


def test_an_image_of_missing_data_alone_is_refused() -> None:
    data = with_nodata(np.full((4, 4), -9999, np.float32), "-9999")
    with pytest.raises(DataError, match="every value is -9999, which marks missing data"):
        read_shares("x", 1, data=data)


@pytest.mark.parametrize("text", ["", "none", "1e999", "12 13"])
def test_a_tag_that_is_no_number_marks_nothing(text: str) -> None:
    values = RANDOM.random((4, 4)).astype(np.float32)
    assert torch.equal(read_shares("x", 1, data=with_nodata(values, text))[0], torch.from_numpy(values))


def test_black_stays_black_in_8_bits() -> None:
    values = RANDOM.integers(0, 3, (6, 6, 3)).astype(np.uint8)
    data = with_nodata(values, "0", photometric="rgb")
    assert np.array_equal(read_image("x", 3, data=data).numpy().transpose(1, 2, 0), values)


@pytest.mark.parametrize(
    "damage",
    [
        {"window": [1, 0]}, {"window": [0, "x"]}, {"window": [0, float("nan")]}, {"mean": []}, {"mean": "ab"},
        {"std": [0]}, {"std": [-1]}, {"mean": [1, 2]}, {"more": 1},
    ],
)  # fmt: skip
def test_damaged_statistics_in_the_cache_are_computed_again(tmp_path: Path, damage: dict[str, Any]) -> None:
    for i in range(4):
        folder = tmp_path / "data" / "ab"[i % 2]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{i}.tif").write_bytes(tiff(RANDOM.integers(0, 60000, (5, 5)).astype(np.uint16) + i))
    source = open_data(tmp_path / "data")
    first = source.statistics(1)
    assert isinstance(first, Statistics)
    for path in (cache_folder() / "statistics").glob("*.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | damage))
    assert source.statistics(1) == first


DARK = np.arange(81, dtype=np.uint16).reshape(9, 9) * 20


@pytest.mark.parametrize(
    ("majority", "minority", "window"),
    [
        (DARK, RANDOM.normal(100, 300, (9, 9)), (0, 1600 / 65535)),
        (DARK, (DARK / 65535).astype(np.float32), (0, 1600 / 65535)),
        (DARK * 2.5 - 7, DARK, (-7, 3993)),
        ((DARK // 10).astype(np.float32), np.arange(81, dtype=np.uint8).reshape(9, 9), (0, 160 / 255)),
    ],
    ids=["integers beside floats", "fractions", "floats beside integers", "whole numbers"],
)
def test_images_of_another_scale_do_not_decide_the_window(
    tmp_path: Path, majority: NDArray[Any], minority: NDArray[Any], window: tuple[float, float]
) -> None:
    names = []
    for i, values in enumerate([majority, minority, majority]):
        names.append(str(tmp_path / f"{i}.tif"))
        Path(names[-1]).write_bytes(tiff(values.astype(np.float32) if values.dtype == np.float64 else values))
    statistics = file_statistics(names, 1, Manifest(str(tmp_path)), high_bit_depth=True, where="here")
    assert statistics.window == pytest.approx(window)
    read_image(names[0], 1, statistics.window)
    if majority is DARK and minority.max() > 2:
        with pytest.raises(DataError, match=r"1\.tif: floats must be in \[0, 1\] for a network of integers"):
            read_image(names[1], 1, statistics.window)
