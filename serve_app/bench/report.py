"""Tables for a terminal, and a page with plots that need no library: bars and lines of SVG."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from io import StringIO
from pathlib import Path

from rich.console import Console
from rich.table import Table as RichTable

_WIDE = 200
_BAR_HEIGHT, _GAP, _LABEL_WIDTH, _BAR_WIDTH, _GROUP_GAP = 14, 3, 220, 480, 12
_PLOT_WIDTH, _PLOT_HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 640, 260, 64, 150, 14, 44
_TICKS = 5
_LABEL_GAP = 14
_COLOURS = ("#4878a8", "#e08a3c", "#5a9e6f", "#b05a7a", "#7a6ab0", "#888888")

_STYLE = """body { font: 15px system-ui, sans-serif; margin: 2em auto; max-width: 60em; color: #222 }
table { border-collapse: collapse; margin: 1em 0 } th, td { padding: .25em .8em; border-bottom: 1px solid #ddd }
td { text-align: right } td:first-child, td:nth-child(2):last-child, th { text-align: left } p.note { color: #555 }
svg text { font: 12px system-ui, sans-serif }"""


_Place = Callable[[float, float], tuple[float, float]]


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


@dataclass(frozen=True, slots=True)
class Lines:
    """Values over a common axis, both from 0."""

    title: str
    unit: str
    x_label: str
    series: Sequence[tuple[str, Sequence[tuple[float, float]]]]
    mark: tuple[float, str] | None = None
    """A place on the axis, and what is there."""
    note: str = ""


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


def write(path: Path, title: str, tables: Sequence[Table], plots: Sequence[Bars | Lines]) -> None:
    """A page where the name ends with .html, else the tables as text."""
    if path.suffix.lower() in (".html", ".htm"):
        path.write_text(_page(title, tables, plots))
        return
    text = StringIO()
    show(Console(file=text, width=_WIDE), tables)
    path.write_text(text.getvalue())


def _page(title: str, tables: Sequence[Table], plots: Sequence[Bars | Lines]) -> str:
    body = "\n".join([*map(_html_table, tables), *map(_plot, plots)])
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


def _plot(plot: Bars | Lines) -> str:
    return _bars(plot) if isinstance(plot, Bars) else _lines(plot)


def _bars(plot: Bars) -> str:
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


def ticks(highest: float) -> list[float]:
    """Round numbers from 0 to `highest` or a little beyond, about five steps."""
    if highest <= 0:
        return [0.0, 1.0]
    magnitude: float = 10 ** math.floor(math.log10(highest / _TICKS))
    step = next(magnitude * factor for factor in (1, 2, 2.5, 5, 10) if magnitude * factor * _TICKS >= highest)
    return [step * number for number in range(math.ceil(highest / step - 1e-9) + 1)]


def _lines(plot: Lines) -> str:
    points = [point for _, values in plot.series for point in values]
    x_ticks, y_ticks = (ticks(max((point[axis] for point in points), default=0.0)) for axis in (0, 1))

    def place(x: float, y: float) -> tuple[float, float]:
        return _LEFT + x / x_ticks[-1] * _PLOT_WIDTH, _TOP + (1 - y / y_ticks[-1]) * _PLOT_HEIGHT

    parts = [*_grid(plot, x_ticks, y_ticks, place), *_curves(plot, place)]
    if plot.mark is not None:
        x, _ = place(plot.mark[0], 0)
        parts.append(
            f'<line x1="{x:.1f}" y1="{_TOP}" x2="{x:.1f}" y2="{_TOP + _PLOT_HEIGHT}" stroke="#c33" stroke-dasharray="4 3"/>'
            f'<text x="{x - 5:.1f}" y="{_TOP + 11}" text-anchor="end" fill="#c33">{escape(plot.mark[1])}</text>'
        )
    size = f'width="{_LEFT + _PLOT_WIDTH + _RIGHT}" height="{_TOP + _PLOT_HEIGHT + _BOTTOM}"'
    note = f'<p class="note">{escape(plot.note)}</p>' if plot.note else ""
    return f'<h2>{escape(plot.title)}</h2>\n<svg {size} role="img">{"".join(parts)}</svg>{note}'


def _grid(plot: Lines, x_ticks: list[float], y_ticks: list[float], place: _Place) -> list[str]:
    bottom = _TOP + _PLOT_HEIGHT
    parts = []
    for value in y_ticks:
        _, y = place(0, value)
        parts.append(
            f'<line x1="{_LEFT}" y1="{y:.1f}" x2="{_LEFT + _PLOT_WIDTH}" y2="{y:.1f}" stroke="#e4e4e4"/>'
            f'<text x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{value:g}</text>'
        )
    for value in x_ticks:
        x, _ = place(value, 0)
        parts.append(f'<text x="{x:.1f}" y="{bottom + 17}" text-anchor="middle">{value:g}</text>')
    parts.append(f'<text x="{_LEFT - 8}" y="{bottom + 35}" text-anchor="end">{escape(plot.unit)}</text>')
    middle = _LEFT + _PLOT_WIDTH / 2
    parts.append(f'<text x="{middle:g}" y="{bottom + 36}" text-anchor="middle">{escape(plot.x_label)}</text>')
    return parts


def _curves(plot: Lines, place: _Place) -> list[str]:
    parts: list[str] = []
    labels: list[tuple[float, str, str]] = []
    for index, (name, values) in enumerate(plot.series):
        colour = _COLOURS[index % len(_COLOURS)]
        dash = ' stroke-dasharray="5 3"' if index >= len(_COLOURS) else ""
        placed = [place(*value) for value in values]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in placed)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"{dash}/>')
        if len(placed) <= 2 * _TICKS:
            parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in placed]
        if placed:
            labels.append((placed[-1][1], name, colour))
    free_y = 0.0
    for wanted_y, name, colour in sorted(labels):  # one under the other where the curves end together
        free_y = max(wanted_y + 4, free_y + _LABEL_GAP)
        parts.append(
            f'<text x="{_LEFT + _PLOT_WIDTH + 8}" y="{free_y:.1f}" fill="{colour}">{escape(name)}</text>'
        )
    return parts
