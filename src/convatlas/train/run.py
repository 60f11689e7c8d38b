"""A run: one training in one folder, which can be stopped at any step and resumed bit for bit (on CPU)."""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import io
import json
import math
import platform
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import convatlas
from convatlas import modelfile
from convatlas.catalog import SPEC_TYPES, Stem, adapted, grow, reads_clips, resolve
from convatlas.data.batches import Feed
from convatlas.data.images import Dataset, Images
from convatlas.data.randomness import derive_key
from convatlas.data.sources import Source, find
from convatlas.data.splits import VAL_SHARE, Fold
from convatlas.devices import device_named
from convatlas.download import Progress
from convatlas.errors import ConvatlasError, DataError, RunError, SpecError
from convatlas.files import PART, write_text
from convatlas.joins import Network
from convatlas.modelfile import Header
from convatlas.preprocessing import Preprocessing
from convatlas.specs import Spec, from_plain
from convatlas.tasks import metrics
from convatlas.tasks.evaluation import judged, outputs_of, plainly
from convatlas.tasks.losses import CRITERIA, importance, loss_for
from convatlas.tasks.pictures import draw_curves, draw_rates
from convatlas.tasks.results import Result
from convatlas.train import compute as computing
from convatlas.train import norms
from convatlas.train.checkpoint import State, load_checkpoint, save_checkpoint
from convatlas.train.compute import Compute
from convatlas.train.loggers import LOGGERS, Log
from convatlas.train.loop import Average, Step, train
from convatlas.train.ranks import Ranks, joined, synchronise_norms
from convatlas.train.rates import Rates, find_rate
from convatlas.train.recipe import Recipe, usual
from convatlas.train.recipe import recipe as recipe_named
from convatlas.train.regularise import regularise
from convatlas.train.report import report
from convatlas.weights import Checkpoint, fill, opened

MODEL, LAST, CHECKPOINT, CONFIG, METRICS, CURVES, BROKEN, REPORT, RATES = (
    "model.safetensors", "last.safetensors", "checkpoint.pt", "run.json", "metrics.csv", "curves.png", "broken.csv",
    "report.html", "rates.png",
)  # fmt: skip

Watch = Callable[[Step | dict[str, float]], None]
"""Called after every step, and with the row of metrics after every epoch."""


@dataclass(frozen=True)
class Settings:
    """How a run is carried out, apart from data, network, recipe and seed.

    size: resolution in pixels instead of the network's own.
    stem: "small" for the first layers for images of up to 64 pixels (at 32 px, where no size is given).
    channels: 1 reads pictures as grey, 3 as RGB; as the data has it where left out.
    device: "cpu", "cuda", "mps" or "auto".
    threads: CPU threads; torch's own number where left out. The order of sums, and so the last bits, depend on it.
    layout, precision, compiled: how steps are carried out (see `train.compute`); "auto" measures what is fastest here.
    kernels: norms and activations by kernels of our own on CPUs with a C compiler; the last bits depend on it.
    keep_heap: let the C library keep its memory between the steps, which is faster and takes a little more of it.
    val_share: share of the training pictures set aside to choose the best epoch, where the data has no val split;
        with 0 all are trained on and the last epoch is taken.
    fold: (number, count): the pictures of this one of so many folds are the val split instead.
    max_broken: share of unreadable pictures that is left out and listed before the run refuses to start.
    checkpoint_seconds, checkpoint_steps: a checkpoint is written when either has passed (0 steps: by time only).
    log: where else numbers go: "tensorboard", "wandb", "mlflow".
    download: allow to fetch a data set given by name.
    licence: what is sealed into the model file.
    """

    size: int | None = None
    stem: Stem = "own"
    channels: int | None = None
    device: str = "auto"
    threads: int | None = None
    layout: str = "auto"
    precision: str = "auto"
    compiled: bool = False
    kernels: bool = True
    keep_heap: bool = True
    val_share: float = VAL_SHARE
    fold: Fold | None = None
    max_broken: float = 0.01
    checkpoint_seconds: float = 30.0
    checkpoint_steps: int = 0
    log: tuple[str, ...] = ()
    download: bool = False
    licence: str = ""

    def __post_init__(self) -> None:
        if self.threads is not None and self.threads < 1:
            raise RunError(f"threads: a whole number from 1 on, not {self.threads}")
        if not 0 <= self.checkpoint_seconds < math.inf or self.checkpoint_steps < 0:
            raise RunError("checkpoint_seconds and checkpoint_steps are numbers from 0 on")
        if not (0 <= self.val_share < 1 and 0 <= self.max_broken <= 1):
            raise RunError("val_share and max_broken are shares between 0 and 1")
        for name in self.log:
            if name not in LOGGERS:
                raise RunError(f"log: {name!r} is not one of {', '.join(LOGGERS)}")


@dataclass(frozen=True)
class Config:
    """Everything that determines a run, as written to run.json.

    weights: what the training began from, as it was named; empty for fresh weights.
    """

    data: str
    model: str
    weights: str
    spec: Spec
    preprocessing: Preprocessing
    recipe: Recipe
    seed: int
    settings: Settings
    classes: tuple[str, ...]
    fingerprint: str
    versions: dict[str, str]

    def to_plain(self) -> dict[str, Any]:
        plain = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        records = {name: plain[name].to_plain() for name in ("spec", "preprocessing", "recipe")}
        return plain | records | {"settings": dataclasses.asdict(self.settings), "classes": list(self.classes)}

    @classmethod
    def from_plain(cls, plain: dict[str, Any]) -> Config:
        return cls(
            **plain
            | {
                "spec": from_plain(plain["spec"], SPEC_TYPES),
                "preprocessing": Preprocessing.from_plain(plain["preprocessing"]),
                "recipe": Recipe().replaced(plain["recipe"]),
                "settings": _settings(plain["settings"]),
                "classes": tuple(plain["classes"]),
            }
        )


def _settings(plain: dict[str, Any]) -> Settings:
    fold = plain["fold"]
    return Settings(**plain | {"fold": None if fold is None else tuple(fold), "log": tuple(plain["log"])})


class Run:
    """A training and its folder; `steps()` trains and yields after each step."""

    def __init__(
        self,
        folder: Path,
        config: Config,
        dataset: Dataset,
        given: Checkpoint | None = None,
        ranks: Ranks | None = None,
    ) -> None:
        self.folder, self.config, self.dataset, self.ranks = folder, config, dataset, ranks or Ranks()
        settings = config.settings
        self.device = device_named(settings.device)
        torch.set_num_threads(settings.threads or torch.get_num_threads())
        if settings.keep_heap and self.device.type == "cpu":
            computing.keep_heap()
        torch.manual_seed(derive_key(config.seed, 0, 8))
        network = grow(config.spec, classes=len(config.classes), channels=config.preprocessing.channels)
        if given:
            fill(network, config.spec, given, fresh_head=given.names != config.classes)
        regularise(network, dropout=config.recipe.dropout, drop_path=config.recipe.drop_path)
        alone = self.ranks.count == 1  # norms of several processes meet
        self.compute = Compute(
            settings.layout, settings.precision, settings.compiled, settings.kernels and alone,  # type: ignore[arg-type]
        )  # fmt: skip
        self.network: Network = self.compute.place(network.to(self.device))
        if self.ranks.count > 1:
            synchronise_norms(self.network, self.ranks)
        self.optimizer = config.recipe.build_optimizer(self.network)
        self.average = Average(self.network, config.recipe.average) if config.recipe.average else None
        self.state = State()
        self.results: dict[str, Result] = {}
        self.temperature = 1.0
        self.thresholds: tuple[float, ...] = (0.5,) * len(config.classes) if self.several else ()

    @property
    def model_file(self) -> Path:
        """The sealed file of the best epoch."""
        return self.folder / MODEL

    @property
    def identity(self) -> str:
        """A short text that tells this run from others: of its configuration and the place of its folder."""
        told = json.dumps([str(self.folder.resolve()), self.config.to_plain()], sort_keys=True)
        return hashlib.sha256(told.encode()).hexdigest()[:16]

    @property
    def several(self) -> bool:
        """Whether a picture may be of several classes, or of none."""
        return CRITERIA[self.config.recipe.loss].several

    @property
    def changed_versions(self) -> dict[str, tuple[str, str]]:
        """What the run began with and what runs it now, where they differ; the last bits may then differ, too."""
        now = _versions(self.device, self.compute, self.network)
        return {name: (begun, now[name]) for name, begun in self.config.versions.items() if now[name] != begun}

    def steps(self) -> Iterator[Step | dict[str, float]]:
        """Train from where the run stands; yield every step, and after an epoch its row of metrics.

        Writes checkpoints on the way; after the last epoch the best weights are measured and sealed.
        """
        if self.state.finished:
            return
        with _alone(self.folder) if self.ranks.first else nullcontext():
            log = Log(self, self.config.settings.log if self.ranks.first else ())
            try:
                for event in self._train():
                    log.tell(event)
                    yield event
                self.finish()
            finally:
                log.close()

    def _train(self) -> Iterator[Step | dict[str, float]]:
        config, state, settings = self.config, self.state, self.config.settings
        feed = self._feed()
        if state.seen and state.step % feed.steps == 0:  # stopped between the last step of an epoch and its end
            yield self._end_epoch(feed.steps)
        last = saved = time.perf_counter()
        saved_step = state.step
        taken = train(
            self.network, self.optimizer, feed, config.recipe, seed=config.seed, start=state.step,
            failing=state.failing,
            compute=self.compute, average=self.average, importance=self._importance(), ranks=self.ranks,
        )  # fmt: skip
        while not self._out_of_patience():
            step = next(taken, None)
            if step is None:
                return
            state.step = step.number + 1
            state.failing = state.failing + 1 if step.skipped else 0
            if step.skipped:
                state.skipped += 1
            else:
                state.loss_sum += step.loss * step.batch.whole
                state.correct += step.right
                state.seen += step.batch.whole
            now = time.perf_counter()
            state.seconds += max(0.0, now - last)  # whatever clocks do
            last = now
            yield step
            if state.step % feed.steps == 0:
                row = self._end_epoch(feed.steps)
                saved, saved_step = time.perf_counter(), state.step
                yield row
            elif (
                time.perf_counter() - saved >= settings.checkpoint_seconds
                or 0 < settings.checkpoint_steps <= state.step - saved_step
            ):
                self._save()
                saved, saved_step = time.perf_counter(), state.step

    def find_rate(self, progress: Progress | None = None) -> Rates:
        """Search for a learning rate; the network stays as it is. Raises RunError if there are other processes."""
        if self.ranks.count > 1:
            raise RunError("lr: the search is for one process; find the rate first, then give it to torchrun")
        return find_rate(
            self.network, self._feed(), self.config.recipe, seed=self.config.seed, compute=self.compute,
            importance=self._importance(), progress=progress,
        )  # fmt: skip

    def _feed(self) -> Feed:
        config = self.config
        return Feed(
            self.dataset.train, config.preprocessing, batch=config.recipe.batch, seed=config.seed,
            shuffle=config.recipe.shuffle, augment=config.recipe.augment,
            classes=len(config.classes), share=self.ranks.share, device=self.device,
        )  # fmt: skip

    def _out_of_patience(self) -> bool:
        """Return whether the epoch has just ended, and too many have since the best one."""
        patience, state = self.config.recipe.patience, self.state
        if not patience or self.dataset.val is None or state.seen or state.skipped:
            return False
        return len(state.history) - state.best_epoch >= patience

    def _importance(self) -> Tensor | None:
        labels = self.dataset.train.labels.to(self.device)
        return importance(labels, len(self.config.classes), self.config.recipe.balance)

    def _save(self) -> None:
        if self.ranks.first:
            save_checkpoint(self.folder / CHECKPOINT, self.network, self.optimizer, self.state, self.average)

    @property
    def learned(self) -> Network:
        """The network that is measured and sealed: the one that learns, or the average of its weights."""
        return self.average.network if self.average else self.network

    def _end_epoch(self, steps_per_epoch: int) -> dict[str, float]:
        """Measure, note, seal if it is the best, and save."""
        state = self.state
        epoch = state.step // steps_per_epoch
        row = {
            "epoch": epoch,
            "lr": self.config.recipe.rate(state.step - 1, steps_per_epoch),
            "train_loss": state.loss_sum / max(1, state.seen),
            "train_accuracy": state.correct / max(1, state.seen),
            "skipped": state.skipped,
        }
        state.loss_sum, state.correct, state.seen, state.skipped = 0.0, 0, 0, 0
        results = self._evaluate(self.learned, "val")
        for split, result in results.items():
            row |= {f"{split}_loss": result.loss, f"{split}_accuracy": result.accuracy}
            row |= {f"{split}_{result.headline}": result.score}
        row["seconds"] = state.seconds
        state.history.append(row)
        # the latest wins without a val split; with equal accuracy the lower loss does: small splits give many ties
        score = [(result.score, -result.loss) for result in results.values()]
        if not score or score[0] > (state.best_score, -state.best_loss):
            state.best_epoch = epoch
            for reached, loss in score:
                state.best_score, state.best_loss = reached, -loss
            self._seal(MODEL, self.learned, results, epoch=epoch)
        if self.ranks.first:
            write_table(self.folder / METRICS, state.history)
        self._save()
        return row

    def _evaluate(self, network: Network, *splits: str) -> dict[str, Result]:
        """Measure a network on those of the splits that the data has."""
        criterion = CRITERIA[self.config.recipe.loss]
        results = {
            split: judged(self._outputs(network, images), images.labels, criterion)
            for split, images in self.dataset.splits.items()
            if split in splits
        }
        self._finite(results)
        return results

    def _outputs(self, network: Network, images: Images) -> Tensor:
        """Return the outputs for all pictures of a split; each process runs its share of them."""
        mine = images.subset(self.ranks.share(torch.arange(len(images)))) if self.ranks.count > 1 else images
        if not len(mine):
            return self.ranks.gathered(torch.empty(0, len(self.config.classes)), len(images))
        outputs = outputs_of(plainly(network, self.config.preprocessing, self.device), mine)
        return self.ranks.gathered(outputs, len(images))

    def _finite(self, results: dict[str, Result]) -> None:
        for split, measured in results.items():
            if not math.isfinite(measured.loss):
                raise RunError(
                    f"the loss on {split} is {measured.loss} after step {self.state.step}; try a lower learning rate"
                )

    def finish(self) -> None:
        """Measure the last and the best weights on val and test and seal both; `network` then holds the best ones.

        `steps` does so after the last epoch; a caller who stops earlier calls it. Raises RunError before the end of the
        first epoch.
        """
        if not self.state.history:
            raise RunError(f"{self.folder}: there is nothing to seal before the end of the first epoch")
        if not self.state.finished:
            self._seal(LAST, self.learned, self._calibrated(self.learned), epoch=len(self.state.history))
        self.ranks.wait()  # until the file is there
        computing.release(self.network)
        best, header = modelfile.load(self.model_file)
        self.network.load_state_dict(best.state_dict())
        self.results = self._calibrated(self.network)
        self._seal(MODEL, self.network, self.results, epoch=header.training["epoch"])
        if self.ranks.first:
            draw_curves(self.state.history, self.folder / CURVES)
            write_text(self.folder / REPORT, report(self))
        self.state.finished = True
        self._save()

    def _calibrated(self, network: Network) -> dict[str, Result]:
        """Measure a network on val and test with the temperature, and thresholds, that suit its outputs on val."""
        criterion = CRITERIA[self.config.recipe.loss]
        parts = {split: images for split, images in self.dataset.splits.items() if split != "train"}
        outputs = {split: self._outputs(network, images) for split, images in parts.items()}
        fits = criterion.logits and "val" in outputs
        self.temperature = metrics.temperature(outputs["val"], parts["val"].labels) if fits else 1.0
        if criterion.several and "val" in outputs:
            said = criterion.probabilities(outputs["val"] / self.temperature)
            self.thresholds = tuple(metrics.best_thresholds(said, parts["val"].labels))
        results = {
            split: judged(
                outputs[split], images.labels, criterion, temperature=self.temperature, thresholds=self.thresholds
            )
            for split, images in parts.items()
        }
        self._finite(results)
        return results

    def _seal(self, file: str, network: Network, results: dict[str, Result], *, epoch: int) -> None:
        """Write a model file; of the data only name and fingerprint go in, and no path of this machine."""
        config = self.config
        training = {
            "data": self.dataset.name, "fingerprint": config.fingerprint, "recipe": config.recipe.to_plain(),
            "seed": config.seed, "val_share": config.settings.val_share, "fold": config.settings.fold,
            "max_broken": config.settings.max_broken,
            "weights": config.weights, "compute": str(self.compute), "versions": config.versions,
            "epoch": epoch, "seconds": round(self.state.seconds, 2),
        }  # fmt: skip
        header = Header(
            name=config.model, spec=config.spec, classes=config.classes, preprocessing=config.preprocessing,
            task="tagging" if self.several else "classification", criterion=config.recipe.loss,
            temperature=self.temperature, thresholds=self.thresholds, training=training,
            licence=config.settings.licence,
            metrics={split: result.summary() for split, result in results.items()},
        )  # fmt: skip
        if self.ranks.first:
            modelfile.save(self.folder / file, network, header)


def new_folder(out: str | Path | None, data: str, model: str) -> Path:
    """Create the run's folder: `out`, which must be new or empty, or the next free runs/<data>-<model>[-n]."""
    if out is not None:
        folder = Path(out)
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise RunError(f"{folder}: exists already; choose another --out, or go on with `convatlas resume {folder}`")
    else:
        folder, number = Path("runs") / f"{data}-{model}", 1
        while folder.exists():
            number += 1
            folder = folder.with_name(f"{data}-{model}-{number}")
    try:
        folder.mkdir(parents=True, exist_ok=out is not None)
    except OSError as error:
        raise RunError(f"{folder}: the run's folder cannot be written: {error.strerror or error}") from error
    return folder


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold the run's folder against other processes, and clear what a killed write left there."""
    with (folder / CONFIG).open() as held:
        if sys.platform != "win32":
            import fcntl

            try:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise RunError(f"{folder}: another process is training this run") from None
        for leftover in folder.glob(f".*{PART}"):
            leftover.unlink()
        yield


def _versions(device: torch.device, way: Compute, network: Network) -> dict[str, str]:
    versions = {"convatlas": convatlas.__version__, "torch": torch.__version__, "python": platform.python_version()}
    return versions | {"kernels": norms.compiler(network) if way.own_norms(device) else "none"}


def load(
    source: Source, preprocessing: Preprocessing, recipe: Recipe, seed: int, settings: Settings,
    progress: Progress | None,
) -> Dataset:  # fmt: skip
    """Return the data set, prepared; raises DataError if there is nothing to measure on."""
    dataset = source.load(
        preprocessing, seed=seed, val_share=settings.val_share, fold=settings.fold, roomy=recipe.augment.crop > 0,
        max_broken=settings.max_broken, progress=progress,
    )  # fmt: skip
    if dataset.val is None and dataset.test is None:
        raise DataError(f"{source.name}: without val and test there is nothing to measure on; set a val share above 0")
    return dataset


def fitted(recipe: Recipe, source: Source) -> Recipe:
    """Return the recipe with the loss that goes with the data; raises SpecError if its own does not."""
    return dataclasses.replace(recipe, loss=loss_for(recipe.loss, several=source.several))


def preprocessing_for(
    source: Source, usual: Preprocessing, size: int, channels: int, seed: int, settings: Settings
) -> Preprocessing:
    """Return a network's usual preprocessing for an input of `size` pixels, and for what the training pictures hold."""
    steps = usual.for_size(size).for_channels(channels)
    held = source.statistics(channels, seed=seed, val_share=settings.val_share, fold=settings.fold)
    return dataclasses.replace(steps, window=held.window, mean=held.mean, std=held.std) if held else steps


def start(
    data: str | Path,
    model: str | Spec,
    *,
    weights: str | Path | None = None,
    recipe: str | Recipe | None = None,
    seed: int = 0,
    out: str | Path | None = None,
    settings: Settings | None = None,
    find_lr: bool = False,
    progress: Progress | None = None,
) -> Run:
    """Prepare data, network and folder of a new run, without training yet; see `fit`.

    find_lr: replace the recipe's learning rate by one that a short search finds; the search is kept in the run's
        folder.
    """
    settings = settings or Settings()
    if not 0 <= seed < 2**32:
        raise RunError(f"seed: a whole number from 0 to {2**32 - 1}, not {seed}")
    name, row = resolve(model)
    if not isinstance(recipe, Recipe):
        recipe = recipe_named(recipe or usual(row.recipe, pretrained=weights is not None))
    spec = adapted(row.spec, stem=settings.stem, resolution=settings.size)
    if reads_clips(spec):
        raise RunError(f"{name}: reads clips; training on clips is not there yet, choose a network for images")
    device = device_named(settings.device)
    ranks = joined(device)
    threads = settings.threads or torch.get_num_threads()
    torch.set_num_threads(threads)
    given = opened(weights, spec, name=name, row=row) if weights is not None else None
    source = find(data, download=settings.download, progress=progress)
    recipe = fitted(recipe, source)
    channels = source.channels if settings.channels is None else settings.channels
    counted = grow(spec, classes=len(source.classes), channels=channels, device="meta")
    kernels = settings.kernels and ranks.count == 1
    if device.type == "cpu" and kernels:
        norms.prepare(counted)
    usually = given.preprocessing if given else row.preprocessing
    preprocessing = preprocessing_for(source, usually, spec.resolution, channels, seed, settings)
    dataset = ranks.in_turn(lambda told: load(source, preprocessing, recipe, seed, settings, told), progress)
    way = None if not ranks.first else computing.choose(
        spec, classes=len(source.classes), channels=channels, batch=recipe.micro or recipe.batch, device=device,
        layout=settings.layout, precision=settings.precision, compiled=settings.compiled, kernels=kernels,
    ).compute  # fmt: skip
    way = ranks.told(way)
    folder = ranks.told(new_folder(out, source.name, name) if ranks.first else None)
    config = Config(
        data=source.location,
        model=name,
        weights="" if weights is None else str(weights),
        spec=spec,
        preprocessing=preprocessing,
        recipe=recipe,
        seed=seed,
        settings=dataclasses.replace(
            settings, threads=threads, device=device.type if settings.device == "auto" else settings.device,
            layout=way.layout, precision=way.precision,
        ),
        classes=source.classes,
        fingerprint=dataset.fingerprint(),
        versions=_versions(device, way, counted),
    )  # fmt: skip
    with _cleared_if_refused(folder, ranks):
        run = Run(folder, config, dataset, given, ranks)
        if find_lr:
            rates = run.find_rate(progress)
            config = dataclasses.replace(config, recipe=dataclasses.replace(recipe, lr=rates.chosen))
            run = Run(folder, config, dataset, given, ranks)
            draw_rates(rates.rates, rates.losses, rates.chosen, folder / RATES)
        if ranks.first:
            write_text(folder / CONFIG, json.dumps(config.to_plain(), indent=2, ensure_ascii=False) + "\n")
    if ranks.first and dataset.broken:
        write_table(folder / BROKEN, [dataclasses.asdict(broken) for broken in dataset.broken])
    if given:  # so that going on does not need the file of the weights
        run._save()
    return run


@contextmanager
def _cleared_if_refused(folder: Path, ranks: Ranks) -> Iterator[None]:
    """Leave no folder behind that is no run."""
    try:
        yield
    except ConvatlasError:
        if ranks.first:
            (folder / RATES).unlink(missing_ok=True)
            with suppress(OSError):
                folder.rmdir()
        raise


def write_table(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows with the same keys as CSV, atomically."""
    table = io.StringIO()
    writer = csv.DictWriter(table, rows[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, table.getvalue())


def reopen(folder: str | Path, *, progress: Progress | None = None) -> Run:
    """Open a run where its last checkpoint stands, at step 0 before the first one.

    Raises RunError if the folder is no run, the data changed, or the checkpoint is damaged.
    """
    folder = Path(folder)
    path = folder / CONFIG
    if not path.is_file():
        raise RunError(f"{folder}: not a run (there is no {CONFIG})")
    try:
        config = Config.from_plain(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, KeyError, TypeError, AttributeError, SpecError) as error:
        raise RunError(f"{path}: damaged: {error}") from error
    source = find(config.data, progress=progress)
    ranks = joined(device_named(config.settings.device))
    dataset = ranks.in_turn(
        lambda told: load(source, config.preprocessing, config.recipe, config.seed, config.settings, told), progress
    )
    if dataset.fingerprint() != config.fingerprint:
        raise RunError(f"{config.data}: the data changed since {folder} began; bring it back, or start a new run")
    run = Run(folder, config, dataset, ranks=ranks)
    if (folder / CHECKPOINT).exists():
        run.state = load_checkpoint(folder / CHECKPOINT, run.network, run.optimizer, run.average)
    elif config.weights:
        raise RunError(f"{folder}: its checkpoint is gone, and with it the weights it began from; start a new run")
    return run


def _drive(run: Run, watch: Watch | None) -> Run:
    for event in run.steps():
        if watch:
            watch(event)
    return run


def fit(
    data: str | Path,
    model: str | Spec,
    *,
    weights: str | Path | None = None,
    recipe: str | Recipe | None = None,
    seed: int = 0,
    out: str | Path | None = None,
    settings: Settings | None = None,
    watch: Watch | None = None,
) -> Run:
    """Train a network on a data set and seal the best weights into `<run>/model.safetensors`.

    data: a data set by name, a folder, a table of pictures, or arrays (see docs/data.md).
    model: a name of the catalogue, or a spec of one of its families.
    weights: where to begin, as for `convatlas.build`; fresh ones where left out. Other classes get a fresh head.
    recipe: a Recipe or the name of one; the network's own, or "finetune" with weights, where left out.
    seed: decides initial weights, order, augmentation and missing splits.
    out: the run's folder, new or empty; runs/<data>-<model> where left out.
    watch: called with every Step and with each epoch's row of metrics.
    """
    return _drive(start(data, model, weights=weights, recipe=recipe, seed=seed, out=out, settings=settings), watch)


def resume(folder: str | Path, *, watch: Watch | None = None) -> Run:
    """Go on with a run that was stopped; the result is the one of a run that never was (bit for bit on CPU).

    A finished run is measured again, from its model file.
    """
    run = reopen(folder)
    if run.state.finished:
        run.finish()
    return _drive(run, watch)
