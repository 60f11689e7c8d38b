"""Model files, exported files, weights by name and runs on a page; a run directory instead of its model file."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import convatlas as ca
from commands import Command, check_refused
from convatlas.errors import ConvatlasError, InputError, ModelFileError, RunError, SpecError
from convatlas.inference.benchmark import _measure
from convatlas.overview.describe import ModelDescription, describe, describe_recipe
from convatlas.overview.look import is_model
from convatlas.train.recipe import get_recipe
from convatlas.train.run import Run
from convatlas.train.run_folder import lock_run


@pytest.fixture
def folder(colored: Run, tmp_path: Path) -> Path:
    """A copy of a finished run directory."""
    return Path(shutil.copytree(colored.folder, tmp_path / "run"))


def test_a_run_directory_is_described_with_its_state(folder: Path, convatlas: Command) -> None:
    outcome = convatlas("show", folder)
    assert (outcome.code, outcome.err) == (0, "")
    for text in (
        "lenet5_modern trained on images", f"run directory: {folder}", "finished after 2 of 2 epochs",
        "61,", "MACs for one image", "classification, 3 classes: ant, bee, cat", "short side resized to", "not stated",
        "95 % interval", "default with epochs=2 (not 20), batch=8 (not 64)", "random", "convatlas 0.", "checkpoint.pt",
        f"convatlas predict {folder} IMAGES",
    ):  # fmt: skip
        assert text in outcome.out, text
    assert max(map(len, outcome.out.splitlines())) <= 100 + len(str(folder))
    plain = json.loads(convatlas("show", folder, "--json").out)
    assert (plain["network"], plain["input_px"], plain["parameters"]) == (
        "lenet5_modern",
        32,
        61_411,
    )
    assert (plain["run"]["status"], plain["run"]["epochs"], plain["license"]) == ("finished", 2, None)
    assert plain["metrics"]["val"]["accuracy"] == ca.load(folder).header.metrics["val"]["accuracy"]


def test_a_run_is_accepted_where_its_directory_is(colored: Run, images: Path) -> None:
    image = next((images / "val" / "ant").iterdir())
    assert ca.load(colored).header == ca.load(colored.folder).header
    assert ca.predict(colored, image).to_plain() == ca.predict(colored.folder, image).to_plain()
    assert str(ca.show(colored)) == str(ca.show(colored.folder))


def test_the_states_of_a_run(folder: Path) -> None:
    with lock_run(folder):
        assert "training after 2 of 2 epochs" in str(describe(folder))
    (folder / "checkpoint.pt").unlink()
    (folder / "model.safetensors").unlink()
    started = describe(folder)
    assert started.run is not None
    assert (started.run.status, started.file, started.to_plain()["size_mib"]) == ("started", None, None)
    assert f"convatlas resume {folder}" in str(started)
    with pytest.raises(ModelFileError, match=r"has no model yet, its first epoch has not ended; `convatlas resume"):
        ca.load(folder)


def test_files_and_names_are_described(colored: Run, images: Path, convatlas: Command, tmp_path: Path) -> None:
    assert "model file: " in str(ca.show(colored.model_file))
    published = ca.show("resnet18@torchvision:IMAGENET1K_V1")
    assert isinstance(published, ModelDescription)
    assert "ImageNet-1K acc@1" in str(published)
    assert "and 992 more" in str(published)
    assert (published.parameters, published.file) == (11_689_512, None)
    assert len(repr(published)) < 2100
    assert "<pre>" in published._repr_html_()
    assert (
        convatlas("export", colored.folder, "--to", "onnx", "--check", images, "--out", tmp_path / "a.onnx").code == 0
    )
    exported = describe(tmp_path / "a.onnx")
    assert (exported.kind, exported.parameters) == ("exported file (ONNX)", describe(colored.folder).parameters)


def test_a_name_of_the_catalog_comes_first_and_paths_are_recognized(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lenet5").mkdir()
    (tmp_path / "thing").mkdir()
    models = ["thing", "no/thing", "x.safetensors", "lenet5@tag", tmp_path]
    assert [is_model(each) for each in models] == [True] * 5
    assert [is_model(each) for each in ("lenet5", "ResNet-50", "resnet5000", 3)] == [False] * 4
    assert "LeNet-5 (1998)" in str(ca.show("lenet5"))
    with pytest.raises(InputError, match="are for networks of the catalog"):
        ca.show("thing", resolution=32)


WRONG = {
    "missing.safetensors": (None, ModelFileError, "no such model file"),
    "text.safetensors": ("x", ModelFileError, "damaged, truncated or not a model file"),
    "run/run.json": ("{", RunError, "run.json: damaged"),
    "folder/x.txt": ("x", ModelFileError, "not a run directory (there is no run.json)"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_no_model_is_refused_in_one_line(name: str, tmp_path: Path, convatlas: Command) -> None:
    text, error, message = WRONG[name]
    path = tmp_path / name
    if text is not None:
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    source = path.parent if path.parent != tmp_path else path
    with pytest.raises(error) as raised:
        describe(source)
    assert message in str(raised.value)
    check_refused(convatlas("show", source), message)
    check_refused(convatlas("compare", source), message)


def test_damage_is_noticed(folder: Path) -> None:
    for name in ("model.safetensors", "checkpoint.pt"):
        path = folder / name
        content = path.read_bytes()
        path.write_bytes(content[:-200] + bytes(100) + content[-100:] if name == "model.safetensors" else content[:500])
        with pytest.raises(ConvatlasError, match=f"{name}: .*damaged"):
            describe(folder)
        path.write_bytes(content)
    assert describe(folder).run


def test_recipes_are_described_by_their_differences() -> None:
    recipe = get_recipe("finetune")
    assert describe_recipe(recipe.to_plain()) == "finetune; 5 epochs"
    assert describe_recipe(recipe.replaced({"lr": 0.5}).to_plain()) == "finetune with lr=0.5 (not 0.01); 5 epochs"
    assert describe_recipe({"of another version": 1}) == "of another version=1"


# --- a run directory instead of a model file


def test_a_run_directory_is_taken_where_a_model_file_is(
    folder: Path, images: Path, convatlas: Command, tmp_path: Path
) -> None:
    image = next((images / "val" / "ant").iterdir())
    file = folder / "model.safetensors"
    assert ca.load(folder).header == ca.load(file).header
    by_folder, by_file = (
        convatlas("predict", each, image, "--ensemble", each, "--json").out for each in (folder, file)
    )
    assert by_folder == by_file
    assert ca.evaluate(folder, images).result.summary() == ca.evaluate(file, images).result.summary()
    model = ca.load(folder)
    assert ca.evaluate(model, images).result.summary() == ca.evaluate(file, images).result.summary()
    with pytest.raises(InputError, match="evaluate: must be a single model, got an Ensemble"):
        ca.evaluate(ca.Ensemble((model, model)), images)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"load: must be a model file, .*, got int"):
        ca.evaluate(7, images)  # type: ignore[arg-type]
    assert convatlas("export", folder, "--to", "onnx", "--check", images).code == 0
    assert (folder / "model.onnx").is_file()
    (row,) = _measure(str(folder), "torch", (1,), 0.01, None, None)
    assert (row.label, row.network, row.parameters) == (f"{folder} (lenet5_modern)", "lenet5_modern", 61_411)
    run = ca.fit(
        images, "lenet5_modern", weights=folder, epochs=1, head_epochs=0, batch=36, out=tmp_path / "second",
        progress=False,
    )  # fmt: skip
    assert run.config.weights == str(folder)


def test_a_folder_of_runs_names_them(folder: Path) -> None:
    with pytest.raises(ModelFileError, match="contains 1 runs; choose one of them: run"):
        ca.load(folder.parent)


def test_models_and_runs_have_short_texts(folder: Path) -> None:
    model = ca.load(folder)
    assert "classification, 3 classes: ant, bee, cat" in repr(model)
    assert "accuracy" in repr(model)
    assert len(repr(model)) < 1000
    assert "<table>" in model._repr_html_()
    with pytest.raises(SpecError, match="unknown network"):
        ca.show("lenet55")
