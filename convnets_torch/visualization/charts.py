"""Draw charts with matplotlib: confusion matrices, histograms, curves and reliability diagrams.

Each function draws into `ax`, by default the only axes of a new figure, and returns it; `save_chart` writes a chart.
pyplot is not used, so charts need no display and can be drawn in several threads.
"""

from __future__ import annotations

import functools
import math
import os
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from convnets_torch.files import check_writable, replacing
from convnets_torch.text import ConvnetsTorchWarning, printable
from convnets_torch.visualization import letters
from convnets_torch.visualization.overlays import CLASS_COLORS, GREY, INFERNO, INK, PAPER

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Color = tuple[int, int, int]

ENDINGS = (".png", ".svg", ".pdf", ".jpg", ".jpeg", ".webp")
BAR: Color = INFERNO[3]
DPI = 100
WIDTH, HEIGHT = 800, 400  # pixels of a plain chart
MISSING = "\u25a1"  # replaces letters that no font has
LONGEST = 1000  # characters of a title


class ChartWarning(ConvnetsTorchWarning):
    """A chart was left out because matplotlib is not installed; the message names the chart."""


def why_not() -> str:
    """Return the reason why charts cannot be drawn, in one sentence, or an empty string if they can."""
    try:
        import matplotlib
    except ImportError as error:
        return f"a chart needs matplotlib ({error}): pip install 'convnets-torch[plots]'"
    except (OSError, ValueError) as error:
        return f"matplotlib cannot read its settings ({error}); fix or remove its matplotlibrc"
    if matplotlib.rcParams["text.usetex"]:  # set by any matplotlibrc in the working directory
        return "matplotlib is set to draw text with TeX, which would execute code in names; set text.usetex to False"
    return ""


def check_matplotlib() -> None:
    """Raise ImportError if charts cannot be drawn."""
    if reason := why_not():
        raise ImportError(reason)


def check_chart(path: Path) -> None:
    """Raise ValueError for an unknown extension, ImportError without matplotlib, OSError if `path` is not writable."""
    if path.suffix.lower() not in ENDINGS:
        raise ValueError(f"{path} has an unknown ending; a chart is written as {', '.join(ENDINGS)}")
    check_matplotlib()
    check_writable(path)


def save_chart(chart: Axes | Figure, path: str | os.PathLike[str]) -> None:
    """Write a chart's figure atomically, in the format that the extension names.

    The output is reproducible: the same chart gives the same bytes. SVG text stays searchable and selectable. Errors
    are those of `check_chart`.

    >>> save_chart(draw_histogram(np.array([2, 1]), np.array([0, 0.5, 1]), ("Shares",)), "shares.svg")
    """
    path = Path(path)
    check_chart(path)
    with replacing(path) as temporary:
        _write(_figure(chart), temporary, path.suffix.lower())


def png_of(chart: Axes | Figure) -> bytes:
    """Return a chart's figure as the bytes of a PNG file."""
    file = BytesIO()
    _write(_figure(chart), file, ".png")
    return file.getvalue()


def _figure(chart: Axes | Figure) -> Any:
    return getattr(chart, "figure", chart)


def _write(figure: Figure, file: Path | BytesIO, ending: str) -> None:
    if ending == ".svg":
        assert isinstance(file, Path)
        _write_svg(figure, file)
        return
    metadata = {"metadata": {"CreationDate": None}} if ending == ".pdf" else {}
    figure.savefig(file, format=ending[1:], dpi=figure.dpi, **metadata)


def _write_svg(figure: Figure, path: Path) -> None:
    """Write SVG as matplotlib does, but with our renderer instead of changed global settings."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    width, height = figure.get_size_inches() * 72
    dpi, canvas = figure.dpi, figure.canvas
    try:
        figure.dpi = 72
        FigureCanvasSVG(figure)  # measures text without rasterising a page
        with path.open("w", encoding="utf-8") as file:
            renderer = _svg_renderer()(width, height, file, metadata={"Date": None})
            figure.draw(renderer)
            renderer.finalize()
    finally:
        figure.dpi = dpi
        figure.set_canvas(canvas)


@functools.cache
def _svg_renderer() -> Any:
    from matplotlib.backends.backend_svg import RendererSVG

    class Renderer(RendererSVG):  # type: ignore[misc]
        """Writes text as text, reproducible ids, and the `gid` of an artist as its tooltip."""

        def draw_text(self, gc: Any, x: Any, y: Any, s: Any, prop: Any, angle: Any, *more: Any, **named: Any) -> None:
            self._draw_text_as_text(gc, x, y, s, prop, angle, False)

        def open_group(self, s: str, gid: str | None = None) -> None:
            super().open_group(s)
            if gid:
                self.writer.element("title", gid)

        def _make_id(self, type: str, content: Any) -> str:
            return f"{type}{sha256(str(content).encode()).hexdigest()[:10]}"

    return Renderer


def new_axes(columns: int = 1, rows: int = 1, *, width: int = WIDTH, height: int = HEIGHT) -> list[Axes]:
    """Return a grid of axes, row by row, in a new figure of `width` x `height` pixels."""
    check_matplotlib()
    from matplotlib.figure import Figure

    inches = ((width + 0.01) / DPI, (height + 0.01) / DPI)  # rounding must not lose a pixel
    figure = Figure(inches, DPI, facecolor="white", layout="constrained")
    figure.get_layout_engine().set(w_pad=0.12, h_pad=0.12)
    found = list(figure.subplots(rows, columns, squeeze=False).flat)
    for ax in found:
        ax.set_axisbelow(True)
        ax.grid(axis="y", color=_rgb((225, 225, 225)))
        ax.tick_params(which="both", length=0, labelcolor=_rgb(GREY), pad=6)
        ax.spines[["top", "right", "left"]].set_visible(False)
        ax.spines["bottom"].set_color(_rgb(GREY))
    return found


def _rgb(color: Sequence[float]) -> tuple[float, ...]:
    """Scale a colour from 0 to 255 to 0 to 1."""
    return tuple(value / 255 for value in color)


def _text_options(texts: Iterable[str]) -> tuple[list[str], dict[str, Any]]:
    """Return printable texts and text options: no math, no TeX, and fonts for all letters."""
    shown = [printable(text[:LONGEST]) for text in texts]
    families, missing = _families("".join(sorted(set("".join(shown)))), os.environ.get(letters.SETTING, ""))
    if missing:
        table = dict.fromkeys(map(ord, missing), MISSING)
        shown = [text.translate(table) for text in shown]
    return shown, {"parse_math": False, "usetex": False, "family": families}


@functools.lru_cache(maxsize=1000)
def _families(every: str, setting: str) -> tuple[list[str], str]:
    """Return font families that together cover the letters, and the letters that no font has.

    Tried in order: the font of the setting, DejaVu Sans (which comes with matplotlib), system fonts.
    """
    first = [name for name in (_family(setting),) if name] if setting else []
    families, missing = [*first, "DejaVu Sans"], []
    for letter in every:
        if letter.isspace() or any(_has(family, letter) for family in families):
            continue
        path = letters.font_for(letter, setting)
        name = _family(path) if path else None
        if name is not None and _has(name, letter):
            families.append(name)
        else:
            missing.append(letter)
    return families, "".join(missing)


@functools.lru_cache(maxsize=100)
def _family(path: str) -> str | None:
    """Return matplotlib's name for a font file, or None if matplotlib cannot use it."""
    from matplotlib.font_manager import fontManager
    from PIL import ImageFont

    try:
        path = str(ImageFont.truetype(path).path)
    except OSError:
        return None
    for entry in fontManager.ttflist:
        if entry.fname == path:
            return entry.name
    try:
        fontManager.addfont(path)
    except (OSError, RuntimeError, NotImplementedError):  # such as a bitmap font
        return None
    return fontManager.ttflist[-1].name


def _has(family: str, letter: str) -> bool:
    from matplotlib.font_manager import FontProperties, findfont, get_font

    return bool(get_font(findfont(FontProperties(family=[family]))).get_char_index(ord(letter)))


def _title(ax: Axes, lines: Sequence[str], width: int = WIDTH, pad: float = 9, y: float | None = None) -> None:
    """Set title lines, wrapped at about `width` pixels."""
    shown, how = _text_options(lines)
    how |= {"loc": "left", "fontsize": 11, "color": _rgb(INK), "linespacing": 1.4, "pad": pad, "y": y}
    ax.set_title("\n".join(_wrapped(shown, width)), **how)


def _wrapped(lines: Sequence[str], width: int) -> list[str]:
    return [part for line in lines for part in textwrap.wrap(line, max(30, width // 8)) or [""]]


def _legend(ax: Axes, columns: int) -> None:
    ax.legend(loc="upper left", bbox_to_anchor=(0, -0.08), ncols=columns, frameon=False, borderaxespad=0.5)


# Confusion matrices

NOTHING: Color = (247, 247, 247)  # of a cell with count 0
FRAME: Color = (215, 215, 215)
LARGEST = 48  # pixels of a cell
MOST_SIDE = 1200  # pixels of all cells together
NAMED = 14  # minimum pixels of a cell with room for a name
WITH_NAMES = MOST_SIDE // NAMED  # maximum number of classes with names
CELL, CUT, TOOLTIPS = 16, 40, 5000  # with every_name: pixels of a cell, characters of a name, cells with tooltips
MARGIN, GROUP_ROOM = 20, 160  # pixels around the cells, and for group names


def draw_counts(
    counts: NDArray[np.integer],
    names: Sequence[str],
    lines: Sequence[str],
    groups: Sequence[tuple[int, int, str]] = (),
    *,
    every_name: bool = False,
    ax: Axes | None = None,
) -> Axes:
    """Draw a confusion matrix, coloured by the share of each cell in its row.

    With up to 85 classes cells show their counts, and rows and columns their names. With more, cells are plain colours
    of one pixel or more, by the square root of the share, so that single pictures stay visible.

    Args:
        counts: (classes, classes), true classes in rows; a row without pictures stays empty.
        names: of the classes; cut at 40 characters.
        lines: title lines.
        groups: (first, end, words) of neighbouring classes; shown if there is no room for names.
        every_name: show all names, however many classes there are. In SVG they are searchable, and up to 5,000
            non-empty cells have a tooltip with their classes and count.

    >>> ax = draw_counts(np.eye(2, dtype=int), ("ant", "bee"), ("Answers",))
    >>> [label.get_text() for label in ax.get_yticklabels()]
    ['ant', 'bee']
    """
    count = len(names)
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    # The smallest share is already visible.
    strength = (0.08 + 0.92 * (shares if count <= WITH_NAMES else np.sqrt(shares)))[..., None]
    mixed = np.array(PAPER) * (1 - strength) + np.array(BAR) * strength
    colors = np.where(shares[..., None] == 0, np.array(NOTHING), mixed.round()).astype(np.uint8)
    side = max(1, min(LARGEST, MOST_SIDE // count))
    if every_name or count <= WITH_NAMES:
        return _draw_named_cells(counts, shares, colors, names, lines, max(side, CELL if every_name else 1), ax)
    return _draw_unnamed_cells(counts, colors, lines, groups, side, ax)


def _draw_named_cells(
    counts: NDArray[np.integer],
    shares: NDArray[np.float64],
    colors: NDArray[np.uint8],
    names: Sequence[str],
    lines: Sequence[str],
    side: int,
    ax: Axes | None,
) -> Axes:
    count = len(names)
    whole, how = _text_options(names)
    short = [name if len(name) <= CUT else f"{name[: CUT - 1]}\u2026" for name in whole]
    size = min(14, max(8, side - 4))  # font size in pixels
    room = _text_width(short, size, how["family"]) + 12
    extent = side * count
    if ax is None:  # no automatic layout: it takes minutes to measure a thousand names
        width = max(extent, 540)
        above = 24 * len(_wrapped(lines, width)) + MARGIN + room
        ax = _fixed_axes(MARGIN + room, above, extent, extent, MARGIN + width - extent)
        _title(ax, lines, width, y=1 + (room + 6) / extent)
    else:
        _title(ax, lines)
    ax.grid(False)
    ax.set(xlim=(-0.5, count - 0.5), ylim=(count - 0.5, -0.5), aspect="equal", facecolor=_rgb(NOTHING))
    for lines_between in (ax.hlines, ax.vlines):
        lines_between(np.arange(count - 1) + 0.5, -0.5, count - 0.5, color="white", linewidth=min(1.0, side / 24))
    places, letter = np.arange(count), {"fontsize": size * 72 / DPI, "color": _rgb(INK)}
    ax.xaxis.tick_top()
    ax.set_xticks(places, short, rotation=90, **letter, **how)
    ax.set_yticks(places, short, **letter, **how)
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_label_coords(0, 0)  # skips the slow automatic placement of an empty label
        for label, name in zip(axis.get_ticklabels(), whole, strict=True):
            label.set_gid(name if len(name) > CUT else None)
    _draw_cells(ax, counts, shares, colors, whole, side)
    return ax


def _draw_cells(
    ax: Axes,
    counts: NDArray[np.integer],
    shares: NDArray[np.float64],
    colors: NDArray[np.uint8],
    names: Sequence[str],
    side: int,
) -> None:
    """Draw the non-empty cells, with counts where there is room; if there are very many, without counts."""
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path as Outline

    cells, size = np.argwhere(counts), min(14, max(8, side * 2 // 5))
    corners = np.array([[-0.5, -0.5], [0.5, -0.5], [0.5, 0.5], [-0.5, 0.5], [-0.5, -0.5]])
    codes = [Outline.MOVETO, *[Outline.LINETO] * 3, Outline.CLOSEPOLY]
    squares = cells[:, None, ::-1] + corners
    if len(cells) > TOOLTIPS:  # one path per colour
        _, which = np.unique(colors[tuple(cells.T)], axis=0, return_inverse=True)
        for number in range(which.max() + 1):
            some = np.flatnonzero(which == number)
            outline = Outline(squares[some].reshape(-1, 2), codes * len(some))
            ax.add_patch(PathPatch(outline, color=_rgb(colors[tuple(cells[some[0]])]), linewidth=0))
        return
    for (row, column), square in zip(cells.tolist(), squares, strict=True):
        text, tooltip = str(counts[row, column]), f"{names[row]} predicted as {names[column]}: {counts[row, column]}"
        ax.add_patch(PathPatch(Outline(square, codes), color=_rgb(colors[row, column]), linewidth=0, gid=tooltip))
        if 0.62 * size * len(text) <= side:
            ink = _rgb(PAPER if shares[row, column] > 0.5 else INK)
            number = ax.text(column, row, text, color=ink, fontsize=size * 72 / DPI, ha="center", va="center")
            number.set(gid=tooltip, in_layout=False)


def _text_width(texts: Sequence[str], size: int, families: Sequence[str]) -> int:
    """Width in pixels of the longest text at a font size in pixels."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import TextToPath

    measure, font = TextToPath(), FontProperties(family=families, size=size)
    return math.ceil(max(measure.get_text_width_height_descent(text, font, False)[0] for text in texts))


def _fixed_axes(left: int, above: int, width: int, height: int, right: int) -> Axes:
    """Axes of `width` x `height` pixels with margins, in a new figure."""
    [ax] = new_axes(width=left + width + right, height=above + height + MARGIN)
    figure = _figure(ax)
    figure.set_layout_engine("none")
    across, down = figure.bbox.size
    ax.set_position((left / across, MARGIN / down, width / across, height / down))
    ax.spines[:].set_visible(False)
    return ax


def _draw_unnamed_cells(
    counts: NDArray[np.integer],
    colors: NDArray[np.uint8],
    lines: Sequence[str],
    groups: Sequence[tuple[int, int, str]],
    side: int,
    ax: Axes | None,
) -> Axes:
    count = len(counts)
    extent = side * count
    if ax is None:  # aligned to whole pixels, so that no cell is lost
        ax = _fixed_axes(MARGIN + (GROUP_ROOM if groups else 0), MARGIN + 24 * len(lines), extent, extent, MARGIN)
    ax.grid(False)
    ax.set_facecolor(_rgb(NOTHING))
    image = np.dstack([colors, np.where(counts > 0, 255, 0).astype(np.uint8)])
    ax.imshow(image, interpolation="nearest", zorder=2)
    ax.set_xticks([])
    ax.set_yticks([])
    _title(ax, lines, extent)
    if groups:
        from matplotlib.patches import Rectangle

        labelled = [group for group in groups if (group[1] - group[0]) * side >= NAMED - 2]
        words, how = _text_options(words if len(words) <= 22 else f"{words[:21]}\u2026" for _, _, words in labelled)
        ax.set_yticks([(first + end - 1) / 2 for first, end, _ in labelled], words, fontsize=8, color=_rgb(INK), **how)
        ax.tick_params(axis="y", pad=8)
        ax.set_yticks([edge - 0.5 for first, end, _ in groups for edge in (first, end)], minor=True)
        ax.tick_params(axis="y", which="minor", length=5, color=_rgb(GREY))
        for first, end, _ in groups:
            frame = Rectangle((first - 0.5, first - 0.5), end - first, end - first, fill=False, linewidth=0.72)
            frame.set(edgecolor=_rgb(FRAME), zorder=1)
            ax.add_patch(frame)
    return ax


# Histograms


def draw_histogram(
    counts: NDArray[np.integer], edges: NDArray[np.float64], lines: Sequence[str], *, ax: Axes | None = None
) -> Axes:
    """Draw a histogram of counts (bins,) over bin edges (bins + 1,), under title lines, with counts above the bars."""
    ax = ax or new_axes()[0]
    bars = ax.bar(edges[:-1], counts, np.diff(edges), align="edge", color=_rgb(BAR), edgecolor="white")
    ax.bar_label(bars, [str(count) if count else "" for count in counts.tolist()], color=_rgb(GREY), fontsize=9)
    ax.set_xlim(edges[0], edges[-1])
    ax.set_yticks([])
    _title(ax, lines)
    return ax


def draw_shares(
    counts: Mapping[str, tuple[Color, NDArray[np.integer]]],
    edges: NDArray[np.float64],
    lines: Sequence[str],
    *,
    ax: Axes | None = None,
) -> Axes:
    """Draw overlaid histograms, each normalised to a sum of 1; `counts` maps labels to a colour and counts (bins,)."""
    ax = ax or new_axes()[0]
    for words, (color, values) in counts.items():
        share = values / max(values.sum(), 1)
        ax.stairs(share, edges, fill=True, color=_rgb(color), alpha=0.4)
        ax.stairs(share, edges, color=_rgb(color), linewidth=2, label=words)
    ax.set_xlim(edges[0], edges[-1])
    ax.set_ylim(bottom=0)
    ax.yaxis.set_major_formatter("{x:.3g}")
    _title(ax, lines)
    _legend(ax, len(counts))
    return ax


# Curves

DOTTED = 60  # maximum number of points with markers


@dataclass(frozen=True)
class Line:
    """One curve with points `x`, `y`; `spread` is the half-length of the error bar at each point."""

    words: str
    color: Color
    x: Sequence[float]
    y: Sequence[float]
    spread: Sequence[float] | None = None


def draw_lines(curves: Sequence[Line], lines: Sequence[str], *, ax: Axes | None = None) -> Axes:
    """Draw curves under title lines; those with error bars are shifted sideways so that the bars do not overlap."""
    ax = ax or new_axes()[0]
    from matplotlib.transforms import ScaledTranslation

    for number, each in enumerate(curves):
        marker = "o" if len(each.x) <= DOTTED else None
        how: dict[str, Any] = {"color": _rgb(each.color), "marker": marker, "linewidth": 2, "clip_on": False}
        if each.spread is None:
            ax.plot(each.x, each.y, label=each.words, **how)
        else:
            beside = ScaledTranslation((number - (len(curves) - 1) / 2) * 4 / 72, 0, _figure(ax).dpi_scale_trans)
            how |= {"elinewidth": 1, "transform": ax.transData + beside}
            ax.errorbar(each.x, each.y, each.spread, label=each.words, **how)
    _title(ax, lines, pad=18)  # room for stage labels
    _legend(ax, len(curves))
    return ax


def set_log_axis(ax: Axes, low: float, high: float) -> None:
    """Make the y axis logarithmic, with ticks at powers of ten, or at 1, 2 and 5 times them for a short range."""
    from matplotlib.ticker import LogLocator, NullFormatter

    ax.set_yscale("log")
    ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 1000 * low else (1,), numticks=9))
    ax.yaxis.set_major_formatter("{x:.4g}")
    ax.yaxis.set_minor_formatter(NullFormatter())


def mark_best(ax: Axes, x: float, y: float) -> None:
    """Draw a ring around a point of a curve."""
    ax.plot(x, y, "o", fillstyle="none", markersize=13, markeredgewidth=2, color=_rgb(BAR), clip_on=False)


def mark_stages(ax: Axes, epochs: Sequence[int], stages: Sequence[int]) -> None:
    """Label the x axis with epochs, and mark transitions between stages with labelled dashed lines."""
    from matplotlib.ticker import MaxNLocator

    ax.xaxis.set_major_locator(MaxNLocator("auto", integer=True, min_n_ticks=1))
    if len(epochs) > 1:
        ax.set_xlim(epochs[0], epochs[-1])
    for place in range(1, len(epochs)):
        if stages[place - 1] != stages[place]:
            border, across = (epochs[place - 1] + epochs[place]) / 2, ax.get_xaxis_transform()
            ax.axvline(border, linestyle="--", linewidth=1, color=_rgb(GREY))
            for stage, side in ((stages[place - 1], "right"), (stages[place], "left")):
                words = f"  stage {stage}  "
                ax.text(border, 1, words, transform=across, ha=side, va="bottom", color=_rgb(GREY), fontsize=9)


# Reliability

GAP: Color = CLASS_COLORS[1]
SURE: Color = CLASS_COLORS[4]  # of the mean confidence
BELOW = 0.26  # height of the counts, in units of the accuracy axis


def draw_reliability(
    counts: NDArray[np.integer],
    accuracies: NDArray[np.float64],
    confidences: NDArray[np.float64],
    means: tuple[float, float],
    lines: Sequence[str],
    *,
    ax: Axes | None = None,
) -> Axes:
    """Draw a reliability diagram: accuracy over binned confidence, with the bins' picture counts below.

    Bars show the accuracy of each bin; the gap to its mean confidence is shaded. On the dashed diagonal both are equal.

    Args:
        counts: (bins,), picture counts in bins of equal width from 0 to 1.
        accuracies, confidences: (bins,), means of each bin; NaN if it is empty.
        means: accuracy and confidence of all pictures.
        lines: title lines.
    """
    if ax is None:
        [ax] = new_axes(width=400, height=560)
    width, used = 1 / len(counts), counts > 0
    lefts, right, sure = np.arange(len(counts))[used] * width, accuracies[used], confidences[used]
    ax.bar(lefts, right, width, align="edge", color=_rgb(BAR), edgecolor="white", label="accuracy")
    gap = {"color": _rgb(GAP), "edgecolor": "white", "label": "gap to confidence"}
    ax.bar(lefts, np.abs(right - sure), width, np.minimum(right, sure), align="edge", **gap)
    ax.hlines(right, lefts, lefts + width, color=_rgb(INK), linewidth=1)
    ax.plot([0, 1], [0, 1], "--", color=_rgb(INK), linewidth=1)
    floor, heights = -BELOW - 0.08, BELOW * counts[used] / max(counts.max(), 1)
    ax.bar(lefts, heights, width, floor, align="edge", color=_rgb(GREY), edgecolor="white")
    ax.hlines(0, 0, 1, color=_rgb(GREY), linewidth=1)
    ax.vlines(means, floor, floor + BELOW, color=[_rgb(BAR), _rgb(SURE)], linewidth=2)
    ax.set(xlim=(0, 1), ylim=(floor, 1), yticks=np.linspace(0, 1, 6))
    _legend(ax, 2)
    _title(ax, (*lines, f"accuracy {means[0]:.3f}, confidence {means[1]:.3f}"), 360)
    return ax
