"""The finalists of a search: trials that continue in the time that is left, first several of them, then one."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

from convatlas.search.contestant import Contestant
from convatlas.search.settings import SearchSettings
from convatlas.search.standings import Standing, final_name, finalists, is_final, standings
from convatlas.search.store import Evaluation, TrialStore, elapsed
from convatlas.system.devices import resolve_device
from convatlas.system.quantities import TIME

CANDIDATES, ROUNDS = 3, 2
"""Most candidates among the finalists, beside the best other network, or as many as keep all workers busy; and how many
finalists a worker trains one after the other, at most, until all but one are stopped."""

STOP_SHARE = 0.25
"""Share of the training of the finalists after which all but the one of which most is expected are stopped."""

FINAL_MARGIN, FINAL_S = 0.97, 15.0
"""Share of the time that is left in which the finalists are trained, after seconds for the report."""

LEAST_FINAL = 0.05
"""Share of the whole time that the training of a finalist gets at least."""

CORE_GAIN = 0.7
"""By how much the cores of each further worker make a training faster, about: epochs are planned by it, and again by
what it was."""


def speedup(settings: SearchSettings) -> float:
    """Return about how many times as fast a network is trained with the cores of all workers; a GPU stays the same."""
    is_cpu = resolve_device(settings.execution.device).type == "cpu"
    return 1 + CORE_GAIN * (settings.workers - 1) if is_cpu else 1.0


def final_candidates(settings: SearchSettings) -> int:
    """Return how many candidates are finalists, at most."""
    return min(max(CANDIDATES, settings.workers - 1), ROUNDS * settings.workers - 1)


def final_fidelity(settings: SearchSettings) -> float:
    """Return about how much the winner will have been trained, in trainings of a candidate by one worker."""
    left = (1 - settings.search_share) * settings.time_s / settings.training_s
    if settings.candidates == "none":
        return 1 + left * speedup(settings)
    rounds = math.ceil((final_candidates(settings) + 1) / settings.workers)
    return 1 + left * (STOP_SHARE / rounds + (1 - STOP_SHARE) * speedup(settings))


def final_seconds(settings: SearchSettings, evaluations: Sequence[Evaluation]) -> float:
    """Return the seconds that are left for the training of finalists."""
    left = settings.time_s - settings.setup_s - elapsed(evaluations) - FINAL_S
    return max(LEAST_FINAL * settings.time_s, FINAL_MARGIN * left)


def add_finalists(settings: SearchSettings, store: TrialStore, on_phase: Callable[[str], None]) -> None:
    """Let the trials of the best candidates and of the best other network be continued.

    If there are several, until all but one are stopped; a start that was interrupted is completed.
    """
    evaluations = store.evaluations()
    chosen = finalists(standings(evaluations), final_fidelity(settings), candidates=final_candidates(settings))
    begun = _begun(settings, evaluations)
    names = {contestant.name for contestant, _ in begun}
    added = [each for each in chosen if final_name(each.name, settings.time_s) not in names]
    added = added[: len(chosen) - len(names)]
    if not added or any(contestant.to_end for contestant, _ in begun):
        return
    seconds, is_one = final_seconds(settings, evaluations), len(chosen) == 1
    if not is_one:
        seconds *= STOP_SHARE
    until_s = seconds / math.ceil(len(chosen) / settings.workers)  # one after the other
    for each in added:
        until = min((fidelity for _, fidelity in begun), default=each.fidelity + until_s / settings.training_s)
        _add(store, settings, each, until, to_end=is_one)
    end = "to its end" if is_one else "until all but one are stopped"
    texts = ", ".join(each.name for each in added)
    on_phase(f"training {texts} {end}, for about {TIME.format(round(seconds))}")


def continue_best(settings: SearchSettings, store: TrialStore, on_phase: Callable[[str], None]) -> bool:
    """Let the finalist of which most is expected be trained to its end; False if that is done, or none is left.

    One whose training to the end has failed, here or anywhere, makes room for another one, and if there is none for
    the best network that was no finalist.
    """
    evaluations = store.evaluations()
    finals = standings(evaluations, time_s=settings.time_s)
    if any(each.contestant.to_end for each in finals):
        return False
    begun = [contestant for contestant, _ in _begun(settings, evaluations)]
    names, ended = {each.name for each in begun}, {each.name for each in begun if each.to_end}
    left = [each for each in finals if each.contestant.name not in ended] or [
        each for each in standings(evaluations) if final_name(each.name, settings.time_s) not in names
    ]
    if not left:
        return False
    end = final_fidelity(settings)
    best = max(left, key=lambda each: each.expected(end))
    seconds = final_seconds(settings, evaluations)
    _add(store, settings, best, best.fidelity + seconds / settings.training_s, to_end=True)
    on_phase(f"training {best.name} to its end, for about {TIME.format(round(seconds))}")
    return True


def _begun(settings: SearchSettings, evaluations: Sequence[Evaluation]) -> list[tuple[Contestant, float]]:
    """Return the finalists whose evaluations were added, and their fidelities."""
    return [
        (Contestant.read(each.plain), each.fidelity) for each in evaluations if is_final(each, settings.time_s)
    ]  # fmt: skip


def _add(store: TrialStore, settings: SearchSettings, each: Standing, fidelity: float, *, to_end: bool) -> None:
    finalist = replace(each.contestant, name=final_name(each.name, settings.time_s), to_end=to_end)
    store.add(finalist.to_plain(), {}, fidelity)
