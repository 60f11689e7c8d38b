"""Explanations of images and videos of every kind that a model predicts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any, Protocol

import torch

from convatlas.core.network import Network
from convatlas.core.ragged import concatenate, split
from convatlas.errors import DataError
from convatlas.explanation.explain import Explainer
from convatlas.explanation.explanation import Explanation
from convatlas.explanation.options import ExplainOptions
from convatlas.explanation.page import Explanations
from convatlas.inference.along_time import to_video_prediction
from convatlas.inference.collect import Collection, collect
from convatlas.inference.images import Views, load_views
from convatlas.inference.inputs import KINDS, VIDEOS
from convatlas.inference.options import PredictOptions
from convatlas.inference.predict import Member, read_batches
from convatlas.inference.videos import load_clips
from convatlas.weights.modelfile import Header


class NetworkMember(Member, Protocol):
    """A model; network: None for an exported file."""

    @property
    def network(self) -> Network | None: ...


def explain_images(
    model: NetworkMember, images: Iterable[Any], options: ExplainOptions, reading: PredictOptions | None = None
) -> Iterator[Explanation]:
    """Yield the explanation of each image or video, in order, while the next batch is read.

    images: as `collect` returns them. reading: the batch size, and whether URLs are fetched. Of a video, the clip in
    which the score's class is most probable is explained; its prediction is that of the whole video.
    An unreadable image, and one without the object or with the same class twice, gives an explanation with an `error`.
    Raises what `Explainer` raises for a class, a layer or a method that is not possible, before an image is read.
    """
    reading = reading or PredictOptions()
    header, explainer = model.header, Explainer(model.network, model.engine, model.header, options)
    explainer.check()
    steps, is_video = header.preprocessing, KINDS[header.preprocessing.reads] is VIDEOS
    load = load_clips if is_video else load_views
    for batch in read_batches(images, load, [steps], reading, header.task.noun, reading.items_for(steps)):
        read = {place: views[0] for place, (_, views) in enumerate(batch) if not isinstance(views, DataError)}
        if is_video:
            results = [_explain_video(explainer, batch[place][0], views, reading) for place, views in read.items()]
        elif read:
            pixels = concatenate([views.pixels for views in read.values()])
            results = explainer.explain(pixels, [batch[place][0] for place in read])
        else:
            results = []
        explained = dict(zip(read, results, strict=True))
        for place, (name, views) in enumerate(batch):
            result = explained.get(place, views)
            yield result if isinstance(result, Explanation) else _unexplained(name, result, header)


def explain_collection(
    model: NetworkMember, images: Collection, options: ExplainOptions, reading: PredictOptions
) -> Explanation | Explanations:
    """Return the explanation of one image or video, or those of many; see `Model.explain`."""
    collected = collect(images, KINDS[model.header.preprocessing.reads], fetch=reading.fetch)
    explanations = Explanations(explain_images(model, collected.items, options, reading))
    if not collected.is_single:
        return explanations
    if explanations[0].error:
        raise DataError(explanations[0].error)
    return explanations[0]


def _unexplained(name: str, error: Any, header: Header) -> Explanation:
    return Explanation(name, header.task.unreadable(name, str(error)))


def _explain_video(explainer: Explainer, name: str, views: Views, reading: PredictOptions) -> Explanation | DataError:
    """Return the explanation of the clip of a video in which the explained class is most probable."""
    header, options = explainer.header, explainer.options
    task, calibration = header.task, header.calibration
    batches = split(views.pixels, reading.batch_for(header.preprocessing))
    outputs = torch.cat([explainer.engine.outputs(pixels) for pixels in batches])
    row = task.merge(task.decode(outputs, calibration), views.corners)
    prediction = to_video_prediction(name, row, views.seconds, [], header, reading)
    if prediction.error:
        return DataError(prediction.error)
    try:
        score = task.score(row, options.label, options.against, options.object)
    except DataError as error:
        return DataError(f"{name}: {error}")
    clip = int(task.confidence(outputs, score, calibration).argmax())
    of_score = replace(explainer, options=replace(options, label=score.label))
    (result,) = of_score.explain(views.pixels[clip : clip + 1], [name])
    return result if isinstance(result, DataError) else replace(result, prediction=prediction)
