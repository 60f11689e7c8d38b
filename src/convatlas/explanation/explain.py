"""Explanations of images or clips by one model: heat map, faithfulness, feature maps by stage."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from convatlas.core.network import Network
from convatlas.engines.engine import Engine
from convatlas.errors import DataError, EngineError
from convatlas.explanation.attribution import GRADIENT_BATCH, integrated_gradients, occlusion
from convatlas.explanation.cam import heatmaps_of, is_cam
from convatlas.explanation.explanation import Explanation
from convatlas.explanation.faithfulness import measure_faithfulness
from convatlas.explanation.feature_maps import StageMaps, select_strongest, stage_paths
from convatlas.explanation.heatmap import HeatMap
from convatlas.explanation.layers import choose_method
from convatlas.explanation.options import Cam, ExplainOptions, Method
from convatlas.explanation.randomization import DRAWS, randomize_weights
from convatlas.tasks.explained import Explained, gradients
from convatlas.tasks.score import Score, check_class, score_of
from convatlas.weights.modelfile import Header

Result = Explanation | DataError
"""The explanation of an image, or the error because of which it has none."""


def explain_view(
    network: Network | None, engine: Engine, header: Header, pixels: Any, source: str, options: ExplainOptions
) -> Explanation:
    """Return the explanation of one image or clip; see `Explainer.explain`, whose errors are raised.

    pixels: of shape `item_shape`, or a whole image.
    """
    batch = [pixels] if header.preprocessing.is_whole else pixels[None]
    (result,) = Explainer(network, engine, header, options).explain(batch, [source])
    if isinstance(result, DataError):
        raise result
    return result


@dataclass(frozen=True)
class Explainer:
    """Explains images by one model. network: None for an exported file, which the engine runs."""

    network: Network | None
    engine: Engine
    header: Header
    options: ExplainOptions

    @torch.inference_mode(False)
    @torch.enable_grad()
    def explain(self, pixels: Any, sources: Sequence[str]) -> list[Result]:
        """Return the explanation of each image or clip, in order.

        pixels: (n, *item_shape), or a list of whole images; as `Engine.outputs` takes them. CAMs of equally large
        images take one pass forward and back for all; the prediction is of the same pass.
        Raises what `check` does, and SpecError for a layer that is not there.
        """
        self._check_options()
        task, options = self.header.task, self.options
        if self.network is not None and isinstance(pixels, Tensor):
            explained = task.explained(self.network, self.header.preprocessing)
            method, layers = choose_method(explained, options)
            if is_cam(method):
                return self._explain_together(explained, method, layers, pixels, sources)
        outputs = task.collect(self.engine.outputs(pixels), pixels)
        rows = task.decode(outputs, self.header.calibration)
        numbered = enumerate(zip(sources, rows, strict=True))
        return [self._explain_alone(pixels[i : i + 1], source, row) for i, (source, row) in numbered]

    def check(self) -> None:
        """Raise an error for options that are not possible with any image.

        DataError for a class that is not there, for twice the same class, and for an object of a task without objects;
        EngineError for an exported file and a method that needs gradients; SpecError for a layer that is not there.
        """
        self._check_options()
        if self.network is not None and not self.header.preprocessing.is_whole:
            choose_method(self.header.task.explained(self.network, self.header.preprocessing), self.options)

    def _check_options(self) -> None:
        task, options = self.header.task, self.options
        check_class(options.label, task.classes)
        check_class(options.against, task.classes, "against")
        if options.label is not None:
            score_of(task.classes, 0, options.label, options.against)
        if options.object and "object" not in task.options:
            raise DataError(f"explain: object must be 0, because the model is for {task.name}, got {options.object}")
        if self.network is None:
            self._check_exported()

    def _check_exported(self) -> None:
        method = self.options.method
        if method != "occlusion":
            raise EngineError(
                f"{self.header.name}: method must be occlusion for an exported file, which has no gradients, got "
                f"{method}; or explain the model file it came from"
            )
        if self.header.preprocessing.is_whole:
            raise EngineError(
                f"{self.header.name}: must be a model file to explain a detector, got an exported file; use the model "
                "file it came from"
            )

    def _explain_together(
        self, explained: Explained, method: Cam, layers: Sequence[str], pixels: Tensor, sources: Sequence[str]
    ) -> list[Result]:
        """Return the explanations by a CAM of images of one size."""
        task = self.header.task
        stages = StageCollector(explained, len(pixels)) if self.options.stages else None
        maps, outputs = explained.capture(explained.inputs(pixels), layers, stages)
        rows = task.decode(outputs.detach().cpu(), self.header.calibration)
        scores = [self._score(source, row) for source, row in zip(sources, rows, strict=True)]
        logits = [task.logit(outputs[i : i + 1], s) for i, s in enumerate(scores) if isinstance(s, Score)]
        if not logits:
            return [score for score in scores if isinstance(score, DataError)]
        heatmaps = heatmaps_of(explained, method, maps, gradients(torch.cat(logits), maps), pixels)
        return [
            score if isinstance(score, DataError) else self._explanation(
                explained, method, layers, pixels[i : i + 1], source, row, score, heatmap,
                stages.of(i) if stages else (),
            )
            for i, (source, row, score, heatmap) in enumerate(zip(sources, rows, scores, heatmaps, strict=True))
        ]  # fmt: skip

    def _explain_alone(self, view: Any, source: str, row: Any) -> Result:
        """Return the explanation of one image, a batch of one, from its decoded row or objects."""
        score = self._score(source, row)
        if isinstance(score, DataError):
            return score
        if self.network is None:
            heatmap = self._occlusion(None, view, score)
            return self._explanation(None, "occlusion", (), view, source, row, score, heatmap, ())
        explained = self.header.task.explained(self.network, self.header.preprocessing, score)
        method, layers = choose_method(explained, self.options)
        stages = StageCollector(explained, 1) if self.options.stages else None
        heatmap = self._heatmap(explained, method, layers, view, score, stages)
        return self._explanation(
            explained, method, layers, view, source, row, score, heatmap, stages.of(0) if stages else ()
        )

    def _score(self, source: str, row: Any) -> Score | DataError:
        options, task = self.options, self.header.task
        if not row.isfinite().all():
            return DataError(f"{source}: the network computes NaN or infinity for this {task.noun}")
        try:
            return task.score(row, options.label, options.against, options.object)
        except DataError as error:
            return DataError(f"{source}: {error}")

    def _heatmap(
        self, explained: Explained, method: Method, layers: Sequence[str], view: Any, score: Score,
        stages: StageCollector | None = None,
    ) -> HeatMap:  # fmt: skip
        """Return the heat map of one image, a batch of one."""
        task = self.header.task
        if is_cam(method):
            maps, outputs = explained.capture(explained.inputs(view), layers, stages)
            return heatmaps_of(explained, method, maps, gradients(task.logit(outputs, score), maps), view)[0]
        if stages is not None:
            explained.capture(explained.inputs(view), (), stages)
        if method == "occlusion":
            return self._occlusion(explained, view, score)
        return integrated_gradients(
            explained, view, lambda x: task.logit(explained.outputs(x), score), steps=self.options.steps,
            batch=1 if self.header.preprocessing.is_whole else GRADIENT_BATCH,
        )  # fmt: skip

    def _occlusion(self, explained: Explained | None, view: Any, score: Score) -> HeatMap:
        outputs = self._outputs(explained)
        return occlusion(view[0], lambda pixels: self.header.task.logit(outputs(pixels), score))

    def _outputs(self, explained: Explained | None) -> Callable[[Tensor], Tensor]:
        """Return the function from pixels (n, ...) to outputs: on the engine, unless the score is of another network.

        The outputs of detectors are those for the box of the score, which no engine computes; whole images need much
        memory, and are run one by one.
        """
        whole = self.header.preprocessing.is_whole
        if explained is None or (not whole and explained.network is self.network):
            return self.engine.outputs

        def outputs(pixels: Tensor) -> Tensor:
            parts = pixels.split(1 if whole else len(pixels))
            with torch.no_grad():
                return torch.cat([explained.outputs(explained.inputs(part)).cpu() for part in parts])

        return outputs

    def _explanation(
        self, explained: Explained | None, method: Method, layers: Sequence[str], view: Any, source: str, row: Any,
        score: Score, heatmap: HeatMap, stages: tuple[StageMaps, ...],
    ) -> Explanation:  # fmt: skip
        """Return the explanation with what the options ask for."""
        task, options, calibration = self.header.task, self.options, self.header.calibration
        pixels: Tensor = view[0]
        outputs = self._outputs(explained)
        faithfulness = randomization = None
        if options.faithfulness:
            faithfulness = measure_faithfulness(
                lambda x: task.confidence(outputs(x), score, calibration), pixels, heatmap.values, heatmap.grid
            )
        if options.randomize and self.network is not None and heatmap.values.any():  # an empty map has no order
            randomization = randomize_weights(
                self.network, lambda network: self._heatmap(
                    task.explained(network, self.header.preprocessing, score), method, layers, view, score
                ).values, draws=DRAWS if is_cam(method) else 1,
            )  # fmt: skip
        return Explanation(
            source=source, prediction=task.predict(source, row, calibration), score=score, method=method,
            layer=", ".join(layers), heatmap=heatmap.values, grid=heatmap.grid, view=pixels, stages=stages,
            faithfulness=faithfulness, randomization=randomization, completeness_error=heatmap.completeness_error,
        )  # fmt: skip


class StageCollector:
    """Selects the strongest feature maps of the stem and of each stage while a network runs on n images.

    Maps of rotated inputs are rotated back.
    """

    def __init__(self, explained: Explained, images: int) -> None:
        network, self.rotate = explained.network, explained.preprocessing.rotate
        self.paths, self.axes = stage_paths(network), 1 + len(network.input_shape)
        self.found: list[list[StageMaps]] = [[] for _ in range(images)]

    def __call__(self, path: str, maps: Tensor) -> None:
        if path in self.paths and maps.ndim == self.axes:
            for own, each in zip(self.found, maps, strict=True):
                own.append(select_strongest(path, self.rotate(each.float().cpu())))

    def of(self, image: int) -> tuple[StageMaps, ...]:
        return tuple(self.found[image])
