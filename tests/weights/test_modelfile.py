"""Model files: what is written is read again; everything else is refused in one line, without running code."""

from __future__ import annotations

import dataclasses
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

from convatlas._version import __version__
from convatlas.core.network import Network
from convatlas.core.preprocessing import Preprocessing
from convatlas.errors import ConvatlasError, MachineError, ModelFileError, WeightsError
from convatlas.inference.load import load
from convatlas.models.catalog import CATALOG
from convatlas.models.families.lenet import LeNet5Modern
from convatlas.tasks.known import Classification, task_for
from convatlas.tasks.task import Calibration
from convatlas.weights import modelfile
from convatlas.weights.build import build
from convatlas.weights.match import match_names, rules_of
from convatlas.weights.modelfile import (
    Header,
    header_text,
    parse_header,
    read_header,
    read_model_file,
    write_model_file,
)
from convatlas.weights.sizes import Sizes
from convatlas.weights.training_record import TrainingRecord
from tiny_networks import every_network, tiny

SMALL = LeNet5Modern(maps=(1, 2), hidden=(3, 4), resolution=16)
HEADER = Header(
    name="small",
    task=Classification(("Ameise", "蜂", "a \"quoted\"\tname"), loss="focal"),
    spec=SMALL,
    preprocessing=Preprocessing(resize=16, crop=16, mean=(0.1307,), std=(0.3081,)),
    calibration=Calibration(1.25, (0.5, 0.25, 1.0)),
    training=TrainingRecord(seed=3, recipe={"lr": 0.1}, fold=(2, 5), reported_metrics={"top1": 70.9}),
    metrics={"val": {"n": 10, "accuracy": 0.9}},
    license="CC0-1.0",
)  # fmt: skip

MINIMAL = Header(name="small", task=HEADER.task, spec=SMALL, preprocessing=HEADER.preprocessing)


def build_fresh() -> Network:
    torch.manual_seed(0)
    return build(SMALL, classes=3)


@pytest.fixture
def written(tmp_path: Path) -> Path:
    write_model_file(tmp_path / "small.safetensors", build_fresh(), HEADER)
    return tmp_path / "small.safetensors"


def same_weights(a: Network, b: Network) -> bool:
    first, second = a.state_dict(), b.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def refuse(path: Path, *parts: str) -> None:
    """Check that the file is refused in one line that begins with its path and contains these parts."""
    with pytest.raises(ModelFileError) as caught:
        read_model_file(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    assert all(part in message for part in parts), message


@every_network
@pytest.mark.parametrize("channels", [1, 3])
def test_every_network_is_read_as_it_was_written(tmp_path: Path, name: str, channels: int) -> None:
    row, path = CATALOG[name], tmp_path / "model.safetensors"
    network = build(tiny(name), classes=7, channels=channels)
    steps = row.preprocessing.for_resolution(tiny(name).resolution).for_channels(channels)
    if steps.sampling is not None:
        steps = steps.replaced({"sampling": {**steps.sampling.to_plain(), "frames": network.input_shape[1]}})
    header = Header(
        name=name,
        spec=tiny(name),
        task=dataclasses.replace(task_for(tiny(name), tuple("abcdefg")), loss="lecun_map"),
        preprocessing=steps,
    )
    write_model_file(path, network, header)
    loaded, read = read_model_file(path)
    assert read == header
    assert same_weights(loaded, network)
    assert not loaded.training
    inputs = torch.randn(2, *network.input_shape)
    with torch.inference_mode():
        assert torch.equal(loaded(inputs), network.eval()(inputs))
    # tensors of something else are refused, whichever rules are tried
    sizes = Sizes(tiny(name))
    sizes.base = network.state_dict()
    with pytest.raises(WeightsError, match=r"with the names of convatlas.*missing .* unexpected x"):
        match_names({"x.weight": torch.zeros(3)}, rules_of(tiny(name)), sizes)


def test_every_field_of_the_header_is_read(written: Path) -> None:
    assert read_model_file(written)[1] == HEADER


@pytest.mark.parametrize(("version", "is_other"), [("0.0.1", True), (__version__, False), (3, False)])
def test_a_field_of_another_version_is_refused_with_both_versions(
    written: Path, version: object, is_other: bool
) -> None:
    plain = json.loads(header_text(HEADER)) | {"flavor": 1}
    plain["training"]["versions"] = {"convatlas": version}
    with pytest.raises(ModelFileError, match="flavor is not a field of Header") as caught:
        parse_header(written, json.dumps(plain))
    hint = f"; written by another version of convatlas (0.0.1, this one is {__version__})"
    assert str(caught.value).endswith(hint) is is_other


def test_reading_does_not_change_the_random_state_of_torch(written: Path) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    read_model_file(written)
    assert torch.equal(torch.get_rng_state(), before)


# --- damage


def test_a_truncated_file_is_refused_at_every_length(written: Path) -> None:
    raw = written.read_bytes()
    lengths = {0, 1, 7, 8, 9, 100, len(raw) - 1, *random.Random(0).sample(range(len(raw)), 60)}
    for length in lengths:
        written.write_bytes(raw[:length])
        refuse(written)


def test_an_extended_file_is_refused(written: Path) -> None:
    written.write_bytes(written.read_bytes() + b"\0")
    refuse(written)


@pytest.mark.parametrize("block", range(4))
def test_a_changed_byte_never_gives_another_model(written: Path, block: int) -> None:
    raw, chance = written.read_bytes(), random.Random(block)
    network, refused = build_fresh(), []
    for _ in range(50):
        damaged = bytearray(raw)
        damaged[chance.randrange(len(raw))] ^= chance.randrange(1, 256)
        written.write_bytes(damaged)
        try:
            loaded, header = read_model_file(written)
        except ModelFileError as error:
            refused.append(str(error))
        else:  # white space without a meaning
            assert header == HEADER
            assert same_weights(loaded, network)
    assert len(refused) >= 45
    assert not any("\n" in message for message in refused)


def test_swapped_weights_are_refused(written: Path) -> None:
    raw = written.read_bytes()
    start = 8 + struct.unpack("<Q", raw[:8])[0]
    written.write_bytes(raw[:start] + raw[start + 8 :] + raw[start : start + 8])
    refuse(written, "sha256")


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
    assert marker.exists()  # the trap works


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


def test_a_checkpoint_of_torch_is_refused_with_what_to_do(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(3)}, tmp_path / "a.pth")
    refuse(tmp_path / "a.pth", "a checkpoint of torch, not a model file", "weights import NAME FILE --tag TAG")


def test_the_header_alone_is_read(written: Path) -> None:
    assert read_header(written) == HEADER


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    refuse(tmp_path / "missing.safetensors", "no such")
    refuse(tmp_path)


# --- files with a valid checksum and invalid content


def forge(path: Path, plain: Any, weights: dict[str, Tensor] | None = None, *, text: str = "") -> Path:
    """Write a file with a valid checksum and any header."""
    weights = dict(build_fresh().state_dict()) if weights is None else weights
    text = text or json.dumps(plain)
    safetensors.torch.save_file(weights, path, {"convatlas": text, "sha256": modelfile.digest(text, weights)})
    return path


@pytest.fixture
def forged(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that forges a file from the header with changed fields."""
    return lambda **changes: forge(tmp_path / "forged.safetensors", HEADER.to_plain() | changes)


def test_a_forged_file_without_changes_is_valid(forged: Callable[..., Path]) -> None:
    assert read_model_file(forged())[1] == HEADER


@pytest.mark.parametrize("field", ["version", "name", "task", "spec", "preprocessing"])
def test_a_missing_field_is_named(tmp_path: Path, field: str) -> None:
    plain = HEADER.to_plain()
    del plain[field]
    refuse(forge(tmp_path / "forged.safetensors", plain), f"header: {field}")


@pytest.mark.parametrize("field", ["calibration", "training", "metrics", "license"])
def test_a_missing_optional_field_has_its_default(tmp_path: Path, field: str) -> None:
    plain = HEADER.to_plain()
    del plain[field]
    _, header = read_model_file(forge(tmp_path / "forged.safetensors", plain))
    assert header == dataclasses.replace(HEADER, **{field: getattr(MINIMAL, field)})


def test_an_unknown_field_is_named(forged: Callable[..., Path]) -> None:
    refuse(forged(licence="MIT"), "header: licence is not a field of Header (did you mean license?)")


WRONG_VALUES: tuple[Any, ...] = (None, True, 1.5, "text", [], {})
ILL_TYPED = [
    (field, value)
    for field, good in HEADER.to_plain().items()
    for value in WRONG_VALUES
    if type(value) is not type(good) or field in ("task", "spec", "preprocessing")  # which must not be empty
]


@pytest.mark.parametrize(("field", "value"), ILL_TYPED, ids=repr)
def test_a_field_of_a_wrong_type_is_named(forged: Callable[..., Path], field: str, value: Any) -> None:
    refuse(forged(**{field: value}), "header", field)


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (["a", "b", "a"], "Classification: classes must be different names"),
        ([], "Classification: classes must be different names"),
        (["a", "b", 3], "header.task: classes[2] must be a text, got 3"),
        (["a", None, "c"], "header.task: classes[1] must be a text, got None"),
        ([["a"], ["b"], ["c"]], "header.task: classes[0] must be a text"),
    ],
    ids=repr,
)
def test_classes_are_different_names(forged: Callable[..., Path], classes: list[Any], message: str) -> None:
    refuse(forged(task=HEADER.task.to_plain() | {"classes": classes}), message)


@pytest.mark.parametrize(
    ("field", "change", "message"),
    [
        ("task", {"type": "Unheard"}, "header.task: type must be the name of a known record type, got 'Unheard'"),
        ("task", {"type": "LeNet5Modern"}, "header.task: type must be the name of a known record type"),
        ("task", {"loss": "unheard"}, "loss must be one of cross_entropy, focal, "),
        ("task", {"loss": "asymmetric"}, "loss must be one of cross_entropy, focal, "),
        ("spec", {"type": "Unheard"}, "header.spec: type must be the name of a known record type, got 'Unheard'"),
        ("spec", {"type": "Classification"}, "header.spec: type must be the name of a known record type"),
        ("spec", {"type": []}, "header.spec: type must be the name of a known record type, got []"),
        ("spec", {"depth": 3}, "header.spec: depth is not a field of LeNet5Modern"),
        ("spec", {"maps": [6, "16"]}, "header.spec: maps[1] must be a width, an integer >= 1, got '16'"),
        ("spec", {"maps": [6, 0]}, "header.spec: maps[1] must be a width, an integer >= 1, got 0"),
        ("spec", {"maps": [6]}, "header.spec: maps must be a list of 2 items"),
        ("spec", {"maps": [6, 16, 32]}, "header.spec: maps must be a list of 2 items"),
        ("spec", {"maps": {"type": "LeNet5Modern"}}, "header.spec: maps must be a list of 2 items"),
        ("spec", {"hidden": 120}, "header.spec: hidden must be a list of 2 items"),
        ("spec", {"resolution": 8}, "LeNet5Modern: resolution must be >= "),
        ("spec", {"resolution": 32}, "Header: preprocessing must give the network's 32 px, got 16 px"),
        ("preprocessing", {"crop": 12}, "Header: preprocessing must give the network's 16 px, got 12 px"),
        ("preprocessing", {"std": [0.0]}, "header.preprocessing: std[0] must be a number > 0, got 0.0"),
        ("preprocessing", {"mean": []}, "mean and std must have one value for each channel"),
        ("preprocessing", {"rotate": 1}, "header.preprocessing: rotate is not a field of Preprocessing"),
        ("preprocessing", {"mean": [0.1] * 3, "std": [0.3] * 3}, "the weights do not fit the network"),
        ("calibration", {"temperature": 0}, "header.calibration: temperature must be a number > 0, got 0.0"),
        ("calibration", {"temperature": True}, "header.calibration: temperature must be a number > 0, got True"),
        ("calibration", {"thresholds": [0.5]}, "Header: thresholds must be one for each of 3, got 1"),
        ("calibration", {"thresholds": [0.5, -0.1, 1]}, "thresholds[1] must be a number in [0, 1], got -0.1"),
    ],
)
def test_records_that_do_not_fit_are_named(
    forged: Callable[..., Path], field: str, change: dict[str, Any], message: str
) -> None:
    refuse(forged(**{field: HEADER.to_plain()[field] | change}), message)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fold": [1]}, "header.training: fold must be a list of 2 items or null, got"),
        ({"fold": [3, 2]}, r"TrainingRecord: fold must be (number, count) with 1 <= number <= count, got (3, 2)"),
        ({"seed": "x"}, "header.training: seed must be an integer in [0, 4294967295], got 'x'"),
        ({"seed": -1}, "header.training: seed must be an integer in [0, 4294967295], got -1"),
        ({"max_unreadable": "x"}, "header.training: max_unreadable must be a number in [0, 1], got 'x'"),
        ({"val_share": 1.0}, "header.training: val_share must be a number in [0, 1), got 1.0"),
        ({"fingerprint": 3}, "header.training: fingerprint must be a text, got 3"),
        ({"reported_metrics": {"top1": "x"}}, "header.training: reported_metrics.top1 must be a number, got 'x'"),
        ({"data": None}, "header.training: data must be a text, got None"),
        ({"mood": 1}, "header.training: mood is not a field of TrainingRecord"),
    ],
)
def test_how_it_was_trained_is_checked(forged: Callable[..., Path], change: dict[str, Any], message: str) -> None:
    refuse(forged(training=HEADER.training.to_plain() | change), message)


@pytest.mark.parametrize("metrics", [{"val": 3}, {"val": {"accuracy": "x"}}, {"val": {"n": None}}])
def test_metrics_are_numbers(forged: Callable[..., Path], metrics: Any) -> None:
    refuse(forged(metrics=metrics), "header: metrics.val")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("head.out.weight", float("nan"), "must be finite, got 12 of 12 values NaN"),
        ("head.out.bias", float("inf"), "must be finite, got 3 of 3 values infinite"),
    ],
)
def test_weights_are_finite(tmp_path: Path, name: str, value: float, message: str) -> None:
    weights = dict(build_fresh().state_dict())
    weights[name] = torch.full_like(weights[name], value)
    refuse(forge(tmp_path / "forged.safetensors", HEADER.to_plain(), weights), f"{name} {message}")


@pytest.mark.parametrize("constant", ["NaN", "Infinity"])
def test_a_temperature_is_finite(tmp_path: Path, constant: str) -> None:
    text = json.dumps(HEADER.to_plain()).replace("1.25", constant)
    refuse(forge(tmp_path / "forged.safetensors", None, text=text), "temperature must be a number > 0")


@pytest.mark.parametrize(
    ("version", "message"),
    [
        ("1", "version must be an integer >= 1, got '1'"),
        (True, "version must be an integer >= 1, got True"),
        (0, "version must be an integer >= 1, got 0"),
        (2, "version must be <= 1, got 2; upgrade"),
        (10**30, "upgrade"),
    ],
)
def test_other_versions_are_refused(forged: Callable[..., Path], version: Any, message: str) -> None:
    refuse(forged(version=version), message)


@pytest.mark.parametrize(
    "text",
    ["{", "[]", "null", "1", '"text"', "[" * 100_000, "{}", "9" * 5000, '{"version": ' + "9" * 5000 + "}",
     '{"training":' * 900 + "1" + "}" * 900],
    ids=lambda text: text[:6],
)  # fmt: skip
def test_a_header_that_is_not_a_record_is_refused(tmp_path: Path, text: str) -> None:
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
    ids=["one missing", "one more", "longer", "transposed", "none"],
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


@pytest.mark.parametrize("field", ["loss", "type"])
def test_names_of_a_later_version_are_refused_when_the_model_is_opened(forged: Callable[..., Path], field: str) -> None:
    path = forged(task=HEADER.task.to_plain() | {field: "unheard"})
    with pytest.raises(ConvatlasError, match="got 'unheard'") as caught:
        load(path)
    assert str(caught.value).startswith(f"{path}: ")


# --- writing


@pytest.mark.parametrize("old", [False, True], ids=["new file", "old file"])
@pytest.mark.parametrize("how", ["fsync", "limit"])
def test_a_full_disk_changes_no_file(
    written: Path, how: str, old: bool, monkeypatch: pytest.MonkeyPatch,
    full_disk: Callable[[int], AbstractContextManager[None]],
) -> None:  # fmt: skip
    def fail(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    before, path = written.read_bytes(), written if old else written.with_name("new.safetensors")
    if how == "fsync":
        monkeypatch.setattr(os, "fsync", fail)
    with (
        full_disk(1000 if how == "limit" else 10**9),
        pytest.raises(MachineError, match=f"{path.name}: cannot be written"),
    ):
        write_model_file(path, build_fresh(), HEADER)
    assert [entry.name for entry in written.parent.iterdir()] == [written.name]
    assert written.read_bytes() == before


def test_an_interrupted_write_changes_no_file(written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(_: int) -> None:
        raise KeyboardInterrupt

    before = written.read_bytes()
    monkeypatch.setattr(os, "fsync", stop)
    with pytest.raises(KeyboardInterrupt):
        write_model_file(written, build_fresh(), HEADER)
    assert [entry.name for entry in written.parent.iterdir()] == [written.name]
    assert written.read_bytes() == before


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(MachineError, match=r"missing.model\.safetensors: cannot be written"):
        write_model_file(tmp_path / "missing" / "model.safetensors", build_fresh(), HEADER)


@pytest.mark.skipif(os.geteuid() == 0, reason="root can write everywhere")
def test_a_read_only_folder_is_named(written: Path) -> None:
    written.parent.chmod(0o500)
    try:
        with pytest.raises(MachineError, match="cannot be written"):
            write_model_file(written, build_fresh(), HEADER)
    finally:
        written.parent.chmod(0o700)
