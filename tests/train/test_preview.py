"""The preview of augmented training images: what the network sees in its first steps."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from commands import Command
from convatlas.core.preprocessing import Preprocessing
from convatlas.draw.contact_sheet import Captioned
from convatlas.train import preview as module
from convatlas.train.fit import prepare_run
from convatlas.train.preview import NUM_EPOCHS, NUM_IMAGES, preview, preview_run
from convatlas.train.settings import ExecutionOptions
from convatlas.train.step import Step

AUGMENTED = {"flip": True, "max_shift": 3, "jitter": 0.4, "random_erasing": 0.5, "batch": 10, "epochs": 3}


@pytest.fixture
def cells(monkeypatch: pytest.MonkeyPatch) -> list[Captioned]:
    """The cells of the preview that is drawn."""
    drawn: list[Captioned] = []
    monkeypatch.setattr(module, "captioned_images", lambda images, **_: drawn.extend(images))
    return drawn


def test_the_images_are_those_of_the_first_steps(images: Path, tmp_path: Path, cells: list[Captioned]) -> None:
    run = prepare_run(
        images, "lenet5_modern", weights="none", recipe="default", seed=4, out=tmp_path / "run",
        execution=ExecutionOptions(memory_format="contiguous", precision="float32", fused_norms=False), **AUGMENTED,
    )  # fmt: skip
    preview_run(run)
    assert len(cells) == NUM_IMAGES * NUM_EPOCHS
    steps, seen = run.config.preprocessing, 0
    mean, std = torch.tensor(steps.mean).view(-1, 1, 1), torch.tensor(steps.std).view(-1, 1, 1)
    rows: dict[int, list[Captioned]] = {}
    with closing(run.steps()) as events:
        for step in (event for event in events if isinstance(event, Step)):
            batch = step.batch
            if not rows:
                rows = {int(sample): cells[NUM_EPOCHS * i :] for i, sample in enumerate(batch.indices[:NUM_IMAGES])}
            for sample, inputs, label in zip(batch.indices, batch.inputs, batch.targets.tensor("label"), strict=True):
                if int(sample) in rows:
                    cell = rows[int(sample)][step.epoch]
                    expected = ((inputs * std + mean) * 255).clamp(0, 255).permute(1, 2, 0).numpy()
                    assert np.abs(cell.image - expected).max() <= 1
                    assert (cell.caption, cell.note) == (run.task.classes[label], f"epoch {step.epoch + 1}")
                    seen += 1
            if step.number + 1 == run.total_steps:
                break
    assert seen == NUM_IMAGES * 3


def test_mixed_images_show_both_labels_with_their_shares(images: Path, cells: list[Captioned]) -> None:
    preview(images, "lenet5_modern", weights="none", recipe="default", progress=False, mixup=1.0, cutmix=1.0)
    assert all(cell.image.shape == (32, 32, 3) for cell in cells)
    mixed = [cell.caption for cell in cells if "%" in cell.caption]
    assert len(mixed) > NUM_IMAGES
    for caption in mixed:
        names, shares = zip(*(part.rsplit(" ", 1) for part in caption.split(", ")), strict=True)
        assert set(names) <= {"ant", "bee", "cat"}
        assert sum(int(share.rstrip("%")) for share in shares) in (99, 100, 101)


@pytest.mark.parametrize("rotation", [0, 180])
@pytest.mark.parametrize("channels", [1, 2, 3])
def test_normalization_is_undone(channels: int, rotation: int) -> None:
    steps = Preprocessing(resize=8, crop=8, mean=(0.4, 0.5, 0.6)[:channels], std=(0.2, 0.3, 0.4)[:channels],
                          rotation=rotation)  # fmt: skip
    pixels = torch.arange(2 * channels * 64).view(2, channels, 8, 8).remainder(256).to(torch.uint8)
    assert torch.equal(steps.denormalize(steps.normalize(pixels)), pixels)


def test_the_command_draws_and_stops(
    images: Path, tmp_path: Path, convatlas: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    command = ("fit", images, "--model", "lenet5_modern", "--weights", "none", "--set", "flip=true")
    outcome = convatlas(*command, "--preview", "preview.png")
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.out.endswith("preview: preview.png\n")
    assert [path.name for path in tmp_path.iterdir()] == ["preview.png"]
    with Image.open("preview.png") as figure:
        assert min(figure.size) > 500
    assert convatlas(*command, "--preview", "preview.gif").code == 2
    refused = convatlas("fit", images, "--model", "auto", "--preview", "preview.png")
    assert (refused.code, "--preview" in refused.err) == (2, True)
