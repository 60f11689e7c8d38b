"""SIGINT and SIGTERM: a run that is stopped at any moment continues to the same result to the last bit."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from torch import optim

import convatlas as ca
from convatlas.train.finish import Evaluator
from convatlas.train.fit import prepare_run
from convatlas.train.recipe import Recipe
from convatlas.train.resume import open_run
from convatlas.train.run import Run
from convatlas.train.settings import ExecutionOptions, RunOptions
from convatlas.train.state import Epoch
from convatlas.train.stop_signals import StopSignals, Terminated
from scripts import TERMINATED

pytestmark = pytest.mark.usefixtures("no_figures")

HOW: dict[str, Any] = {
    "weights": "none", "recipe": Recipe(epochs=3, batch=10, lr=0.01),
    "execution": ExecutionOptions(device="cpu", threads=1), "options": RunOptions(checkpoint_seconds=3600),
}  # fmt: skip


@pytest.fixture(scope="module")
def whole(rows_of_two: Path, no_figures: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run."""
    return ca.fit(rows_of_two, "lenet1", out=tmp_path_factory.mktemp("whole") / "run", progress=False, **HOW).folder


def check_same(folder: Path, whole: Path) -> None:
    for file in ("model.safetensors", "last.safetensors"):
        tensors, expected = load_file(folder / file), load_file(whole / file)
        assert all(tensor.equal(expected[name]) for name, tensor in tensors.items()), file
    histories = [[dict(row, elapsed_s=0) for row in open_run(each).state.history] for each in (folder, whole)]
    assert histories[0] == histories[1]


def stop_between_steps(patch: pytest.MonkeyPatch, number: int) -> None:
    """Nothing is patched: the signal comes from the loop over the events."""


def stop_in_a_step(patch: pytest.MonkeyPatch, number: int) -> None:
    update, count = optim.SGD.step, 0

    def step(optimizer: optim.SGD, *arguments: Any) -> None:
        nonlocal count
        update(optimizer, *arguments)
        count += 1
        if count == 5:
            signal.raise_signal(number)

    patch.setattr(optim.SGD, "step", step)


def stop_in_an_evaluation(patch: pytest.MonkeyPatch, number: int) -> None:
    evaluate, count = Evaluator.evaluate, 0

    def interrupted(*arguments: Any, **named: Any) -> Any:
        nonlocal count
        count += 1
        if count == 2:
            signal.raise_signal(number)
        return evaluate(*arguments, **named)

    patch.setattr(Evaluator, "evaluate", interrupted)


MOMENTS = [stop_between_steps, stop_in_a_step, stop_in_an_evaluation]


def train_until_stopped(run: Run, number: int) -> None:
    """Train; if there is a number, it is the signal after the fourth step."""
    with closing(run.steps()) as events:
        for _ in events:
            if number and run.state.step == 4:
                signal.raise_signal(number)


STEPS = {stop_between_steps: 4, stop_in_a_step: 5}
"""Steps that are done when the run stops; an evaluation follows the last step of an epoch."""


@pytest.mark.parametrize("moment", MOMENTS, ids=lambda moment: str(moment.__name__))
@pytest.mark.parametrize(("number", "error"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, Terminated)])
def test_a_stopped_run_continues_to_the_last_bit(
    moment: Callable[..., None], number: int, error: type[BaseException], rows_of_two: Path, whole: Path, tmp_path: Path
) -> None:
    before = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    run = prepare_run(rows_of_two, "lenet1", out=tmp_path / "run", **HOW)
    with pytest.MonkeyPatch.context() as patch:
        moment(patch, number)
        with pytest.raises(error) as stopped:
            train_until_stopped(run, number if moment is stop_between_steps else 0)
    assert str(stopped.value) == ("143" if number == signal.SIGTERM else "")
    assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)] == before
    assert open_run(tmp_path / "run").state.step == STEPS.get(moment, 2 * run.steps_per_epoch)
    check_same(ca.resume(tmp_path / "run", progress=False).folder, whole)


def test_a_stopped_training_can_be_resumed_in_the_same_process(rows_of_two: Path, whole: Path, tmp_path: Path) -> None:
    def stop(event: object) -> None:
        if isinstance(event, Epoch):
            signal.raise_signal(signal.SIGINT)

    try:
        ca.fit(rows_of_two, "lenet1", out=tmp_path / "run", on_event=stop, progress=False, **HOW)
    except KeyboardInterrupt:  # as in a notebook, whose traceback keeps all frames
        check_same(ca.resume(tmp_path / "run", progress=False).folder, whole)


def test_sigterm_ends_the_command_with_143_and_the_command_that_continues(
    rows_of_two: Path, whole: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    options = "--model lenet1 --weights none --recipe default --epochs 3 --batch 10 --threads 1 --device cpu"
    command = ["fit", str(rows_of_two), *options.split(), "--checkpoint-every", "1h", "--out", str(out)]
    done = subprocess.run([sys.executable, "-c", TERMINATED, *command], capture_output=True, text=True)
    assert done.returncode == 143, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if "interrupted" in line]
    assert line.startswith(f"convatlas: interrupted; `convatlas resume {out}` continues at step 5 (epoch ")
    assert "Traceback" not in done.stderr
    assert open_run(out).state.step == 5


# --- handlers


def test_the_handlers_of_the_host_are_called_after_the_checkpoint_and_restored(
    rows_of_two: Path, tmp_path: Path
) -> None:
    run = prepare_run(rows_of_two, "lenet1", out=tmp_path / "run", **HOW)
    calls = []
    host: Callable[..., None] = lambda number, _: calls.append((number, open_run(run.folder).state.step))  # noqa: E731
    before = signal.signal(signal.SIGTERM, host)
    try:
        for _ in run.steps():
            if run.state.step == 2 and not calls:
                signal.raise_signal(signal.SIGTERM)
        assert signal.getsignal(signal.SIGTERM) is host
    finally:
        signal.signal(signal.SIGTERM, before)
    assert calls == [(signal.SIGTERM, 2)]
    assert run.state.finished  # the host has decided to go on


def test_ignored_signals_stay_ignored_and_other_threads_have_no_handlers() -> None:
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with StopSignals(lambda: None):
            assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
            seen: list[Any] = []

            def install() -> None:
                with StopSignals(lambda: None):
                    seen.append(signal.getsignal(signal.SIGINT))

            here = signal.getsignal(signal.SIGINT)
            thread = threading.Thread(target=install)
            thread.start()
            thread.join()
            assert seen == [here]
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_second_interrupt_does_not_wait_for_the_step() -> None:
    saved: list[int] = []

    def interrupt_twice() -> None:
        with StopSignals(lambda: saved.append(1)) as signals, signals.deferred():
            signal.raise_signal(signal.SIGINT)
            assert signals.requested
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        interrupt_twice()
    assert not saved


def test_ranks_note_a_signal_and_stop_together() -> None:
    saved: list[int] = []
    with StopSignals(lambda: saved.append(1), together=True) as signals:
        signal.raise_signal(signal.SIGTERM)
        assert signals.requested
        assert not saved
        with pytest.raises(Terminated):
            signals.stop()
    assert saved == [1]
    with pytest.raises(Terminated):  # a rank that got no signal, but heard of one in the all-reduce
        StopSignals(lambda: None, together=True).stop()


def test_a_run_in_another_thread_changes_no_handlers(rows_of_two: Path, tmp_path: Path) -> None:
    run: Run = prepare_run(rows_of_two, "lenet1", out=tmp_path / "run", **HOW)
    events: list[Any] = []
    thread = threading.Thread(target=lambda: events.extend(run.steps()))
    thread.start()
    thread.join()
    assert run.state.finished
