"""Pretrained weights: records, files, exact matches, other heads and channels; and real weights, if available."""

from __future__ import annotations

import csv
import hashlib
import inspect
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import torchvision
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from convatlas.errors import ConvatlasError, DataError, WeightsError
from convatlas.inference.labeled_files import list_labeled_files
from convatlas.inference.load import load
from convatlas.inference.verify import TopAccuracy, Verification, append_row, verify
from convatlas.models.catalog import CATALOG, build_fresh, spec
from convatlas.models.keys import remap_keys, rename
from convatlas.tasks.known import Classification
from convatlas.weights import pretrained
from convatlas.weights.adapt import adapt_kernel
from convatlas.weights.build import build
from convatlas.weights.fetch import import_published, pull
from convatlas.weights.files import read_checkpoint_file
from convatlas.weights.modelfile import Header, write_model_file
from convatlas.weights.pretrained import Weights, find_weights, list_weights
from server import Site
from upstream import scramble, theirs

NAME = "squeezenet1_1"
RECORD = f"{NAME}@torchvision:IMAGENET1K_V1"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of torchvision's SqueezeNet with random weights, as torch saves it."""
    network = theirs(NAME, "torchvision")
    scramble(network)
    path = tmp_path_factory.mktemp("weights") / "squeezenet.pth"
    torch.save(network.state_dict(), path)
    return path


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CONVATLAS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    return tmp_path / "cache"


@pytest.fixture
def record(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> Weights:
    """The record of `RECORD`, with the digest of the checkpoint."""
    digest = hashlib.sha256(checkpoint.read_bytes()).hexdigest()[:8]
    changed = replace(find_weights(RECORD), sha256_prefix=digest)
    monkeypatch.setitem(pretrained._RECORDS, "torchvision", lambda *_: [changed])
    return changed


def outputs(network: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        y: Tensor = network.eval()(x)
    return y


# --- records


@pytest.mark.parametrize("name", [name for name, row in CATALOG.items() if row.upstream])
def test_records_are_those_of_the_libraries(name: str) -> None:
    for record in list_weights(name):
        assert find_weights(record.name) == record
        assert len(record.classes) == len(set(record.classes)) == CATALOG[name].classes
        assert record.preprocessing.channels == 3
        if record.library == "torchvision":
            assert record.sha256_prefix
            assert all(0 < value < 100 for value in record.reported_metrics.values())


def test_files_of_different_weights_have_different_paths_in_the_cache() -> None:
    records = list(pretrained.all_weights())
    assert len(records) > 250
    assert len({record.cache_path for record in records}) == len(records)


def test_record_has_the_values_of_torchvision() -> None:
    record = find_weights("resnet50@torchvision:IMAGENET1K_V2")
    assert record.reported_metrics == {"ImageNet-1K acc@1": 80.858, "ImageNet-1K acc@5": 95.434}
    assert (record.preprocessing.resize, record.preprocessing.crop) == (232, 224)
    assert record.classes[:2] == ("tench", "goldfish")
    assert find_weights("resnet50@torchvision:DEFAULT") == record


@pytest.mark.parametrize("name", [name for name, row in CATALOG.items() if "torchvision" in row.upstream])
def test_transforms_input_is_what_torchvision_has(name: str) -> None:
    """torchvision's module of the network has the argument `transform_input`."""
    builder = torchvision.models.get_model_builder(CATALOG[name].upstream["torchvision"])
    module = inspect.getmodule(builder)
    assert module is not None
    classes = [
        value for value in vars(module).values() if inspect.isclass(value) and value.__module__ == module.__name__
    ]
    transforms_input = any("transform_input" in inspect.signature(value).parameters for value in classes)
    assert CATALOG[name].transforms_input == transforms_input


def test_transform_input_is_part_of_the_preprocessing() -> None:
    assert find_weights("googlenet@torchvision:IMAGENET1K_V1").preprocessing.mean == (0.5, 0.5, 0.5)
    assert find_weights("resnet18@torchvision:IMAGENET1K_V1").preprocessing.mean == (0.485, 0.456, 0.406)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet50", "network@library:tag"), ("resnet50@torchvision", "network@library:tag"),
        ("resnet50@torchvison:X", "library must be one of .*, got 'torchvison'.*did you mean torchvision"),
        ("resnet5@torchvision:X", "resnet5"),
        ("resnet50@torchvision:IMAGENET1K_V3", "did you mean IMAGENET1K_V"),
        ("capsnet@torchvision:X", "no library publishes"),
        ("alexnet@timm:x", "published by torchvision"),
    ],
)  # fmt: skip
def test_unknown_names_are_refused(name: str, message: str) -> None:
    with pytest.raises(ConvatlasError, match=message):
        find_weights(name)


# --- pull and import


def test_pull_downloads_once_and_build_uses_the_file(
    record: Weights, checkpoint: Path, serve: Callable[..., Site], monkeypatch: pytest.MonkeyPatch
) -> None:
    site = serve({"/squeezenet.pth": checkpoint.read_bytes()})
    here = replace(record, url=site.url + "squeezenet.pth", filename="squeezenet.pth")
    monkeypatch.setitem(pretrained._RECORDS, "torchvision", lambda *_: [here])
    assert here.cached_file is None
    path = pull(here)
    assert path == here.cached_file == here.cache_path
    pull(here)
    assert len(site.requests) == 1
    network = build(NAME, weights="torchvision:IMAGENET1K_V1")
    upstream = theirs(NAME, "torchvision")
    upstream.load_state_dict(torch.load(checkpoint, weights_only=True))
    x = torch.randn(2, 3, 64, 64)
    assert torch.equal(outputs(network, x), outputs(upstream, x))


def test_another_file_from_the_server_is_refused(record: Weights, serve: Callable[..., Site]) -> None:
    site = serve({"/squeezenet.pth": b"something else"})
    with pytest.raises(WeightsError, match=r"SHA-256 differs.*convatlas weights import"):
        pull(replace(record, url=site.url + "squeezenet.pth"))


def test_offline_error_names_the_command_that_imports_a_file(record: Weights, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONVATLAS_OFFLINE", "1")
    with pytest.raises(WeightsError, match=f"internet access is disabled.*weights import {RECORD}"):
        build(NAME, weights="torchvision:IMAGENET1K_V1")


def test_imported_file_is_used_offline(record: Weights, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONVATLAS_OFFLINE", "1")
    assert import_published(record, checkpoint) == record.cache_path
    assert build(NAME, weights="torchvision:IMAGENET1K_V1", classes=4).input_shape == (3, 224, 224)
    loaded = load(RECORD)
    assert loaded.header.license == ""
    assert loaded.classes == record.classes


def test_file_in_the_cache_of_torchvision_is_used(record: Weights, checkpoint: Path, tmp_path: Path) -> None:
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    (folder / record.filename).write_bytes(checkpoint.read_bytes())
    assert pull(record) == folder / record.filename


def test_import_refuses_another_file_and_leaves_nothing(record: Weights, tmp_path: Path, cache: Path) -> None:
    other = tmp_path / "other.pth"
    other.write_bytes(b"PK no weights")
    with pytest.raises(WeightsError, match=r"sha256 must begin with .* as published"):
        import_published(record, other)
    with pytest.raises(WeightsError, match="no such file"):
        import_published(record, tmp_path / "none.pth")
    assert not cache.exists() or not list(cache.rglob("*.pth"))


# --- files


class Trap:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.write_text, (Path("trapped"), "x"))


@pytest.mark.parametrize("content", ["empty", "text", "torch", "safetensors", "code", "numbers", "nothing"])
def test_other_files_are_refused_in_one_line(content: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "file"
    if content == "code":
        torch.save({"a": Trap()}, path)
    elif content == "numbers":
        torch.save({"a": 1}, path)
    elif content == "nothing":
        torch.save({}, path)
    else:
        safetensors.torch.save_file({"a": torch.zeros(8)}, tmp_path / "whole")
        torch.save({"a": torch.zeros(8)}, tmp_path / "torch")
        path.write_bytes({
            "empty": b"", "text": b"hello, these are not weights", "torch": (tmp_path / "torch").read_bytes()[:200],
            "safetensors": (tmp_path / "whole").read_bytes()[:70],
        }[content])  # fmt: skip
    with pytest.raises(WeightsError) as refused:
        build(NAME, weights=path)
    assert str(path) in str(refused.value)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "trapped").exists()


@given(st.binary(max_size=400))
def test_any_bytes_are_refused_without_a_crash(content: bytes) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "file"
        path.write_bytes(content)
        with pytest.raises(WeightsError):
            read_checkpoint_file(path)


def test_checkpoint_of_another_network_lists_differences(checkpoint: Path) -> None:
    with pytest.raises(WeightsError, match=r"does not fit this ResNet.*missing.*unexpected"):
        build("resnet18", weights=checkpoint)
    with pytest.raises(WeightsError, match="does not fit this SqueezeNet"):
        build("squeezenet1_0", weights=checkpoint)


def test_one_tensor_of_another_shape_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    tensors = torch.load(checkpoint, weights_only=True)
    tensors["features.3.squeeze.weight"] = torch.zeros(16, 64, 3, 3)
    torch.save(tensors, tmp_path / "odd.pth")
    with pytest.raises(
        WeightsError, match=r"stages\.0\.fire\.0\.squeeze\.conv\.weight must have shape .* got \(16, 64, 3, 3\)"
    ):
        build(NAME, weights=tmp_path / "odd.pth")


def test_one_tensor_more_or_less_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    tensors = torch.load(checkpoint, weights_only=True)
    for changed, message in (
        ({**tensors, "extra": torch.zeros(2)}, "unexpected extra"),
        ({key: value for key, value in tensors.items() if key != "features.0.bias"}, r"missing stem\.conv\.bias"),
    ):
        torch.save(changed, tmp_path / "odd.pth")
        with pytest.raises(WeightsError, match=message):
            build(NAME, weights=tmp_path / "odd.pth")


def test_model_file_of_the_same_network_is_loaded(tmp_path: Path) -> None:
    network = build_fresh("cifar_resnet20", classes=3)
    row = CATALOG["cifar_resnet20"]
    header = Header("x", Classification(("a", "b", "c")), row.spec, row.preprocessing)
    write_model_file(tmp_path / "model.safetensors", network, header)
    again = build("cifar_resnet20", weights=tmp_path / "model.safetensors")
    state = network.state_dict()
    assert all(torch.equal(tensor, state[key]) for key, tensor in again.state_dict().items())
    other = build("cifar_resnet20", weights=tmp_path / "model.safetensors", classes=7)
    assert torch.equal(other.stem.conv.conv.weight, network.stem.conv.conv.weight)  # type: ignore[union-attr]
    with pytest.raises(
        WeightsError, match=r"must contain cifar_resnet32, got another network: depths\[0\] 3 instead of 5"
    ):
        build("cifar_resnet32", weights=tmp_path / "model.safetensors")


@pytest.mark.parametrize("weights_", ["torchvison:IMAGENET1K_V1", "none.pth", "torchvision:none"])
def test_missing_weights_are_refused(weights_: str) -> None:
    with pytest.raises(WeightsError):
        build("resnet18", weights=weights_)


# --- other heads, other channels


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "densenet121", "squeezenet1_1", "convnext_tiny"])
def test_other_classes_keep_all_but_the_head(name: str, tmp_path: Path) -> None:
    upstream = theirs(name, "torchvision")
    scramble(upstream)
    torch.save(upstream.state_dict(), tmp_path / "file.pth")
    whole, other = (build(name, weights=tmp_path / "file.pth", classes=classes) for classes in (None, 5))
    assert outputs(other, torch.zeros(2, 3, 64, 64)).shape == (2, 5)
    different = [
        key for key, tensor in whole.state_dict().items()
        if tensor.shape != other.state_dict()[key].shape or not torch.equal(tensor, other.state_dict()[key])
    ]  # fmt: skip
    assert {key.rpartition(".")[0] for key in different} == {"head.out"}


@pytest.mark.parametrize("rule", ["sum", "mean", "repeat"])
@pytest.mark.parametrize("channels", [1, 2, 4, 13])
def test_other_channels_change_only_the_first_kernel(rule: Any, channels: int, checkpoint: Path) -> None:
    whole, other = (build(NAME, weights=checkpoint, channels=n, input_channels=rule) for n in (3, channels))
    kernel, made = whole.state_dict()["stem.conv.weight"], other.state_dict()["stem.conv.weight"]
    assert made.shape[1] == channels
    total = made.sum(1)
    if rule == "mean":
        torch.testing.assert_close(made, kernel.mean(1, keepdim=True).expand_as(made))
    elif rule == "sum" or channels < 3 or channels % 3 == 0:
        torch.testing.assert_close(total, kernel.sum(1))
    else:
        torch.testing.assert_close(made[:, 3], kernel[:, 0] * 3 / channels)
    others = [key for key in whole.state_dict() if key != "stem.conv.weight"]
    assert all(torch.equal(whole.state_dict()[key], other.state_dict()[key]) for key in others)


def test_a_gray_image_has_the_outputs_of_its_rgb_copy(checkpoint: Path) -> None:
    rgb, gray = (build(NAME, weights=checkpoint, channels=n, input_channels="sum") for n in (3, 1))
    x = torch.rand(2, 1, 64, 64)
    torch.testing.assert_close(outputs(gray, x), outputs(rgb, x.expand(-1, 3, -1, -1)), rtol=1e-4, atol=1e-4)


@given(st.integers(1, 9), st.integers(1, 20), st.sampled_from(["sum", "repeat"]))
def test_adapted_kernels_keep_their_scale(old: int, new: int, rule: Any) -> None:
    kernel = torch.ones(2, old, 3, 3)
    torch.testing.assert_close(adapt_kernel(kernel, new, rule).sum(1), kernel.sum(1))


def test_unknown_input_channels_are_refused(checkpoint: Path) -> None:
    with pytest.raises(WeightsError, match="input_channels must be one of sum, mean, repeat, got 'zero'"):
        build(NAME, weights=checkpoint, input_channels="zero")  # type: ignore[arg-type]


def test_weights_of_another_stem_are_refused(checkpoint: Path, tmp_path: Path) -> None:
    upstream = theirs("resnet18", "torchvision")
    torch.save(upstream.state_dict(), tmp_path / "file.pth")
    with pytest.raises(WeightsError, match="conv"):
        build("resnet18", weights=tmp_path / "file.pth", stem="cifar")


# --- key rules


def test_rules_offset_numbers_and_drop_empty_names() -> None:
    rules = ((r"^layer(\d)\.", "stages.{1-1}."), (r"^aux.*", ""), (r"x(\d)y(\d)", "{2+3}.{1}"))
    assert [rename(key, rules) for key in ("layer3.w", "aux1.fc", "x4y5")] == ["stages.2.w", "", "8.4"]


def test_two_tensors_under_one_name_are_refused() -> None:
    with pytest.raises(WeightsError, match=r"two tensors map to b; the second one is a2"):
        remap_keys({"a1": torch.zeros(1), "a2": torch.zeros(1)}, ((r"a\d", "b"),), {"b": torch.zeros(1)})


@pytest.mark.parametrize(
    ("theirs_", "ours"),
    [((4, 3, 1, 1), (4, 3)), ((4, 3), (4, 3, 1, 1)), ((4, 3, 2, 2), (4, 12)), ((4,), (4, 1, 1))],
)
def test_axes_of_length_one_are_ignored(theirs_: tuple[int, ...], ours: tuple[int, ...]) -> None:
    assert remap_keys({"a": torch.zeros(theirs_)}, (), {"a": torch.zeros(ours)})["a"].shape == ours


@pytest.mark.parametrize(
    ("theirs_", "ours"),
    [((4, 3, 1, 7), (4, 3, 7, 1)), ((3, 4), (4, 3)), ((4, 3), (4, 4)), ((12,), (4, 3)), ((4, 3, 1, 1), (3, 4))],
)
def test_exchanged_axes_do_not_match(theirs_: tuple[int, ...], ours: tuple[int, ...]) -> None:
    with pytest.raises(WeightsError, match="shapes"):
        remap_keys({"a": torch.zeros(theirs_)}, (), {"a": torch.zeros(ours)})


def test_checkpoints_without_num_batches_tracked_match() -> None:
    network = build_fresh("cifar_resnet20")
    old = {key: value for key, value in network.state_dict().items() if not key.endswith("num_batches_tracked")}
    assert remap_keys(old, (), network.state_dict()).keys() == network.state_dict().keys()


# --- verification, and real weights


def test_labeled_images_are_listed_by_table_and_by_folder(images: Path, tmp_path: Path) -> None:
    labeled = list_labeled_files(images / "val")
    assert labeled.classes == ("ant", "bee", "cat")
    assert len(labeled.files) == len(labeled.labels) == 36
    first = labeled.files[0]
    (tmp_path / "labels.csv").write_text(f"file,index\n{first},7\n")
    table = list_labeled_files(tmp_path)
    assert (table.files, table.labels) == ((first,), (7,))


@pytest.mark.parametrize(
    ("text", "message"),
    [("name,class\na,1\n", "columns file and index, or file and label, got name"),
     ("file,index\na.jpg,x\n", "line 2: index must be the number of a class, got 'x'"),
     ("file,index\n", "lists no images"), ("file,index\nnone.jpg,1\n", r"none\.jpg: no such file"),
     (None, r"must contain labels\.csv"),
     ("file,index\nb.jpg\n", "line 2: index must be the number of a class, got ''"),
     ("file,index\n\udce9.jpg,1\n", "in UTF-8")],
)  # fmt: skip
def test_images_without_labels_are_refused(text: str | None, message: str, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "labels.csv").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(ConvatlasError, match=message):
        list_labeled_files(tmp_path)


def test_verification_compares_with_the_library(
    record: Weights, checkpoint: Path, images: Path, tmp_path: Path
) -> None:
    files = sorted((images / "val").rglob("*.jpg"))[:5]
    (tmp_path / "labels.csv").write_text("file,index\n" + "".join(f"{file},{i}\n" for i, file in enumerate(files)))
    result = verify(RECORD, tmp_path, file=checkpoint)
    assert result.upstream is not None
    assert result.accuracy.n == result.upstream.num_same_top5 == 5
    assert result.accuracy == result.upstream.accuracy
    assert result.upstream.max_difference < 0.02  # 36-pixel images are resized here by torch, there by Pillow
    low, high = result.accuracy.interval
    assert 0 <= low <= result.accuracy.top1 <= high <= 1
    plain = json.loads(json.dumps(result.to_plain()))
    assert plain["upstream"]["n"] == plain["n"] == 5
    assert [row[0] for row in result.rows()] == ["convatlas", "torchvision"]
    assert any("same five most probable classes" in note for note in result.notes())


def test_rows_are_appended_and_other_files_are_refused(tmp_path: Path) -> None:
    row = Verification("net@library:tag", "abc", TopAccuracy(150, 129, 145), "one view", {"acc@1": 71.9})
    path = tmp_path / "verified.csv"
    for _ in range(2):
        append_row(row, "convatlas weights verify net@library:tag 'my images'", path)
    lines = list(csv.DictReader(path.read_text().splitlines()))
    assert len(lines) == 2
    assert lines[0] == lines[1] == {
        "name": "net@library:tag", "reported_metrics": "acc@1 71.9", "n": "150", "accuracy": "0.8600",
        "accuracy_low": "0.7954", "accuracy_high": "0.9066", "top5": "0.9667", "protocol": "one view",
        "command": "convatlas weights verify net@library:tag 'my images'", "sha256": "abc",
    }  # fmt: skip
    path.write_text("something else\n")
    with pytest.raises(DataError, match="the first line must be name,reported_metrics"):
        append_row(row, "", path)
    assert path.read_text() == "something else\n"


def test_verification_without_weights_or_classes_is_refused(images: Path) -> None:
    with pytest.raises(WeightsError, match="must be pretrained weights, network@library:tag, or a network with --file"):
        verify("resnet18", images / "val")


def test_folders_are_matched_with_classes_by_name(
    record: Weights, checkpoint: Path, images: Path, tmp_path: Path
) -> None:
    files = sorted((images / "val").rglob("*.jpg"))[:4]
    rows = list(zip(("tench", "goldfish", "zebra", "ear"), files, strict=True))
    (tmp_path / "table").mkdir()
    numbers = "".join(f"{file},{record.classes.index(name)}\n" for name, file in rows)
    (tmp_path / "table" / "labels.csv").write_text("file,index\n" + numbers)
    for name, file in rows:
        (tmp_path / "folders" / name).mkdir(parents=True)
        shutil.copy(file, tmp_path / "folders" / name)
    (tmp_path / "folders" / ".hidden").mkdir()
    (tmp_path / "folders" / "aardvark").mkdir()  # an empty folder is not a class
    table, folders = (verify(RECORD, tmp_path / where, file=checkpoint) for where in ("table", "folders"))
    assert table.accuracy == folders.accuracy
    (tmp_path / "folders" / "zebra").rename(tmp_path / "folders" / "zebrra")
    with pytest.raises(DataError, match=r"zebrra is not a class of the weights \(did you mean zebra"):
        verify(RECORD, tmp_path / "folders", file=checkpoint)


def test_verification_checks_whether_the_file_is_the_published_one(
    record: Weights, checkpoint: Path, images: Path, tmp_path: Path
) -> None:
    file = sorted((images / "val").rglob("*.jpg"))[0]
    (tmp_path / "labels.csv").write_text(f"file,index\n{file},1\n")
    assert verify(RECORD, tmp_path, file=checkpoint).is_published_file
    other = tmp_path / "other.pth"
    torch.save({**torch.load(checkpoint, weights_only=True), "classifier.1.bias": torch.zeros(1000)}, other)
    assert verify(RECORD, tmp_path, file=other).is_published_file is False


def test_a_file_of_other_classes_is_not_measured_with_a_fresh_head(checkpoint: Path, images: Path) -> None:
    with pytest.raises(DataError, match="must have 1,000 classes, got 3 folders"):
        verify(NAME, images / "val", file=checkpoint)


def test_verification_corrects_old_names_of_densenet(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DenseNet's published files have "norm.1" for "norm1"."""
    network = theirs("densenet121", "torchvision")
    scramble(network)
    old = {
        re.sub(r"(denselayer\d+\.(?:norm|relu|conv))(\d)", r"\1.\2", k): v
        for k, v in network.state_dict().items()
        if "batches" not in k
    }
    path = tmp_path / "densenet.pth"
    torch.save(old, path)
    file = sorted((images / "val").rglob("*.jpg"))[0]
    (tmp_path / "labels.csv").write_text(f"file,index\n{file},1\n")
    row = verify("densenet121@torchvision:IMAGENET1K_V1", tmp_path, file=path)
    assert row.upstream is not None
    assert row.upstream.num_same_top5 == 1


def test_verification_normalizes_inside_the_module_of_googlenet(images: Path, tmp_path: Path) -> None:
    """torchvision's GoogLeNet has `transform_input`; ours has it in its preprocessing."""
    network = torchvision.models.get_model("googlenet", weights=None, init_weights=False)
    scramble(network)
    torch.save(network.state_dict(), tmp_path / "googlenet.pth")
    file = sorted((images / "val").rglob("*.jpg"))[0]
    (tmp_path / "labels.csv").write_text(f"file,index\n{file},1\n")
    result = verify("googlenet@torchvision:IMAGENET1K_V1", tmp_path, file=tmp_path / "googlenet.pth")
    assert result.upstream is not None
    assert result.upstream.num_same_top5 == 1
    assert result.upstream.max_difference < 0.02  # the image is resized here by torch, there by Pillow


def test_kernels_that_cannot_be_adapted_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "convnet.pt"
    torch.save(build_fresh("convnet1989").state_dict(), path)
    with pytest.raises(WeightsError, match="cannot be adapted from 1 to 3 input channels"):
        build("convnet1989", weights=path, channels=3)


def test_without_a_published_digest_the_tensors_are_checked_and_a_line_is_logged(
    record: Weights, checkpoint: Path, images: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    bare = replace(record, sha256_prefix="")
    other = tmp_path / "other.pth"
    torch.save({"a": torch.zeros(3)}, other)
    with pytest.raises(WeightsError, match="does not fit"):
        import_published(bare, other)
    assert import_published(bare, checkpoint) == bare.cache_path
    line = "no published digest: the file cannot be checked"
    assert caplog.messages == [f"{bare.name}: {line}"]
    monkeypatch.setitem(pretrained._RECORDS, "torchvision", lambda *_: [bare])
    file = sorted((images / "val").rglob("*.jpg"))[0]
    (tmp_path / "labels.csv").write_text(f"file,index\n{file},1\n")
    result = verify(RECORD, tmp_path)
    assert result.is_published_file is None
    assert result.notes()[-1] == f"sha256 {result.sha256}: {line}"
    append_row(result, "", tmp_path / "rows.csv")
    assert line in (tmp_path / "rows.csv").read_text()


def test_real_mobilenet_equals_torchvision_image_by_image(shared_data: Path) -> None:
    row = verify(
        "mobilenet_v2@torchvision:IMAGENET1K_V1", shared_data / "imagenet_samples",
        file=shared_data / "weights" / "mobilenet_v2_imagenet_torchvision_naming.pth",
    )  # fmt: skip
    assert row.accuracy == TopAccuracy(150, 129, 145)
    assert row.upstream is not None
    assert (row.upstream.accuracy, row.upstream.num_same_top5) == (row.accuracy, 150)


def test_real_cifar_resnet_classifies_the_training_images(shared_data: Path) -> None:
    import numpy as np

    held = np.load(shared_data / "cifar10" / "cifar10_train_first4000_lossless.npz")
    network = build("cifar_resnet20", weights=shared_data / "weights" / "resnet20_cifar10-12fca82f.th").eval()
    pixels = torch.from_numpy(held["x"]).permute(0, 3, 1, 2)
    steps = CATALOG["cifar_resnet20"].preprocessing
    right = 0
    with torch.inference_mode():
        for part, labels in zip(pixels.split(500), torch.from_numpy(held["y"]).long().split(500), strict=True):
            right += int((network(steps.normalize(part)).argmax(1) == labels).sum())
    assert right / 4000 == pytest.approx(0.998, abs=0.0005)
    assert network.input_shape == (3, spec("cifar_resnet20").resolution, 32)
