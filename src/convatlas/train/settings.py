"""Options of a run (data, execution, bookkeeping), and the configuration that run.json contains."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from convatlas.core.clips import ClipCount, FrameRate
from convatlas.core.preprocessing import Preprocessing
from convatlas.core.record import Record, at_least, between, from_up_to
from convatlas.core.spec import Frames, Spec
from convatlas.data.annotation_faults import AnnotationFault
from convatlas.data.splits import MAX_UNREADABLE, VAL_SHARE, Fold
from convatlas.errors import RunError, SpecError, brief
from convatlas.models.catalog import SPEC_TYPES, Stem, unknown_spec_hint
from convatlas.system.files import write_text
from convatlas.tasks.known import TASKS
from convatlas.tasks.task import Task
from convatlas.train.cpu.execution import MemoryFormat, Precision
from convatlas.train.loggers import LoggerName
from convatlas.train.recipe import Recipe
from convatlas.train.run_folder import CONFIG, LOCK
from convatlas.weights.inflate import Inflation

MAX_SIZE = 2**20
"""Maximum width, depth, resolution and number of pixels in a configuration."""


@dataclass(frozen=True)
class DataOptions(Record):
    """How data is read and prepared.

    resolution: input resolution in pixels; the network's own by default.
    stem: "cifar" for the first layers for images of up to 64 px (at 32 px by default).
    channels: 1 reads images as grayscale, 3 as RGB; those of the data by default.
    val_share: share of the training images that is split off to choose the best epoch, if the data has no val split;
        with 0, all are trained on and the last epoch counts.
    fold: (number, count): this one of `count` folds is the val split instead.
    max_unreadable: maximum share of unreadable images, which are skipped and listed; the run does not start above it.
    group_pattern: a regular expression that is searched in the path of each file in the data; images and videos for
        which its first group is the same text are one group, such as one recording: they stay in the same split.
    frames, frame_rate, clips: of networks that read videos: frames of a clip, frames per second, and clips of a video
        in evaluation; those of the network by default.
    """

    error = RunError

    resolution: Annotated[int, at_least(1)] | None = None
    stem: Stem = "default"
    channels: Annotated[int, at_least(1)] | None = None
    val_share: Annotated[float, from_up_to(0, 1)] = VAL_SHARE
    fold: Fold | None = None
    max_unreadable: Annotated[float, between(0, 1)] = MAX_UNREADABLE
    group_pattern: str | None = None
    frames: Frames | None = None
    frame_rate: FrameRate | None = None
    clips: ClipCount | None = None


@dataclass(frozen=True)
class ExecutionOptions(Record):
    """Device and execution of training steps; "auto" selects what is fastest on this machine.

    device: "cpu", "cuda", "mps" or "auto".
    threads: CPU threads; torch's own number by default. The order of sums, and so the last bits, depend on it.
    adapt_threads: without `threads`, measure the number of threads while other processes use the CPU.
    memory_format, precision, compiled: see `train.cpu.execution`.
    fused_norms: batch norm and activation in one C kernel, on CPUs with a C compiler; the last bits depend on it.
    retain_malloc: let the C library keep freed memory between steps, which is faster and needs a little more memory.
    """

    error = RunError

    device: str = "auto"
    threads: Annotated[int, at_least(1)] | None = None
    adapt_threads: bool = True
    memory_format: MemoryFormat | Literal["auto"] = "auto"
    precision: Precision | Literal["auto"] = "auto"
    compiled: bool = False
    fused_norms: bool = True
    retain_malloc: bool = True


@dataclass(frozen=True)
class RunOptions(Record):
    """Checkpoints, diagnostics, report, loggers and license.

    checkpoint_seconds, checkpoint_steps: a checkpoint is written after that time, or that many steps (0: by time only).
    diagnostics: once an epoch, statistics of activations and gradients by layer are written to diagnostics.csv; the
        result of the training does not depend on it.
    report: a finished run draws curves.png and writes report.html.
    log: experiment loggers: "tensorboard", "wandb", "mlflow".
    license: written into the model file.
    """

    error = RunError

    checkpoint_seconds: Annotated[float, at_least(0)] = 30.0
    checkpoint_steps: Annotated[int, at_least(0)] = 0
    diagnostics: bool = True
    report: bool = True
    log: tuple[LoggerName, ...] = ()
    license: str = ""


@dataclass(frozen=True)
class RunConfig(Record):
    """Everything that determines a run, as written to run.json.

    weights: the pretrained weights by name, or a file; empty for random weights. weights_reason: why these.
    inflate: how weights of images became those of clips.
    annotation_faults: of the data, and how they were treated.
    changes: what was changed when the run was resumed, such as "epochs 20 -> 30 at step 1,200".
    """

    version = 1
    error = RunError

    data: str
    model: str
    weights: str
    weights_reason: str
    task: Task
    spec: Spec
    preprocessing: Preprocessing
    recipe: Recipe
    seed: Annotated[int, between(0, 2**32 - 1)]
    data_options: DataOptions
    execution: ExecutionOptions
    options: RunOptions
    fingerprint: str
    versions: Mapping[str, str]
    inflate: Inflation | None = None
    annotation_faults: tuple[AnnotationFault, ...] = ()
    changes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if problem := self.preprocessing.misfit(self.spec.input_shape(1)):
            raise RunError(f"RunConfig: preprocessing {problem}")
        for field, record in (("spec", self.spec), ("preprocessing", self.preprocessing)):
            if (largest := _largest_integer(record.to_plain())) > MAX_SIZE:
                raise RunError(f"RunConfig: integers of {field} must be <= {MAX_SIZE}, got {largest}")


def _largest_integer(plain: Any) -> int:
    if isinstance(plain, Mapping | list):
        return max(map(_largest_integer, plain.values() if isinstance(plain, Mapping) else plain), default=0)
    return plain if type(plain) is int else 0


def write_config(folder: Path, config: RunConfig) -> None:
    """Write run.json."""
    write_text(folder / CONFIG, json.dumps(config.to_plain(), indent=2, ensure_ascii=False) + "\n")


def read_config(folder: Path) -> RunConfig:
    """Read the configuration of a run directory; raises RunError if it is missing or damaged."""
    path = folder / CONFIG
    if not path.is_file():
        if (folder / LOCK).exists():
            raise RunError(f"{folder}: the run was interrupted before {CONFIG} was written; run the same fit again")
        raise RunError(f"{folder}: not a run directory (there is no {CONFIG})")
    try:
        plain = json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse_constant)
    except OSError as error:
        raise RunError(f"{path}: unreadable: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise RunError(f"{path}: damaged ({brief(error)})") from error
    try:
        return RunConfig.from_plain(plain, where="config", known={**SPEC_TYPES, **TASKS})
    except RecursionError as error:
        raise RunError(f"{path}: damaged ({brief(error)})") from error
    except (RunError, SpecError) as error:
        raise RunError(f"{path}: {error}{unknown_spec_hint(plain)}") from error


def _refuse_constant(text: str) -> float:
    raise ValueError(f"numbers must be finite, got {text}")
