"""Augmented training images, as the network reads them in the first epochs."""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from numpy.typing import NDArray

from convatlas.draw.contact_sheet import Captioned, captioned_images
from convatlas.draw.style import check_figure_path
from convatlas.system.progress import progress_display
from convatlas.tasks.targets import Batch
from convatlas.train.fit import prepare_run
from convatlas.train.initial_weights import AUTO
from convatlas.train.settings import ExecutionOptions

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import nn

    from convatlas.core.spec import Spec
    from convatlas.data.readers.memory import Data
    from convatlas.train.recipe import Recipe
    from convatlas.train.recipe_fields import RecipeFields
    from convatlas.train.run import Run
    from convatlas.train.settings import DataOptions
    from convatlas.weights.inflate import Inflation

NUM_IMAGES, NUM_EPOCHS = 6, 6
"""Number of images, and of epochs in which each of them is shown."""


def preview(
    data: Data,
    model: str | Spec | nn.Module,
    *,
    path: str | Path | None = None,
    task: str | None = None,
    weights: str | Path | None = AUTO,
    inflate: Inflation | None = None,
    recipe: str | Recipe | None = None,
    seed: int = 0,
    download: bool = False,
    data_options: DataOptions | None = None,
    execution: ExecutionOptions | None = None,
    progress: bool = True,
    **fields: Unpack[RecipeFields],
) -> Figure:
    """Draw the first training images as the network reads them: a row for each image, a column for each epoch.

    With the same arguments, `fit` trains on these images in its first steps: preprocessing, augmentation and random
    numbers are the same; normalization is undone. Images that are mixed with others show both labels with their shares;
    objects are drawn.
    Nothing is trained, and no run directory is written.
    path: an SVG, PNG or PDF file to write, too. The other arguments are those of `fit`.
    """
    if path is not None:
        check_figure_path(Path(path))
    # how steps are executed does not change the images, and is not measured
    execution = dataclasses.replace(
        execution or ExecutionOptions(), memory_format="contiguous", precision="float32", compiled=False,
        fused_norms=False,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder, progress_display(progress) as report:
        run = prepare_run(
            data, model, task=task, weights=weights, inflate=inflate, recipe=recipe, seed=seed,
            out=Path(folder) / "run", download=download, data_options=data_options, execution=execution,
            progress=report, **fields,
        )  # fmt: skip
        return preview_run(run, path=path)


def preview_run(run: Run, *, path: str | Path | None = None) -> Figure:
    """Draw the training images of a run's first step, as they are in each of the first epochs."""
    loader = run.loader()
    samples = next(loader.epoch(0)).indices[:NUM_IMAGES]
    batches = [loader.take(samples, epoch) for epoch in range(NUM_EPOCHS)]
    images = [_images(batch, run) for batch in batches]
    return captioned_images(
        [
            Captioned(images[epoch][i], run.task.describe(batch.targets, i), _note(batch, epoch, i))
            for i in range(len(samples))
            for epoch, batch in enumerate(batches)
        ],
        columns=NUM_EPOCHS,
        path=path,
    )


def _note(batch: Batch, epoch: int, image: int) -> str:
    sides = batch.targets.get("short_side")
    return f"epoch {epoch + 1}" + ("" if sides is None else f", short side {sides[image]} px")


def _images(batch: Batch, run: Run) -> list[NDArray[Any]]:
    """Return the images (h, w, channels) of a batch with their targets; of many channels the first three."""
    images = []
    for i, each in enumerate(batch.inputs):
        pixels = run.config.preprocessing.denormalize(each[None])[0].cpu()
        pixels = run.task.annotated(batch.targets, i, pixels)
        images.append((pixels[:3] if len(pixels) >= 3 else pixels[:1]).permute(1, 2, 0).numpy())
    return images
