"""A self-contained HTML page with sections, tables and pictures; for narrow and wide, light and dark screens."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

STYLE = """
:root { color-scheme: light dark; --line: #ddd; --faint: #666; --loud: #b00020 }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 1150px; margin: 0 auto; padding: 1em }
h1 { margin: .3em 0 } h2 { margin: 1.6em 0 .3em; border-bottom: 1px solid var(--line) }
p, li { max-width: 46em } .faint { color: var(--faint) } .loud { color: var(--loud); font-weight: 600 }
.formula { font: 16px/1.6 ui-monospace, monospace; overflow-wrap: anywhere }
.wide { overflow-x: auto } table { border-collapse: collapse; font-size: 14px }
th, td { text-align: right; padding: .3em .8em; border-bottom: 1px solid var(--line); white-space: nowrap }
th:first-child, td:first-child, td.text, th.text { text-align: left }
.pictures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 340px), 1fr)); gap: 12px }
.pictures img { width: 100%; max-width: 560px; height: auto }
.wide img { max-width: 100%; height: auto }
@media (prefers-color-scheme: dark) {
  :root { --line: #444; --faint: #aaa; --loud: #ff7a85 }
  img { filter: invert(.93) hue-rotate(180deg) }
}
"""


@dataclass(frozen=True)
class Section:
    """A heading, HTML below it, and pictures: (name, description, PNG); with `wide` as wide as the page."""

    heading: str
    body: str
    pictures: Sequence[tuple[str, str, bytes]] = ()
    wide: bool = False


def bullets(lines: Sequence[str], kind: str = "") -> str:
    items = "".join(f"<li>{escape(line)}</li>" for line in lines)
    return f"<ul class='{kind}'>{items}</ul>" if items else ""


def _cell(text: str) -> str:
    return escape(text).replace("\n", "<br>")


def table(heads: Sequence[str], rows: Sequence[Sequence[str]], text: Sequence[int] = ()) -> str:
    """An HTML table. `text`: columns with words, aligned left. A line break in a cell is kept."""

    def cells(tag: str, row: Sequence[str]) -> str:
        kinds = [" class=text" if place in text else "" for place in range(len(row))]
        return "".join(f"<{tag}{kind}>{_cell(cell)}</{tag}>" for kind, cell in zip(kinds, row, strict=True))

    body = "".join(f"<tr>{cells('td', row)}</tr>" for row in rows)
    return f"<div class=wide><table><tr>{cells('th', heads)}</tr>{body}</table></div>"


def page(title: str, sections: Sequence[Section]) -> str:
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body>\n<h1>{escape(title)}</h1>\n"
        + "\n".join(_section(section) for section in sections)
        + "\n</body></html>\n"
    )


def _section(section: Section) -> str:
    images = "".join(
        f'<img alt="{escape(what)}" src="data:image/png;base64,{base64.b64encode(png).decode()}">'
        for _, what, png in section.pictures
    )
    shown = f"<div class={'wide' if section.wide else 'pictures'}>{images}</div>" if images else ""
    return f"<h2>{escape(section.heading)}</h2>\n{section.body}\n{shown}"
