"""Measurements as tables for the terminal."""

import textwrap
from collections.abc import Sequence

from bench.measurement import Measurement

_HEADING_WIDTH = 16


def tables(measurements: Sequence[Measurement]) -> str:
    """Lays measurements out as tables with a row for each name and a column for each unit.

    Names with the same first unit share a table. Figures are medians; for the first unit the table also has minimum
    and maximum.

    Args:
        measurements: of one question and with the same settings.

    Returns:
        The lines of all tables.
    """
    by_name: dict[str, list[Measurement]] = {}
    for m in measurements:
        by_name.setdefault(m.name, []).append(m)
    by_unit: dict[str, list[list[Measurement]]] = {}
    for same_name in by_name.values():
        by_unit.setdefault(same_name[0].unit, []).append(same_name)
    return "\n".join(_table(rows) for rows in by_unit.values())


def _table(rows: Sequence[Sequence[Measurement]]) -> str:
    """One table; each row has the measurements of one name."""
    first, *others = dict.fromkeys(m.unit for row in rows for m in row)
    columns = [["", *(row[0].name for row in rows)], [first, *(short(row[0].median) for row in rows)]]
    if any(len(row[0].rounds) > 1 for row in rows):
        columns.append(["min … max", *(" … ".join(map(short, row[0].spread)) for row in rows)])
    for unit in others:
        medians = [{m.unit: short(m.median) for m in row} for row in rows]
        columns.append([unit, *(found.get(unit, "") for found in medians)])
    headings = [textwrap.wrap(column[0], _HEADING_WIDTH) for column in columns]
    height = max(map(len, headings))
    padded = [
        [""] * (height - len(heading)) + heading + column[1:] for heading, column in zip(headings, columns, strict=True)
    ]
    widths = [max(map(len, column)) for column in padded]
    return "\n".join(
        "   ".join([name.ljust(widths[0]), *map(str.rjust, figures, widths[1:])]).rstrip()
        for name, *figures in zip(*padded, strict=True)
    )


def short(value: float) -> str:
    """The value with three digits, or without a fraction from 1,000 on."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
