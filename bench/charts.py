"""The charts of a result: one function for each kind of chart, and the kinds that each question has."""

import textwrap
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from bench import decode, peers
from bench.measurement import Measurement, select
from bench.panels import (
    BLUE,
    INK,
    RED,
    SERIES,
    add_legend,
    draw_bars,
    draw_lines,
    new_figure,
    row_height,
)
from bench.settings import AUGMENTS

OURS = {"dali": "kimagenet, dali", "tfdata": "kimagenet, tf.data"}
Chart = tuple[str, Figure]  # the caption and the figure


def charts(measurements: Sequence[Measurement]) -> Iterator[Chart]:
    """Draws the charts of a question.

    Args:
        measurements: all measurements of one question.

    Returns:
        The caption and the figure of each chart.
    """
    for draw in _CHARTS.get(measurements[0].question, ()):
        if (chart := draw(measurements)) is not None:
            yield chart


def title_of(name: str) -> str:
    """The name of a candidate in charts."""
    loader, _, rest = name.partition(" ")
    if loader in OURS and (not rest or rest.startswith(("over ", "without "))):
        return f"{OURS[loader]} {rest}".strip()
    return getattr(peers.peer(name), "TITLE", name) if name in peers.names() else name


def setting_line(settings: dict[str, Any], *without: str) -> str:
    """Settings in words, as `224 px, batches of 64, 2 threads`.

    Args:
        settings: of a measurement.
        *without: names of settings to leave out.
    """
    words = {
        "image_size": "{} px",
        "batch_size": "batches of {}",
        "workers": "{} threads",
        "augment": "{} augmentation",
        "dtype": "{}",
        "records_from": "records from {}",
    }
    hidden = {*without, "prefetch", "device" if settings.get("device") == "cpu" else ""}
    return ", ".join(
        words.get(k, k.replace("_", " ") + " {}").format(v) for k, v in settings.items() if k not in hidden
    )


def against_limit(measurements: Sequence[Measurement]) -> Chart | None:
    """Bars of the rates as shares of the decode limit, a panel for each augmentation and dtype."""
    question = measurements[0].question
    shares = [m for m in select(measurements, question, f"of {decode.LIMIT}") if m.name != "synthetic"]
    panels, shared = _grouped(shares)
    if not panels:
        return None
    by_cpu, _ = _grouped(select(measurements, question, f"of {decode.LIMIT} by CPU time"))
    figure, axes = new_figure(
        "Images/s compared with JPEG decoding alone",
        len(panels),
        row_height(list(panels.values())),
        xlabel=f"share of the decode limit ({shared})",
    )
    for panel, (heading, group) in zip(axes, panels.items(), strict=True):
        bars = sorted(group, key=lambda m: m.median)
        cpu = {m.name: m.median for m in by_cpu.get(heading, ())}
        marks = [cpu.get(m.name) for m in bars]
        draw_bars(panel, [(title_of(m.name), m) for m in bars], "{:.2f}", _is_ours, marks)
        marked = [(mark, row) for row, mark in enumerate(marks) if mark is not None]
        panel.plot([mark for mark, _ in marked], [row for _, row in marked], "D", color=RED, markersize=4)
        panel.axvline(1, color=INK, linewidth=1.2, zorder=1)
        panel.set_title(heading.capitalize(), size=10, loc="left")
        panel.set_ylim(-0.6, max(map(len, panels.values())) - 0.4)
    limit = Line2D([], [], color=INK, linewidth=1.2, label="decode limit")
    add_legend(figure, [limit, Line2D([], [], color=RED, marker="D", markersize=4, linestyle="", label="by CPU time")])
    return (
        f"{shared}. The decode limit is JPEG decoding alone with the same number of threads, in the same round. "
        "Red: the share by CPU time, which varies less on a shared machine.",
        figure,
    )


def decoders(measurements: Sequence[Measurement]) -> Chart | None:
    """Bars of the rate of each decoder."""
    panels, shared = _grouped(select(measurements, "decode", "images/s"))
    figure, axes = new_figure(
        "Whole images decoded per second", len(panels), row_height(list(panels.values())), xlabel="images/s"
    )
    for panel, (heading, group) in zip(axes, panels.items(), strict=True):
        draw_bars(panel, [(m.name, m) for m in sorted(group, key=lambda m: m.median)], "{:,.0f}", _is_ours)
        panel.set_title(heading.capitalize(), size=10, loc="left")
    return f"{shared}. The limit is libjpeg-turbo in Python threads; the others are the loaders' decoders.", figure


def costs(measurements: Sequence[Measurement]) -> Chart | None:
    """Bars of the share of the rate that each augmentation costs, a panel for each loader."""
    lost = select(measurements, "loaders", "of the rate lost")
    panels = {
        name: [m for m in lost if m.settings["loader"] == name]
        for name in dict.fromkeys(m.settings["loader"] for m in lost)
    }
    if not panels:
        return None
    figure, axes = new_figure(
        "The cost of augmentations", len(panels), row_height(list(panels.values())), xlabel="share of images/s lost"
    )
    for panel, (name, group) in zip(axes, panels.items(), strict=True):
        rows = [(_augmentation_of(m), m) for m in group]
        draw_bars(panel, rows[::-1], "{:+.0%}", _is_ours)
        panel.axvline(0, color=INK, linewidth=1)
        panel.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
        panel.set_title(title_of(name), size=10, loc="left")
    return "The cost of an augmentation: how much lower the rate is with it than without it.", figure


def _augmentation_of(m: Measurement) -> str:
    name = m.name.partition(": ")[2]
    return "rotation, in full augmentation" if name == "rotation" else name


def training(measurements: Sequence[Measurement]) -> Chart | None:
    """Bars of the measured rate and data wait, with the predictions."""
    predicted = {m.name.removesuffix(": predicted"): m for m in measurements if m.name.endswith(": predicted")}
    measured = [m for m in measurements if m.name in predicted][::-1]
    if not measured:
        return None
    figure, (rate, wait) = new_figure("Training: measured and predicted", 2, 0.6 + 0.45 * len(measured))
    rates = [predicted[m.name].median for m in measured]
    draw_bars(rate, [(m.name, m) for m in measured], "{:,.0f}", _is_ours, rates)
    waits = {m.name.removesuffix(": data wait"): m for m in measurements if m.name.endswith(": data wait")}
    suffix = ": predicted data wait"
    expected = {m.name.removesuffix(suffix): m.median for m in measurements if m.name.endswith(suffix)}
    expected_waits = [expected.get(m.name) for m in measured]
    draw_bars(wait, [("", waits[m.name]) for m in measured], "{:.0%}", _is_ours, expected_waits)
    _mark(rate, rates)
    _mark(wait, expected_waits)
    rate.xaxis.set_major_formatter("{x:,.0f}")
    rate.set_xlabel("images/s in training")
    wait.set_xlim(0, 1.1)
    wait.set_xlabel("share of the time spent waiting for data")
    wait.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    add_legend(
        figure, [Patch(color=BLUE, label="measured"), Line2D([], [], color=RED, linewidth=2.5, label="predicted")]
    )
    return "Red: predicted from the loader alone and the model on synthetic batches.", figure


def _mark(panel: Axes, values: Sequence[float | None]) -> None:
    """A vertical red line in each row that has a value."""
    for row, value in enumerate(values):
        if value is not None:
            panel.plot([value, value], [row - 0.36, row + 0.36], color=RED, linewidth=2.5)


def latency(measurements: Sequence[Measurement]) -> Chart | None:
    """Bars of the percentiles of the time between batches."""
    panels, shared = _grouped(select(measurements, "latency", "ms"))
    figure, axes = new_figure(
        "Time between batches", len(panels), row_height(list(panels.values()), 0.26), xlabel="ms from batch to batch"
    )
    for panel, (heading, group) in zip(axes, panels.items(), strict=True):
        draw_bars(panel, [(m.name, m) for m in group[::-1]], "{:,.0f}", _is_ours)
        panel.set_title(heading.capitalize(), size=10, loc="left")
    return f"{shared}. Batches are taken as fast as they arrive.", figure


def startup(measurements: Sequence[Measurement]) -> Chart | None:
    """Bars of the seconds until the first batch."""
    seconds = select(measurements, "startup", "s")
    figure, (panel,) = new_figure("Time until the first batch", 1, row_height([seconds]))
    rows = [(f"{m.name} ({m.settings['records']:,} records)", m) for m in seconds]
    draw_bars(panel, rows[::-1], "{:.2f}", _is_ours)
    panel.set_xlabel("seconds")
    return "Seconds until the first batch.", figure


def threads(measurements: Sequence[Measurement]) -> Chart | None:
    """Lines of the rate over the number of threads."""
    rates = select(measurements, "scaling", "images/s")
    counts = sorted({m.settings["workers"] for m in rates})
    if len(counts) < 2:
        return None
    figure, (panel,) = new_figure("Images/s by threads, full augmentation", 1, 2.6)
    lines = []
    for colour, name in zip((INK, *SERIES), dict.fromkeys(m.name for m in rates), strict=False):
        line = [m for m in rates if m.name == name]
        lines.append((title_of(name), colour, [m.settings["workers"] for m in line], [m.median for m in line]))
    draw_lines(panel, lines, "threads", "images/s")
    panel.set_xticks(counts)
    add_legend(figure, panel.get_legend_handles_labels()[0])
    return "Full augmentation. The decode limit is JPEG decoding alone.", figure


def plans(measurements: Sequence[Measurement]) -> Chart | None:
    """Lines of the seconds and the memory that the plan of an epoch takes, over its records."""
    made = [m for m in measurements if "plan of" in m.name]
    by_records = [m for m in made if m.settings["shards"] == max(1, m.settings["records"] // 1250)]
    by_records.sort(key=lambda m: m.settings["records"])
    if len({m.settings["records"] for m in by_records}) < 2:
        return None
    figure, (seconds, memory) = new_figure("The cost of the plan of an epoch", 2, 3.0)
    lines = []
    for unit, ending, label, colour in (
        ("s", "order", "compute the order", SERIES[0]),
        ("s", "for DALI", "draw augmentations, write files for DALI", SERIES[1]),
        ("MB", "memory", "", INK),
    ):
        line = [m for m in by_records if m.unit == unit and m.name.endswith(ending)]
        lines.append((label, colour, [m.settings["records"] for m in line], [m.median for m in line]))
    draw_lines(seconds, lines[:2], "records of an epoch", "seconds", log=True)
    draw_lines(memory, lines[2:], "records of an epoch", "peak memory, MB", log=True)
    add_legend(figure, seconds.get_legend_handles_labels()[0])
    return "The cost of the plan of an epoch, in a new process.", figure


def memory(measurements: Sequence[Measurement]) -> Chart | None:
    """Lines of the resident memory over the epochs."""
    figure, (panel,) = new_figure("Resident memory at the end of each epoch", 1, 2.4)
    draw_lines(
        panel,
        [
            (title_of(m.name.partition(":")[0]), colour, range(1, len(m.rounds) + 1), m.rounds)
            for colour, m in zip(SERIES, select(measurements, "memory", "MB"), strict=False)
        ],
        "epoch",
        "MB",
    )
    add_legend(figure, panel.get_legend_handles_labels()[0])
    return "Resident memory at the end of each epoch.", figure


def storage(measurements: Sequence[Measurement], augment: str) -> Chart | None:
    """Bars of the rate of each candidate, a panel for each kind of storage."""
    found = select(measurements, "storage", "images/s", augment=augment)
    panels = {
        case: [m for m in found if m.settings["case"] == case]
        for case in dict.fromkeys(m.settings["case"] for m in found)
    }
    if not panels:
        return None
    rows = row_height(list(panels.values()), 0.3)
    figure, axes = new_figure(f"Images/s by storage, {augment} augmentation", len(panels), rows, xlabel="images/s")
    most = max(m.spread[1] for m in found)
    for panel, (case, group) in zip(axes, panels.items(), strict=True):
        draw_bars(panel, [(title_of(m.name), m) for m in group[::-1]], "{:,.0f}", _is_ours)
        panel.set_title(textwrap.fill(case[:1].upper() + case[1:], 28), size=10, loc="left")
        panel.set_xlim(0, 1.2 * most)
        panel.xaxis.set_major_formatter("{x:,.0f}")
    settings = setting_line(found[0].settings, "case", "records_from")
    return f"{settings}. Each turn is a separate process; the shards' pages were dropped before.", figure


def optimizers(measurements: Sequence[Measurement]) -> Chart | None:
    """Bars of the time of a call relative to the bare optimizer."""
    ratios = select(measurements, "optimizers", "of bare")
    figure, (panel,) = new_figure("Time of a call relative to the bare optimizer", 1, row_height([ratios], 0.3))
    draw_bars(panel, [(m.name, m) for m in ratios[::-1]], "{:.2f}", lambda m: ": bare" not in m.name)
    panel.axvline(1, color=INK, linewidth=1.2)
    panel.set_xlabel("time relative to the bare optimizer")
    return "A call of each wrapper, compared with the bare optimizer.", figure


_CHARTS: dict[str, tuple[Callable[[Sequence[Measurement]], Chart | None], ...]] = {
    "decode": (decoders,),
    "loaders": (against_limit, costs),
    "peers": (against_limit,),
    "training": (training,),
    "latency": (latency,),
    "startup": (startup,),
    "scaling": (threads, plans),
    "memory": (memory,),
    "storage": tuple(partial(storage, augment=augment) for augment in AUGMENTS),
    "optimizers": (optimizers,),
}


def _is_ours(m: Measurement) -> bool:
    return m.name.partition(" ")[0].rstrip(":") in OURS or "loader" in m.settings


def _grouped(measurements: Sequence[Measurement]) -> tuple[dict[str, list[Measurement]], str]:
    """Measurements by the settings in which they differ, in words; and the settings that all share, in words."""
    if not measurements:
        return {}, ""
    first = measurements[0].settings
    shared = {k: v for k, v in first.items() if all(m.settings.get(k) == v for m in measurements)}
    groups: dict[str, list[Measurement]] = {}
    for m in measurements:
        groups.setdefault(setting_line(m.settings, *shared), []).append(m)
    return groups, setting_line(shared)
