"""The demo behind `make demo`: train a network, then predict with its model file."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

from convatlas.cli.options import OUTPUT, option

if TYPE_CHECKING:
    from convatlas.tasks.classification.single_label import ClassificationResult

MODEL, EPOCHS, NUM_EXAMPLES = "lenet5_modern", 100, 16


def demo(
    out: Annotated[
        Path | None,
        option("Run directory, new or empty; the default is runs/digits-lenet5_modern.", "--out", "-o",
               metavar="FOLDER", panel=OUTPUT),
    ] = None,
) -> None:  # fmt: skip
    """Run the one-minute demo: train on handwritten digits, predict with the model file, plot the results."""
    import torch
    from PIL import Image

    from convatlas.cli import training
    from convatlas.cli.console import console, display, table
    from convatlas.core.table import Table
    from convatlas.draw.contact_sheet import overview
    from convatlas.inference.load import load
    from convatlas.train.fit import prepare_run
    from convatlas.train.settings import ExecutionOptions

    console.print("1. Train LeNet-5 on 1,797 handwritten digits (8x8 pixels, from scikit-learn)", style="bold")
    # one thread: the same result on every machine, and no slower on a busy one
    run = prepare_run("digits", MODEL, recipe="default", epochs=EPOCHS, out=out, execution=ExecutionOptions(threads=1))
    training.train(run)
    display().print_results(run)
    test, result = run.dataset.test, cast("ClassificationResult", run.results["test"])
    assert test is not None

    console.print(f"\n2. Predict {NUM_EXAMPLES} digits of the test split with the model file", style="bold")
    # one digit of each class, then all errors, then others
    labels = test.targets.tensor("label")
    mistakes = result.wrong.nonzero().flatten().tolist()
    one_per_class = [int((labels == label).nonzero()[0]) for label in range(len(run.task.classes))]
    chosen = list(dict.fromkeys([*one_per_class, *mistakes, *range(len(test))]))[:NUM_EXAMPLES]
    folder = run.folder / "examples"
    folder.mkdir(exist_ok=True)
    files = []
    border = run.config.preprocessing.pad  # preprocessing pads again
    pixels = torch.stack([test.pixels[index] for index in chosen])[..., border:-border, border:-border]
    for index, image in zip(chosen, pixels, strict=True):
        name = test.names[index].replace("/", "-")
        files.append(folder / f"{run.task.classes[labels[index]]}-{name}.png")
        Image.fromarray(image[0].numpy()).save(files[-1])
    model = load(run.model_file)
    predictions = model.predict(files)
    rows = [(prediction.source, *prediction.cells(1)) for prediction in predictions[:4]]
    table(("image", *predictions[0].headings(1)), [*rows, ("...", "", "")])

    figure = run.folder / "overview.png"
    overview(
        pixels, result.probabilities[chosen], result.labels[chosen], result.confusion, run.state.history,
        columns=run.task.progress_columns, classes=run.task.classes, path=figure,
        title=f"LeNet-5 on handwritten digits: {result.score:.2%} accuracy on {len(test)} test images",
    )  # fmt: skip
    console.print("\n3. Files", style="bold")
    console.print(str(Table.of_pairs({
        str(figure): "predictions, learning curves, confusion matrix",
        str(run.model_file): "the model file: weights, classes, preprocessing, how it was trained",
        str(run.folder / "metrics.csv"): "metrics of each epoch",
        str(folder): f"{NUM_EXAMPLES} digits of the test split as image files",
    })))  # fmt: skip
    console.print("\nNext steps", style="bold")
    command = os.path.relpath(sys.argv[0]) if sys.argv[0].endswith("convatlas") else "convatlas"
    console.print(f"  {command} predict {run.model_file} {folder}")
    console.print(f"  {command} show lenet5")
    console.print(f"  {command} fit YOUR_FOLDER --model lenet5_modern     # YOUR_FOLDER/<class>/*.png")
