"""The demonstration behind `make demo`: from a spec to a trained, sealed, predicting network."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch
from PIL import Image

from convatlas.cli import console
from convatlas.core.summary import fields
from convatlas.draw.contact_sheet import draw_overview
from convatlas.inference.model import load
from convatlas.tasks.classification.evaluate import evaluate
from convatlas.tasks.classification.losses import CRITERIA
from convatlas.train import recipe
from convatlas.train.fit import start
from convatlas.train.settings import Settings

MODEL, EPOCHS, SHOWN = "lenet5_modern", 100, 16
SETTINGS = Settings(threads=1)  # so that the result is the same on every machine, and a busy one is no slower


def demo(out: Path | None) -> None:
    """Fit LeNet-5 to the digits that ship with scikit-learn, then use the sealed file as anyone would."""
    say = console.console.print
    say("1. Train LeNet-5 on 1,797 handwritten digits (8x8 pixels, embedded in scikit-learn)", style="bold")
    run = start(
        "digits", MODEL, recipe=recipe.RECIPES["default"].replaced({"epochs": EPOCHS}), out=out, settings=SETTINGS
    )
    console.train(run)
    console.outcome(run)
    test = run.dataset.test
    assert test is not None

    say(f"\n2. Predict {SHOWN} held-out digits from the model file", style="bold")
    # one of each class first, then as they come, with every mistake among them
    result, pixels = run.results["test"], test.pixels
    assert isinstance(pixels, torch.Tensor)
    mistakes = result.wrong.nonzero().flatten().tolist()
    firsts = [int((test.labels == label).nonzero()[0]) for label in range(len(run.config.classes))]
    chosen = list(dict.fromkeys([*firsts, *mistakes, *range(len(test))]))[:SHOWN]
    folder = run.folder / "examples"
    folder.mkdir(exist_ok=True)
    files = []
    for i in chosen:
        name = test.names[i].replace("/", "-")
        files.append(folder / f"{run.config.classes[test.labels[i]]}-{name}.png")
        border = run.config.preprocessing.pad  # the preprocessing puts it back
        Image.fromarray(pixels[i, 0, border:-border, border:-border].numpy()).save(files[-1])
    model = load(run.model_file)
    predictions = model.predict(files)
    rows = [(p.source, f"{p.probability:7.2%}  {p.label}") for p in predictions[:4]]
    console.table(("image", "most probable"), [*rows, ("...", "")])

    image = run.folder / "overview.png"
    header = model.header
    draw_overview(
        pixels[chosen],
        evaluate(model.engine.outputs, test.subset(torch.tensor(chosen)), CRITERIA[header.criterion]),
        result,
        run.state.history,
        classes=model.classes,
        title=f"LeNet-5 on handwritten digits: {result.accuracy:.2%} of {len(test)} held-out images are right",
        path=image,
    )
    say("\n3. Made", style="bold")
    made = {
        str(image): "predictions, learning curves, confusion matrix",
        str(run.model_file): "the sealed model: weights, classes, preprocessing, how it was trained",
        str(run.folder / "metrics.csv"): "one row per epoch",
        str(folder): f"{SHOWN} held-out digits as image files",
    }
    say(fields(made))
    say("\nNext", style="bold")
    command = os.path.relpath(sys.argv[0]) if sys.argv[0].endswith("convatlas") else "convatlas"
    say(f"  {command} predict {run.model_file} {folder}")
    say(f"  {command} show lenet5")
    say(f"  {command} fit YOUR_FOLDER --model lenet5_modern     # YOUR_FOLDER/<class>/*.png")
