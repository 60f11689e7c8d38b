"""How the weights of a model file were trained, as its header states it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

from convatlas.core.record import Bounds, Record, at_least, between, from_up_to
from convatlas.data.annotation_faults import AnnotationFault
from convatlas.data.splits import MAX_UNREADABLE, Fold
from convatlas.errors import ModelFileError


@dataclass(frozen=True)
class TrainingRecord(Record):
    """How weights were trained, or where they are from; a field that does not apply has its default.

    data, fingerprint: name and fingerprint of the data, without its path.
    recipe, execution, versions: of the run. seed: of initial weights, order, augmentation and splits.
    val_share, fold, group_pattern: how val was split off. max_unreadable: maximum share of unreadable images.
    annotation_faults: of the data, and how they were treated.
    weights: the initial weights. epoch: of these weights, from 1 on. elapsed_s: seconds of training.
    source: URL of published weights, or the name of an imported file. source_sha256: digest of that file.
    library: whose tensor names that file has. recipe_url: where the publisher describes the training.
    reported_metrics: as measured by the publisher.
    changes: what was changed when the run was resumed, such as "epochs 20 -> 30 at step 1,200".
    """

    error = ModelFileError

    data: str = ""
    fingerprint: str = ""
    recipe: Mapping[str, Any] = field(default_factory=dict)
    seed: Annotated[int, between(0, 2**32 - 1)] = 0
    val_share: Annotated[float, from_up_to(0, 1)] = 0.0
    fold: Fold | None = None
    group_pattern: str | None = None
    max_unreadable: Annotated[float, between(0, 1)] = MAX_UNREADABLE
    annotation_faults: tuple[AnnotationFault, ...] = ()
    weights: str = ""
    execution: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    epoch: Annotated[int, at_least(0)] = 0
    elapsed_s: Annotated[float, at_least(0)] = 0.0
    source: str = ""
    source_sha256: str = ""
    library: str = ""
    recipe_url: str = ""
    reported_metrics: Mapping[str, Annotated[float, Bounds()]] = field(default_factory=dict)
    changes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.fold is not None and not 1 <= self.fold[0] <= self.fold[1]:
            raise ModelFileError(
                f"TrainingRecord: fold must be (number, count) with 1 <= number <= count, got {self.fold}"
            )
