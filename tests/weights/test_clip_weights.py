"""Weights of networks that read clips: published ones of Kinetics-400, imported ones, and model files."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from convatlas.inference.load import load
from convatlas.models.catalog import CATALOG, build_fresh, resolve
from convatlas.models.families.video_resnet import VideoResNet
from convatlas.tasks.known import VideoClassification
from convatlas.weights import pretrained
from convatlas.weights.build import build
from convatlas.weights.fetch import pull
from convatlas.weights.imported import find_imported, import_weights
from convatlas.weights.modelfile import Header, write_model_file
from convatlas.weights.open import open_weights
from convatlas.weights.pretrained import find_weights, list_weights
from server import Site
from upstream import scramble, theirs

NAME = "mc3_18@torchvision:KINETICS400_V1"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CONVATLAS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    return tmp_path / "cache"


@pytest.mark.parametrize("name", ["r3d_18", "mc3_18", "r2plus1d_18"])
def test_records_have_the_preprocessing_of_the_row_and_400_classes(name: str) -> None:
    (record,) = list_weights(name)
    assert record.name == f"{name}@torchvision:KINETICS400_V1"
    assert record.preprocessing == CATALOG[name].preprocessing
    assert record.spec == CATALOG[name].spec
    assert len(set(record.classes)) == 400
    assert record.classes[0] == "abseiling"
    reported = CATALOG[name].card.reported
    assert reported is not None
    assert list(record.reported_metrics.values()) == pytest.approx([reported.top1, reported.top5], abs=0.006)


def test_preprocessing_is_that_of_torchvision() -> None:
    import torchvision

    for name in ("r3d_18", "mc3_18", "r2plus1d_18"):
        transforms = torchvision.models.get_model_weights(name).DEFAULT.transforms()  # type: ignore[attr-defined]
        steps = CATALOG[name].preprocessing
        assert [steps.resize, steps.width] == transforms.resize_size
        assert [steps.crop] * 2 == transforms.crop_size
        assert (list(steps.mean), list(steps.std)) == (transforms.mean, transforms.std)
        assert steps.interpolation == transforms.interpolation.value
        assert not steps.antialias  # a constant in its code


def test_published_weights_are_downloaded_and_loaded(
    tmp_path: Path, serve: Callable[..., Site], monkeypatch: pytest.MonkeyPatch
) -> None:
    peer = theirs("mc3_18", "torchvision")
    scramble(peer)
    torch.save(peer.state_dict(), tmp_path / "mc3.pth")
    content = (tmp_path / "mc3.pth").read_bytes()
    site = serve({"/mc3.pth": content})
    record = replace(
        find_weights(NAME), url=site.url + "mc3.pth", filename="mc3.pth",
        sha256_prefix=hashlib.sha256(content).hexdigest()[:8],
    )  # fmt: skip
    monkeypatch.setitem(pretrained._RECORDS, "torchvision", lambda *_: [record])
    assert pull(record) == record.cache_path
    loaded = load(NAME)
    assert loaded.header.task == VideoClassification(record.classes)
    assert loaded.header.preprocessing.sampling == CATALOG["mc3_18"].preprocessing.sampling
    network = build("mc3_18", weights="DEFAULT").eval()
    x = torch.randn(1, 3, 2, 32, 32)
    with torch.no_grad():
        assert torch.equal(network(x), peer.eval()(x))


def test_a_checkpoint_of_clips_is_imported(tmp_path: Path) -> None:
    network = build_fresh("r3d_18_small", classes=3, channels=3)
    torch.save(network.state_dict(), tmp_path / "mine.pt")
    stated = {"mean": (0.5,) * 3, "crop": 48}
    imported = import_weights(
        "r3d_18_small", tmp_path / "mine.pt", tag="mine", classes="a,b,c", preprocessing=stated
    )  # fmt: skip
    assert find_imported("r3d_18_small@mine") == imported
    header = imported.header
    assert header.task == VideoClassification(("a", "b", "c"))
    assert (header.spec.resolution, header.preprocessing.crop, header.preprocessing.mean) == (48, 48, (0.5,) * 3)
    assert header.preprocessing.sampling == CATALOG["r3d_18_small"].preprocessing.sampling


def test_the_classes_of_kinetics_are_known_by_name(tmp_path: Path) -> None:
    torch.save(build_fresh("r3d_18_small").state_dict(), tmp_path / "mine.pt")
    imported = import_weights("r3d_18_small", tmp_path / "mine.pt", tag="mine", classes="kinetics400")
    assert imported.header.classes == find_weights(NAME).classes


def test_a_model_file_fits_other_frames_and_resolutions(tmp_path: Path) -> None:
    spec = VideoResNet(("3d",) * 4, (1, 1, 1, 1), (4, 8, 8, 16), (4,), frames=8, resolution=32)
    name, row = resolve(spec)
    sampling = row.preprocessing.sampling
    assert sampling is not None
    steps = replace(row.preprocessing.for_resolution(32), sampling=replace(sampling, frames=8))
    network = build_fresh(spec, classes=2, channels=3)
    header = Header(name="mine", task=VideoClassification(("a", "b")), spec=spec, preprocessing=steps)
    path = tmp_path / "mine.safetensors"
    write_model_file(path, network, header)
    other = replace(spec, frames=4, resolution=24)
    checkpoint = open_weights(path, other, name=name, row=row)
    assert checkpoint.spec_for(other) == other
    torch.testing.assert_close(build(other, weights=path).state_dict(), network.state_dict(), rtol=0, atol=0)
