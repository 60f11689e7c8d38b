"""What models and ensembles share: the prediction of images."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence

from convatlas.core.preprocessing import TTA
from convatlas.data.ignored import Ignored
from convatlas.errors import DataError
from convatlas.inference.collect import Collection, collect_images
from convatlas.inference.options import PredictOptions
from convatlas.inference.predict import Member, stream
from convatlas.tasks.prediction import Prediction, Predictions


class Predictor(ABC):
    """Base of models and ensembles, which predict images."""

    @property
    @abstractmethod
    def members(self) -> Sequence[Member]:
        """The models whose predictions are averaged."""

    def predict(
        self, images: Collection, *, top: int | None = None, threshold: float | None = None, tta: TTA = "none",
        batch: int | None = None, fetch: bool = False, classes: Sequence[str] = (), nms: float | None = None,
        tile: int | None = None, overlap: float = 0.2,
    ) -> Predictions:  # fmt: skip
        """Return one prediction for each image, in order.

        images: one image: a file, the bytes of one, an open one, a PIL image, an array (height, width[, channels]) or
            (1 or 3, height, width), or a tensor (channels, height, width). Or many: a folder, a glob pattern, an array
            or a tensor of four axes, or any iterable of all these; see `Collection`. Color is red, green, blue.
        threshold: the probability below which no class, and no object, is predicted. batch: images per forward pass, by
        default 16, or 1 for detectors.
        fetch: whether URLs (http://, https://) are fetched.

        Of classifiers: top: maximum number of classes in `probabilities`; all by default. tta: test-time augmentation,
        "flip" or "ten-crop": the predictions of several views are averaged.

        Of detectors: classes: those of which objects are kept. nms: of two objects of one class with a larger
        intersection over union, the less probable one is left out. tile, overlap: side of the tiles in pixels that a
        large image is cut into, and the share of it that neighbors have in common.

        Raises DataError if a single image has no prediction, because it is unreadable for example. Of many images, such
        an image gives a prediction with an `error`. Raises DataError for an option that the model's task lacks.
        """
        options = PredictOptions(
            batch=batch, tta=tta, threshold=threshold, fetch=fetch, top=top,
            classes=(classes,) if isinstance(classes, str) else tuple(classes), nms=nms, tile=tile, overlap=overlap,
        )  # fmt: skip
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
