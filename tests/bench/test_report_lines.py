"""Plots of lines: axes from 0 on round numbers, and every point in its place."""

import re
from pathlib import Path

import pytest

from serve_app.bench.report import Lines, ticks, write


@pytest.mark.parametrize(
    ("highest", "expected"),
    [
        (40, [0, 10, 20, 30, 40]),
        (693, [0, 200, 400, 600, 800]),
        (0.6, [0, 0.2, 0.4, 0.6]),
        (1, [0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (0, [0, 1]),
    ],
)
def test_ticks_are_round_and_reach_the_highest_value(highest: float, expected: list[float]):
    assert ticks(highest) == pytest.approx(expected)


def test_a_line_goes_through_its_points_and_says_what_is_where(tmp_path: Path):
    plot = Lines(
        "Delay <p>", "ms", "callers", [("p50", [(0, 0), (20, 50), (40, 100)])], (20, "the knee"), "a note"
    )
    write(tmp_path / "page.html", "title", [], [plot])
    page = (tmp_path / "page.html").read_text()
    assert "Delay &lt;p&gt;" in page
    assert "the knee" in page
    assert "a note" in page
    ((first, middle, last),) = [
        [tuple(map(float, point.split(","))) for point in points.split()]
        for points in re.findall(r'<polyline points="([^"]*)"', page)
    ]
    assert middle[0] == pytest.approx((first[0] + last[0]) / 2, abs=0.1)
    assert middle[1] == pytest.approx((first[1] + last[1]) / 2, abs=0.1)
    assert first[1] > last[1], "upwards"


def test_an_empty_plot_is_drawn_without_a_line(tmp_path: Path):
    write(tmp_path / "page.html", "title", [], [Lines("nothing", "ms", "callers", [("p50", [])])])
    assert '<polyline points=""' in (tmp_path / "page.html").read_text()
