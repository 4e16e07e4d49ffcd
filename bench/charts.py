"""The charts of a result, one function for each kind; matplotlib without its global state."""

from collections.abc import Iterator, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from bench import decode, peers
from bench.measurement import Measurement, select

OURS = {"dali": "kimagenet, dali", "tfdata": "kimagenet, tf.data"}
_BLUE, _GREY, _INK, _FAINT, _RED = "#1f5fa8", "#a9b1ba", "#222222", "#e3e6e9", "#b3412e"
_SERIES = (_BLUE, "#d98b27", "#4a8f5c", "#7a5ea8", _GREY)
_WIDTH = 9.0  # inches


def charts(measurements: Sequence[Measurement]) -> Iterator[tuple[str, Figure]]:
    """(a line above it, the chart) for all measurements of one question."""
    question = measurements[0].question
    for draw in _CHARTS.get(question, ()):
        if (chart := draw(measurements)) is not None:
            yield chart


def title_of(name: str) -> str:
    """What a candidate is called in a chart."""
    loader, _, rest = name.partition(" ")
    if loader in OURS and (not rest or rest.startswith("over ")):
        return f"{OURS[loader]} {rest}".strip()
    return getattr(peers.peer(name), "TITLE", name) if name in peers.names() else name


def setting_line(settings: dict[str, Any], *without: str) -> str:
    """`224 px, batches of 64, 2 threads` and whatever else is set."""
    words = {
        "image_size": "{} px",
        "batch_size": "batches of {}",
        "workers": "{} threads",
        "augment": "{} augmentation",
        "dtype": "{}",
    }
    hidden = {*without, "prefetch", "device" if settings.get("device") == "cpu" else ""}
    return ", ".join(
        words.get(k, k.replace("_", " ") + " {}").format(v) for k, v in settings.items() if k not in hidden
    )


def against_limit(measurements: Sequence[Measurement]) -> tuple[str, Figure] | None:
    """One panel of bars for each augmentation and dtype: the rate as a share of the limit's."""
    question = measurements[0].question
    shares = [m for m in select(measurements, question, f"of {decode.LIMIT}") if m.name != "synthetic"]
    panels, shared = _grouped(shares)
    if not panels:
        return None
    by_cpu, _ = _grouped(select(measurements, question, f"of {decode.LIMIT} by CPU time"))
    figure, axes = _figure(len(panels), 0.9 + 0.34 * max(len(group) for group in panels.values()))
    for panel, (heading, group) in zip(axes, panels.items(), strict=True):
        bars = sorted(group, key=lambda m: m.median)
        cpu = {m.name: m.median for m in by_cpu.get(heading, ())}
        marks = [cpu.get(m.name, 0.0) for m in bars]
        _bars(panel, [(title_of(m.name), m) for m in bars], "{:.2f}", marks=marks)
        marked = [row for row, mark in enumerate(marks) if mark]
        panel.plot([marks[row] for row in marked], marked, "D", color=_RED, markersize=4)
        panel.axvline(1, color=_INK, linewidth=1.2, zorder=1)
        panel.text(1, 1, "decode limit", transform=panel.get_xaxis_transform(), va="bottom", ha="center", size=8)
        panel.set_title(heading.capitalize(), size=10, loc="left", pad=14)
        panel.set_xlabel("images/s, as a share of the decode limit")
        panel.set_title("red: by CPU time", size=8, loc="right", color=_RED, pad=14)
        panel.set_ylim(-0.6, max(map(len, panels.values())) - 0.4)
    limit = "The limit is JPEG decoding alone with the same threads, in the same round"
    return f"{shared}. {limit}. Red: the same by CPU time, which is steadier on a machine that others use too.", figure


def decoders(measurements: Sequence[Measurement]) -> tuple[str, Figure] | None:
    """Images/s of each decoder."""
    panels, shared = _grouped(select(measurements, "decode", "images/s"))
    figure, axes = _figure(len(panels), 0.9 + 0.34 * max(len(group) for group in panels.values()))
    for panel, (heading, group) in zip(axes, panels.items(), strict=True):
        _bars(panel, [(m.name, m) for m in sorted(group, key=lambda m: m.median)], "{:,.0f}")
        panel.set_title(heading.capitalize(), size=10, loc="left")
        panel.set_xlabel("images/s, decoded in full")
    return f"{shared}. The limit is libjpeg-turbo under plain threads; the others are the loaders' decoders.", figure


def prices(measurements: Sequence[Measurement]) -> tuple[str, Figure] | None:
    """What each augmentation takes from the rate."""
    lost = select(measurements, "loaders", "of the rate lost")
    panels = {
        name: [m for m in lost if m.settings["loader"] == name]
        for name in dict.fromkeys(m.settings["loader"] for m in lost)
    }
    if not panels:
        return None
    figure, axes = _figure(len(panels), 0.9 + 0.34 * max(len(group) for group in panels.values()))
    for panel, (name, group) in zip(axes, panels.items(), strict=True):
        rows = [
            (
                m.name.partition(": ")[2].replace("rotation", "rotation, within full", 1)
                if m.name.endswith(": rotation")
                else m.name.partition(": ")[2],
                m,
            )
            for m in group
        ]
        _bars(panel, rows[::-1], "{:+.0%}")
        panel.axvline(0, color=_INK, linewidth=1)
        panel.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
        panel.set_title(title_of(name), size=10, loc="left")
        panel.set_xlabel("share of the rate lost")
    return "The price of an augmentation: its rate against the rate without it.", figure


def training(measurements: Sequence[Measurement]) -> tuple[str, Figure] | None:
    """Measured beside predicted, and the data wait."""
    predicted = {m.name.removesuffix(": predicted"): m for m in measurements if m.name.endswith(": predicted")}
    measured = [m for m in measurements if m.name in predicted]
    if not measured:
        return None
    figure, (rate, wait) = _figure(2, 0.9 + 0.5 * len(measured))
    for row, m in enumerate(measured[::-1]):
        low, high = m.spread
        rate.barh(row, m.median, 0.5, color=_BLUE, xerr=[[m.median - low], [high - m.median]], error_kw=_WHISKER)
        expected = predicted[m.name].median
        rate.plot([expected] * 2, [row - 0.36, row + 0.36], color=_RED, linewidth=2.5)
        rate.text(max(high, expected), row, f"  {m.median:,.0f}", va="center", size=8)
    waits = {m.name.removesuffix(": data wait"): m for m in measurements if m.name.endswith(": data wait")}
    suffix = ": predicted data wait"
    expected_waits = {m.name.removesuffix(suffix): m.median for m in measurements if m.name.endswith(suffix)}
    marks = [expected_waits.get(m.name, 0.0) for m in measured[::-1]]
    _bars(wait, [("", waits[m.name]) for m in measured[::-1]], "{:.0%}", height=0.5, marks=marks)
    for row, m in enumerate(measured[::-1]):
        if m.name in expected_waits:
            wait.plot([expected_waits[m.name]] * 2, [row - 0.36, row + 0.36], color=_RED, linewidth=2.5)
    rate.set_yticks(range(len(measured)), [m.name for m in measured[::-1]], size=8)
    rate.set_xlabel("images/s in training")
    rate.margins(x=0.18)
    wait.set_xlim(0, 1.1)
    for panel in (rate, wait):
        panel.set_ylim(-0.6, len(measured) - 0.4)
    rate.set_title("red: predicted", size=8, loc="right", color=_RED)
    wait.set_xlabel("share of the time spent waiting for data")
    wait.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    return "Blue: measured. Red: predicted from the loader alone and the model on synthetic batches.", figure


def latency(measurements: Sequence[Measurement]) -> tuple[str, Figure] | None:
    """Percentiles of the gaps between batches."""
    panels, shared = _grouped(select(measurements, "latency", "ms"))
    figure, axes = _figure(len(panels), 0.9 + 0.26 * max(len(group) for group in panels.values()))
    for panel, (heading, group) in zip(axes, panels.items(), strict=True):
        _bars(panel, [(m.name, m) for m in group[::-1]], "{:,.0f}")
        panel.set_title(heading.capitalize(), size=10, loc="left")
        panel.set_xlabel("ms from one batch to the next")
    return f"{shared}; batches are taken as fast as they come.", figure


def startup(measurements: Sequence[Measurement]) -> tuple[str, Figure] | None:
    """Seconds until data flows."""
    seconds = select(measurements, "startup", "s")
    figure, (panel,) = _figure(1, 0.9 + 0.34 * len(seconds))
    rows = [(f"{m.name} ({m.settings['records']:,} records)", m) for m in seconds]
    _bars(panel, rows[::-1], "{:.2f}")
    panel.set_xlabel("seconds")
    return "Seconds until the first batch.", figure


def threads(measurements: Sequence[Measurement]) -> tuple[str, Figure] | None:
    """Images/s over threads."""
    rates = select(measurements, "scaling", "images/s")
    if len({m.settings["workers"] for m in rates}) < 2:
        return None
    figure, (panel,) = _figure(1, 2.6)
    for colour, name in zip(_SERIES, dict.fromkeys(m.name for m in rates), strict=False):
        line = [m for m in rates if m.name == name]
        panel.plot(
            [m.settings["workers"] for m in line],
            [m.median for m in line],
            "o-",
            color=_INK if name == decode.LIMIT else colour,
            label=title_of(name),
        )
    panel.set_xticks(sorted({m.settings["workers"] for m in rates}))
    panel.set_ylim(bottom=0)
    panel.set_xlabel("threads")
    panel.set_ylabel("images/s")
    panel.legend(frameon=False, fontsize=8)
    return "Full augmentation; the limit is JPEG decoding alone.", figure


def plans(measurements: Sequence[Measurement]) -> tuple[str, Figure] | None:
    """Seconds and memory of an epoch's plan over its records."""
    made = [m for m in measurements if "plan of" in m.name]
    by_records = [m for m in made if m.settings["shards"] == max(1, m.settings["records"] // 1250)]
    if len({m.settings["records"] for m in by_records}) < 2:
        return None
    figure, (left, right) = _figure(2, 3.0)
    for panel, unit, ending, label, colour in (
        (left, "s", "in order", "put in order", _BLUE),
        (left, "s", "for DALI", "drawn and written for DALI", "#d98b27"),
        (right, "MB", "memory", "both", _BLUE),
    ):
        line = [m for m in by_records if m.unit == unit and m.name.endswith(ending)]
        line.sort(key=lambda m: m.settings["records"])
        panel.plot([m.settings["records"] for m in line], [m.median for m in line], "o-", color=colour, label=label)
    for panel, label in ((left, "seconds"), (right, "MB at the peak")):
        panel.set_xscale("log")
        panel.set_yscale("log")
        for axis in (panel.xaxis, panel.yaxis):
            axis.set_minor_formatter(NullFormatter())
            axis.set_major_formatter("{x:,g}")
        panel.set_xlabel("records of an epoch")
        panel.set_ylabel(label)
        panel.legend(frameon=False, fontsize=8)
    return "What the plan of an epoch costs, in a process of its own.", figure


def memory(measurements: Sequence[Measurement]) -> tuple[str, Figure] | None:
    """Resident memory by epoch."""
    figure, (panel,) = _figure(1, 2.4)
    for colour, m in zip(_SERIES, select(measurements, "memory", "MB"), strict=False):
        panel.plot(
            range(1, len(m.rounds) + 1), m.rounds, "o-", color=colour, markersize=3, label=m.name.partition(":")[0]
        )
    panel.set_ylim(bottom=0)
    panel.set_xlabel("epoch")
    panel.set_ylabel("MB resident")
    panel.legend(frameon=False, fontsize=8)
    return "Resident memory at the end of each epoch.", figure


def optimizers(measurements: Sequence[Measurement]) -> tuple[str, Figure] | None:
    """Cost of a call against the bare optimizer."""
    ratios = select(measurements, "optimizers", "of bare")
    figure, (panel,) = _figure(1, 0.9 + 0.3 * len(ratios))
    _bars(panel, [(m.name, m) for m in ratios[::-1]], "{:.2f}")
    panel.axvline(1, color=_INK, linewidth=1.2)
    panel.set_xlabel("time of a call, in units of the bare optimizer's")
    return "A call of each wrapper against the bare optimizer.", figure


_CHARTS = {
    "decode": (decoders,),
    "loaders": (against_limit, prices),
    "peers": (against_limit,),
    "training": (training,),
    "latency": (latency,),
    "startup": (startup,),
    "scaling": (threads, plans),
    "memory": (memory,),
    "optimizers": (optimizers,),
}

_PLATE = {"facecolor": "white", "edgecolor": "none", "pad": 0.8}  # a figure stays readable on a line
_WHISKER = {"ecolor": _INK, "elinewidth": 1, "capsize": 2.5}


def _grouped(measurements: Sequence[Measurement]) -> tuple[dict[str, list[Measurement]], str]:
    """By settings: what differs heads a group, what all share is said once."""
    if not measurements:
        return {}, ""
    first = measurements[0].settings
    shared = {k: v for k, v in first.items() if all(m.settings.get(k) == v for m in measurements)}
    groups: dict[str, list[Measurement]] = {}
    for m in measurements:
        groups.setdefault(setting_line(m.settings, *shared), []).append(m)
    return groups, setting_line(shared)


def _figure(panels: int, height: float) -> tuple[Figure, list[Axes]]:
    """Panels in pairs, on white, with a frame that is hardly there."""
    columns = min(2, panels)
    rows = -(-panels // columns)
    figure = Figure((_WIDTH, rows * (height + 0.5)), layout="constrained")
    figure.get_layout_engine().set(h_pad=0.1)
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axis in axes[panels:]:
        axis.remove()
    for axis in axes[:panels]:
        axis.spines[["top", "right", "left"]].set_visible(False)
        axis.spines["bottom"].set_color(_GREY)
        axis.grid(axis="x", color=_FAINT, linewidth=0.8)
        axis.set_axisbelow(True)
        axis.tick_params(colors=_INK, labelsize=8, length=0)
        axis.xaxis.label.set_size(8)
        axis.yaxis.label.set_size(8)
    return figure, axes[:panels]


def _bars(
    panel: Axes,
    rows: Sequence[tuple[str, Measurement]],
    form: str,
    height: float = 0.62,
    marks: Sequence[float] | None = None,
) -> None:
    """Horizontal bars with whiskers, ours in blue; their figures stand in them where there are `marks` to be drawn."""
    longest = max(m.median for _, m in rows)
    for row, ((_, m), mark) in enumerate(zip(rows, marks or [0.0] * len(rows), strict=True)):
        low, high = m.spread
        ours = m.name.partition(" ")[0].rstrip(":") in OURS or "loader" in m.settings
        panel.barh(
            row,
            m.median,
            height,
            color=_BLUE if ours else _GREY,
            xerr=[[m.median - low], [high - m.median]],
            error_kw=_WHISKER,
        )
        figure = form.format(m.median).replace("-0%", "0%").replace("+0%", "0%")
        if mark and m.median > 0.15 * longest:
            panel.text(0, row, "  " + figure, va="center", size=8, color="white" if ours else _INK, weight="bold")
        else:
            right = max(high, mark, 0)
            panel.text(right, row, "  " + figure, va="center", size=8, color=_INK, bbox=_PLATE, zorder=1.5)
    panel.set_yticks(range(len(rows)), [label for label, _ in rows], size=8)
    panel.margins(x=0.14, y=0.02)
