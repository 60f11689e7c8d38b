"""Register networks of one's own for a session: they are in the catalog from then on."""

from __future__ import annotations

import re

from convatlas.core.cost import cost
from convatlas.core.network import Network
from convatlas.core.preprocessing import Preprocessing
from convatlas.core.spec import Spec
from convatlas.errors import InputError, SpecError
from convatlas.models.card import Card, Variant, imagenet
from convatlas.models.catalog import CATALOG, SPEC_TYPES, build_fresh, resolve
from convatlas.models.index import SESSION_NAMES
from convatlas.models.own_module import own_card


def register(
    name: str,
    spec: Spec,
    card: Card | None = None,
    *,
    classes: int | None = None,
    preprocessing: Preprocessing | None = None,
    recipe: str | None = None,
) -> None:
    """Add a network to the catalog for this session: it can be listed, shown, built, scaled, drawn and trained by name.

    name: of lower-case letters, digits and underscores. spec: of a family of the catalog, or a spec class of one's own,
    whose model files can be read from then on. card: its history; by default that of the family, or that of a network
    that nobody published. classes, preprocessing, recipe: its defaults; those of the nearest network of the family, or
    1,000 classes, the preprocessing of ImageNet and the recipe "default".
    Raises SpecError if the name is taken, or the spec builds no network whose cost is known.
    """
    if not isinstance(name, str) or not re.fullmatch(r"[a-z0-9][a-z0-9_]{0,63}", name):
        raise InputError(f"register: name must be at most 64 lower-case letters, digits and underscores, got {name!r}")
    for what, value, type_ in (
        ("card", card, Card),
        ("preprocessing", preprocessing, Preprocessing),
        ("recipe", recipe, str),
    ):
        if value is not None and not isinstance(value, type_):
            raise InputError(f"register: {what} must be a {type_.__name__}, got {type(value).__name__}")
    if not isinstance(spec, Spec):
        raise SpecError(f"register: spec must be a Spec, got {type(spec).__name__}; see docs/adding-an-architecture.md")
    kind = type(spec).__name__
    known = SPEC_TYPES.get(kind)
    if known not in (None, type(spec)):
        users = [each for each in SESSION_NAMES if type(CATALOG[each].spec) is known]
        fix = f"unregister {', '.join(users)} first, or " if users else ""
        raise SpecError(f"register: another spec class is called {kind}; {fix}rename it")
    if name in CATALOG:
        fix = f'ca.unregister("{name}") removes it' if name in SESSION_NAMES else "choose another name"
        raise SpecError(f"register: there is a network {name} already; {fix}")
    row = _row(name, spec, card, classes=classes, preprocessing=preprocessing, recipe=recipe)
    is_new_kind = known is None
    SPEC_TYPES[kind] = type(spec)
    try:
        network = build_fresh(spec, classes=row.classes, channels=row.preprocessing.channels, device="meta")
        if not isinstance(network, Network):
            raise SpecError(f"{kind}.build must return a Network, got {type(network).__name__}")
        cost(network)
    except BaseException:
        if is_new_kind:
            del SPEC_TYPES[kind]
        raise
    CATALOG[name] = row
    SESSION_NAMES.add(name)


def unregister(name: str) -> None:
    """Remove a network that was registered in this session; raises SpecError for any other."""
    if not isinstance(name, str) or name not in SESSION_NAMES:
        raise SpecError(f"unregister: {name!r} was not registered in this session")
    kind = type(CATALOG.pop(name).spec)
    SESSION_NAMES.remove(name)
    if not any(type(row.spec) is kind for row in CATALOG.values()):
        SPEC_TYPES.pop(kind.__name__, None)


def _row(
    name: str, spec: Spec, card: Card | None, *, classes: int | None, preprocessing: Preprocessing | None,
    recipe: str | None,
) -> Variant:  # fmt: skip
    """Return the row of a network: what was not given is that of the nearest network of the same family."""
    if any(type(row.spec) is type(spec) for row in CATALOG.values()):
        nearest = resolve(spec)[1]
        history = nearest.card.of(name)
        steps, count, usual = nearest.preprocessing.for_resolution(spec.resolution), nearest.classes, nearest.recipe
    else:
        usual_row = imagenet(spec, own_card(name))
        history, steps, count, usual = usual_row.card, usual_row.preprocessing, usual_row.classes, usual_row.recipe
    if classes is not None and (type(classes) is not int or classes < 1):
        raise SpecError(f"register: classes must be an integer >= 1, got {classes!r}")
    steps = preprocessing or steps
    if steps.resolution != spec.resolution:
        raise SpecError(f"register: preprocessing must give {spec.resolution} px, got {steps.resolution} px")
    return Variant(spec, card or history, steps, classes=count if classes is None else classes, recipe=recipe or usual)
