"""What models and ensembles share: the prediction of images."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence

from convatlas.core.preprocessing import TTA
from convatlas.data.ignored import Ignored
from convatlas.errors import DataError
from convatlas.inference.collect import Collection, collect_images
from convatlas.inference.predict import Member, PredictOptions, stream
from convatlas.tasks.prediction import Prediction, Predictions


class Predictor(ABC):
    """Base of models and ensembles, which predict images."""

    @property
    @abstractmethod
    def members(self) -> Sequence[Member]:
        """The models whose predictions are averaged."""

    def predict(
        self, images: Collection, *, top: int | None = None, threshold: float | None = None, tta: TTA = "none",
        batch: int = 16, fetch: bool = False,
    ) -> Predictions:  # fmt: skip
        """Return one prediction for each image, in order.

        images: one image: a file, the bytes of one, an open one, a PIL image, an array (height, width[, channels]) or
            (1 or 3, height, width), or a tensor (channels, height, width). Or many: a folder, a glob pattern, an array
            or a tensor of four axes, or any iterable of all these; see `Collection`. Color is red, green, blue.
        top: maximum number of classes in `probabilities`; all by default. threshold: the probability below which no
        class is predicted. tta: test-time augmentation, "flip" or "ten-crop": the predictions of several views are
        averaged. batch: images per forward pass. fetch: whether URLs (http://, https://) are fetched.

        Raises DataError if a single image has no prediction, because it is unreadable for example. Of many images, such
        an image gives a prediction with an `error`.
        """
        options = PredictOptions(batch, tta, threshold, fetch, top)
        collected = collect_images(images, fetch=fetch)
        predictions = Predictions(stream(self.members, collected.images, options))
        if ignored := sum(collected.ignored, Ignored()):
            predictions.remarks = (ignored.text(),)
        if collected.is_single and predictions[0].error:
            raise DataError(predictions[0].error)
        return predictions

    def stream(self, images: Collection, options: PredictOptions | None = None) -> Iterator[Prediction]:
        """Yield predictions in order while the next batch is read; `images` may be infinite.

        images: as for `predict`; every image without a prediction gives one with an `error`.
        """
        options = options or PredictOptions()
        return stream(self.members, collect_images(images, fetch=options.fetch).images, options)
