"""The ramp as a page that needs nothing else: callers, replicas and every turn's overhead over one axis of time."""

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Protocol

_WIDTH, _HEIGHT, _LEFT, _GAP = 760, 120, 130, 34
_COLOURS = ("#4878a8", "#e08a3c", "#5a9e6f", "#b05a7a", "#7a6ab0")
_STYLE = """body { font: 15px system-ui, sans-serif; margin: 2em auto; max-width: 60em; color: #222 }
svg text { font: 12px system-ui, sans-serif } pre { background: #f5f5f2; padding: 1em }"""


class Sampled(Protocol):
    @property
    def at_s(self) -> float: ...
    @property
    def callers(self) -> int: ...
    @property
    def running(self) -> Mapping[str, int]: ...
    @property
    def busy(self) -> float: ...


def write_page(
    path: Path,
    title: str,
    samples: Sequence[Sampled],
    turns: Sequence[tuple[float, float | None]],
    marks: Iterable[tuple[float, str]],
    lines: Iterable[str],
) -> None:
    """`turns`: (when, overhead in ms, None where there was no answer); `marks`: moments with a word; `lines`: the tables."""
    end = max([sample.at_s for sample in samples] + [at for at, _ in turns])
    rows = [("callers", [(s.at_s, float(s.callers)) for s in samples])]
    rows += [(name, [(s.at_s, float(s.running[name])) for s in samples]) for name in samples[0].running]
    rows.append(("machine busy, %", [(s.at_s, round(100 * s.busy)) for s in samples]))
    parts = [_steps(name, points, index, end) for index, (name, points) in enumerate(rows)]
    parts.append(_dots(turns, len(rows), end))
    height = (len(rows) + 1) * (_HEIGHT + _GAP) + 20
    parts += [_mark(at, word, height, end) for at, word in marks]
    parts.append(_axis(height, end))
    svg = f'<svg width="{_LEFT + _WIDTH + 60}" height="{height + 20}" role="img">{"".join(parts)}</svg>'
    path.write_text(
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f"<style>{_STYLE}</style></head>\n<body><h1>{escape(title)}</h1>\n{svg}\n"
        f"<pre>{escape(chr(10).join(lines))}</pre></body></html>\n"
    )


def _x(at_s: float, end: float) -> float:
    return _LEFT + at_s / end * _WIDTH


def _row(index: int, label: str, highest: str) -> tuple[float, str]:
    """The bottom of a row, and its frame."""
    bottom = index * (_HEIGHT + _GAP) + _HEIGHT + 10
    frame = (
        f'<line x1="{_LEFT}" y1="{bottom}" x2="{_LEFT + _WIDTH}" y2="{bottom}" stroke="#bbb"/>'
        f'<text x="{_LEFT - 8}" y="{bottom - _HEIGHT / 2:g}" text-anchor="end">{escape(label)}</text>'
        f'<text x="{_LEFT - 8}" y="{bottom - _HEIGHT + 8:g}" text-anchor="end" fill="#888">{escape(highest)}</text>'
    )
    return bottom, frame


def _steps(label: str, points: Sequence[tuple[float, float]], index: int, end: float) -> str:
    highest = max(value for _, value in points) or 1.0
    bottom, frame = _row(index, label, f"{highest:g}")
    path, last = [], 0.0
    for at, value in points:
        y = bottom - value / highest * (_HEIGHT - 10)
        path.append(f"{_x(at, end):.1f},{last or y:.1f} {_x(at, end):.1f},{y:.1f}")
        last = y
    colour = _COLOURS[index % len(_COLOURS)]
    return f'{frame}<polyline points="{" ".join(path)}" fill="none" stroke="{colour}" stroke-width="2"/>'


def _dots(turns: Sequence[tuple[float, float | None]], index: int, end: float) -> str:
    highest = max((ms for _, ms in turns if ms is not None), default=1.0)
    bottom, frame = _row(index, "overhead of turns", f"{highest:.0f} ms")
    dots = [
        f'<circle cx="{_x(at, end):.1f}" cy="{bottom - max(ms, 0) / highest * (_HEIGHT - 10):.1f}" r="2" fill="#555"/>'
        if ms is not None
        else f'<text x="{_x(at, end):.1f}" y="{bottom - _HEIGHT / 2:g}" fill="#c00">no answer</text>'
        for at, ms in turns
    ]
    return frame + "".join(dots)


def _mark(at: float, word: str, height: float, end: float) -> str:
    x = _x(at, end)
    return (
        f'<line x1="{x:.1f}" y1="10" x2="{x:.1f}" y2="{height - 24}" stroke="#c00" stroke-dasharray="3 3"/>'
        f'<text x="{x + 3:.1f}" y="20" fill="#c00">{escape(word)}</text>'
    )


def _axis(height: float, end: float) -> str:
    return "".join(
        f'<text x="{_x(at, end):.1f}" y="{height}" text-anchor="middle" fill="#888">{at} s</text>'
        for at in range(0, int(end) + 1, 20)
    )
