"""Draws result files of `python -m bench` as one HTML page without external resources, and as PNG files."""

import argparse
import html
import io
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from bench.measurement import Measurement, Result
from kimagenet import cli
from pipelines.errors import UserError
from pipelines.system.files import write_atomic

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #222; max-width: 60rem; margin: 2.5rem auto; padding: 0 1.2rem }
h1 { font-size: 1.7rem; margin-bottom: .3rem } h2 { font-size: 1.2rem; margin: 3rem 0 .3rem }
h2 small { color: #777; font-weight: normal } p { margin: .4rem 0 1rem } nav a { margin-right: 1rem }
a { color: #1f5fa8 } svg { max-width: 100%; height: auto } figure { margin: 1.2rem 0 }
figcaption, .stamp { color: #555; font-size: .85rem }
code { background: #f3f4f6; padding: .1rem .3rem; font-size: .85em }
table { border-collapse: collapse; font-size: .85rem; width: 100% } summary { cursor: pointer; color: #1f5fa8 }
th, td { text-align: right; padding: .2rem .6rem; border-bottom: 1px solid #e3e6e9 } th { font-weight: 600 }
th:first-child, td:first-child { text-align: left } td.group { text-align: left; color: #555; padding-top: .8rem }
"""


def make_parser() -> cli.Parser:
    """The flags of `python -m bench report`."""
    parser = cli.Parser("python -m bench report", "FILE.json … --output PAGE.html [--png DIR]", __doc__)
    parser.add_argument(
        "results", nargs="+", type=Path, metavar="FILE.json", help="result files, in the order of the page"
    )
    parser.add_argument("--output", type=Path, required=True, metavar="PAGE.html", help="the page to write")
    parser.add_argument(
        "--png", type=Path, metavar="DIR", help="also write each chart as QUESTION.png, QUESTION-2.png and so on"
    )
    return parser


def main(arguments: argparse.Namespace) -> None:
    """Reads the result files and writes the page and the PNG files.

    Raises:
        UserError: matplotlib is not installed, or a result file cannot be read.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise UserError("the report needs the package matplotlib", remedy="`pip install matplotlib`") from None
    results = [Result.load(path) for path in arguments.results]
    for folder in (arguments.output.parent, arguments.png):
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
    write_atomic(arguments.output, page(results, arguments.png).encode("utf-8"))
    print(f"written: {arguments.output}" + (f", and the charts as PNG in {arguments.png}" if arguments.png else ""))


def page(results: Sequence[Result], png: Path | None = None) -> str:
    """Makes the page.

    Args:
        results: in the order of the page.
        png: a folder for the charts as PNG files, or None.

    Returns:
        The HTML text.
    """
    sections: list[str] = []
    links: list[str] = []
    names: dict[str, int] = {}
    for result in results:
        for question in dict.fromkeys(m.question for m in result.measurements):
            names[question] = names.get(question, 0) + 1
            anchor = question if names[question] == 1 else f"{question}-{names[question]}"
            measurements = [m for m in result.measurements if m.question == question]
            sections.append(_section(anchor, question, measurements, result, png))
            links.append(f'<a href="#{anchor}">{anchor}</a>')
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>kimagenet: how fast is it?</title><style>{_STYLE}</style></head><body>\n"
        "<h1>How fast is it?</h1>\n<p>Measured with <code>python -m bench</code>. The candidates take turns in several "
        "rounds; warm-up is not counted. Figures are medians of the rounds; whiskers show minimum and maximum. "
        "A ratio compares turns of the same round.</p>\n"
        f"<nav>{' '.join(links)}</nav>\n{''.join(sections)}</body></html>\n"
    )


def _section(anchor: str, question: str, measurements: Sequence[Measurement], result: Result, png: Path | None) -> str:
    from bench.charts import charts

    figures = []
    for number, (caption, figure) in enumerate(charts(measurements), start=1):
        figures.append(f"<figure>{_svg(figure)}<figcaption>{html.escape(caption)}</figcaption></figure>")
        if png is not None:
            name = anchor if number == 1 else f"{anchor}-{number}"
            figure.savefig(png / f"{name}.png", dpi=160, facecolor="white")
    summary = (import_module(f"bench.{question}").__doc__ or "").partition("\n")[0]
    return (
        f'<section id="{anchor}"><h2>{html.escape(summary)} <small>{anchor}</small></h2>\n{"".join(figures)}'
        f"<details><summary>All figures</summary>{_table(measurements)}</details>\n{_stamp(result)}</section>\n"
    )


def _svg(figure: "Figure") -> str:
    stream = io.StringIO()
    figure.savefig(stream, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    text = stream.getvalue()
    return text[text.index("<svg") :]


def _table(measurements: Sequence[Measurement]) -> str:
    from bench.charts import setting_line

    rows, last = [], ""
    for m in measurements:
        if (group := setting_line(m.settings)) != last:
            rows.append(f'<tr><td class="group" colspan="6">{html.escape(group)}</td></tr>')
            last = group
        low, high = m.spread
        figures = "".join(f"<td>{value:,.4g}</td>" for value in (m.median, low, high))
        rows.append(
            f"<tr><td>{html.escape(m.name)}</td>{figures}<td>{html.escape(m.unit)}</td><td>{len(m.rounds)}</td></tr>"
        )
    head = "<tr><th></th><th>median</th><th>minimum</th><th>maximum</th><th>unit</th><th>rounds</th></tr>"
    return f"<table>{head}{''.join(rows)}</table>"


def _stamp(result: Result) -> str:
    machine, data = result.machine, result.dataset
    parts = [
        f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_gib']} GiB",
        *(machine["gpus"] or ["no GPU"]),
    ]
    if data:
        parts.append(
            f"{data['records']:,} records of {data['name']} in {data['shards']} shards, "
            f"{data['mean_width']} × {data['mean_height']} pixels and {data['mean_kilobytes']} kB on average"
        )
    parts += [f"{name} {version}" for name, version in result.versions.items()]
    parts += [f"{name}={value}" for name, value in machine["malloc"].items()]
    text = html.escape("; ".join(parts))
    when = html.escape(f"{result.date}, commit {result.commit}")
    return f'<p class="stamp"><code>{html.escape(result.command)}</code><br>{when}<br>{text}</p>'
