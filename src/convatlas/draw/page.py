"""Self-contained pages of HTML: light and dark, for screens of any width and for print, without scripts.

Each part is a function that returns HTML; whatever comes from outside is escaped in here.
"""

from __future__ import annotations

import base64
import html
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from convatlas.core.table import Table
from convatlas.draw.names import LEGEND
from convatlas.draw.page_style import STYLE
from convatlas.draw.style import encode_for_page
from convatlas.errors import printable

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class PageFigure:
    """A figure on a page.

    reading: one sentence about how to read it. names: the names of the classes that have numbers in it. beside: a table
    that belongs to it, with its heading.
    """

    figure: Figure
    reading: str
    names: Mapping[str, str]
    beside: tuple[str, Table] | None = None


@dataclass(frozen=True)
class Thumbnail:
    """An image file with a caption of lines; the first one is bold.

    pixelated: whether enlarged pixels are squares. wide: whether it needs the place of three.
    """

    content: bytes
    kind: str
    caption: tuple[str, ...]
    pixelated: bool = False
    wide: bool = False


def text(value: object) -> str:
    """Return a value as escaped text of one line."""
    return html.escape(printable(str(value)))


def document(title: str, parts: Iterable[str]) -> str:
    """Return a page of these parts."""
    head = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta name="color-scheme" content="light dark"><title>{text(title)}</title><style>{STYLE}</style></head>'
    )
    return "\n".join([head, "<body><main>", *(part for part in parts if part), "</main></body></html>\n"])


def header(title: str, subtitle: str) -> str:
    return f"<header><h1>{text(title)}</h1><p class=quiet>{text(subtitle)}</p></header>"


def summary_card(
    value: str, name: str, *, interval: tuple[float, float] | None = None, warning: str = "",
    sentences: Sequence[str] = (), facts: Mapping[str, str],
) -> str:  # fmt: skip
    """Return the result at a glance: a value, its 95 % interval on a scale from 0 to 1, a warning, sentences, facts."""
    scale = ""
    if interval is not None:
        low, high = (min(max(end, 0.0), 1.0) for end in interval)
        bar = f"left:{low:.2%};width:{max(high - low, 0.004):.2%}"
        scale = (
            f'<p class=interval><span class=scale><span style="{bar}"></span></span>'
            f"95 % interval {low:.1%} to {high:.1%}</p>"
        )
    kind, shown = "summary", ""
    if warning:
        kind, shown = "summary doubtful", f"<p class=warning>{text(warning)}</p>"
    shown += "".join(f"<p>{text(sentence)}</p>" for sentence in sentences if sentence)
    cells = "".join(f"<div><dt>{text(key)}</dt><dd>{text(fact)}</dd></div>" for key, fact in facts.items() if fact)
    return (
        f'<section class="{kind}"><div><p class=big>{text(value)}</p><p>{text(name)}</p>{scale}</div>'
        f"<div>{shown}<dl>{cells}</dl></div></section>"
    )


def commands(title: str, lines: Mapping[str, str]) -> str:
    """Return commands to copy. lines: purpose -> command."""
    rows = "".join(f"<div><span>{text(purpose)}</span>{code(line)}</div>" for purpose, line in lines.items())
    return f"<section class=commands><h2>{text(title)}</h2>{rows}</section>"


def section(title: str, *parts: str, lead: str = "") -> str:
    """Return parts below a heading; empty if there are none."""
    if not any(parts):
        return ""
    return f"<section><h2>{text(title)}</h2>{paragraph(lead) if lead else ''}{''.join(parts)}</section>"


def beside(*parts: str, first: bool = False) -> str:
    """Return parts in columns; below each other on a narrow screen. first: whether the first one is twice as wide."""
    present = [part for part in parts if part]
    if len(present) < 2:
        return "".join(present)
    kind = "beside first" if first else "beside"
    return f'<div class="{kind}">{"".join(f"<div>{part}</div>" for part in present)}</div>'


def subheading(title: str) -> str:
    return f"<h3>{text(title)}</h3>"


def paragraph(sentence: str) -> str:
    return f"<p class=quiet>{text(sentence)}</p>"


def listing(items: Sequence[str]) -> str:
    return f"<ul>{''.join(f'<li>{text(item)}</li>' for item in items)}</ul>" if items else ""


def fold(title: str, *parts: str) -> str:
    """Return parts that a click shows."""
    return f"<details><summary>{text(title)}</summary>{''.join(parts)}</details>"


def table(content: Table) -> str:
    """Return a table; a wide or a long one scrolls inside its box."""
    head = f"<thead>{_row('th', content.columns, content.right)}</thead>" if any(content.columns) else ""
    body = "".join(_row("td", row, content.right) for row in content.rows)
    return f'<div class=scroll tabindex="0"><table>{head}<tbody>{body}</tbody></table></div>'


def _row(tag: str, cells: Iterable[str], right: frozenset[int]) -> str:
    kinds = ((" class=n" if i in right else "", text(cell)) for i, cell in enumerate(cells))
    return f"<tr>{''.join(f'<{tag}{kind}>{cell}</{tag}>' for kind, cell in kinds)}</tr>"


def pairs(values: Mapping[str, Any]) -> str:
    """Return names and values, which may be long; those without a value are left out."""
    rows = "".join(
        f"<tr><th>{text(name)}</th><td>{text(value)}</td></tr>" for name, value in values.items() if value != ""
    )
    return f"<table class=pairs><tbody>{rows}</tbody></table>" if rows else ""


def code(line: str) -> str:
    """Return a line to copy; empty for an empty one."""
    return f"<pre><code>{text(line)}</code></pre>" if line else ""


def figure(content: PageFigure, title: str) -> str:
    """Return a figure with the sentence about how to read it, and the names that are numbers in it."""
    from matplotlib.text import Text

    for legend in content.figure.findobj(lambda artist: artist.get_gid() == LEGEND):
        legend.remove()
    drawn_words = {word for artist in content.figure.findobj(Text) for word in artist.get_text().split()}
    names = ", ".join(f"{number} = {name}" for number, name in content.names.items() if number in drawn_words)
    caption = f"{text(content.reading)}{f'<br>{text(names)}' if names else ''}"
    image = f'<img alt="{text(title)}" src="{_address(encode_for_page(content.figure, crop=bool(names)), "svg+xml")}">'
    drawn = f"<figure class=plot>{image}<figcaption>{caption}</figcaption></figure>"
    if content.beside is None:
        return drawn
    heading, rows = content.beside
    return beside(drawn, subheading(heading) + table(rows), first=True)


def image(content: bytes, kind: str, caption: str) -> str:
    """Return an image file at its own size, if the page has the room, above its caption."""
    drawn = f'<img alt="{text(caption)}" src="{_address(content, kind)}">'
    return f"<figure class=plot>{drawn}<figcaption>{text(caption)}</figcaption></figure>"


def thumbnails(images: Sequence[Thumbnail]) -> str:
    """Return images in a grid; a click enlarges one, another click makes it small again."""
    return f"<div class=thumbnails>{''.join(map(_thumbnail, images))}</div>" if images else ""


def _thumbnail(image: Thumbnail) -> str:
    first, *others = image.caption
    caption = f"<b>{text(first)}</b>" + "".join(f"<span>{text(line)}</span>" for line in others)
    pixelated = " class=pixelated" if image.pixelated else ""
    wide = " class=wide" if image.wide else ""
    drawn = f'<img{pixelated} alt="{text(", ".join(image.caption))}" src="{_address(image.content, image.kind)}">'
    return f"<figure{wide}><details><summary>{drawn}</summary></details><figcaption>{caption}</figcaption></figure>"


def _address(content: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
