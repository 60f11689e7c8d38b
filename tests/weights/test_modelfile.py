"""The sealed file: what goes in comes out, and anything else is refused in one line without running code."""

from __future__ import annotations

import errno
import json
import os
import random
import struct
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor

from convatlas.core.network import Network
from convatlas.core.preprocessing import Preprocessing
from convatlas.errors import ConvatlasError, MachineError, ModelFileError
from convatlas.inference import model
from convatlas.models.catalog import CATALOG
from convatlas.models.families.lenet import LeNet5Modern
from convatlas.weights import modelfile
from convatlas.weights.build import build
from convatlas.weights.modelfile import Header, read_model_file, write_model_file
from tiny_networks import tiny

SMALL = LeNet5Modern(maps=(1, 2), hidden=(3, 4), resolution=16)
HEADER = Header(
    name="small",
    spec=SMALL,
    classes=("Ameise", "蜂", "a \"quoted\"\tname"),
    preprocessing=Preprocessing(resize=16, crop=16, mean=(0.1307,), std=(0.3081,)),
    criterion="cross_entropy",
    training={"seed": 3, "recipe": {"lr": 0.1}},
    metrics={"val": {"images": 10, "accuracy": 0.9}},
    license="CC0-1.0",
)  # fmt: skip


def build_fresh() -> Network:
    torch.manual_seed(0)
    return build(SMALL, classes=3)


@pytest.fixture
def sealed(tmp_path: Path) -> Path:
    write_model_file(tmp_path / "small.safetensors", build_fresh(), HEADER)
    return tmp_path / "small.safetensors"


def same_weights(a: Network, b: Network) -> bool:
    first, second = a.state_dict(), b.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def refuse(path: Path, *told: str) -> None:
    """Check that the file is refused in one line that names it and tells what is wrong."""
    with pytest.raises(ModelFileError) as caught:
        read_model_file(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    assert all(part in message for part in told), message


@pytest.mark.parametrize("name", CATALOG)
@pytest.mark.parametrize("channels", [1, 3])
def test_every_network_round_trips_bit_for_bit(tmp_path: Path, name: str, channels: int) -> None:
    row, path = CATALOG[name], tmp_path / "model.safetensors"
    network = build(tiny(name), classes=7, channels=channels)
    header = Header(
        name=name,
        spec=tiny(name),
        classes=tuple("abcdefg"),
        preprocessing=row.preprocessing.for_resolution(tiny(name).resolution).for_channels(channels),
        criterion="map",
    )
    write_model_file(path, network, header)
    loaded, read = read_model_file(path)
    assert read == header
    assert same_weights(loaded, network)
    assert not loaded.training
    inputs = torch.randn(2, *network.input_shape)
    with torch.inference_mode():
        assert torch.equal(loaded(inputs), network.eval()(inputs))


def test_every_field_of_the_header_comes_back(sealed: Path) -> None:
    assert read_model_file(sealed)[1] == HEADER


def test_loading_leaves_torchs_generator_alone(sealed: Path) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    read_model_file(sealed)
    assert torch.equal(torch.get_rng_state(), before)


# --- damage


def test_a_truncated_file_is_refused_at_every_length(sealed: Path) -> None:
    raw = sealed.read_bytes()
    lengths = {0, 1, 7, 8, 9, 100, len(raw) - 1, *random.Random(0).sample(range(len(raw)), 60)}
    for length in lengths:
        sealed.write_bytes(raw[:length])
        refuse(sealed)


def test_an_extended_file_is_refused(sealed: Path) -> None:
    sealed.write_bytes(sealed.read_bytes() + b"\0")
    refuse(sealed)


@pytest.mark.parametrize("block", range(4))
def test_a_flipped_byte_never_gives_another_model(sealed: Path, block: int) -> None:
    raw, chance = sealed.read_bytes(), random.Random(block)
    network, refused = build_fresh(), []
    for _ in range(50):
        damaged = bytearray(raw)
        damaged[chance.randrange(len(raw))] ^= chance.randrange(1, 256)
        sealed.write_bytes(damaged)
        try:
            loaded, header = read_model_file(sealed)
        except ModelFileError as error:
            refused.append(str(error))
        else:  # white space that means nothing
            assert header == HEADER
            assert same_weights(loaded, network)
    assert len(refused) >= 45
    assert not any("\n" in message for message in refused)


def test_exchanged_weights_are_noticed(sealed: Path) -> None:
    raw = sealed.read_bytes()
    start = 8 + struct.unpack("<Q", raw[:8])[0]
    sealed.write_bytes(raw[:start] + raw[start + 8 :] + raw[start : start + 8])
    refuse(sealed, "sha256")


class Trap:
    """Unpickling this creates a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[..., None], tuple[Path]]:
        return Path.touch, (self.marker,)


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "bare pickle"])
def test_a_pickle_is_refused_and_not_run(tmp_path: Path, legacy: bool) -> None:
    marker, path = tmp_path / "marker", tmp_path / "model.safetensors"
    torch.save({"weights": Trap(marker)}, path, _use_new_zipfile_serialization=not legacy)
    refuse(path)
    assert not marker.exists()
    torch.load(path.rename(tmp_path / "model.pt"), weights_only=False)
    assert marker.exists()  # the trap does work


@pytest.mark.parametrize(
    "content",
    [
        b"", b"\0" * 8, b"\0" * 1000, b"PK\x03\x04", random.Random(0).randbytes(5000), b"{}",
        struct.pack("<Q", 2) + b"{}",
        struct.pack("<Q", 2**63) + b"{}",
        struct.pack("<Q", 2**64 - 1) + b"{}",
        struct.pack("<Q", 200_000_000) + b" " * 1000,
        struct.pack("<Q", 5) + b'{"a":',
        struct.pack("<Q", 12) + b'{"a": [1, 2]',
        struct.pack("<Q", 100_000) + b"[" * 100_000,
    ],
    ids=lambda content: f"{content[:16]!r} {len(content)}",
)  # fmt: skip
def test_other_bytes_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    refuse(path)


def test_a_foreign_safetensors_file_is_refused(tmp_path: Path) -> None:
    for metadata in (None, {"format": "pt"}):
        safetensors.torch.save_file({"weight": torch.zeros(3)}, tmp_path / "foreign.safetensors", metadata)
        refuse(tmp_path / "foreign.safetensors", "not a convatlas model")


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    refuse(tmp_path / "missing.safetensors", "no such")
    refuse(tmp_path)


# --- files with a right checksum and wrong content


def forge(path: Path, plain: Any, weights: dict[str, Tensor] | None = None, *, text: str = "") -> Path:
    """Write a file whose checksum is right, whatever it says."""
    weights = dict(build_fresh().state_dict()) if weights is None else weights
    text = text or json.dumps(plain)
    safetensors.torch.save_file(weights, path, {"convatlas": text, "sha256": modelfile.digest(text, weights)})
    return path


@pytest.fixture
def forged(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that forges a file from the header with some fields changed."""
    return lambda **changes: forge(tmp_path / "forged.safetensors", HEADER.to_plain() | changes)


def test_a_forged_file_without_a_change_is_a_good_one(forged: Callable[..., Path]) -> None:
    assert read_model_file(forged())[1] == HEADER


@pytest.mark.parametrize("field", HEADER.to_plain())
def test_a_missing_field_is_named(tmp_path: Path, field: str) -> None:
    plain = HEADER.to_plain()
    del plain[field]
    refuse(forge(tmp_path / "forged.safetensors", plain), field)


ILL_TYPED = [
    (field, value)
    for field, good in HEADER.to_plain().items()
    for value in (None, True, 1.5, "text", [], {})
    if type(value) is not type(good) or field in ("classes", "spec", "preprocessing")  # which must not be empty
]


@pytest.mark.parametrize(("field", "value"), ILL_TYPED, ids=repr)
def test_an_ill_typed_field_is_named(forged: Callable[..., Path], field: str, value: Any) -> None:
    refuse(forged(**{field: value}), field)


@pytest.mark.parametrize("classes", [["a", "b", "a"], ["a", "b", 3], ["a", None, "c"], [["a"], ["b"], ["c"]]], ids=repr)
def test_classes_are_different_names(forged: Callable[..., Path], classes: list[Any]) -> None:
    refuse(forged(classes=classes), "classes")


@pytest.mark.parametrize(
    ("field", "change", "told"),
    [
        ("spec", {"type": "Unheard"}, "Unheard"),
        ("spec", {"type": []}, "spec"),
        ("spec", {"depth": 3}, "depth"),
        ("spec", {"maps": [6, "16"]}, "maps"),
        ("spec", {"maps": [6, 0]}, "maps"),
        ("spec", {"maps": [6]}, "maps"),
        ("spec", {"maps": [6, 16, 32]}, "maps"),
        ("spec", {"maps": {"type": "LeNet5Modern"}}, "maps"),
        ("spec", {"hidden": 120}, "hidden"),
        ("spec", {"resolution": 8}, "resolution"),
        ("spec", {"resolution": 32}, "32"),
        ("preprocessing", {"crop": 12}, "12 px"),
        ("preprocessing", {"std": [0.0]}, "std"),
        ("preprocessing", {"mean": []}, "mean"),
        ("preprocessing", {"rotate": 1}, "fields"),
        ("preprocessing", {"mean": [0.1] * 3, "std": [0.3] * 3}, "weights"),
    ],
)
def test_records_that_do_not_fit_are_named(
    forged: Callable[..., Path], field: str, change: dict[str, Any], told: str
) -> None:
    refuse(forged(**{field: HEADER.to_plain()[field] | change}), told)


@pytest.mark.parametrize(("version", "told"), [("1", "format"), (True, "format"), (2, "upgrade"), (10**30, "upgrade")])
def test_other_formats_are_refused(forged: Callable[..., Path], version: Any, told: str) -> None:
    refuse(forged(format=version), told)


@pytest.mark.parametrize("text", ["{", "[]", "null", "1", '"text"', "[" * 100_000, "{}"], ids=lambda text: text[:6])
def test_a_header_that_is_no_record_is_refused(tmp_path: Path, text: str) -> None:
    refuse(forge(tmp_path / "forged.safetensors", None, text=text), "header")


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (lambda weights: weights.pop("head.out.bias"), "head.out.bias"),
        (lambda weights: weights.update(extra=torch.zeros(2)), "extra"),
        (lambda weights: weights.update({"head.out.bias": torch.zeros(4)}), "head.out.bias"),
        (lambda weights: weights.update({"head.out.weight": torch.zeros(4, 3)}), "head.out.weight"),
        (lambda weights: weights.clear(), "head"),
    ],
    ids=["one missing", "one more", "longer", "turned", "none"],
)
def test_weights_that_do_not_fit_the_spec_are_named(
    tmp_path: Path, damage: Callable[[dict[str, Tensor]], object], named: str
) -> None:
    weights = dict(build_fresh().state_dict())
    damage(weights)
    refuse(forge(tmp_path / "forged.safetensors", HEADER.to_plain(), weights), "do not fit", named)


def test_a_spec_too_large_for_memory_is_refused_before_it_is_built(forged: Callable[..., Path]) -> None:
    spec = HEADER.spec.to_plain() | {"hidden": [10**9, 10**9]}
    refuse(forged(spec=spec), "do not fit")


@pytest.mark.parametrize("field", ["criterion", "task"])
def test_words_from_a_later_version_are_refused_when_the_model_is_opened(
    forged: Callable[..., Path], field: str
) -> None:
    path = forged(**{field: "unheard"})
    with pytest.raises(ConvatlasError, match="unheard") as caught:
        model.load(path)
    assert str(path) in str(caught.value)


# --- writing


@pytest.mark.parametrize("old", [False, True], ids=["new file", "old file"])
@pytest.mark.parametrize("how", ["fsync", "limit"])
def test_a_full_disk_leaves_everything_as_it_was(
    sealed: Path, how: str, old: bool, monkeypatch: pytest.MonkeyPatch,
    full_disk: Callable[[int], AbstractContextManager[None]],
) -> None:  # fmt: skip
    def fail(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    before, path = sealed.read_bytes(), sealed if old else sealed.with_name("new.safetensors")
    if how == "fsync":
        monkeypatch.setattr(os, "fsync", fail)
    with full_disk(1000 if how == "limit" else 10**9), pytest.raises(MachineError, match=f"{path.name}: cannot be written"):
        write_model_file(path, build_fresh(), HEADER)
    assert [entry.name for entry in sealed.parent.iterdir()] == [sealed.name]
    assert sealed.read_bytes() == before


def test_a_stop_while_writing_leaves_everything_as_it_was(sealed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(_: int) -> None:
        raise KeyboardInterrupt

    before = sealed.read_bytes()
    monkeypatch.setattr(os, "fsync", stop)
    with pytest.raises(KeyboardInterrupt):
        write_model_file(sealed, build_fresh(), HEADER)
    assert [entry.name for entry in sealed.parent.iterdir()] == [sealed.name]
    assert sealed.read_bytes() == before


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(MachineError, match=r"missing.model\.safetensors: cannot be written"):
        write_model_file(tmp_path / "missing" / "model.safetensors", build_fresh(), HEADER)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder_is_named(sealed: Path) -> None:
    sealed.parent.chmod(0o500)
    try:
        with pytest.raises(MachineError, match="cannot be written"):
            write_model_file(sealed, build_fresh(), HEADER)
    finally:
        sealed.parent.chmod(0o700)
