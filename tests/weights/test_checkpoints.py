"""Checkpoints as other people write them: read exactly, with a note, or refused in one line that names the reason."""

from __future__ import annotations

import argparse
import collections
import json
import pathlib
import pickle
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
import torchvision
from torch import Tensor, nn

from convatlas.core.network import Network
from convatlas.errors import WeightsError
from convatlas.models.catalog import build_fresh, variant
from convatlas.models.keys import rename
from convatlas.weights.build import build
from convatlas.weights.match import rules_of
from convatlas.weights.open import open_weights
from convatlas.weights.read import Checkpoint
from convatlas.weights.sizes import Sizes
from tiny_networks import tiny
from upstream import scramble

SPEC = tiny("resnet18")
State = dict[str, Any]


@pytest.fixture(scope="module")
def network() -> Network:
    torch.manual_seed(0)
    network = build_fresh(SPEC, classes=6, channels=3)
    scramble(network)
    return network


@pytest.fixture(scope="module")
def state(network: Network) -> State:
    """The weights of the small network by the names of torchvision."""
    with torch.device("meta"):
        names = list(torchvision.models.resnet18().state_dict())
    ours, rules = network.state_dict(), rules_of(SPEC)["torchvision"]
    return {key: ours[name] for key in names if (name := rename(key, rules)) in ours}


@pytest.fixture
def save(tmp_path: Path) -> Callable[[Any], Path]:
    def save(content: Any) -> Path:
        torch.save(content, tmp_path / "file.pth")
        return tmp_path / "file.pth"

    return save


def read(path: str | Path) -> Checkpoint:
    row = variant("resnet18")
    return open_weights(path, SPEC, name="resnet18-custom", row=row)


def check(checkpoint: Checkpoint, network: Network, *, without: str = "nothing") -> None:
    """Compare the tensors of a checkpoint with those of the network, but for those whose names begin with `without`."""
    expected = {name: tensor for name, tensor in network.state_dict().items() if not name.startswith(without)}
    assert checkpoint.tensors.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(checkpoint.tensors[name].to(tensor.dtype), tensor, rtol=0, atol=0)


def prefixed(prefix: str, state: State) -> State:
    return {prefix + key: value for key, value in state.items()}


def shifted(state: State) -> State:
    """Return other weights of the same network."""
    return {key: value + 1 if value.is_floating_point() else value for key, value in state.items()}


def without_head(state: State) -> State:
    return {key: value for key, value in state.items() if not key.startswith("fc.")}


HEAD = ("fc.weight", "fc.bias")

READABLE: dict[str, tuple[Callable[[State], Any], str]] = {
    "plain": (lambda s: s, ""),
    **{
        prefix: (lambda s, prefix=prefix: prefixed(prefix, s), f"prefix {prefix} removed from 74 names")
        for prefix in ("_orig_mod.", "module.", "model.", "backbone.", "net.", "some.thing.else.")
    },
    "compiled and parallel": (
        lambda s: {"state_dict": prefixed("module._orig_mod.", s)}, "state_dict used; prefix module._orig_mod."
    ),
    "head of its own": (
        lambda s: prefixed("backbone.", without_head(s)) | {f"head.{key}": s[key] for key in HEAD},
        "prefix backbone. removed from 72 names; prefix head. removed from 2 names",
    ),
    "head without a prefix": (
        lambda s: prefixed("encoder.", without_head(s)) | {key: s[key] for key in HEAD}, "prefix encoder. removed"
    ),
    "averaged by torch": (
        lambda s: {"n_averaged": torch.tensor(3), **prefixed("module.", s)}, "not weights and ignored: n_averaged"
    ),
    "counted by thop": (
        lambda s: s | {"total_ops": torch.zeros(1), "layer1.total_params": torch.zeros(1)}, "ignored: total_ops, layer1"
    ),
    "numbers beside weights": (lambda s: s | {"decay": torch.tensor(0.9), "count": 3, "name": "x"}, "ignored: count"),
    **{
        wrapper: (lambda s, wrapper=wrapper: {wrapper: s, "epoch": 3}, f"{wrapper} used")
        for wrapper in ("state_dict", "model", "net", "weights", "ema", "teacher", "anything")
    },
    "nested wrappers": (lambda s: {"model": {"state_dict": s}, "best": torch.tensor(0.5)}, "model.state_dict used"),
    "a list": (lambda s: [s, {"lr": 0.1}], "0 used"),
    "timm's average": (
        lambda s: {"state_dict": shifted(s), "state_dict_ema": s, "arch": "resnet18"},
        "state_dict_ema used, the averaged weights (EMA), not state_dict; choose it with",
    ),
    "torchvision's average": (
        lambda s: {
            "model": shifted(s), "model_ema": {"n_averaged": torch.tensor(2), **prefixed("module.", s)},
            "args": argparse.Namespace(model="resnet18", output_dir=pathlib.PurePosixPath("/tmp")),
        },
        "model_ema used, the averaged weights (EMA), not model",
    ),
    "parameters": (
        lambda s: {k: nn.Parameter(v, v.is_floating_point()) if v.is_floating_point() else v for k, v in s.items()}, ""
    ),
    "NumPy arrays": (lambda s: {key: np.array(value.numpy(), order="F") for key, value in s.items()}, ""),
    "1x1 convolution": (lambda s: s | {"fc.weight": s["fc.weight"][:, :, None, None]}, ""),
    "no counters": (lambda s: {key: value for key, value in s.items() if "num_batches" not in key}, ""),
}  # fmt: skip


@pytest.mark.parametrize("how", READABLE)
def test_weights_are_read_exactly_and_a_note_states_what_was_removed(
    how: str, state: State, network: Network, save: Callable[[Any], Path]
) -> None:
    write, note = READABLE[how]
    checkpoint = read(save(write(state)))
    network.load_state_dict(checkpoint.tensors, strict=False)
    check(checkpoint, network)
    assert note in checkpoint.note
    assert bool(note) == bool(checkpoint.notes)
    assert (checkpoint.num_classes, checkpoint.channels) == (6, 3)
    assert set(checkpoint.original) >= {key for key in state if "num_batches" not in key}


def test_notes_are_logged_as_one_line(
    state: State, save: Callable[[Any], Path], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save({"net": prefixed("module.", state)})
    build(SPEC, weights=path)
    assert [record.getMessage() for record in caplog.records] == [
        f"{path}: net used; prefix module. removed from 74 names"
    ]
    monkeypatch.setenv("RANK", "1")
    build(SPEC, weights=path)
    assert len(caplog.records) == 1


def test_harmless_values_beside_weights_are_read(state: State, network: Network, save: Callable[[Any], Path]) -> None:
    random = np.random.RandomState(0).get_state()
    content = {
        "state_dict": state, "args": argparse.Namespace(lr=0.1, path=Path("/x")), "best": np.float64(1.5),
        "array": np.arange(6.0).reshape(2, 3), "number": np.int64(3), "text": np.str_("a"), "yes": np.bool_(True),
        "dtype": np.dtype("float32"), "objects": np.array(["a", None], dtype=object), "rng": random,
        "history": collections.defaultdict(list, loss=[1.0]), "window": collections.deque([1, 2], maxlen=3),
        "options": types.SimpleNamespace(a=1), "ordered": collections.OrderedDict(a=1), "size": torch.Size([1]),
        "other": pathlib.PureWindowsPath("c:/a"), "set": {1, 2}, "type": torch.float16, "device": torch.device("cpu"),
    }  # fmt: skip
    check(read(save(content)), network)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floats_are_converted(
    dtype: torch.dtype, state: State, save: Callable[[Any], Path], tmp_path: Path
) -> None:
    halves = {key: value.to(dtype) if value.is_floating_point() else value for key, value in state.items()}
    built = build(SPEC, weights=save(halves)).state_dict()
    assert torch.equal(built["head.out.weight"], halves["fc.weight"].float())


# --- one of several state dicts, other heads


def test_a_key_chooses_a_state_dict_or_a_prefix(state: State, network: Network, save: Callable[[Any], Path]) -> None:
    path = save({"state_dict": state, "state_dict_ema": shifted(state)})
    check(read(f"{path}:state_dict"), network)
    with pytest.raises(WeightsError, match=r"ema must be a state dict in the file or a prefix .* state_dict_ema"):
        read(f"{path}:ema")
    path = save({"student": shifted(state), "teacher": state})
    with pytest.raises(
        WeightsError, match=r"more than one state dict fits: student, teacher; choose one with .*:student"
    ):
        read(path)
    check(read(f"{path}:teacher"), network)
    path = save(prefixed("query.", state) | prefixed("key.", shifted(state)))
    with pytest.raises(WeightsError, match=r"more than one part fits the network: query\., key\.; choose one"):
        read(path)
    check(read(f"{path}:query"), network)


HEADS: dict[str, State] = {
    "none": {},
    "a linear layer in a chain": {"fc.1.weight": torch.zeros(4, 128), "fc.1.bias": torch.zeros(4)},
    "two layers": {"fc.0.weight": torch.zeros(9, 128), "fc.2.weight": torch.zeros(4, 9), "fc.2.bias": torch.zeros(4)},
    "a projection": {"projector.weight": torch.zeros(9, 128), "queue": torch.zeros(9, 20)},
}


@pytest.mark.parametrize("head", HEADS)
def test_a_file_without_the_classifier_gets_a_new_head(
    head: str, state: State, network: Network, save: Callable[[Any], Path], caplog: pytest.LogCaptureFixture
) -> None:
    path = save(without_head(state) | HEADS[head])
    checkpoint = read(path)
    assert checkpoint.num_classes == 0
    check(checkpoint, network, without="head.out")
    with pytest.raises(WeightsError, match=r"head is initialized anew \(missing head\.out\.bias.*give classes"):
        build(SPEC, weights=path)
    built = build(SPEC, weights=path, classes=5, channels=1).state_dict()
    assert built["head.out.weight"].shape[0] == 5
    assert torch.equal(built["stages.0.0.sum.body.conv1.conv.weight"], state["layer1.0.conv1.weight"])
    assert next(iter(HEADS[head]), "missing") in caplog.text


def test_a_missing_or_unknown_layer_is_never_ignored(state: State, save: Callable[[Any], Path]) -> None:
    for changed, message in (
        ({key: value for key, value in state.items() if key != "layer2.0.conv2.weight"}, "missing stages.1.0"),
        ({key: value for key, value in without_head(state).items() if key != "bn1.bias"}, "missing .*stem"),
        (state | {"layer1.0.extra.weight": torch.zeros(3, 3)}, r"unexpected (module\.)?layer1\.0\.extra"),
        (without_head(state) | {"layer1.0.extra.weight": torch.zeros(3, 3)}, r"unexpected (module\.)?layer1\.0\.extra"),
    ):
        for prefix in ("", "module."):
            with pytest.raises(WeightsError, match=message):
                build(SPEC, weights=save(prefixed(prefix, changed)), classes=4)


# --- folders and shards


def write_shards(folder: Path, state: State, name: str) -> Path:
    """Write the weights in two shards and an index; returns the index."""
    stem, suffix = name.split(".")
    files = {key: f"{stem}-0000{1 + i % 2}-of-00002.{suffix}" for i, key in enumerate(state)}
    for file in set(files.values()):
        part = {key: state[key].clone() for key in state if files[key] == file}
        if suffix == "bin":
            torch.save(part, folder / file)
        else:
            safetensors.torch.save_file(part, folder / file)
    index = folder / f"{name}.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": files}))
    return index


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_shards_are_read_by_their_index_or_folder(name: str, state: State, network: Network, tmp_path: Path) -> None:
    index = write_shards(tmp_path, state, name)
    check(read(index), network)
    check(read(tmp_path), network)
    shard = next(tmp_path.glob("*-00002-of-*"))
    shard.unlink()
    with pytest.raises(WeightsError, match=rf"{shard.name}: no such file; .*index\.json needs 2 shards"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{}", "must have a weight_map"), ("[]", "must have a weight_map"), ("{", "damaged, not JSON"),
        ("[" * 100_000, "damaged, not JSON"), ("9" * 5000, "damaged, not JSON"),
        ('{"weight_map": {"a": "../x.bin"}}', "shards must be files beside the index"),
        ('{"weight_map": {"a": 3}}', "must have a weight_map"),
    ],
    ids=lambda value: value[:20],
)  # fmt: skip
def test_a_wrong_index_is_refused(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(WeightsError, match=message):
        read(tmp_path)


def test_the_snapshot_of_a_hub_states_network_and_preprocessing(state: State, network: Network, tmp_path: Path) -> None:
    safetensors.torch.save_file({key: value.clone() for key, value in state.items()}, tmp_path / "model.safetensors")
    config = tmp_path / "config.json"
    stated = {
        "mean": [0.5] * 3,
        "std": [0.5] * 3,
        "input_size": [3, 48, 48],
        "crop_pct": 0.75,
        "interpolation": "bicubic",
    }
    config.write_text(json.dumps({"architecture": "resnet18.a1_in1k", "pretrained_cfg": stated}))
    checkpoint = read(tmp_path)
    check(checkpoint, network)
    steps = checkpoint.preprocessing
    assert (steps.resize, steps.crop, steps.mean, steps.interpolation) == (64, 48, (0.5,) * 3, "bicubic")
    assert "preprocessing of config.json used" in checkpoint.note
    for other in ("resnet34", "tf_efficientnet_b0", "resnetblur18"):
        config.write_text(json.dumps({"architecture": other}))
        for path in (tmp_path, tmp_path / "model.safetensors"):
            with pytest.raises(WeightsError, match=f"the file names {other}, which is another network"):
                read(path)
    config.write_text(json.dumps({"architecture": "ResNetForImageClassification", "pretrained_cfg": {"mean": "x"}}))
    assert read(tmp_path).preprocessing == variant("resnet18").preprocessing


def test_a_training_checkpoint_of_another_network_is_refused(state: State, save: Callable[[Any], Path]) -> None:
    with pytest.raises(WeightsError, match="the file names resnet34, which is another network"):
        read(save({"model": state, "args": argparse.Namespace(model="resnet34")}))


def test_weights_of_a_relative_that_the_file_names_have_its_cells(save: Callable[[Any], Path]) -> None:
    """The tensors of timm's tf_efficientnet_b0 are those of efficientnet_b0; its padding is not."""
    row, spec = variant("efficientnet_b0"), tiny("efficientnet_b0")
    state = build_fresh(spec, classes=3, channels=3).state_dict()
    path = save({"arch": "tf_efficientnet_b0", "state_dict": state})
    checkpoint = open_weights(path, spec, name="efficientnet_b0", row=row)
    assert checkpoint.cells == row.relatives["tf_efficientnet_b0"]
    assert "taken as tf_efficientnet_b0, which the file names" in checkpoint.note
    with pytest.raises(WeightsError, match="the file names tf_efficientnet_b1, which is another network"):
        open_weights(save({"arch": "tf_efficientnet_b1", "state_dict": state}), spec, name="efficientnet_b0", row=row)


def test_folders_without_one_checkpoint_are_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"must contain model\.safetensors or one other checkpoint, got none"):
        read(tmp_path)
    for name in ("a.pth", "b.pth"):
        torch.save({}, tmp_path / name)
    with pytest.raises(WeightsError, match=r"got a\.pth, b\.pth"):
        read(tmp_path)


def test_the_home_directory_is_expanded(
    state: State, network: Network, save: Callable[[Any], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save({"net": state})
    monkeypatch.setenv("HOME", str(path.parent))
    check(read("~/file.pth"), network)
    check(read("~/file.pth:net"), network)


# --- what is refused


class Settings:
    """A class that checkpoints of some project hold."""


WRONG: dict[str, tuple[Callable[[State], Any], str]] = {
    "NaN": (
        lambda s: s | {"fc.bias": torch.full((6,), float("nan"))},
        r"fc\.bias must be finite, got 6 of 6 values NaN",
    ),
    "infinite": (lambda s: s | {"bn1.running_var": s["bn1.running_var"] / 0}, r"bn1\.running_var must be finite"),
    "too large": (lambda s: s | {"fc.bias": torch.full((6,), 1e300, dtype=torch.double)}, r"fc\.bias must be finite"),
    "negative variance": (lambda s: s | {"bn1.running_var": -s["bn1.running_var"]}, r"bn1\.running_var must be >= 0"),
    **{
        str(dtype): (
            lambda s, dtype=dtype: s | {"fc.weight": s["fc.weight"].to(dtype)},
            rf"fc\.weight must be .* {dtype}",
        )
        for dtype in (torch.int8, torch.int64, torch.complex64, torch.float8_e4m3fn)
    },
    "counter of floats": (lambda s: s | {"bn1.num_batches_tracked": torch.tensor(0.5)}, "must be a tensor of integers"),
    "sparse": (lambda s: s | {"fc.weight": s["fc.weight"].to_sparse()}, r"fc\.weight must be .* a sparse tensor"),
    "meta": (lambda s: s | {"fc.weight": s["fc.weight"].to("meta")}, r"fc\.weight must be .* without values"),
    "integers as names": (lambda s: dict(enumerate(s.values())), r"names of tensors must be text, got 0 \(int\)"),
    "bytes as names": (lambda s: {k.encode(): v for k, v in s.items()}, "names of tensors must be text, got b'conv1"),
    "pairs as names": (lambda s: {(k, 1): v for k, v in s.items()}, "names of tensors must be text, got"),
    "a number": (lambda s: 5, "must contain a dictionary of tensors, got int"),
    "nothing": (lambda s: {}, "must contain a dictionary of tensors, got an empty dictionary"),
    "no tensors": (lambda s: {"epoch": 3, "lr": 0.1}, "got a dictionary with the keys epoch, lr"),
    "a class": (
        lambda s: {"model": s, "settings": Settings()},
        "contains .*Settings, which is not loaded",
    ),
    "a module": (lambda s: nn.Sequential(nn.Linear(2, 2)), "a whole pickled module"),
}


@pytest.mark.parametrize("what", WRONG)
@pytest.mark.filterwarnings("ignore")
def test_wrong_content_is_refused_by_name(what: str, state: State, save: Callable[[Any], Path]) -> None:
    write, message = WRONG[what]
    path = save(write(state))
    with pytest.raises(WeightsError, match=message) as refused:
        read(path)
    assert str(refused.value).startswith(f"{path}: ")
    assert "damaged" not in str(refused.value)


@pytest.mark.filterwarnings("ignore")
def test_nested_and_quantized_tensors_are_refused(state: State, save: Callable[[Any], Path]) -> None:
    for tensor in (
        torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
        torch.quantize_per_tensor(state["fc.weight"], 0.1, 0, torch.qint8),
    ):
        with pytest.raises(WeightsError, match=r"fc\.weight must be .* (nested|quantized)"):
            read(save(state | {"fc.weight": tensor}))


FILES: dict[str, tuple[Callable[[Path, State], object], str]] = {
    "TorchScript": (
        lambda path, s: torch.jit.save(torch.jit.trace(nn.Linear(2, 2), torch.zeros(1, 2)), path),
        "TorchScript archive",
    ),
    "pickle": (
        lambda path, s: path.write_bytes(pickle.dumps({"a": 1})),
        "a pickle that cannot be read without running",
    ),
    "protocol 4": (
        lambda path, s: torch.save(s, path, pickle_protocol=4),
        "a pickle that cannot be read without running",
    ),
    "zip archive": (lambda path, s: np.savez(path.open("wb"), a=np.zeros(2)), "a zip archive, but not a checkpoint"),
    "web page": (lambda path, s: path.write_bytes(b"<html>404</html>"), "neither .* nor safetensors; it begins with"),
    "truncated": (lambda path, s: path.write_bytes(path.read_bytes()[:5000]), "damaged or truncated .* copy it again"),
}


@pytest.mark.parametrize("what", FILES)
@pytest.mark.filterwarnings("ignore")
def test_other_files_are_refused_in_words_of_their_own(what: str, state: State, save: Callable[[Any], Path]) -> None:
    write, message = FILES[what]
    path = save(state)
    write(path, state)
    with pytest.raises(WeightsError, match=message) as refused:
        read(path)
    assert ("damaged" in str(refused.value)) == (what == "truncated")


def test_one_flipped_bit_is_noticed(state: State, network: Network, save: Callable[[Any], Path]) -> None:
    path = save(state)
    raw = bytearray(path.read_bytes())
    raw[raw.index(state["fc.weight"].numpy().tobytes()[:64])] ^= 1
    path.write_bytes(raw)
    with pytest.raises(WeightsError, match=r"damaged, the CRC-32 of .* is wrong"):
        read(path)


def test_files_without_a_crc_are_read(
    state: State, network: Network, save: Callable[[Any], Path], tmp_path: Path
) -> None:
    torch.save(state, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    check(read(tmp_path / "old.pth"), network)
    if hasattr(torch.serialization, "set_crc32_options"):
        torch.serialization.set_crc32_options(False)
        try:
            path = save(state)
        finally:
            torch.serialization.set_crc32_options(True)
        check(read(path), network)


# --- sizes


@pytest.mark.parametrize("name", ["resnet18", "capsnet", "googlenet", "densenet121", "lenet5_modern"])
def test_shapes_are_linear_in_classes_and_channels(name: str) -> None:
    sizes = Sizes(tiny(name))
    expected = build_fresh(tiny(name), classes=11, channels=4, device="meta").state_dict()
    shapes: dict[str, Tensor] = sizes.tensors(11, 4)
    assert {key: each.shape for key, each in shapes.items()} == {key: each.shape for key, each in expected.items()}
    assert (sizes.classes_of(expected), sizes.channels_of(expected)) == (11, 4)
