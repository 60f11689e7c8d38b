"""The pointing game (Zhang et al. 2018, section 5.1): is the highest point of a heat map on an object of its class?

    python benchmarks/pointing_game.py COCO MODEL [--methods NAMES] [--layer PATH] [--json FILE]

COCO is a folder of splits, `SPLIT/`, with `annotations/instances_SPLIT.json`. MODEL is a classifier of the 1000 classes
of ImageNet. For each photo and each category that is in it and is also a class of ImageNet (`CLASSES`), the map of the
most probable of these classes is computed; it is a hit if its highest point is at most 15 px of the photo outside of a
box of the category. Boxes are cut to the network's view, the central crop. The controls are the center of the view, and
the highest points of the random map and of the edge map.

Prints the share of hits with the 95 % bootstrap interval over the photos, and its differences to those of the controls:
of all pairs; of the difficult ones, whose boxes cover less than a quarter of the view and where another category is in
it, too (as in the paper); and of those where one of the classes is among the five most probable ones.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from convatlas.core.preprocessing import Preprocessing
from convatlas.explanation.control_maps import edge_map, random_map
from convatlas.explanation.explain import explain_view
from convatlas.explanation.options import CAMS, METHODS, ExplainOptions
from convatlas.inference.images import load_views
from convatlas.inference.load import load
from convatlas.inference.model import Model
from convatlas.inference.options import PredictOptions
from convatlas.system.progress import progress_display

CLASSES: Mapping[str, Sequence[str | range]] = {
    "apple": ("Granny Smith",),
    "backpack": ("backpack",),
    "banana": ("banana",),
    "bench": ("park bench",),
    "bicycle": ("bicycle-built-for-two", "mountain bike"),
    "bird": (range(7, 25), range(80, 101), range(127, 147)),
    "boat": ("canoe", "lifeboat", "speedboat", "yawl", "trimaran", "catamaran", "fireboat", "gondola"),
    "book": ("book jacket", "comic book"),
    "bottle": ("beer bottle", "pill bottle", "pop bottle", "water bottle", "wine bottle"),
    "bowl": ("mixing bowl", "soup bowl"),
    "broccoli": ("broccoli",),
    "bus": ("minibus", "school bus", "trolleybus"),
    "car": ("beach wagon", "cab", "convertible", "jeep", "limousine", "minivan", "Model T", "racer", "sports car"),
    "cat": (range(281, 286),),
    "cell phone": ("cellular telephone",),
    "chair": ("barber chair", "folding chair", "rocking chair"),
    "clock": ("analog clock", "digital clock", "wall clock"),
    "cow": ("ox",),
    "cup": ("coffee mug", "cup"),
    "dining table": ("dining table",),
    "dog": (range(151, 269),),
    "elephant": ("African elephant", "Indian elephant"),
    "handbag": ("purse",),
    "keyboard": ("computer keyboard",),
    "laptop": ("laptop", "notebook"),
    "microwave": ("microwave",),
    "motorcycle": ("moped", "motor scooter"),
    "mouse": ("mouse",),
    "orange": ("orange",),
    "oven": ("stove",),
    "potted plant": ("pot",),
    "refrigerator": ("refrigerator",),
    "sink": ("washbasin",),
    "spoon": ("wooden spoon",),
    "stop sign": ("street sign",),
    "teddy bear": ("teddy",),
    "tie": ("bolo tie", "bow tie", "Windsor tie"),
    "toaster": ("toaster",),
    "toilet": ("toilet seat",),
    "train": ("bullet train", "electric locomotive", "freight car", "passenger car", "steam locomotive"),
    "truck": ("fire engine", "garbage truck", "moving van", "pickup", "tow truck", "trailer truck"),
    "tv": ("monitor", "screen", "television"),
    "umbrella": ("umbrella",),
    "vase": ("vase",),
    "wine glass": ("goblet",),
}
"""Category of COCO -> classes of ImageNet: names, or numbers in the usual order of the synsets. Categories without such
a class, such as person, fork and fire hydrant, are left out."""

CONTROLS = ("center", "random map", "edge map")

TOLERANCE = 15
"""Pixels of the photo by which a point may be outside of a box."""

DRAWS = 2000
"""Number of bootstrap samples of the photos."""


@dataclass(frozen=True)
class Pair:
    """A photo and a category in it. hits: by method and control."""

    photo: str
    category: str
    is_difficult: bool
    is_predicted: bool
    hits: Mapping[str, bool]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("coco", type=Path)
    parser.add_argument("model")
    parser.add_argument("--methods", default=",".join(CAMS), help=f"some of {','.join(METHODS)}")
    parser.add_argument("--layer", action="append", default=[], help="layer that the CAMs read; repeatable")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    model = load(arguments.model)
    methods = arguments.methods.split(",")
    pairs: list[Pair] = []
    photos = list(read_photos(arguments.coco).items())
    with progress_display(True) as progress:
        for number, (path, boxes) in enumerate(photos, 1):
            pairs += play(model, path, boxes, methods, tuple(arguments.layer))
            progress("photos", number, len(photos))
    names = [*methods, *CONTROLS]
    results = {}
    for title, chosen in (
        ("all", pairs), ("difficult", [p for p in pairs if p.is_difficult]),
        ("among the five most probable", [p for p in pairs if p.is_predicted]),
    ):  # fmt: skip
        print(f"\n{title}: {len(chosen)} pairs in {len({p.photo for p in chosen})} photos")
        results[title] = {name: summarize(chosen, name) for name in names}
        for name, row in results[title].items():
            share, low, high = row["share"]
            minus = [f"minus {control} {d:+.1%} ({a:+.1%} to {b:+.1%})" for control, (d, a, b) in row["minus"].items()]
            shown = [] if name in CONTROLS else minus
            print(
                f"{name:22} {row['hits']:3} of {len(chosen)} {share:6.1%} ({low:.1%} to {high:.1%})",
                *shown, sep="  ",
            )  # fmt: skip
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(results, indent=2))


def read_photos(folder: Path) -> dict[Path, dict[str, Tensor]]:
    """Return photo -> category -> its boxes (k, 4), without crowds."""
    photos: dict[Path, dict[str, Tensor]] = {}
    for file in sorted((folder / "annotations").glob("instances_*.json")):
        data = json.loads(file.read_text())
        names = {each["id"]: each["name"] for each in data["categories"]}
        boxes: dict[int, dict[str, list[list[float]]]] = defaultdict(lambda: defaultdict(list))
        for each in data["annotations"]:
            if not each.get("iscrowd"):
                x, y, width, height = each["bbox"]
                boxes[each["image_id"]][names[each["category_id"]]].append([x, y, x + width, y + height])
        split = file.stem.removeprefix("instances_")
        for image in sorted(data["images"], key=lambda each: str(each["file_name"])):
            found = {name: torch.tensor(rows) for name, rows in boxes[image["id"]].items()}
            photos[folder / split / image["file_name"]] = found
    return photos


def play(
    model: Model, path: Path, boxes: Mapping[str, Tensor], methods: Sequence[str], layers: tuple[str, ...]
) -> list[Pair]:
    """Return the pairs of a photo."""
    steps = model.header.preprocessing
    (views,) = load_views(path, str(path), [steps], PredictOptions())
    pixels = views.pixels[0]
    with Image.open(path) as image:
        width, height = image.size
    scale = steps.resize / min(width, height)
    in_view = {name: each for name, rows in boxes.items() if len(each := cut_to_view(rows, steps, width, height))}
    probabilities = model.engine.outputs(pixels[None])[0]
    top = set(probabilities.topk(5).indices.tolist())
    pairs = []
    for category, own in in_view.items():
        if category not in CLASSES:
            continue
        known = numbers_of(CLASSES[category], model.classes)
        label = model.classes[max(known, key=lambda number: float(probabilities[number]))]
        points = {"center": (steps.resolution / 2, steps.resolution / 2)}
        for method in methods:
            cam_layers = layers if method in CAMS else ()
            options = ExplainOptions(
                method=method,  # type: ignore[arg-type]
                label=label, layers=cam_layers, faithfulness=False, stages=False,
            )  # fmt: skip
            found = explain_view(model.network, model.engine, model.header, pixels, str(path), options)
            points[method] = highest_point(found.heatmap)
            if method == methods[0]:
                size = tuple(found.heatmap.shape)
                points["random map"] = highest_point(random_map(pixels, found.grid, size))
                points["edge map"] = highest_point(edge_map(pixels, found.grid, size))
        share = covered_share(own, steps.resolution)
        hits = {name: is_inside(point, own, TOLERANCE * scale) for name, point in points.items()}
        pairs.append(Pair(str(path), category, share < 0.25 and len(in_view) > 1, not top.isdisjoint(known), hits))
    return pairs


def cut_to_view(boxes: Tensor, steps: Preprocessing, width: int, height: int) -> Tensor:
    """Return boxes of a photo in pixels of its central crop, without those outside of it."""
    scale = steps.resize / min(width, height)
    rows, columns = int(height * scale), int(width * scale)
    left, top = round((columns - steps.crop) / 2), round((rows - steps.crop) / 2)
    moved = boxes * torch.tensor([columns / width, rows / height] * 2) - torch.tensor([left, top] * 2)
    moved = moved.clamp(0, steps.crop)
    return moved[((moved[:, 2:] - moved[:, :2]) >= 1).all(1)]


def numbers_of(classes: Sequence[str | range], names: Sequence[str]) -> list[int]:
    """Return the numbers of classes; names that the model does not have are errors."""
    return [number for each in classes for number in (each if isinstance(each, range) else [names.index(each)])]


def highest_point(heatmap: Tensor) -> tuple[float, float]:
    """Return x and y of the center of the highest pixel."""
    y, x = divmod(int(heatmap.argmax()), heatmap.shape[1])
    return x + 0.5, y + 0.5


def is_inside(point: tuple[float, float], boxes: Tensor, tolerance: float) -> bool:
    """Return whether a point is at most `tolerance` pixels outside of one of the boxes."""
    place = torch.tensor(point)
    outside = torch.maximum(boxes[:, :2] - place, place - boxes[:, 2:]).clamp(min=0)
    return bool((outside.square().sum(1).sqrt() <= tolerance).any())


def covered_share(boxes: Tensor, side: int) -> float:
    """Return the share of the view that boxes cover together."""
    covered = torch.zeros(side, side, dtype=torch.bool)
    for left, top, right, bottom in boxes.round().int().tolist():
        covered[top:bottom, left:right] = True
    return float(covered.float().mean())


def summarize(pairs: Sequence[Pair], name: str) -> dict[str, Any]:
    """Return hits, their share, and its differences to the controls; intervals are over samples of the photos."""
    columns = [name, *CONTROLS]
    photos = sorted({pair.photo for pair in pairs})
    sums: NDArray[Any] = np.zeros((len(photos), len(columns) + 1))
    for pair in pairs:
        sums[photos.index(pair.photo)] += [*(pair.hits[column] for column in columns), 1]
    drawn = np.random.default_rng(0).integers(0, len(photos), (DRAWS, len(photos)))

    def shares(totals: NDArray[Any]) -> NDArray[Any]:
        """Return the share of hits of the map, and its differences to the controls, from sums (..., columns + 1)."""
        each = totals[..., :-1] / totals[..., -1:]
        return np.concatenate([each[..., :1], each[..., :1] - each[..., 1:]], -1)

    values, (low, high) = shares(sums.sum(0)), np.quantile(shares(sums[drawn].sum(1)), [0.025, 0.975], 0)
    rows = dict(zip(("share", *CONTROLS), zip(values.tolist(), low.tolist(), high.tolist(), strict=True), strict=True))
    return {
        "hits": int(sums[:, 0].sum()), "n": len(pairs), "share": rows["share"],
        "minus": {control: rows[control] for control in CONTROLS if control != name},
    }  # fmt: skip


if __name__ == "__main__":
    main()
