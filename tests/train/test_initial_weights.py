"""The weights that a training starts from: published, imported or random ones; nothing is downloaded unasked."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import convatlas as ca
from commands import Command
from convatlas.cli import missing_weights
from convatlas.cli.missing_weights import with_weights
from convatlas.core.spec import Spec
from convatlas.errors import DataError, InputError, WeightsError, WeightsNotCachedError
from convatlas.train import initial_weights
from convatlas.train.initial_weights import cached_weights, choose_weights
from convatlas.weights import fetch, pretrained
from convatlas.weights.imported import ImportedWeights
from convatlas.weights.open import published_weights
from convatlas.weights.pretrained import Weights, find_weights

NAME = "squeezenet1_1"
CONTENT = {"A": b"first weights", "B": b"second weights"}


@pytest.fixture
def records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Weights]:
    """Two published records of a network, of which the first is the default; nothing is cached."""
    monkeypatch.setenv("CONVATLAS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path / "hub"))
    base = find_weights(f"{NAME}@torchvision:IMAGENET1K_V1")
    records = {
        tag: replace(base, tag=tag, filename=f"{tag}.pth", sha256_prefix=hashlib.sha256(content).hexdigest()[:8])
        for tag, content in CONTENT.items()
    }
    listed = {"torchvision": list(records.values()), "timm": []}
    monkeypatch.setattr(pretrained, "_RECORDS", {name: lambda *_, name=name: listed[name] for name in listed})
    return records


def cache(record: Weights, content: bytes) -> None:
    record.cache_path.parent.mkdir(parents=True, exist_ok=True)
    record.cache_path.write_bytes(content)


def choose(weights: str | None = "auto", spec: Spec | None = None, **options: Any) -> tuple[str, str]:
    chosen = choose_weights(weights, spec or ca.spec(NAME), network=options.pop("network", NAME), **options)
    return chosen.name, chosen.reason


@pytest.mark.usefixtures("records")
def test_missing_data_is_reported_before_missing_weights(convatlas: Command, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder"):
        ca.fit(tmp_path / "gone", NAME)
    outcome = convatlas("fit", "digts", "--model", NAME)
    assert (outcome.code, "did you mean digits?" in outcome.err, "weights" in outcome.err) == (2, True, False)


def test_weights_at_hand_are_used_in_order(records: dict[str, Weights], monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(WeightsNotCachedError, match=r'download=True .* weights="none"') as error:
        choose()
    assert (error.value.name, error.value.size_mib) == (records["A"].name, records["A"].size_mib)
    assert cached_weights(ca.spec(NAME), network=NAME) == ""
    header: Any = type("Header", (), {"spec": ca.spec(NAME)})()
    mine = ImportedWeights(f"{NAME}@mine", Path("mine.safetensors"), header)
    monkeypatch.setattr(initial_weights, "list_imported", lambda _: [mine])
    assert choose() == (mine.name, "imported")
    cache(records["B"], CONTENT["B"])
    assert choose() == (records["B"].name, "cached")
    cache(records["A"], CONTENT["A"])
    assert choose() == (records["A"].name, "cached")
    assert cached_weights(ca.spec(NAME), network=NAME, library="torchvision") == records["A"].name
    assert choose("none") == choose(None) == ("", "as chosen")


def test_another_file_in_the_cache_is_neither_used_nor_replaced_unasked(
    records: dict[str, Weights], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetch, "fetch", lambda *_, **__: pytest.fail("a download"))
    cache(records["A"], b"other weights")
    for weights in ("auto", "DEFAULT", "torchvision:A", f"{NAME}@torchvision:A"):
        with pytest.raises(WeightsNotCachedError, match=r"is not the published file .* weights import squeezenet1_1"):
            choose(weights)
    with pytest.raises(WeightsError, match=r"weights pull .* replaces it"):
        fetch.pull(records["A"])
    cache(records["B"], CONTENT["B"])
    name, reason = choose()
    assert name == records["B"].name
    assert f"{records['A'].cache_path} is not used" in reason


def test_the_default_is_downloaded_only_if_that_is_allowed(
    records: dict[str, Weights], monkeypatch: pytest.MonkeyPatch
) -> None:
    pulled: list[str] = []
    monkeypatch.setattr(initial_weights, "pull", lambda record, **_: pulled.append(record.tag))
    for weights in ("auto", "torchvision:B"):
        with pytest.raises(WeightsNotCachedError):
            choose(weights)
    assert pulled == []
    assert choose(download=True) == (records["A"].name, "downloaded")
    assert choose("torchvision:B", download=True)[0] == records["B"].name
    assert pulled == ["A", "B"]


@pytest.mark.parametrize(
    ("network", "options", "reason"),
    [
        ("lenet5_modern", {}, "no library publishes weights of lenet5_modern"),
        ("squeezenet1_1", {"stem": "cifar"}, "do not fit the stem for small images"),
        ("squeezenet1_1-custom", {"width": 0.5}, "do not fit its changed spec"),
        ("boosted_resnet18", {}, "no library publishes weights of boosted_resnet18"),
    ],
)
def test_networks_without_published_weights_start_from_random_ones(
    records: dict[str, Weights], network: str, options: dict[str, Any], reason: str
) -> None:
    spec = ca.spec(network.removesuffix("-custom"))
    if "width" in options:
        spec = spec.scaled(width=options.pop("width"))
    name, why = choose(spec=spec, network=network, **options)
    assert name == ""
    assert reason in why


def test_another_resolution_keeps_the_weights(records: dict[str, Weights]) -> None:
    cache(records["A"], CONTENT["A"])
    assert choose(spec=ca.spec(NAME).scaled(resolution=96), network=f"{NAME}-custom")[0] == records["A"].name


def test_names_of_published_weights(records: dict[str, Weights], tmp_path: Path) -> None:
    for text in ("DEFAULT", "imagenet", "torchvision", "torchvision:DEFAULT", "torchvision:A", f"{NAME}@torchvision:A"):
        assert published_weights(text, ca.spec(NAME), NAME) == records["A"]
    assert published_weights(tmp_path / "file.pth", ca.spec(NAME), NAME) is None
    with pytest.raises(WeightsError, match="are weights of resnet18, not of squeezenet1_1"):
        published_weights("resnet18@torchvision:A", ca.spec(NAME), NAME)
    with pytest.raises(WeightsError, match="no installed library publishes weights of lenet5"):
        published_weights("DEFAULT", ca.spec("lenet5"), "lenet5")


@pytest.mark.parametrize(
    ("weights", "hint"),
    [
        ("B", "write torchvision:B"), ("default", "are DEFAULT"),
        ("pretrained", "are DEFAULT"), ("torchvison:A", "did you mean torchvision?"), ("w.pth", "no such file"),
    ],
)  # fmt: skip
def test_near_misses_of_names_get_a_hint(records: dict[str, Weights], weights: str, hint: str) -> None:
    with pytest.raises(WeightsError) as error:
        ca.build(NAME, weights=weights)
    assert hint in str(error.value)


# --- the command


@pytest.mark.parametrize(
    ("is_offline", "way"), [(False, "--download downloads the published weights"), (True, "CONVATLAS_OFFLINE is set")]
)
def test_without_a_terminal_the_command_names_the_possible_ways(
    is_offline: bool, way: str, records: dict[str, Weights], images: Path, tmp_path: Path, convatlas: Command,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(missing_weights, "offline", lambda: is_offline)
    outcome = convatlas("fit", images, "--model", NAME, "--out", tmp_path / "run")
    assert outcome.code == 2
    assert f"{way}, --weights none starts from random ones" in outcome.err
    assert outcome.err.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("lines", "options"),
    [
        (["d"], {"download": True}), (["what?", "Random"], {"weights": "none"}), (["s"], None), ([], None),
    ],
)  # fmt: skip
def test_a_terminal_is_asked_once(
    lines: list[str], options: dict[str, Any] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(missing_weights, "_can_ask", lambda: True)
    monkeypatch.setattr(missing_weights, "offline", lambda: False)
    answers = iter([f"{line}\n" for line in lines])
    monkeypatch.setattr("sys.stdin", type("Stdin", (), {"readline": lambda _: next(answers, "")})())

    def start(given: dict[str, Any]) -> dict[str, Any]:
        if given == {"seed": 1}:
            raise WeightsNotCachedError("net@lib:tag", "net@lib:tag: not in the cache", 14.2)
        return given

    run: Callable[[Any], Any] = start
    if options is None:
        with pytest.raises(InputError, match="stopped; --download"):
            with_weights(run, {"seed": 1})
    else:
        assert with_weights(run, {"seed": 1}) == {"seed": 1, **options}
