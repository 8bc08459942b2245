"""What a simulation showed, as one page of HTML that needs nothing else: no script, no other file, light and dark."""

from __future__ import annotations

from html import escape
from importlib.resources import files
from typing import TYPE_CHECKING

from infercache.workload import report
from infercache.workload.charts import Chart, Curve, charts
from infercache.workload.report import Style, Table
from infercache.workload.svg import COLOURS, svg

if TYPE_CHECKING:
    from infercache.workload.simulation import Simulation

__all__ = ["page"]

_PLAIN = Style()


def page(simulation: Simulation) -> str:
    """The page's text."""
    names = ", ".join(reading.where.rsplit("/", 1)[-1] for reading in simulation.readings)
    parts = {
        "title": escape(f"{names}, simulated"),
        "head": "".join(f'<p class="soft">{escape(line)}</p>' for line in report.head(simulation, _PLAIN)),
        "advice": "".join(f"<p>{escape(line)}</p>" for line in report.advice(simulation, _PLAIN)),
        "tables": "".join(map(_table, report.tables(simulation))),
        "charts": "\n".join(map(_figure, charts(simulation))),
        "remarks": escape("\n".join(report.remarks(simulation))),
    }
    text = files("infercache.workload").joinpath("page.html").read_text(encoding="utf-8")
    # In one go: what is put in may hold anything, such as the name of another part.
    pieces = text.split("{{")
    return pieces[0] + "".join(parts[name] + rest for name, _, rest in (piece.partition("}}") for piece in pieces[1:]))


def _table(table: Table) -> str:
    rows = [f"<tr>{''.join(_cell('th', name, place in table.left) for place, name in enumerate(table.names))}</tr>"]
    for number, row in enumerate(table.rows):
        kind = ' class="best"' if number == table.best else ""
        cells = (
            _bar(text) if place == table.bar else _cell("td", text, place in table.left)
            for place, text in enumerate(row)
        )
        rows.append(f"<tr{kind}>{''.join(cells)}</tr>")
    return f'<div class="card"><h2>{escape(table.title)}</h2><table>{"".join(rows)}</table></div>'


def _cell(kind: str, text: str, left: bool) -> str:
    place = ' class="left"' if left else ""
    return f"<{kind}{place}>{escape(text)}</{kind}>"


def _bar(text: str) -> str:
    width = 100 * report.share_of(text)
    return f'<td class="left"><span class="bar"><b style="width:{width:.1f}%"></b></span></td>'


def _figure(chart: Chart) -> str:
    keys = "".join(
        f'<li class="c{place % COLOURS}"><i class="{_stroke(curve)}"></i><span>{escape(curve.name)}</span></li>'
        for place, curve in enumerate(chart.curves)
    )
    legend = f'<ul class="keys">{keys}</ul>' if len(chart.curves) > 1 else ""
    return f'<figure class="card"><h2>{escape(chart.title)}</h2>{svg(chart)}{legend}</figure>'


def _stroke(curve: Curve) -> str:
    return "dashed" if curve.dashed else "drawn"
