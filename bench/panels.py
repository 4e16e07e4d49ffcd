"""The parts of charts: figures with panels, horizontal bars, lines. matplotlib is used without its global state."""

from collections.abc import Callable, Sequence

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from bench.measurement import Measurement

BLUE, GREY, INK, RED = "#1f5fa8", "#a9b1ba", "#222222", "#b3412e"
SERIES = (BLUE, "#d98b27", "#4a8f5c", "#7a5ea8", GREY)
_FAINT = "#e3e6e9"
_WIDTH = 9.0  # inches
_BAR, _SMALL_BAR = 0.62, 0.5  # of a row
_PLATE = {"facecolor": "white", "edgecolor": "none", "pad": 0.8}  # keeps a figure readable on a grid line
_WHISKER = {"ecolor": INK, "elinewidth": 1, "capsize": 2.5}


def new_figure(title: str, panels: int, height: float, xlabel: str = "") -> tuple[Figure, list[Axes]]:
    """Makes a figure with panels in two columns.

    Args:
        title: the title of the whole figure.
        panels: the number of panels.
        height: inches of a panel.
        xlabel: a label for the x axes of all panels; "" if each gets its own.

    Returns:
        The figure and its panels.
    """
    columns = min(2, panels)
    rows = -(-panels // columns)
    figure = Figure((_WIDTH, rows * (height + 0.5) + 0.6), layout="constrained")
    figure.get_layout_engine().set(h_pad=0.1, w_pad=0.1)
    figure.suptitle(title, x=0.01, ha="left", size=11, color=INK)
    if xlabel:
        figure.supxlabel(xlabel, size=9, color=INK)
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axis in axes[panels:]:
        axis.remove()
    for axis in axes[:panels]:
        axis.spines[["top", "right", "left"]].set_visible(False)
        axis.spines["bottom"].set_color(GREY)
        axis.grid(axis="x", color=_FAINT, linewidth=0.8)
        axis.set_axisbelow(True)
        axis.tick_params(colors=INK, labelsize=8, length=0, which="both")
        axis.xaxis.label.set_size(9)
        axis.yaxis.label.set_size(9)
    return figure, axes[:panels]


def row_height(groups: Sequence[Sequence[Measurement]], inches: float = 0.34) -> float:
    """The height of a panel that has room for the rows of each group."""
    return 0.9 + inches * max(map(len, groups))


def add_legend(figure: Figure, handles: Sequence[Artist]) -> None:
    """Adds a legend to the right of the title, where it covers nothing."""
    figure.legend(handles=handles, loc="upper right", ncols=len(handles), frameon=False, fontsize=8)


def draw_bars(
    panel: Axes,
    rows: Sequence[tuple[str, Measurement]],
    form: str,
    is_ours: Callable[[Measurement], bool],
    marks: Sequence[float | None] | None = None,
) -> None:
    """Draws horizontal bars of the medians, with whiskers from minimum to maximum, the first row at the bottom.

    Args:
        panel: where to draw.
        rows: the label and the measurement of each bar.
        form: the format of the number that is written at the end of the bar.
        is_ours: whether a bar is blue; the others are grey.
        marks: a second value for each row, which the caller draws; the number is then written inside the bar.
    """
    longest = max(m.median for _, m in rows)
    for row, ((_, m), mark) in enumerate(zip(rows, marks or [None] * len(rows), strict=True)):
        low, high = m.spread
        ours = is_ours(m)
        errors = [[m.median - low], [high - m.median]]
        height = _BAR if marks is None else _SMALL_BAR
        panel.barh(row, m.median, height, color=BLUE if ours else GREY, xerr=errors, error_kw=_WHISKER)
        figure = form.format(m.median).replace("-0%", "0%").replace("+0%", "0%")
        if mark is not None and m.median > 0.25 * longest:
            panel.text(0, row, f"  {figure}", va="center", size=8, color="white" if ours else INK, weight="bold")
        else:
            right = max(high, mark or 0.0, 0.0)
            panel.text(right, row, f"  {figure}", va="center", size=8, color=INK, bbox=_PLATE, zorder=1.5)
    panel.set_yticks(range(len(rows)), [label for label, _ in rows], size=8)
    panel.set_ylim(-0.6, len(rows) - 0.4)
    panel.margins(x=0.16)


def draw_lines(
    panel: Axes,
    lines: Sequence[tuple[str, str, Sequence[float], Sequence[float]]],
    xlabel: str,
    ylabel: str,
    *,
    log: bool = False,
) -> None:
    """Draws lines over whole numbers.

    Args:
        panel: where to draw.
        lines: label, colour, x and y of each line.
        xlabel: the label of the x axis.
        ylabel: the label of the y axis.
        log: whether both axes are logarithmic; otherwise the y axis starts at 0.
    """
    for label, colour, x, y in lines:
        panel.plot(x, y, "o-", color=colour, markersize=4, label=label)
    panel.set_xlabel(xlabel)
    panel.set_ylabel(ylabel)
    if log:
        panel.set_xscale("log")
        panel.set_yscale("log")
        for axis in (panel.xaxis, panel.yaxis):
            axis.set_minor_formatter(NullFormatter())
            axis.set_major_formatter(lambda value, _: f"{value:,.0f}" if value >= 1 else f"{value:g}")
        return
    panel.xaxis.get_major_locator().set_params(integer=True)
    panel.yaxis.set_major_formatter("{x:,.0f}")
    panel.set_ylim(bottom=0)
