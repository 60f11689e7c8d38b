"""The supernet of a search: it is trained in a run directory, then ranks candidates, and the best ones get its weights.

Training continues from its checkpoint if it was interrupted, like every run; ranking starts again.
"""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from convatlas.core.network import Network
from convatlas.engines.evaluation import compute_outputs
from convatlas.search.budgeted import BudgetedSpace
from convatlas.search.contestant import Contestant, candidate_name
from convatlas.search.counts import Counts
from convatlas.search.evaluation import TRIALS, Evaluator
from convatlas.search.explorer import Explorer
from convatlas.search.limits import reward
from convatlas.search.space import Candidate, SpecSpace
from convatlas.search.supernet import Sandwich, Supernet, at_resolution, extreme, recalibrate
from convatlas.system.files import write_text
from convatlas.train.run import Run
from convatlas.weights.modelfile import Header, write_model_file

SUPERNET, RANKING = "supernet", "supernet.csv"
"""Name of the supernet, of its run directory and of the folder of extracted weights; the table of its candidates."""

FINALISTS = 3
"""Sub-networks that get the weights of the supernet and continue as contestants."""

FIELDS = {"ema_decay": 0.0, "grad_clip": 1.0, "head_epochs": 0, "patience": 0, "dropout": None, "drop_path": None}
"""Of the recipe: the loss is a sum over networks, whose gradients differ."""

RECALIBRATION_IMAGES, VAL_IMAGES = 512, 1000
"""Training images for the statistics of batch norms, and images of the val split that a candidate is ranked by."""

LATEST, MAX_EPOCHS = 1.15, 2000
"""Share of its time after which the training of a supernet is cut off, if its epochs take longer than expected, and the
most epochs of it."""

POOL, PLANNED = 2000, 100
"""Most candidates that are compared at once, and evaluations for which the engine plans: a fifth are random."""


@dataclass(frozen=True)
class Ranked:
    """A candidate with shared weights. accuracy: on val. latency_s: predicted."""

    candidate: Candidate
    accuracy: float
    reward: float
    latency_s: float
    counts: Counts


def train_supernet(evaluator: Evaluator, space: BudgetedSpace, contestant: Contestant, *, seconds: float) -> Run:
    """Train the supernet of a space for some seconds, or continue it. space: its networks within the limits.

    contestant: the largest network. `supernet_of` the run has the sub-networks.
    """

    settings, shared = evaluator.settings, SpecSpace(space.template)
    smallest = extreme(shared, classes=settings.classes, channels=settings.channels, smallest=True)

    def attach(run: Run) -> None:
        supernet = Supernet(shared, run.network, run.task, run.plan, smallest=smallest)
        run.network.auxiliary["sandwich"] = Sandwich(supernet, space)

    run = evaluator.open_timed(
        contestant, evaluator.folder / TRIALS / SUPERNET, seconds=seconds, fields=FIELDS, max_epochs=MAX_EPOCHS,
        attach=attach,
    )  # fmt: skip
    evaluator.train(run, lambda: run.state.step >= run.total_steps or run.state.seconds > LATEST * seconds)
    run.save()
    return run


def supernet_of(run: Run) -> Supernet:
    """Return the supernet that a run trains."""
    sandwich: Any = run.network.auxiliary["sandwich"]
    supernet: Supernet = sandwich.supernet[0]
    return supernet


class SupernetAccuracy:
    """Measures candidates with the weights of a supernet, after recalibration of their batch norms."""

    def __init__(self, run: Run) -> None:
        self.run, self.supernet = run, supernet_of(run)
        val = run.dataset.splits["val"]
        self.val = val.subset(torch.arange(0, len(val), -(-len(val) // VAL_IMAGES)))
        self._images = list(self._training_images())

    def _training_images(self) -> Iterator[Tensor]:
        batches = -(-RECALIBRATION_IMAGES // self.run.config.recipe.batch)
        for batch in islice(self.run.loader().epoch(0), batches):
            yield cast(Tensor, batch.inputs)

    def network(self, candidate: Candidate) -> Network:
        """Return a sub-network with recalibrated batch norms, in evaluation mode."""
        network = self.supernet.extract(candidate).to(self.run.device)
        return recalibrate(network, iter(self._images))

    def __call__(self, candidate: Candidate) -> float:
        """Return the accuracy of a candidate on val."""
        network, task, preprocessing = self.network(candidate), self.run.task, self.run.config.preprocessing

        @torch.inference_mode()
        def forward(pixels: Tensor) -> Tensor:
            x = preprocessing.normalize(pixels.to(self.run.device))
            outputs: Tensor = network(at_resolution(x, network))
            return outputs.cpu()

        return task.evaluate(compute_outputs(forward, self.val, collect=task.collect), self.val.targets).score


def rank(
    evaluator: Evaluator, space: BudgetedSpace, measure: SupernetAccuracy, *, seconds: float
) -> list[Ranked]:  # fmt: skip
    """Return candidates within the limits by their accuracy in the supernet, the best first; writes supernet.csv.

    The engine of the search chooses them, for some seconds.
    """
    settings = evaluator.settings
    target = settings.limits.target_s
    explorer = Explorer(space, seed=settings.seed, fidelities=(1.0,), pool=POOL, budget=PLANNED)
    ranked: list[Ranked] = []
    end = time.monotonic() + seconds
    while not ranked or time.monotonic() < end:
        asked = explorer.ask()
        if asked is None:
            break
        candidate, _ = asked
        with evaluator.lock.working():
            accuracy = measure(candidate)
        evaluator.between()
        predicted = space.predict(candidate)
        assert predicted is not None
        counts, latency = predicted
        found = Ranked(candidate, accuracy, reward(accuracy, latency, target, settings.objective), latency, counts)
        ranked.append(found)
        explorer.tell(candidate, accuracy=found.reward, latency=settings.limits.compared_latency(latency))
    ranked.sort(key=lambda each: -each.reward)
    write_text(evaluator.folder / RANKING, _table(ranked))
    return ranked


def best_of(
    evaluator: Evaluator, space: BudgetedSpace, measure: SupernetAccuracy, ranked: Sequence[Ranked]
) -> Iterator[tuple[Contestant, dict[str, int]]]:  # fmt: skip
    """Yield the best candidates with their choices; they start from the shared weights, which files now have.

    Their latency is measured, and those above the limits are left out.
    """
    settings, chosen = evaluator.settings, 0
    for each in ranked:
        if chosen == FINALISTS:
            return
        codes = space.named(space.encode(each.candidate))
        name, spec = candidate_name(codes), space.value(each.candidate)
        path = Path(SUPERNET) / f"{name}.safetensors"
        contestant = Contestant(name, "candidate", spec, weights=str(path), seed=settings.seed)
        latency = evaluator.latency_of(contestant, each.counts)
        if settings.hard_limits.exceeded(each.counts, latency.seconds):
            continue
        chosen += 1
        header = Header(name, measure.run.task, spec, settings.preprocessing.for_resolution(spec.resolution))
        (evaluator.folder / SUPERNET).mkdir(exist_ok=True)
        write_model_file(evaluator.folder / path, measure.network(each.candidate), header)
        yield replace(contestant, latency_s=None if latency.is_predicted else latency.seconds), codes


def _table(ranked: Sequence[Ranked]) -> str:
    """Return the ranked candidates as CSV."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["accuracy", "latency_s", "parameters", "macs", *(ranked[0].candidate if ranked else ())])
    for each in ranked:
        numbers = (each.accuracy, each.latency_s, each.counts.parameters, each.counts.macs)
        writer.writerow([*numbers, *each.candidate.values()])
    return text.getvalue()
