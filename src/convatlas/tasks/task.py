"""The task: everything that differs between classification, multi-label classification, detection and so on.

Data, training, evaluation, prediction, export, serving and the report call its methods; none of them checks its type.
A new task is one file: a subclass of `Task`, registered with `@register` (registry.py), its `Result` and `Prediction`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Self

import torch
from torch import Tensor

from convatlas.core.auxiliary import Criterion
from convatlas.core.network import Network
from convatlas.core.preprocessing import Preprocessing
from convatlas.core.ragged import Inputs, Outputs
from convatlas.core.record import Record, above, between
from convatlas.core.spec import Spec
from convatlas.errors import DataError, SpecError, listed
from convatlas.tasks.explained import Explained
from convatlas.tasks.prediction import Prediction
from convatlas.tasks.result import Baseline, Result
from convatlas.tasks.score import Score
from convatlas.tasks.table import Column
from convatlas.tasks.targets import Targets


@dataclass(frozen=True)
class Calibration(Record):
    """Parameters that are fitted on the val split after training and used in every prediction.

    temperature: logits are divided by it (Guo et al. 2017); 1 for detectors. thresholds: for each class the minimum
    probability at which it is predicted in multi-label classification, or the minimum score of an object.
    """

    temperature: Annotated[float, above(0)] = 1.0
    thresholds: tuple[Annotated[float, between(0, 1)], ...] = ()


@dataclass(frozen=True)
class Task(Record, ABC):
    """What a network is trained for.

    classes: the names of the outputs. loss: one of the task's losses, by name.
    """

    tagged = True

    name: ClassVar[str]
    """Display name, such as "classification" or "multi-label classification"."""
    short_name: ClassVar[str]
    """The name in options of the command line and in Python, such as "classify" or "detect"."""
    losses: ClassVar[tuple[str, ...]]
    """The names of the supported losses; the first one is the default."""
    predicts: ClassVar[str] = "classes"
    """What the network must compute; see `Spec.predicts`."""
    reads: ClassVar[str] = "images"
    """What the network must read; see `Spec.reads`."""
    noun: ClassVar[str] = "image"
    """What has a target and gets a prediction: an image or a video."""
    progress_columns: ClassVar[tuple[Column, ...]]
    """Metrics of an epoch that are displayed while training: those of `train_metric`, then one of val."""
    unused_fields: ClassVar[frozenset[str]] = frozenset()
    """Fields of recipes that this task cannot use: they must have their defaults."""
    options: ClassVar[frozenset[str]] = frozenset(("tta", "ensemble"))
    """Options of predictions that the task supports: some of top, tta, ensemble, classes, nms, tile, overlap, every,
    of the files save, coco, yolo, plot, and of explanations object."""

    min_classes: ClassVar[int] = 1
    """Minimum number of classes to train on."""
    needs_every_class: ClassVar[bool] = True
    """Whether every class must have images in train and val."""

    classes: tuple[str, ...]
    loss: str = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.loss_name not in self.losses:
            raise SpecError(f"recipe: loss must be one of {', '.join(self.losses)} for {self.name}, got {self.loss!r}")
        if not self.classes or len(set(self.classes)) != len(self.classes):
            raise SpecError(f"{type(self).__name__}: classes must be different names, at least one")

    @property
    def loss_name(self) -> str:
        """The name of the loss; "auto" stands for the task's default."""
        return self.losses[0] if self.loss == "auto" else self.loss

    @property
    def outputs(self) -> int:
        """Number of the network's outputs."""
        return len(self.classes)

    @property
    def flip_order(self) -> tuple[int, ...]:
        """For each keypoint, the one whose place it takes when an image is flipped; empty without keypoints."""
        return ()

    @classmethod
    def fits(cls, spec: Spec) -> bool:
        """Return whether a network can be trained for the task: it reads and predicts what the task needs."""
        return (spec.reads, spec.predicts) == (cls.reads, cls.predicts)

    @classmethod
    def for_spec(cls, spec: Spec, classes: tuple[str, ...]) -> Self:
        """Return the task of a network that was trained elsewhere, from its class names."""
        return cls(classes)

    def adapted(self, spec: Spec) -> Spec:
        """Return the spec with the cells that follow from the task, such as the number of keypoints."""
        return spec

    def with_loss(self, loss: str) -> Self:
        """Return the task with another loss; "auto" keeps its own. Raises SpecError for an unsupported loss."""
        return self if loss == "auto" else self.replaced({"loss": loss})

    # --- targets

    @classmethod
    def label_columns(cls, columns: Sequence[str], reserved: Sequence[str]) -> tuple[str, ...] | None:
        """Return the columns of a table that contain this task's targets, or None if the table is not for this task.

        reserved: the columns of the file, the split and the group.
        """
        return None

    @classmethod
    def check_row(cls, where: object, columns: Sequence[str], cells: Mapping[str, str]) -> None:
        """Raise DataError that begins with `where`, the line of a table, if its label columns are invalid."""
        return

    @classmethod
    def from_table(
        cls, where: object, columns: Sequence[str], splits: Mapping[str, TableRows]
    ) -> tuple[Self, SplitTargets]:
        """Return the task and the targets of each split from the cells in the label columns of a table.

        The rows have passed `check_row`. Raises DataError that begins with `where`.
        """
        raise DataError(f"{where}: {cls.__name__} does not read tables")

    @classmethod
    def from_arrays(
        cls, where: object, arrays: Mapping[str, Any], classes: tuple[str, ...] | None
    ) -> tuple[Self, SplitTargets] | None:
        """Return the task and the targets of each split from arrays with one row for each image; None for other tasks.

        classes: the class names in the file, if any. Raises DataError for invalid arrays.
        """
        return None

    def strata(self, targets: Targets) -> Tensor:
        """Return the strata of a stratified split: class indices (n,), or (n, k) of 0 and 1.

        By default all images are in one stratum.
        """
        return torch.zeros(len(targets), dtype=torch.int64)

    def describe(self, targets: Targets, image: int) -> str:
        """Return the target of an image as short text, such as its class; of mixed images with shares."""
        return ""

    def annotated(self, targets: Targets, image: int, pixels: Tensor) -> Tensor:
        """Return the pixels (channels, h, w) of an image with its target drawn on it, if that can be drawn."""
        return pixels

    def class_counts(self, targets: Targets) -> Tensor | None:
        """Return the number of images, or of objects, of each class (classes,); None without classes."""
        return None

    def check_split(self, targets: Targets, split: str, where: object, *, all_classes: bool = True) -> None:
        """Raise DataError if a split cannot be used.

        all_classes: whether a class without images in it is a reason, as in training.
        """
        return

    def align(self, targets: Targets, source: Task, where: object) -> Targets:
        """Return targets of other data in the order of this task's classes.

        Raises DataError if the data is of another task or has classes that are not among this task's.
        """
        if type(source) is not type(self):
            raise DataError(f"{where}: the data is for {source.name}, the model was trained for {self.name}")
        if source.classes != self.classes:
            raise DataError(f"{where}: the data has other outputs than the model")
        return targets

    # --- training

    def mix(self, first: Targets, second: Targets, weight: Tensor) -> Targets:
        """Return the targets of mixed images; weight (n,) is the share of the first image."""
        raise SpecError(f"recipe: mixup and cutmix must be 0 for {self.name}")

    def class_weights(self, targets: Targets, power: float) -> Tensor | None:
        """Return the weight of each class in the loss (classes,): its frequency to the power of -power; None for 0."""
        if power:
            raise SpecError(f"recipe: class_weight_power must be 0 for {self.name}, got {power:g}")
        return None

    @abstractmethod
    def labels(self, targets: Targets) -> Tensor:
        """Return the labels for the loss; for mixed images, their mixed labels."""

    @abstractmethod
    def criterion(self, *, label_smoothing: float = 0.0, class_weights: Tensor | None = None) -> Criterion:
        """Return the loss of a batch."""

    def training_loss(
        self, network: Network, forward: Callable[[Any], Any], inputs: Any, targets: Targets, criterion: Criterion
    ) -> tuple[Any, Tensor]:
        """Return (outputs, loss) of a batch; `forward` runs the network. The loss of no images is 0.

        Detectors override this.
        """
        labels = self.labels(targets)
        if network.auxiliary:
            outputs, loss = network.loss(inputs, labels, criterion)
        else:
            outputs = forward(inputs)
            loss = criterion(outputs, labels)
        return outputs, loss if len(inputs) else outputs.sum() * 0

    @abstractmethod
    def train_metric(self, outputs: Any, targets: Targets) -> Tensor:
        """Return (n,), or (n, k) for k columns: the training metrics of each image.

        Those of an epoch are their means.
        """

    # --- evaluation and prediction

    def collect(self, outputs: Any, inputs: Inputs) -> Outputs:
        """Return the outputs of a batch in the form in which those of a whole split are kept in memory.

        inputs: the images, as the network received them; detectors need their sizes.
        """
        collected: Outputs = outputs
        return collected

    @abstractmethod
    def decode(self, outputs: Any, calibration: Calibration) -> Any:
        """Return predictions (n, outputs), such as probabilities, which are averaged over views and ensembles.

        Must consist of tensor operations, because it is part of exported graphs. Detectors return lists of objects.
        """

    def merge(self, views: Any, corners: Sequence[tuple[int, int]], nms: float | None = None) -> Any:
        """Return the prediction of one image from those of its views, (views, outputs) or a list: their mean.

        corners: (x, y) of the left upper pixel of each view. nms: of two objects of a class whose IoU is above it, the
        one with the lower score is removed; None for the default.
        """
        return views.mean(0)

    def keep_classes(self, decoded: Any, classes: Sequence[str]) -> Any:
        """Return the prediction of one image without the objects of other classes, for tasks that have objects."""
        return decoded

    @abstractmethod
    def evaluate(self, outputs: Any, targets: Targets, calibration: Calibration | None = None) -> Result:
        """Return the result for the outputs of all images of a split."""

    def calibrate(self, outputs: Any, targets: Targets) -> Calibration:
        """Return the calibration fitted to outputs on the val split."""
        return Calibration()

    @abstractmethod
    def predict(
        self, source: str, decoded: Any, calibration: Calibration, threshold: float | None = None
    ) -> Prediction:
        """Return the prediction for one image from its decoded row (outputs,), or its objects."""

    def baseline(self, targets: Targets) -> Baseline | None:
        """Return the best prediction that does not depend on the image; None if it would be perfect, or is unknown."""
        return None

    def unreadable(self, source: str, error: str) -> Prediction:
        """Return the prediction for an image that has none, because of an error."""
        return Prediction(source, error)

    # --- explanation

    def score(self, decoded: Any, label: str | None = None, against: str | None = None, object: int = 0) -> Score:
        """Return the score to explain for one image, from its decoded row (outputs,) or its objects.

        label: the class; by default the most probable one. against: the class whose logit is subtracted. object: number
        of the object, the most probable one first, for tasks that have objects.
        Raises DataError for a class that is not there, and for a task without explanations.
        """
        raise DataError(f"explain: must be a model for classification or detection, got one for {self.name}")

    def explained(self, network: Network, preprocessing: Preprocessing, score: Score | None = None) -> Explained:
        """Return the network as explanations read it. score: needed by tasks whose outputs depend on it."""
        return Explained(network, preprocessing)

    def logit(self, outputs: Tensor, score: Score) -> Tensor:
        """Return the score (n,) of outputs (n, outputs) of `Explained`; gradients flow."""
        return score.logit(outputs)

    def confidence(self, outputs: Tensor, score: Score, calibration: Calibration) -> Tensor:
        """Return the probability (n,) of the score's class; of a difference, its share of both probabilities."""
        return score.probability(self.decode(outputs, calibration))

    def output_order(self, other: Task, where: object, reference: object) -> Tensor:
        """Return the index of each of this task's outputs among those of another model's task.

        Raises DataError if predictions of the two cannot be averaged.
        """
        if type(other) is not type(self):
            raise DataError(f"{where}: {other.name} and {self.name} cannot be averaged")
        if set(other.classes) != set(self.classes):
            missing = sorted(set(self.classes) ^ set(other.classes))
            raise DataError(f"{where}: its classes differ from those of {reference}: {listed(missing)}")
        return torch.tensor([other.classes.index(name) for name in self.classes])


@dataclass(frozen=True)
class TableRow:
    """One row of a table of images: its line, and its cells by column."""

    line: int
    cells: Mapping[str, str]


TableRows = Sequence[TableRow]
SplitTargets = dict[str, Targets]
