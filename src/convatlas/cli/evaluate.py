"""The command `evaluate`: measure a model on a data set."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from convatlas.cli import console
from convatlas.cli.options import (
    DATA,
    EXECUTION,
    OUTPUT,
    DataSet,
    Device,
    Json,
    MaxUnreadableLikeTraining,
    ModelFile,
    option,
)
from convatlas.cli.use import load_on_engine
from convatlas.errors import printable


def evaluate(
    model: ModelFile,
    data: DataSet,
    split: Annotated[
        str | None,
        option("Split: train, val, test or all. The default is test, else val, else all.", metavar="NAME", panel=DATA),
    ] = None,
    max_unreadable: MaxUnreadableLikeTraining = None,
    engine: Annotated[
        str | None,
        option("Inference engine: torch (the default), compile, onnxruntime, openvino or auto; an exported file has "
               "its own.", metavar="NAME", panel=EXECUTION),
    ] = None,
    device: Device = "auto",
    csv: Annotated[
        Path | None,
        option("Write every image or video with its target and its prediction to this CSV file; for detectors, "
               "the numbers of objects of each class.",
               "--csv", metavar="FILE", panel=OUTPUT),
    ] = None,
    report: Annotated[
        Path | None,
        option("Write a page of HTML with figures, metrics by class and the worst images or videos.",
               "--report", metavar="FILE", panel=OUTPUT),
    ] = None,
    as_json: Json = False,
) -> None:  # fmt: skip
    """Measure a model on a data set, class by class: precision, recall and F1, or the AP of objects.

    The data may lack classes of the model.
    """
    from convatlas.inference.load import load

    opened = load(model, device=device) if engine is None else load_on_engine(model, engine, device, batch=64)
    with console.progress_bar() as progress:
        evaluation = opened.evaluate(data, split=split, max_unreadable=max_unreadable, progress=progress)
    if csv is not None:
        evaluation.write_csv(csv)
    if report is not None:
        evaluation.write_report(report)
    if as_json:
        names = {"name": model, "network": opened.header.name, "data": data, "engine": str(opened.engine)}
        console.print_json({**names, **evaluation.to_plain()})
        return
    console.metrics_table(evaluation.result.table())
    note = ""
    if evaluation.split == "all":
        note = f"; all {evaluation.result.noun}s: optimistically biased if the network was trained on some of them"
    display = console.display()
    display.print_result(evaluation.split, evaluation.result, note)
    display.print_verdict(evaluation.split, evaluation.verdict)
    display.print_remarks(evaluation.remarks)
    display.print_skipped(evaluation.unreadable)
    for file in (csv, report):
        if file is not None:
            console.console.print(printable(str(file)))
