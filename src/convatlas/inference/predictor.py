"""What models and ensembles share: the prediction of images and videos."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from convatlas.core.preprocessing import TTA
from convatlas.data.ignored import Ignored
from convatlas.errors import DataError
from convatlas.inference.along_time import stream_videos
from convatlas.inference.collect import Collection, collect
from convatlas.inference.inputs import KINDS, VIDEOS, InputKind
from convatlas.inference.options import PredictOptions
from convatlas.inference.predict import Member, stream
from convatlas.tasks.prediction import Prediction, Predictions


class Predictor(ABC):
    """Base of models and ensembles, which predict images or videos."""

    @property
    @abstractmethod
    def members(self) -> Sequence[Member]:
        """The models whose predictions are averaged."""

    @property
    def kind(self) -> InputKind:
        """What is predicted: images or videos."""
        return KINDS[self.members[0].header.preprocessing.reads]

    def predict(
        self, images: Collection, *, top: int | None = None, threshold: float | None = None, tta: TTA = "none",
        batch: int | None = None, fetch: bool = False, classes: Sequence[str] = (), nms: float | None = None,
        tile: int | None = None, overlap: float = 0.2, every: float | None = None,
    ) -> Predictions:  # fmt: skip
        """Return one prediction for each image or video, in order.

        images: one image: a file, the bytes of one, an open one, a PIL image, an array (height, width[, channels]) or
            (1 or 3, height, width), or a tensor (channels, height, width). Or many: a folder, a glob pattern, an array
            or a tensor of four axes, or any iterable of all these; see `Collection`. Color is red, green, blue.
            Of networks that read clips, one video: a file, also with a fragment ("film.mp4#t=10,20"), a folder of
            frames, the bytes of a file, an open one, a uint8 array (frames, height, width, channels), or a tensor
            (frames, channels, height, width), whose frames are taken at the network's frame rate. Or many.
        threshold: the probability below which no class, and no object, is predicted. batch: images per forward pass, by
        default 16, 4 clips, or 1 for detectors.
        fetch: whether URLs (http://, https://) are fetched.

        Of classifiers: top: maximum number of classes in `probabilities`; all by default. tta: test-time augmentation,
        "flip" or "ten-crop": the predictions of several views are averaged.

        Of detectors: classes: those of which objects are kept. nms: of two objects of one class with a larger
        intersection over union, the less probable one is left out. tile, overlap: side of the tiles in pixels that a
        large image is cut into, and the share of it that neighbors have in common.

        Of networks that read clips: every: seconds from the start of one clip to that of the next, for predictions
        along time: `moments`. The prediction of the whole video is the same with and without.

        Raises DataError if a single image has no prediction, because it is unreadable for example. Of many images, such
        an image gives a prediction with an `error`. Raises DataError for an option that the model's task lacks.
        """
        options = PredictOptions(
            batch=batch, tta=tta, threshold=threshold, fetch=fetch, top=top,
            classes=(classes,) if isinstance(classes, str) else tuple(classes), nms=nms, tile=tile, overlap=overlap,
            every=every,
        )  # fmt: skip
        collected = collect(images, self.kind, fetch=fetch)
        predictions = Predictions(self._stream(collected.items, options))
        if ignored := sum(collected.ignored, Ignored()):
            predictions.remarks = (ignored.text(),)
        if collected.is_single and predictions[0].error:
            raise DataError(predictions[0].error)
        return predictions

    def stream(self, images: Collection, options: PredictOptions | None = None) -> Iterator[Prediction]:
        """Yield predictions in order while the next batch is read; `images` may be infinite.

        images: images or videos, as for `predict`; every one without a prediction gives one with an `error`.
        """
        options = options or PredictOptions()
        return self._stream(collect(images, self.kind, fetch=options.fetch).items, options)

    def _stream(self, items: Iterable[Any], options: PredictOptions) -> Iterator[Prediction]:
        predict = stream_videos if self.kind is VIDEOS else stream
        return predict(self.members, items, options)
