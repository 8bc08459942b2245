"""Curves as SVG, without a library: for a page that needs nothing but itself. Colours come from the page's style."""

from __future__ import annotations

import math
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from infercache.workload.charts import Chart, Curve

__all__ = ["COLOURS", "svg", "ticks_of"]

#: Curves that have a colour of their own; the page's style names so many.
COLOURS = 8
_WIDTH, _HEIGHT = 560, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 16, 24, 42


class _Axes:
    """From values to places in the picture."""

    def __init__(self, chart: Chart) -> None:
        xs = [x for curve in chart.curves for x, _ in curve.points]
        ys = [y for curve in chart.curves for _, y in curve.points]
        self._x = (_log if chart.x_log else _same, *_ends(min(xs), max(xs), log=chart.x_log))
        top = chart.top if chart.top is not None else max(ys) * 1.05
        low = min(ys) if chart.y_log else 0.0
        self._y = (_log if chart.y_log else _same, *_ends(low, max(top, low), log=chart.y_log))
        self.low, self.high = self._y[1], self._y[2]
        self.left, self.right = self._x[1], self._x[2]

    def x(self, value: float) -> float:
        """Pixels from the left."""
        to, low, high = self._x
        return _LEFT + (to(value) - to(low)) / (to(high) - to(low)) * (_WIDTH - _LEFT - _RIGHT)

    def y(self, value: float) -> float:
        """Pixels from the top."""
        to, low, high = self._y
        share = (to(min(max(value, low), high)) - to(low)) / (to(high) - to(low))
        return _HEIGHT - _BOTTOM - share * (_HEIGHT - _TOP - _BOTTOM)


def _same(value: float) -> float:
    return value


def _log(value: float) -> float:
    return math.log10(value)


def _ends(low: float, high: float, *, log: bool) -> tuple[float, float]:
    """An axis has a length, even if there is only one value."""
    if low < high:
        return low, high
    return (low / 2, high * 2) if log else (low - 0.5, high + 0.5)


def ticks_of(low: float, high: float, *, log: bool) -> list[float]:
    """Round numbers between the ends of an axis."""
    if log:
        decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        steps = (1, 2, 5) if high / low < 300 else (1,)
        found = [step * 10.0**decade for decade in decades for step in steps]
        found = [value for value in found if low * 0.999 <= value <= high * 1.001]
        return found[:: max(1, math.ceil(len(found) / 7))] or [low, high]
    step = 10.0 ** math.floor(math.log10((high - low) / 4))
    step *= next(factor for factor in (1, 2, 5, 10) if (high - low) / (step * factor) <= 5)
    return [place * step for place in range(math.ceil(low / step), math.floor(high / step + 1e-9) + 1)]


def svg(chart: Chart) -> str:
    """The picture, with a text on each point for whoever rests the pointer on it."""
    axes = _Axes(chart)
    parts = [
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(chart.title)}">',
        *_grid(chart, axes),
    ]
    for place, curve in enumerate(chart.curves):
        parts += _band(curve, axes, place)
    for place, curve in enumerate(chart.curves):
        parts += _line(chart, curve, axes, place)
    return "".join([*parts, "</svg>"])


def _grid(chart: Chart, axes: _Axes) -> list[str]:
    bottom = _HEIGHT - _BOTTOM
    parts = []
    for value in ticks_of(axes.low, axes.high, log=chart.y_log):
        y = axes.y(value)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        text = f"{value:g}" if chart.y_text(value).endswith("%") else chart.y_text(value).partition(", ")[0]
        parts.append(f'<text class="tick end" x="{_LEFT - 8}" y="{y + 4:.1f}">{escape(text)}</text>')
    named = chart.ticks or tuple(
        (value, chart.x_text(value)) for value in ticks_of(axes.left, axes.right, log=chart.x_log)
    )
    for value, text in named:
        x = axes.x(value)
        parts.append(f'<line class="axis" x1="{x:.1f}" x2="{x:.1f}" y1="{bottom}" y2="{bottom + 4}"/>')
        # A long name at the right end would stand beyond the picture.
        place = "end" if x + 3.2 * len(text) > _WIDTH else "mid"
        parts.append(f'<text class="tick {place}" x="{min(x, _WIDTH):.1f}" y="{bottom + 18}">{escape(text)}</text>')
    parts.append(f'<line class="axis" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{bottom}" y2="{bottom}"/>')
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    parts.append(f'<text class="label mid" x="{middle:.1f}" y="{_HEIGHT - 6}">{escape(chart.x)}</text>')
    parts.append(f'<text class="label end" x="{_LEFT - 8}" y="{_TOP - 12}">{escape(chart.y)}</text>')
    return parts


def _band(curve: Curve, axes: _Axes, place: int) -> list[str]:
    if not curve.bounds:
        return []
    pairs = list(zip(curve.points, curve.bounds, strict=True))
    around = [(x, y + bound) for (x, y), bound in pairs] + [(x, y - bound) for (x, y), bound in reversed(pairs)]
    points = " ".join(f"{axes.x(x):.1f},{axes.y(y):.1f}" for x, y in around)
    return [f'<polygon class="band c{place % COLOURS}" points="{points}"/>']


def _line(chart: Chart, curve: Curve, axes: _Axes, place: int) -> list[str]:
    kind = f"c{place % COLOURS}" + (" dashed" if curve.dashed else "")
    points = [(axes.x(x), axes.y(y)) for x, y in curve.points]
    way = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    parts = [f'<polyline class="curve {kind}" points="{way}"/>']
    names = dict(chart.ticks)
    marked = len(curve.points) <= 40 and not curve.dashed
    for (x, y), (value, height) in zip(points, curve.points, strict=True):
        text = f"{curve.name}: {names.get(value) or chart.x_text(value)}, {chart.y_text(height)}"
        kind_of_dot, radius = ("dot", 3.2) if marked else ("spot", 5.0)
        parts.append(
            f'<circle class="{kind_of_dot} {kind}" cx="{x:.1f}" cy="{y:.1f}" r="{radius}">'
            f"<title>{escape(text)}</title></circle>"
        )
    return parts
