"""Which network? Those of the catalog that keep a budget, measured on this machine, and a race between them."""

from __future__ import annotations

import dataclasses
import math
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from convatlas.core.cost import cost
from convatlas.core.preprocessing import Preprocessing
from convatlas.core.spec import SMALL, Spec
from convatlas.data.dataset import Dataset, Images
from convatlas.data.decode.headers import read_header
from convatlas.data.loader import BatchLoader
from convatlas.data.open import find
from convatlas.data.rng import derive_key
from convatlas.data.source import Source
from convatlas.errors import DataError, RunError, SpecError, WeightsError, brief
from convatlas.models.catalog import CATALOG, FAMILIES, Stem, adapted, build_fresh, reads_clips
from convatlas.system.devices import device_named
from convatlas.system.progress import Progress
from convatlas.tasks.classification.evaluate import evaluate, plainly
from convatlas.tasks.classification.losses import CRITERIA, class_weights
from convatlas.train.cpu import execution as execution_module
from convatlas.train.distributed import init_distributed
from convatlas.train.fit import fitted, load, preprocessing_for
from convatlas.train.loop import EMA, Step, train
from convatlas.train.recipe import Recipe, usual
from convatlas.train.recipe import recipe as recipe_named
from convatlas.train.regularization import regularize
from convatlas.train.run_folder import write_table
from convatlas.train.settings import Settings
from convatlas.weights.adapt import load_into
from convatlas.weights.open import open_weights
from convatlas.weights.pretrained import LIBRARIES, Weights, list_weights

LARGE = 64
"""Images with a longer short side are large: the networks for images of up to 64 px are not for them."""

RUNNERS = 8
"""So many networks race at most, each of another family."""

JUDGED = 1000
"""So many images of the val split judge a round of the race at most."""


@dataclass(frozen=True)
class Budget:
    """What a network may take: seconds for one image, parameters, multiply-adds."""

    latency: float = math.inf
    params: float = math.inf
    macs: float = math.inf

    def __post_init__(self) -> None:
        if min(self.latency, self.params, self.macs) <= 0 or math.isnan(self.latency + self.params + self.macs):
            raise SpecError("budget: latency, params and macs are numbers above 0")
        if min(self.latency, self.params, self.macs) == math.inf:
            raise SpecError("budget: give at least one of max latency, max params and max MACs")


@dataclass(frozen=True)
class Entry:
    """A network that keeps the budget, as it would be trained.

    latency: seconds for one image, the lower quartile of some runs. scores: what it reached on val after each round
        of the race that it took part in. told: why it left, if it broke down.
    """

    name: str
    family: str
    stem: Stem
    size: int
    parameters: int
    macs: int
    latency: float = math.nan
    weights: str = ""
    scores: tuple[float, ...] = ()
    told: str = ""

    @property
    def spec(self) -> Spec:
        return adapted(CATALOG[self.name].spec, stem=self.stem, resolution=self.size)

    @property
    def reported_metrics(self) -> float:
        """The accuracy on ImageNet that is claimed for its best published weights; 0 where none is."""
        claims = [published_claim(weights) for weights in list_weights(self.name)]
        return max(claims, default=0.0)


def published_claim(weights: Weights) -> float:
    """Return the share of ImageNet's images that weights are said to answer right, in percent; 0 where unknown."""
    return max((value for what, value in weights.reported_metrics.items() if what.endswith("acc@1")), default=0.0)


@dataclass(frozen=True)
class Choice:
    """All networks that keep the budget, the best of the race first, then by latency.

    score: what the race was judged by. seconds: of training that each network had had after each round. guessed: what
        is reached, with two standard deviations of so few images, by who does not look at them.
    """

    entries: tuple[Entry, ...]
    score: str
    seconds: tuple[float, ...]
    guessed: float = 0.0

    @property
    def best(self) -> Entry:
        return self.entries[0]

    @property
    def tells(self) -> bool:
        """Whether the best one had learned anything when the race ended, or was alone."""
        return not self.best.scores or self.best.scores[-1] > self.guessed

    def write(self, path: Path) -> None:
        """Write all networks as CSV."""
        rows = [dataclasses.asdict(entry) | {"scores": " ".join(map(str, entry.scores))} for entry in self.entries]
        write_table(path, rows)

    def settings(self, settings: Settings) -> Settings:
        """Return settings for a run with the best network."""
        return dataclasses.replace(settings, stem=self.best.stem, size=self.best.size)


def select_model(
    data: str | Path,
    budget: Budget,
    *,
    weights: str | None = None,
    recipe: str | Recipe | None = None,
    seed: int = 0,
    settings: Settings | None = None,
    seconds: float = 300.0,
    progress: Progress | None = None,
) -> Choice:
    """Measure which networks of the catalog keep a budget on this machine, and let them race on the data.

    weights: a library, "torchvision" or "timm": only networks whose published weights are at hand, which they begin
        from.
    recipe: of all networks in the race, without its schedule; the usual one where left out.
    seconds: of training, in all. One network of each family races, the one with the most multiply-adds, at most eight
        of them, those first of which more is known on ImageNet. In each round all have the same time; the better half
        goes on.
    Raises RunError if no network keeps the budget, or among several processes.
    """
    settings = settings or Settings()
    if weights not in (None, *LIBRARIES):
        raise RunError(f"weights: with auto the name of a library, {' or '.join(LIBRARIES)}, not {weights}")
    if init_distributed(device_named(settings.device)).world_size > 1:
        raise RunError("a network is chosen in one process; then give its name to torchrun")
    source = find(data, download=settings.download, progress=progress)
    channels = source.channels if settings.channels is None else settings.channels
    fits = measured(
        _candidates(source, channels, budget, settings, weights), source, channels, budget, settings, progress
    )  # fmt: skip
    if not fits:
        held, mend = (f" with weights of {weights} at hand", ", or fetch some (weights pull)") if weights else ("", "")
        raise RunError(f"budget: no network of the catalog{held} keeps it on this machine; allow more{mend}")
    chosen = recipe if isinstance(recipe, Recipe) else recipe_named(
        recipe or usual("default", pretrained=weights is not None)
    )  # fmt: skip
    runners = _runners(fits)
    raced, given, guessed = _race(runners, source, channels, chosen, seed, settings, seconds, progress)
    names = {entry.name for entry in raced}
    others = sorted((entry for entry in fits if entry.name not in names), key=lambda entry: entry.latency)
    return Choice((*raced, *others), "mAP" if source.several else "accuracy", given, guessed)


def _short_side(source: Source) -> int:
    """Return the middle one of the short sides of some training images."""
    train = source.listings["train"]
    if train.pixels is not None:
        return min(train.pixels.shape[-2:])
    sides = []
    for name in train.names[:50]:
        try:
            sides.append(min(read_header(Path(name)).size))
        except DataError:
            continue
    if not sides:
        raise DataError(f"{source.location}: no image can be read")
    return int(statistics.median(sides))


def _candidates(
    source: Source, channels: int, budget: Budget, settings: Settings, weights: str | None
) -> Iterator[Entry]:
    """Yield the networks for images of this size that keep the budget, as far as it can be counted."""
    small = _short_side(source) <= LARGE if settings.size is None else settings.size <= LARGE
    for family, rows in FAMILIES.items():
        for name, row in rows.variants.items():
            if reads_clips(row.spec) or row.recipe != "default":
                continue
            own = row.spec.resolution <= LARGE
            if small != own and not small:
                continue
            stem: Stem = "small" if (small and not own) or settings.stem == "small" else "own"
            size = settings.size or (SMALL if small and not own else row.spec.resolution)
            at_hand = _at_hand(name, weights)
            if at_hand is None:
                continue
            try:
                spec = adapted(row.spec, stem=stem, resolution=size)
                counted = cost(build_fresh(spec, classes=len(source.classes), channels=channels, device="meta"))
            except SpecError:
                continue  # no small stem, or not at this size
            if counted.parameters <= budget.params and counted.macs <= budget.macs:
                yield Entry(name, family, stem, size, counted.parameters, counted.macs, weights=at_hand)


def _at_hand(name: str, library: str | None) -> str | None:
    """Return "library:tag" of a network's best weights at hand, None if there are none; "" where none are asked for."""
    if library is None:
        return ""
    try:
        return next((f"{w.library}:{w.tag}" for w in list_weights(name, library) if w.file), None)
    except WeightsError:
        return None


@torch.inference_mode()
def measured(
    entries: Iterator[Entry], source: Source, channels: int, budget: Budget, settings: Settings,
    progress: Progress | None,
) -> list[Entry]:  # fmt: skip
    """Return those networks that answer one image within the budget on this machine, and how long they take."""
    device = device_named(settings.device)
    if settings.threads:
        torch.set_num_threads(settings.threads)
    fits, waiting = [], sorted(entries, key=lambda entry: entry.macs)
    for done, entry in enumerate(waiting, 1):
        network = build_fresh(entry.spec, classes=len(source.classes), channels=channels).to(device).eval()
        image = torch.zeros(1, *network.input_shape, device=device)
        took: list[float] = []
        begun = time.perf_counter()
        while len(took) < 8 or (time.perf_counter() - begun < 0.3 and len(took) < 50):
            start = time.perf_counter()
            network(image).sum().item()  # waits for the device
            took.append(time.perf_counter() - start)
            if len(took) > 3 and min(took) > 2 * budget.latency:
                break
        latency = statistics.quantiles(took, n=4)[0]  # what else the machine does makes some slower
        if latency <= budget.latency:
            fits.append(dataclasses.replace(entry, latency=latency))
        if progress:
            progress("measuring networks", done, len(waiting))
    return fits


def _runners(fits: Sequence[Entry]) -> list[Entry]:
    largest = {entry.family: entry for entry in sorted(fits, key=lambda entry: entry.macs)}
    return sorted(largest.values(), key=lambda entry: (-entry.reported_metrics, -entry.macs))[:RUNNERS]


# --- the race


class _Runner:
    """A network in the race: it trains for some seconds at a time."""

    def __init__(
        self, entry: Entry, dataset: Dataset, steps: Preprocessing, recipe: Recipe, seed: int, settings: Settings
    ) -> None:
        self.entry, self.dataset, self.steps = entry, dataset, steps
        row, device = CATALOG[entry.name], device_named(settings.device)
        classes = len(dataset.classes)
        torch.manual_seed(derive_key(seed, 0, 8))
        network = build_fresh(entry.spec, classes=classes, channels=steps.channels)
        if entry.weights:
            given = open_weights(entry.weights, entry.spec, name=entry.name, row=row)
            load_into(network, entry.spec, given, fresh_head=given.names != dataset.classes)
        regularize(network, dropout=recipe.dropout, drop_path=recipe.drop_path)
        way = execution_module.choose(
            entry.spec, classes=classes, channels=steps.channels, batch=recipe.micro_batch or recipe.batch, device=device,
            layout=settings.layout, precision=settings.precision, kernels=settings.kernels,
        ).execution  # fmt: skip
        network = way.place(network.to(device))
        loader = BatchLoader(
            dataset.train, steps, batch=recipe.batch, seed=seed, augment=recipe.augment, classes=classes, device=device
        )
        weighed = class_weights(loader.labels, classes, recipe.class_weight_power)
        # nobody knows how long it lasts: a rate that rises for some steps and then stays, and an average of the weights
        recipe = dataclasses.replace(
            recipe, epochs=10**6, schedule="constant", warmup=20 / loader.steps, head_epochs=0, patience=0
        )
        self.average, self.criterion, self.device = EMA(network, 0.98), CRITERIA[recipe.loss], device
        self.taken: Iterator[Step] = train(
            network, recipe.build_optimizer(network), loader, recipe, seed=seed, execution=way, average=self.average,
            class_weights=weighed,
        )  # fmt: skip

    def run(self, seconds: float) -> None:
        """Train for so long, at least one step."""
        begun = time.perf_counter()
        for _ in self.taken:
            if time.perf_counter() - begun >= seconds:
                return

    @property
    def judged(self) -> Images:
        """Some images of the val split."""
        val = self.dataset.val
        assert val is not None
        return val.subset(torch.arange(0, len(val), -(-len(val) // JUDGED)))

    def judge(self) -> float:
        """Return the score on them."""
        return evaluate(plainly(self.average.network, self.steps, self.device), self.judged, self.criterion).score


def guessed(labels: Tensor) -> float:
    """Return the score of always saying the same, and two standard deviations of it, on so many images."""
    if labels.ndim == 2:  # the average precision of a random order is the share of the images
        share = float(labels[:, labels.sum(0) > 0].mean())
    else:
        share = float(torch.bincount(labels).max()) / len(labels)
    return share + 2 * math.sqrt(share * (1 - share) / len(labels))


def _race(
    entries: Sequence[Entry], source: Source, channels: int, recipe: Recipe, seed: int, settings: Settings,
    seconds: float, progress: Progress | None,
) -> tuple[list[Entry], tuple[float, ...], float]:  # fmt: skip
    """Return the networks, best first, with what they reached, and what `Choice` has of `seconds` and `guessed`."""
    if len(entries) == 1:
        return list(entries), (), 0.0
    recipe = fitted(recipe, source)
    if settings.keep_heap and device_named(settings.device).type == "cpu":
        execution_module.keep_heap()
    prepared: dict[Preprocessing, Dataset] = {}
    running: list[_Runner] = []
    refused: list[Entry] = []
    for entry in entries:
        row = CATALOG[entry.name]
        given = (
            open_weights(entry.weights, entry.spec, name=entry.name, row=row).preprocessing if entry.weights else None
        )
        steps = preprocessing_for(source, given or row.preprocessing, entry.size, channels, seed, settings)
        if steps not in prepared:
            prepared[steps] = load(source, steps, recipe, seed, settings, progress)
        if prepared[steps].val is None:
            raise DataError(f"{source.name}: a race is judged on a val split; set a val share above 0")
        try:
            running.append(_Runner(entry, prepared[steps], steps, recipe, seed, settings))
        except (SpecError, WeightsError) as error:  # such as stochastic depth for a network without residual branches
            refused.append(dataclasses.replace(entry, told=brief(error)))
        if progress:
            progress("preparing the race", len(running) + len(refused), len(entries))
    if not running:
        raise RunError(f"no network could be trained: {refused[0].told}")
    rounds = math.ceil(math.log2(len(running)))
    left: list[Entry] = []
    had: list[float] = []
    for number in range(rounds):
        turn = seconds / rounds / len(running)
        had.append(sum(had[-1:]) + turn)
        for done, runner in enumerate(running, 1):
            try:
                runner.run(turn)
                score = runner.judge()
                runner.entry = dataclasses.replace(runner.entry, scores=(*runner.entry.scores, score))
            except RunError as error:
                runner.entry = dataclasses.replace(runner.entry, told=brief(error))
            if progress:
                progress(f"race, round {number + 1} of {rounds}", done, len(running))
        running.sort(key=lambda runner: -1.0 if runner.entry.told else runner.entry.scores[-1], reverse=True)
        keep = max(1, -(-len(running) // 2)) if number < rounds - 1 else 1
        left = [*(runner.entry for runner in running[keep:]), *left]
        running = running[:keep]
    ranked = [running[0].entry, *left, *refused]
    if ranked[0].told:
        raise RunError(f"no network could be trained: {ranked[0].told}")
    return ranked, tuple(had), guessed(running[0].judged.labels)
