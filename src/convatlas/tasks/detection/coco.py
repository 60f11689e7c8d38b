"""COCO's metrics of detectors, by faster-coco-eval: for boxes, masks and keypoints, over all classes and for each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from convatlas.core.table import Table
from convatlas.errors import DataError, foreign_errors
from convatlas.tasks.detection.formats import Plain, areas_of, score_list, to_annotations
from convatlas.tasks.detection.objects import Objects

Kind = Literal["boxes", "masks", "keypoints"]
"""What is compared: the IoU of boxes or of masks, or the similarity of keypoints."""

IOU_TYPES: Mapping[Kind, str] = {"boxes": "bbox", "masks": "segm", "keypoints": "keypoints"}

_Numbers = NDArray[np.float64]


@dataclass(frozen=True, eq=False, repr=False)
class CocoMetrics:
    """The metrics of one kind; print as a table. NaN stands for what cannot be measured, such as AP of missing sizes.

    values: name -> metric over all classes, in the order of COCO's tools: of boxes and masks ap (mean over IoU 0.5 to
        0.95), ap50, ap75, ap_small, ap_medium, ap_large, ar1, ar10, ar100 (average recall with that many detections for
        each image), ar_small, ar_medium, ar_large; of keypoints ap, ap50, ap75, ap_medium, ap_large, ar, ar50, ar75,
        ar_medium, ar_large (OKS in place of IoU, at most 20 detections). Small is below 32 x 32 pixels, large from
        96 x 96 on.
    class_ap, class_ap50, class_ap75: (classes,).
    precision: (2, 101, classes): the highest precision at a recall of at least 0, 0.01, ..., 1, at IoU 0.5 and 0.75.
    """

    values: Mapping[str, float]
    class_ap: _Numbers
    class_ap50: _Numbers
    class_ap75: _Numbers
    precision: _Numbers

    def __getitem__(self, name: str) -> float:
        return self.values[name]

    def __repr__(self) -> str:
        return str(self._table())

    def _repr_html_(self) -> str:
        return self._table()._repr_html_()

    def _table(self) -> Table:
        return Table.of_pairs({name: f"{value:.4f}" for name, value in self.values.items()})


def evaluate_coco(
    ground_truth: Mapping[str, Any], detections: Sequence[Mapping[str, Any]], kind: Kind,
    sigmas: Sequence[float] | None = None,
) -> CocoMetrics:  # fmt: skip
    """Return the metrics of detections in COCO's form; classes are in the order of their category ids.

    ground_truth: the contents of an annotation file: images, annotations, categories. detections: the contents of a
    result file: image_id, category_id, score and bbox, segmentation or keypoints. sigmas: of the keypoints; those of
    COCO's persons by default.
    The numbers are those of pycocotools, except that an annotation with the id 0 counts like any other: pycocotools
    counts a match with it as none. The area of a detection, by which it is small or large, is that of its bbox if it
    has one, else of its mask, or of the box around its keypoints.
    Raises DataError if the data is not in COCO's form.
    """
    from faster_coco_eval import COCO

    if kind not in IOU_TYPES:
        raise DataError(f"evaluate_coco: kind must be one of {', '.join(IOU_TYPES)}, got {kind!r}")
    with foreign_errors("evaluate_coco", DataError, "the annotations or detections are not in COCO's form"):
        annotations = [
            dict(annotation, id=number, iscrowd=int(annotation.get("iscrowd") or 0))
            for number, annotation in enumerate(ground_truth["annotations"], 1)
        ]
        for annotation in annotations:
            if kind == "keypoints" and annotation.get("num_keypoints") is None:
                annotation["num_keypoints"] = sum(value > 0 for value in annotation["keypoints"][2::3])
        truth = COCO({
            "images": [dict(image) for image in ground_truth["images"]],
            "categories": [dict(category) for category in ground_truth["categories"]],
            "annotations": annotations,
        })  # fmt: skip
        return _evaluate(truth, truth.loadRes([dict(detection) for detection in detections]), kind, sigmas)


def evaluate_objects(
    detections: Sequence[Objects], truths: Sequence[Objects], classes: Sequence[str], kind: Kind,
    sigmas: Sequence[float] | None = None,
) -> CocoMetrics:  # fmt: skip
    """Return the metrics of detections in images.

    sigmas: of the keypoints. The area of a detection is that of its mask if masks are compared, else that of its box.
    """
    from faster_coco_eval import COCO

    ids = range(1, len(classes) + 1)
    images: list[Plain] = []
    annotations: list[Plain] = []
    results: list[Plain] = []
    for number, (own, truth) in enumerate(zip(detections, truths, strict=True), 1):
        images.append({"id": number, "height": truth.size[0], "width": truth.size[1]})
        annotations += to_annotations(_compared(truth, kind, areas_of(truth)), number, ids)
        results += to_annotations(_compared(own, kind, _areas(own, kind)), number, ids)
        for result, score in zip(results[-len(own) :], score_list(own), strict=False):
            result["score"] = score
    categories = [{"id": number, "name": name} for number, name in zip(ids, classes, strict=True)]
    for rows in (annotations, results):
        for number, row in enumerate(rows, 1):
            row["id"] = number
    truth_file, result_file = (
        COCO({"images": images, "categories": categories, "annotations": rows}) for rows in (annotations, results)
    )
    return _evaluate(truth_file, result_file, kind, sigmas)


def _compared(objects: Objects, kind: Kind, areas: Tensor) -> Objects:
    """Return the objects without what is not compared."""
    return replace(
        objects, segments=objects.segments if kind == "masks" else None,
        keypoints=objects.keypoints if kind == "keypoints" else None, areas=areas,
    )  # fmt: skip


def _areas(objects: Objects, kind: Kind) -> Tensor:
    return areas_of(objects if kind == "masks" else replace(objects, segments=None))


def _evaluate(truth: Any, detections: Any, kind: Kind, sigmas: Sequence[float] | None) -> CocoMetrics:
    """Return the metrics from two objects of faster-coco-eval with annotations."""
    from faster_coco_eval import COCOeval_faster

    evaluation = COCOeval_faster(
        truth,
        detections,
        IOU_TYPES[kind],
        print_function=_no_print,
        kpt_oks_sigmas=None if sigmas is None else list(sigmas),
    )
    evaluation.params.catIds = sorted(truth.getCatIds())
    evaluation.evaluate()
    evaluation.accumulate()
    return _metrics(evaluation.params, evaluation.eval["precision"], evaluation.eval["recall"], kind)


def _no_print(*args: object) -> None:
    return


def _metrics(params: Any, precision: Any, recall: Any, kind: Kind) -> CocoMetrics:
    """Return the metrics from COCO's arrays, in which -1 is what cannot be measured.

    precision: (10 IoUs, 101 recalls, classes, sizes, maximum numbers of detections). recall: the same without recalls.
    """
    at = {"": slice(None), "50": slice(0, 1), "75": slice(5, 6)}
    size = {name: number for number, name in enumerate(params.areaRngLbl)}
    p, r = (np.where(np.asarray(array) > -1, array, np.nan) for array in (precision, recall))

    def ap(iou: str = "", area: str = "all") -> float:
        return _mean(p[at[iou], :, :, size[area], -1])

    def ar(iou: str = "", area: str = "all", most: int = -1) -> float:
        return _mean(r[at[iou], :, size[area], most])

    values = {"ap": ap(), "ap50": ap("50"), "ap75": ap("75")}
    areas = ("medium", "large") if kind == "keypoints" else ("small", "medium", "large")
    if kind == "keypoints":
        values |= {f"ap_{area}": ap(area=area) for area in areas}
        values |= {"ar": ar(), "ar50": ar("50"), "ar75": ar("75")}
    else:
        values |= {f"ap_{area}": ap(area=area) for area in areas}
        values |= {f"ar{most}": ar(most=number) for number, most in enumerate(params.maxDets)}
    values |= {f"ar_{area}": ar(area=area) for area in areas}
    classes = range(p.shape[2])
    class_ap, class_ap50, class_ap75 = (np.array([_mean(p[at[iou], :, k, 0, -1]) for k in classes]) for iou in at)
    return CocoMetrics(values, class_ap, class_ap50, class_ap75, p[[0, 5], :, :, 0, -1])


def _mean(values: _Numbers) -> float:
    """Return the mean of the values that are not NaN; NaN without any."""
    present = values[~np.isnan(values)]
    return float(present.mean()) if present.size else float("nan")
