"""The same image in another type is the same image, or refused by name; a network of floats reads floats."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from convatlas.data.decode.array_values import channels_last, full_scale
from convatlas.data.decode.headers import read_header
from convatlas.data.decode.pixels import array_pixels, decode, read_image, read_shares
from convatlas.errors import DataError

UINT8 = np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8)
UINT8[0, 0], UINT8[0, 1] = 0, 255
EIGHT_BIT = ("i2", "i4", "i8", "u4", "u8", ">i4", ">u8", "f2", "f4", "f8", ">f4", "f2", "longdouble")


def npy(values: NDArray[Any]) -> bytes:
    file = io.BytesIO()
    np.save(file, values)
    return file.getvalue()


@pytest.mark.parametrize("window", [None, (0.0, 1.0), (0.1, 0.8)])
@pytest.mark.parametrize("kind", EIGHT_BIT)
def test_whole_numbers_of_8_bits_are_8_bit_images(kind: str, window: tuple[float, float] | None) -> None:
    expected = array_pixels(UINT8, 3, "it", window)
    values = UINT8.astype(kind)
    assert torch.equal(array_pixels(values, 3, "it", window), expected)
    if kind != "longdouble":
        assert torch.equal(read_image("it.npy", 3, window, data=npy(values)), expected)
        assert torch.equal(read_shares("it.npy", 3, data=npy(values)), torch.from_numpy(UINT8).permute(2, 0, 1) / 255)


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        *((UINT8.astype(kind) * 3, f"{np.dtype(kind)} values must be from 0 to 255, got 0 to 765; convert to uint8")
          for kind in ("i2", "i4", "u4", "i8", "u8")),
        (UINT8.astype("i1"), "int8 values must be from 0 to 255, got -128 to 127"),
        (UINT8.astype("i8") - 1, "int64 values must be from 0 to 255, got -1 to 254"),
        (UINT8.astype("u2"), "uint16 values of 0 to 255, where 65535 is white; convert to uint8"),
        (UINT8 + 0.5, r"floats must be in \[0, 1\] for a network of 8-bit images, or whole numbers"),
        (UINT8 * 2.0, "whole numbers from 0 to 255, got 0 to 510"),
        (UINT8.astype("c8"), "an image must be an array"),
        (UINT8.astype("M8[s]"), "an image must be an array"),
        (UINT8.astype("S"), "an image must be an array"),
        (UINT8.astype(object), "an image must be an array"),
        (np.full((9, 7), np.inf), "NaN or infinity"),
    ],
    ids=lambda value: str(value.dtype) if isinstance(value, np.ndarray) else "",
)  # fmt: skip
def test_what_is_not_8_bits_is_refused_by_name(values: NDArray[Any], reason: str) -> None:
    with pytest.raises(DataError, match=f"^it: .*{reason}"):
        array_pixels(values, 3, "it")


def test_deep_and_dark_arrays() -> None:
    deep = UINT8.astype(np.uint16) * 257
    assert torch.equal(array_pixels(deep, 3, "it"), array_pixels(UINT8, 3, "it"))
    assert torch.equal(array_pixels(deep.astype(">u2"), 3, "it"), array_pixels(UINT8, 3, "it"))
    assert not array_pixels(np.zeros((9, 7), np.uint16), 1, "it").any()
    dark = array_pixels(UINT8.astype(np.uint16), 3, "it", (0.0, 255 / 65535))  # a network of dark 16-bit images
    assert dark.max() == pytest.approx(255, abs=1e-3)
    assert array_pixels(np.eye(9, dtype=bool), 1, "it").unique().tolist() == [0, 255]


@pytest.mark.parametrize(
    "values", [UINT8, UINT8.astype("u2") * 257, UINT8.astype("i8"), UINT8 > 9], ids=lambda v: v.dtype
)
def test_a_network_of_floats_refuses_integers(values: NDArray[Any], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="the network was trained on floats from -1 to 3, got uint"):
        array_pixels(values, 3, "it", (-1.0, 3.0))
    Image.fromarray(UINT8).save(tmp_path / "x.png")
    with pytest.raises(DataError, match=r"x\.png: the network was trained on floats from 0 to 255, got uint8"):
        read_image(tmp_path / "x.png", 3, (0.0, 255.0))
    floats = array_pixels(UINT8.astype("f4"), 3, "it", (0.0, 255.0))
    assert torch.allclose(floats, torch.from_numpy(UINT8).permute(2, 0, 1).float(), atol=1e-4)


def test_images_made_in_memory_of_mode_i(tmp_path: Path) -> None:
    gray = UINT8[..., 0]
    expected = array_pixels(gray, 1, "it")
    assert torch.equal(decode(Image.fromarray(gray.astype(np.int32)), 1, "it"), expected)
    assert torch.equal(decode(Image.fromarray(gray.astype(np.int32) * 257), 1, "it"), expected)
    assert torch.equal(decode(Image.fromarray(gray.astype(np.float32)), 1, "it"), expected)
    with pytest.raises(DataError, match="it: uint16 values of 0 to 255"):
        decode(Image.fromarray(gray.astype(np.uint16)), 1, "it")
    Image.fromarray(gray.astype(np.uint16)).save(tmp_path / "dark.png")  # a file has the depth that it states
    assert decode(Image.open(tmp_path / "dark.png"), 1, "it").max() <= 1
    assert read_image(tmp_path / "dark.png", 1).max() <= 1


@pytest.mark.parametrize(
    ("shape", "result"),
    [((2, 3, 32, 32), (2, 32, 32, 3)), ((2, 1, 5, 8), (2, 5, 8, 1)), ((3, 32, 32), (32, 32, 3)),
     ((2, 32, 32, 3), (2, 32, 32, 3)), ((2, 3, 32, 3), (2, 3, 32, 3)), ((2, 3, 4, 32), (2, 3, 4, 32)),
     ((2, 4, 32, 32), (2, 4, 32, 32)), ((32, 32), (32, 32))],
)  # fmt: skip
def test_channels_may_come_first(shape: tuple[int, ...], result: tuple[int, ...]) -> None:
    values = np.arange(np.prod(shape)).reshape(shape)
    assert channels_last(values).shape == result
    if shape != result:
        assert (channels_last(values)[..., 4, 2, 0] == values[..., 0, 4, 2]).all()


def test_channels_first_is_read_like_channels_last() -> None:
    assert torch.equal(array_pixels(np.moveaxis(UINT8, 2, 0), 3, "it"), array_pixels(UINT8, 3, "it"))
    assert torch.equal(array_pixels(UINT8[None, ..., 0], 1, "it"), array_pixels(UINT8[..., 0], 1, "it"))


def test_arrays_of_a_data_set_are_judged_together() -> None:
    black, gray = np.zeros((2, 9, 9), np.float32), np.full((2, 9, 9), 7, np.float32)
    assert [part.dtype for part in full_scale([black, gray], "it", eight_bit=True)] == [np.uint8] * 2
    assert [part.dtype for part in full_scale([black, gray + 0.5], "it", eight_bit=True)] == [np.float32] * 2
    assert [part.dtype for part in full_scale([black, gray / 7], "it", eight_bit=True)] == [np.float32] * 2
    dark, deep = gray.astype(np.uint16), np.full((2, 9, 9), 60_000, np.uint16)
    assert [part.dtype for part in full_scale([dark, deep], "it", eight_bit=True)] == [np.uint16] * 2
    with pytest.raises(DataError, match="it: holds float32 above 1 and uint8, whose scales differ"):
        full_scale([gray + 0.5, gray.astype(np.uint8)], "it", eight_bit=True)


@pytest.mark.parametrize(("kind", "deep"), [("u1", False), ("i8", False), ("?", False), ("u2", True), ("f4", True)])
def test_headers_of_arrays_state_the_bit_depth(kind: str, deep: bool) -> None:
    assert read_header("x.npy", data=npy(UINT8.astype(kind))).high_bit_depth is deep
