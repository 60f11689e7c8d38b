"""Imported weights: a checkpoint from elsewhere becomes a model by name, wherever a model or weights are taken."""

from __future__ import annotations

import hashlib
import json
import os
import platform
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from safetensors.torch import load_file

import convatlas as ca
from commands import Command, check_refused
from convatlas.core.network import Network
from convatlas.data.decode.pixels import read_image
from convatlas.errors import ConvatlasError, WeightsError
from convatlas.inference.verify import verify
from convatlas.models.catalog import build_fresh
from convatlas.train.settings import ExecutionOptions
from convatlas.weights.build import build
from convatlas.weights.class_list import read_class_names
from convatlas.weights.imported import find_imported, import_weights, list_imported
from upstream import scramble, timms, without_init

NAME = "cifar_resnet20"
CLASSES = ("ant", "bee", "cat")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CONVATLAS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "weights" / "imported"


@pytest.fixture(scope="module")
def network() -> Network:
    network = build_fresh(NAME, classes=3).eval()
    scramble(network)
    return network


@pytest.fixture(scope="module")
def checkpoint(network: Network, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a training script of the user's wrote."""
    path = tmp_path_factory.mktemp("own") / "best.pth"
    state = {f"module.{name}": tensor for name, tensor in network.state_dict().items()}
    torch.save({"epoch": 3, "net": state}, path)
    return path


def same(a: Network, b: Network) -> bool:
    first, second = a.state_dict(), b.state_dict()
    return all(torch.equal(first[name], second[name]) for name in first)


STEPS: dict[str, Any] = {
    "mean": 0.5,
    "std": (0.5,),
    "resize": 40,
    "crop": 32,
    "interpolation": "bicubic",
    "rotation": 180,
}


def test_the_header_states_everything(network: Network, checkpoint: Path, cache: Path) -> None:
    imported = import_weights(
        NAME,
        checkpoint,
        tag="mine",
        classes=CLASSES,
        preprocessing=STEPS,
        license="MIT",
        reported_metrics={"top1": 70.9},
    )
    assert imported == find_imported(f"{NAME}@mine") == list_imported()[0] == list_imported(NAME)[0]
    assert list_imported("resnet18") == []
    header = imported.header
    assert (header.classes, header.license, header.training.reported_metrics) == (CLASSES, "MIT", {"top1": 70.9})
    assert header.training.source_sha256 == hashlib.sha256(checkpoint.read_bytes()).hexdigest()
    assert (header.training.source, header.training.library) == ("best.pth", "convatlas")
    steps = header.preprocessing
    assert (steps.mean, steps.std, steps.resize, steps.crop) == ((0.5,) * 3, (0.5,) * 3, 40, 32)
    assert (steps.interpolation, steps.rotation) == ("bicubic", 180)
    assert same(ca.load(f"{NAME}@mine").module, network)
    assert [path.name for path in cache.iterdir()] == [f"{NAME}@mine.safetensors"]
    assert json.loads(json.dumps(imported.to_plain()))["reported_metrics"] == {"top1": 70.9}


def test_the_name_is_taken_where_weights_and_models_are(
    network: Network, checkpoint: Path, images: Path, tmp_path: Path
) -> None:
    import_weights(NAME, checkpoint, tag="mine", classes=CLASSES)
    assert same(build(NAME, weights=f"{NAME}@mine"), network)
    assert build(NAME, weights=f"{NAME}@mine", classes=5).state_dict()["head.out.weight"].shape[0] == 5
    with pytest.raises(WeightsError, match="must contain cifar_resnet32, got another network"):
        build("cifar_resnet32", weights=f"{NAME}@mine")
    model = ca.load(f"{NAME}@mine")
    assert model.predict(sorted((images / "val" / "ant").iterdir())[0])[0].label in CLASSES
    assert model.evaluate(images).result.n == 36
    run = ca.fit(
        images, NAME, epochs=1, lr=0.0, out=tmp_path / "run",
        execution=ExecutionOptions(memory_format="contiguous", precision="float32", fused_norms=False), progress=False,
    )  # fmt: skip
    trained = ca.load(run.model_file)
    assert (run.config.weights, run.config.weights_reason) == (f"{NAME}@mine", "imported")
    assert trained.header.training.weights == f"{NAME}@mine"
    assert torch.equal(
        trained.module.state_dict()["head.out.weight"], network.state_dict()["head.out.weight"]
    )  # the classes have the same names


def test_weights_are_replaced_and_what_a_killed_import_left_is_deleted(checkpoint: Path, cache: Path) -> None:
    import_weights(NAME, checkpoint, tag="mine", classes=CLASSES)
    dead = 2**22 + 1  # more than the largest number of a process
    for name in ("x.safetensors", f".{NAME}@mine.safetensors"):
        (cache / f".{name}.{platform.node()}.{dead}.part").touch()
    (cache / f".other.{platform.node()}.{os.getpid()}.part").touch()
    import_weights(NAME, checkpoint, tag="mine", classes=("x", "y", "z"))
    assert find_imported(f"{NAME}@mine").header.classes == ("x", "y", "z")
    assert sorted(path.name for path in cache.glob("*part")) == [f".other.{platform.node()}.{os.getpid()}.part"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"classes": ("a", "b")}, "classes must be 3 names, one for each output, got 2"),
        ({"classes": ("a", "a", "b")}, "class names must be different names, got a twice"),
        ({"classes": "imagenet"}, "classes must be 3 names, one for each output, got 1,000"),
        ({"classes": "nowhere.txt"}, "classes: must be imagenet, kinetics400, a text file"),
        ({"tag": "a/b"}, "tag must be letters, digits"), ({"tag": ""}, "tag must be letters"),
        ({"preprocessing": {"mean": (0.5, 0.5)}}, "mean and std must have one value for each channel"),
        ({"preprocessing": {"rotation": 90}}, "rotation must be one of 0, 180, got 90"),
        ({"preprocessing": {"interpolation": "cubic"}}, "interpolation must be one of"),
        ({"preprocessing": {"resize": 8}}, "resize must be >= the crop of 32 px, got 8"),
        ({"preprocessing": {"crop": 0}}, "crop must be an integer >= 1"),
        ({"preprocessing": {"std": 0}}, "std"), ({"preprocessing": {"size": 3}}, "size is not a field"),
        ({"reported_metrics": {"top1": float("nan")}}, "reported_metrics.top1 must be a number"),
    ],
    ids=repr,
)  # fmt: skip
def test_wrong_values_are_refused_and_nothing_is_written(
    changes: dict[str, Any], message: str, checkpoint: Path, cache: Path
) -> None:
    with pytest.raises(ConvatlasError, match=message):
        import_weights(NAME, checkpoint, **{"tag": "mine", "classes": CLASSES, **changes})
    assert not cache.exists() or not list(cache.iterdir())


def test_files_that_do_not_fit_are_refused(network: Network, tmp_path: Path) -> None:
    state = {key: value for key, value in network.state_dict().items() if not key.startswith("head.out")}
    torch.save(state, tmp_path / "backbone.pth")
    with pytest.raises(WeightsError, match=r"missing head\.out\.bias.*can only start a training"):
        import_weights(NAME, tmp_path / "backbone.pth", tag="mine", classes=CLASSES)
    with pytest.raises(WeightsError, match="does not fit this ResNet"):
        import_weights("cifar_resnet32", tmp_path / "backbone.pth", tag="mine", classes=CLASSES)
    with pytest.raises(WeightsError, match="does not fit this VideoResNet"):
        import_weights("r3d_18", tmp_path / "backbone.pth", tag="mine", classes=CLASSES)


def test_the_classes_of_imagenet_are_the_default_for_1000_outputs(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="classes must be 3 names, one for each output"):
        import_weights(NAME, checkpoint, tag="a")
    torch.save(build_fresh(NAME, classes=1000).state_dict(), tmp_path / "imagenet.pth")
    assert import_weights(NAME, tmp_path / "imagenet.pth", tag="a").header.classes[0] == "tench"


def test_unknown_names_are_refused(checkpoint: Path) -> None:
    import_weights(NAME, checkpoint, tag="mine", classes=CLASSES)
    for name in (f"{NAME}@mien", f"{NAME}@../mine", f"{NAME}@"):
        for use in (ca.load, lambda name: build(NAME, weights=name)):
            with pytest.raises(WeightsError, match=r"no such imported weights; imported are .*@mine.*weights import"):
                use(name)


def test_a_damaged_file_is_not_listed(checkpoint: Path, cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = import_weights(NAME, checkpoint, tag="mine", classes=CLASSES).path
    path.write_bytes(path.read_bytes()[:100])
    assert list_imported() == []
    assert "damaged" in caplog.text


def test_another_crop_is_another_resolution(tmp_path: Path) -> None:
    torch.save(build_fresh("squeezenet1_1", classes=2).state_dict(), tmp_path / "a.pth")
    imported = import_weights("squeezenet1_1", tmp_path / "a.pth", tag="a", classes="x,y", preprocessing={"crop": 112})
    header = imported.header
    assert (header.spec.resolution, header.preprocessing.resize) == (112, 128)
    assert ca.load("squeezenet1_1@a").module.input_shape == (3, 112, 112)


def test_verification_compares_imported_weights_with_the_module_of_the_library(images: Path, tmp_path: Path) -> None:
    network = build_fresh("squeezenet1_1", classes=3)
    scramble(network)
    torch.save(network.state_dict(), tmp_path / "a.pth")
    steps = {"crop": 64, "resize": 80, "rotation": 180}
    import_weights(
        "squeezenet1_1", tmp_path / "a.pth", tag="a", classes=images / "train", preprocessing=steps,
        reported_metrics={"top1": 33.0},
    )  # fmt: skip
    result = verify("squeezenet1_1@a", images / "val")
    assert result.upstream is not None
    assert (result.upstream.library, result.accuracy.n, result.upstream.num_same_top5) == ("torchvision", 36, 36)
    assert result.upstream.max_difference < 1e-6
    assert "rotated by 180 degrees" in result.protocol
    assert result.notes()[-2:] == [
        "reported metrics: top1 33",
        f"sha256 {hashlib.sha256((tmp_path / 'a.pth').read_bytes()).hexdigest()}: the imported file a.pth",
    ]


@pytest.mark.parametrize(
    ("text", "names"),
    [("ant\nbee\n", ("ant", "bee")), ("\ufeffant\r\nb ee\r\n", ("ant", "b ee")), ("cafe\u0301\n", ("caf\u00e9",))],
)
def test_class_names_are_read_from_a_text_file(text: str, names: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_bytes(text.encode())
    assert read_class_names(tmp_path / "names.txt") == names


def test_class_names_are_read_from_folders_and_lists(images: Path, tmp_path: Path) -> None:
    assert read_class_names(images / "train") == read_class_names("ant,bee,cat") == read_class_names(CLASSES) == CLASSES
    assert len(read_class_names("imagenet")) == 1000
    (tmp_path / "latin1.txt").write_bytes(b"caf\xe9\n")
    with pytest.raises(WeightsError, match="must be UTF-8 text"):
        read_class_names(tmp_path / "latin1.txt")
    (tmp_path / "gap.txt").write_text("a\n\nb\n")
    with pytest.raises(WeightsError, match="an empty name"):
        read_class_names(tmp_path / "gap.txt")


REAL = {
    "squeezenet1_1": ("torchvision", "squeezenet1_1", "squeezenet1_1_imagenet_torchvision_naming", {}),
    "mobilenet_v1": (
        "timm", "mobilenetv1_100", "mobilenet_v1_imagenet_rot180_timm_naming_fp16",
        {"mean": 0.5, "std": 0.5, "resize": 256, "crop": 224, "rotation": 180},
    ),
    "efficientnet_lite0": (
        "timm", "tf_efficientnet_lite0", "tf_efficientnet_lite0_imagenet_timm_naming_fp16",
        {"mean": 127 / 255, "std": 128 / 255, "resize": 256, "crop": 224, "interpolation": "bicubic"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REAL)
def test_real_weights_have_the_logits_of_the_library(name: str, shared_data: Path) -> None:
    library, upstream_name, file, steps = REAL[name]
    path = shared_data / "weights" / f"{file}.safetensors"
    import_weights(name, path, tag="real", classes="imagenet", preprocessing=steps)
    model = ca.load(f"{name}@real")
    state = {key: value.float() if value.is_floating_point() else value for key, value in load_file(path).items()}
    with without_init():
        upstream = torchvision.models.get_model(upstream_name) if library == "torchvision" else timms(upstream_name)
    upstream.load_state_dict(state)
    preprocessing = model.header.preprocessing
    images = sorted((shared_data / "imagenet_samples" / "images").iterdir())[:4]
    pixels = [preprocessing.resize_and_crop(read_image(image, 3)) for image in images]
    inputs = preprocessing.normalize(torch.stack(pixels))
    with torch.inference_mode():
        expected, outputs = upstream.eval()(inputs), model.module(inputs)
    assert float((outputs - expected).abs().max()) <= 1e-4
    assert torch.equal(outputs.argmax(1), expected.argmax(1))


# --- the command


def test_the_command_imports_lists_and_predicts(
    convatlas: Command, checkpoint: Path, images: Path, tmp_path: Path
) -> None:
    (tmp_path / "names.txt").write_text("\n".join(CLASSES))
    out = convatlas(
        "weights", "import", NAME, checkpoint, "--tag", "mine", "--classes", tmp_path / "names.txt",
        "--mean", "127/255", "--std", "0.5,0.5,0.25", "--crop", 32, "--resize", 36, "--interpolation", "bicubic", 
        "--rotation", 180,
        "--license", "MIT", "--reported", "top1=70.9", "--reported", "top5=90",
    )  # fmt: skip
    assert f"{NAME}@mine: 3 classes; short side resized to 36 px (bicubic)" in out.out
    steps = find_imported(f"{NAME}@mine").header.preprocessing
    assert steps.mean == (127 / 255,) * 3
    assert steps.std == (0.5, 0.5, 0.25)
    assert "top1 70.9, top5 90" in convatlas("weights", "list", NAME).out
    assert json.loads(convatlas("weights", "list", NAME, "--json").out)[0]["name"] == f"{NAME}@mine"
    image = sorted((images / "val" / "ant").iterdir())[0]
    predicted = convatlas("predict", f"{NAME}@mine", image, "--csv", "--engine", "torch")
    assert predicted.code == 0
    assert predicted.out.count("\n") == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((NAME, "x.pth"), "--tag: is missing"),
        ((f"{NAME}@a", "x.pth", "--tag", "a"), "NAME: must be a network"),
        ((NAME, "x.pth", "--tag", "a", "--classes", "a,b", "--mean", "x"), "--mean: must be a number"),
        ((NAME, "x.pth", "--tag", "a", "--classes", "a,b", "--reported", "70"), "--reported: must be METRIC=VALUE"),
        ((NAME, "x.pth", "--tag", "a", "--classes", "a,b"), "x.pth: no such file"),
        (("squeezenet1_1@torchvision:DEFAULT", "x.pth", "--license", "MIT"), "other options need --tag"),
        (("squeezenet1_1@torchvision:DEFAULT", "x.pth"), "x.pth: no such file"),
    ],
)
def test_the_command_refuses_in_one_line(convatlas: Command, arguments: tuple[str, ...], message: str) -> None:
    check_refused(convatlas("weights", "import", *arguments), message)
