"""The command `scale-search`: the coefficients of compound scaling for a network, data and device."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from convatlas.cli import console
from convatlas.cli.look import network_of
from convatlas.cli.options import (
    OUTPUT,
    RECIPE,
    DataSet,
    Json,
    LatencyEngine,
    NetworkOrModel,
    Resolution,
    integer,
    option,
)
from convatlas.errors import InputError, printable

if TYPE_CHECKING:
    from convatlas.search.scale_search import Scaled

SCALING = "Scaling"


def _numbers(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(f"must be numbers separated by commas, got {text}") from None


def scale_search(
    name: NetworkOrModel,
    data: DataSet,
    doubled: Annotated[
        str,
        option("What about doubles from one network of the family to the next: macs (as in EfficientNet) or latency, "
               "measured here.", metavar="macs|latency", panel=SCALING),
    ] = "macs",
    rule: Annotated[
        str,
        option("How to choose the coefficients: compound trains a grid of them; fast takes those of dWr, with which "
               "time grows slowly.", metavar="compound|fast", panel=SCALING),
    ] = "compound",
    number: Annotated[
        int, option("Number of networks of the grid of alpha, beta, gamma that are trained.", metavar="N",
                    panel=SCALING, read=integer(2))
    ] = 12,
    sizes: Annotated[
        str,
        option("Coefficients phi of the family, which is compared with dWr, depth, width and resolution at the same "
               "MACs.", metavar="PHI,...", panel=SCALING),
    ] = "1,2",
    epochs: Annotated[int, option("Epochs of each training.", metavar="N", panel=RECIPE, read=integer(1))] = 10,
    recipe: Annotated[
        str | None, option("A recipe or a .yaml file; the default is that of the network.", metavar="RECIPE",
                           panel=RECIPE),
    ] = None,
    seeds: Annotated[
        int, option("Number of seeds: each network is trained so often, with seeds 0, 1, ...", metavar="N",
                    panel=RECIPE, read=integer(1))
    ] = 1,
    resolution: Resolution = None,
    engine: LatencyEngine = "torch",
    out: Annotated[
        Path | None,
        option("Directory of the search; that of a stopped one continues it. The default is runs/scale-DATA.",
               "--out", "-o", metavar="FOLDER", panel=OUTPUT),
    ] = None,
    as_json: Json = False,
) -> None:  # fmt: skip
    """Find alpha, beta and gamma of compound scaling for a network and data, and compare it with single dimensions."""
    from convatlas.draw.search import scaling_chart
    from convatlas.search.scale_search import scale_search as run
    from convatlas.search.scale_search import series

    try:
        phis = _numbers(sizes)
    except ValueError as error:
        raise InputError(f"--sizes: {error}") from None
    network, _, _ = network_of(name, None, None)
    with console.progress_bar() as progress:
        result = run(
            network, data, doubled=doubled, rule=rule, number=number, epochs=epochs,  # type: ignore[arg-type]  # it is checked
            seeds=tuple(range(seeds)), sizes=phis, engine=engine, out=out, resolution=resolution, recipe=recipe,
            on_network=(lambda scaled: None) if as_json else _print_network, progress=progress,
        )  # fmt: skip
    scaling_chart(series(result), path=result.folder / "scaling.png")
    if as_json:
        console.print_json(result.to_plain())
        return
    alpha, beta, gamma = result.best.factors
    console.console.print(f"alpha {alpha:g}, beta {beta:g}, gamma {gamma:g}: {result.best.accuracy:.2%} on val")
    if seeds > 1:
        each = "; ".join(", ".join(f"{factor:g}" for factor in factors) for factors in result.by_seed)
        console.console.print(f"each seed alone would choose {each}")
    rows = [
        (f"B{i}", f"{each.phi:g}", each.spec.resolution, f"{each.counts.parameters:,}", f"{each.counts.macs:,}",
         f"{1000 * each.latency_s:.3g}", f"{each.accuracy:.2%}")
        for i, each in enumerate(result.family)
    ]  # fmt: skip
    columns = ("network", "phi", "px", "parameters", "MACs", "ms", "accuracy")
    console.table(columns, rows, right=columns[1:])
    console.console.print(printable(f"specs: {result.folder / 'scaling.json'}"))


def _print_network(scaled: Scaled) -> None:
    """Print one line about a network that was trained."""
    factors = ", ".join(f"{factor:.3g}" for factor in scaled.factors)
    console.console.print(
        f"{scaled.rule}, phi {scaled.phi:g} ({factors}): {scaled.accuracy:.2%}, {scaled.counts.macs / 1e6:.1f} M MACs, "
        f"{1000 * scaled.latency_s:.3g} ms"
    )
