"""Tables for a terminal, and a page with a plot that needs no library: bars of SVG."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from io import StringIO
from pathlib import Path

from rich.console import Console
from rich.table import Table as RichTable

_WIDE = 200
_BAR_HEIGHT, _GAP, _LABEL_WIDTH, _BAR_WIDTH, _GROUP_GAP = 14, 3, 220, 480, 12
_COLOURS = ("#4878a8", "#e08a3c", "#5a9e6f", "#b05a7a", "#7a6ab0", "#888888")

_STYLE = """body { font: 15px system-ui, sans-serif; margin: 2em auto; max-width: 60em; color: #222 }
table { border-collapse: collapse; margin: 1em 0 } th, td { padding: .25em .8em; border-bottom: 1px solid #ddd }
td { text-align: right } td:first-child, th { text-align: left } p.note { color: #555 }
svg text { font: 12px system-ui, sans-serif }"""


@dataclass(frozen=True, slots=True)
class Table:
    title: str
    headings: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""


@dataclass(frozen=True, slots=True)
class Bars:
    """One group of bars a label, one bar a series in each."""

    title: str
    unit: str
    series: Sequence[str]
    groups: Sequence[tuple[str, Sequence[float]]]


def show(console: Console, tables: Sequence[Table]) -> None:
    for table in tables:
        shown = RichTable(title=table.title, title_justify="left", box=None, pad_edge=False)
        for index, heading in enumerate(table.headings):
            shown.add_column(heading, justify="right" if index else "left")
        for row in table.rows:
            shown.add_row(*row)
        console.print(shown)
        if table.note:
            console.print(table.note)
        console.print()


def write(path: Path, title: str, tables: Sequence[Table], plots: Sequence[Bars]) -> None:
    """A page where the name ends with .html, else the tables as text."""
    if path.suffix.lower() in (".html", ".htm"):
        path.write_text(_page(title, tables, plots))
        return
    text = StringIO()
    show(Console(file=text, width=_WIDE), tables)
    path.write_text(text.getvalue())


def _page(title: str, tables: Sequence[Table], plots: Sequence[Bars]) -> str:
    body = "\n".join([*map(_html_table, tables), *map(_svg, plots)])
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f"<style>{_STYLE}</style></head>\n<body><h1>{escape(title)}</h1>\n{body}\n</body></html>\n"
    )


def _html_table(table: Table) -> str:
    head = "".join(f"<th>{escape(heading)}</th>" for heading in table.headings)
    rows = "\n".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in table.rows
    )
    note = f'<p class="note">{escape(table.note)}</p>' if table.note else ""
    return f"<h2>{escape(table.title)}</h2>\n<table><tr>{head}</tr>\n{rows}\n</table>{note}"


def _svg(plot: Bars) -> str:
    highest = max((value for _, values in plot.groups for value in values), default=0.0) or 1.0
    parts, y = [], 0
    for label, values in plot.groups:
        middle = y + len(values) * (_BAR_HEIGHT + _GAP) / 2 + 3
        parts.append(f'<text x="{_LABEL_WIDTH - 8}" y="{middle:g}" text-anchor="end">{escape(label)}</text>')
        for index, value in enumerate(values):
            width = value / highest * _BAR_WIDTH
            colour = _COLOURS[index % len(_COLOURS)]
            parts.append(
                f'<rect x="{_LABEL_WIDTH}" y="{y}" width="{width:.1f}" height="{_BAR_HEIGHT}" fill="{colour}"/>'
                f'<text x="{_LABEL_WIDTH + width + 5:.1f}" y="{y + _BAR_HEIGHT - 3}">{value:.3g} {escape(plot.unit)}</text>'
            )
            y += _BAR_HEIGHT + _GAP
        y += _GROUP_GAP
    legend = " ".join(
        f'<span style="color:{_COLOURS[index % len(_COLOURS)]}">■</span> {escape(name)}'
        for index, name in enumerate(plot.series)
    )
    size = f'width="{_LABEL_WIDTH + _BAR_WIDTH + 90}" height="{y}"'
    return f'<h2>{escape(plot.title)}</h2>\n<p>{legend}</p>\n<svg {size} role="img">{"".join(parts)}</svg>'
