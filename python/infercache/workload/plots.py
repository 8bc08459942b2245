"""The curves as images, by Matplotlib."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from infercache.errors import InvalidArgument, MissingExtra
from infercache.workload.charts import Chart, charts

if TYPE_CHECKING:
    from pathlib import Path

    from matplotlib.axes import Axes

    from infercache.workload.simulation import Simulation

__all__ = ["check", "save"]

_COLOURS = ("#0f766e", "#c96f1a", "#5a63c4", "#b3372f", "#8a6fb3", "#5f8a1f", "#1a82a8", "#a0527a")


def check() -> None:
    """Makes sure that images can be drawn, before anything takes long.

    Raises:
        MissingExtra: Matplotlib is not installed.
    """
    try:
        import matplotlib  # noqa: F401 - whether it is there
    except ImportError as error:
        raise MissingExtra(
            f"images are drawn by Matplotlib ({error}): pip install 'infercache[workload]'; --html needs nothing"
        ) from None


def save(simulation: Simulation, folder: Path) -> list[Path]:
    """Draws each chart into `folder`, which is made if need be, and returns the files' paths.

    Raises:
        MissingExtra: Matplotlib is not installed.
        InvalidArgument: the folder cannot be written to.
    """
    check()
    from matplotlib.figure import Figure

    paths = []
    for chart in charts(simulation):
        figure = Figure(figsize=(7.5, 4.2), dpi=150, layout="constrained")
        _draw(chart, figure.subplots())
        path = folder / f"{chart.name}.png"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            figure.savefig(path)
        except OSError as error:
            raise InvalidArgument(f"--png {path}: {error.strerror or error}") from None
        paths.append(path)
    return paths


def _draw(chart: Chart, axes: Axes) -> None:
    for place, curve in enumerate(chart.curves):
        xs, ys = [x for x, _ in curve.points], [y for _, y in curve.points]
        colour = _COLOURS[place % len(_COLOURS)]
        marker = "o" if len(xs) <= 40 and not curve.dashed else ""
        style = "--" if curve.dashed else "-"
        axes.plot(xs, ys, style, marker=marker, markersize=4, color=colour, label=curve.name)
        if curve.bounds:
            low = [y - bound for y, bound in zip(ys, curve.bounds, strict=True)]
            high = [y + bound for y, bound in zip(ys, curve.bounds, strict=True)]
            axes.fill_between(xs, low, high, color=colour, alpha=0.15, linewidth=0)
    axes.set_title(chart.title, loc="left", fontsize=11, fontweight="bold")
    axes.set_xlabel(chart.x)
    axes.set_ylabel(chart.y)
    if chart.x_log:
        axes.set_xscale("log")
    if chart.y_log:
        axes.set_yscale("log")
    else:
        axes.set_ylim(0, chart.top)
    if chart.ticks:
        axes.set_xticks([place for place, _ in chart.ticks], [text for _, text in chart.ticks])
    else:
        axes.xaxis.set_major_formatter(_formatter(chart.x_text))
        axes.xaxis.set_minor_formatter(_formatter(lambda _: ""))
    axes.grid(visible=True, color="#ebe9e2")
    axes.spines[["top", "right"]].set_visible(False)
    if len(chart.curves) > 1:
        axes.legend(frameon=False, fontsize=9)


def _formatter(text: Any) -> Any:
    from matplotlib.ticker import FuncFormatter

    return FuncFormatter(lambda value, _: text(value) if value > 0 and math.isfinite(value) else "")
