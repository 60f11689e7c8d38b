"""Weights for a detector: those of its body, and those of a detector of other keypoints."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from convatlas.core.spec import Spec
from convatlas.models.card import Variant
from convatlas.models.catalog import resolve
from convatlas.models.families.rcnn import FasterRCNN, KeypointRCNN, from_body
from convatlas.models.keys import is_counter, rename_all
from convatlas.weights.files import CheckpointFile
from convatlas.weights.read import Checkpoint
from convatlas.weights.sizes import sizes_of
from convatlas.weights.state_dicts import find_state_dicts


def body_of(spec: Spec) -> tuple[str, Variant] | None:
    """Return the name and the row of the body of a detector; None for other networks."""
    return resolve(spec.body) if isinstance(spec, FasterRCNN) else None


def networks_with_weights(spec: Spec, name: str) -> dict[str, Spec]:
    """Return {name: spec} of the networks whose weights a network can start from: itself, then its body."""
    own, body = {name.removesuffix("-custom"): spec}, body_of(spec)
    return own if body is None else {**own, body[0].removesuffix("-custom"): body[1].spec}


def weights_of_body(checkpoint: Checkpoint, spec: Spec, row: Variant) -> Checkpoint:
    """Return the weights of a detector's body as weights of the detector, without those of its neck and heads.

    spec, row: of the detector. Its body gets the cells of the weights, and the detector their normalization.
    """
    assert isinstance(spec, FasterRCNN)
    steps = checkpoint.preprocessing
    cells = {"body": checkpoint.spec_for(spec.body), "mean": steps.mean, "std": steps.std, "eps": None}
    detector = spec.replaced(cells)
    expected = sizes_of(detector).base
    names = rename_all(checkpoint.tensors, from_body(detector))
    return dataclasses.replace(
        checkpoint,
        tensors={name: checkpoint.tensors[key] for name, key in names.items() if name in expected},
        num_classes=0,
        notes=(*checkpoint.notes, f"weights of the body, {type(spec.body).__name__}, alone"),
        preprocessing=row.preprocessing.for_channels(checkpoint.channels),
        class_names=(),
        cells=cells,
    )


def points_of(spec: Spec) -> int | None:
    """Return the number of keypoints of a detector of keypoints; None for other networks."""
    return spec.points if isinstance(spec, KeypointRCNN) else None


def points_in(file: CheckpointFile) -> int | None:
    """Return the number of keypoints that a checkpoint file of a detector predicts; None for other files."""
    for state_dict in find_state_dicts(file.content, file.path):
        for name, tensor in state_dict.tensors.items():
            if name.endswith("keypoint_predictor.kps_score_lowres.bias"):
                return tensor.numel()
    return None


def with_points(spec: Spec, points: int | None) -> Spec:
    """Return the spec with another number of keypoints, if it has one."""
    return spec.replaced({"points": points}) if isinstance(spec, KeypointRCNN) and points is not None else spec


def weights_for_points(checkpoint: Checkpoint, spec: Spec) -> Checkpoint:
    """Return the weights of a detector of other keypoints without the layers whose shapes depend on their number."""
    expected = sizes_of(spec).tensors(checkpoint.num_classes or 2, checkpoint.channels)
    kept = {name: tensor for name, tensor in checkpoint.tensors.items() if tensor.shape == expected[name].shape}
    return dataclasses.replace(checkpoint, tensors=kept)


def with_norms_of(checkpoint: Checkpoint, spec: Spec, read: Callable[[Spec], Checkpoint]) -> Checkpoint:
    """Return the checkpoint of a detector with the norms of its file: constants, or trained ones, which have counters.

    read: matches the file with another spec.
    """
    assert isinstance(spec, FasterRCNN)
    if spec.norm == "batch" or not any(map(is_counter, checkpoint.original)):
        return checkpoint
    cells = {"norm": "batch", "eps": spec.eps or None}  # 0 is that of published weights with constants
    return dataclasses.replace(read(spec.replaced(cells)), cells=cells)
