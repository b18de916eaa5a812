"""Pictures of what a probe found: confusions, learning curves, and distances of pairs."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw

from convnets_torch.confusions import draw_counts
from convnets_torch.embeddings.probe_pairs import Pairs
from convnets_torch.embeddings.probes import Kind, Probed
from convnets_torch.explain.histograms import BAR
from convnets_torch.plots import LINE, SCALE, Color, round_marks, start_plot, with_legend
from convnets_torch.render import CLASS_COLORS, GREY

WORDS: dict[str, str] = {"knn": "nearest neighbours", "svm": "linear SVM", "logistic": "logistic regression"}
COLORS: dict[str, Color] = {"knn": CLASS_COLORS[0], "svm": CLASS_COLORS[4], "logistic": BAR}
BETWEEN = CLASS_COLORS[1]


def draw_confusion(found: Probed, kind: Kind) -> Image.Image:
    """Of each class, a row, the shares that were taken for the columns' classes; each cell with its number.

    Where there are too many classes for letters, cells are colours alone.
    """
    counts = found.confusion(kind)
    lines = (
        f"{WORDS[kind][0].upper()}{WORDS[kind][1:]}: classes (rows) and what they were taken for (columns)",
        f"right: {counts.trace()} of {counts.sum()} pictures; colours go with the share of the row",
    )
    return draw_counts(counts, found.classes, lines)


def draw_curve(found: Probed) -> Image.Image:
    """Accuracy over the images a class that were learnt from: means, and bars of one standard deviation over folds."""
    kinds: tuple[Kind, ...] = ("knn", "svm", "logistic")
    points = {
        kind: [(float(images), values[kind]) for images, values in found.curve.items()]
        + [(found.learnt, found.accuracies[kind])]
        for kind in kinds
    }
    places = [images for images, _ in points["knn"]]
    lowest = min(float(values.mean() - values.std()) for rows in points.values() for _, values in rows)
    floor = max(0.0, np.floor(lowest * 10 - 1e-9) / 10)
    page, draw, font, box = start_plot(
        (
            "Accuracy, by how many images a class were learnt from",
            f"{len(found.labels)} pictures of {len(found.classes)} classes, {len(found.accuracies['knn'])} folds;"
            " bars: one standard deviation over them",
        ),
        len(kinds),
    )
    left, top, right, bottom = box
    ends = np.log(places[0]), np.log(places[-1])

    def across(images: float) -> float:
        middle = ends[1] == ends[0]
        return (
            (left + right) / 2 if middle else left + (right - left) * (np.log(images) - ends[0]) / (ends[1] - ends[0])
        )

    def down(accuracy: float) -> float:
        return bottom - (bottom - top) * (accuracy - floor) / (1 - floor)

    for mark in round_marks(floor, 1):
        draw.line((left, down(mark), right, down(mark)), LINE, SCALE)
        draw.text((left - 8 * SCALE, down(mark)), f"{mark:.2f}", GREY, font, anchor="rm")
    before = -np.inf
    for images in [*places[-1:], *places[:-1]]:  # the last one for certain
        text = f"{images:.0f}"
        if images == places[-1] or (across(places[-1]) - across(images) > 40 * SCALE and across(images) > before):
            draw.text((across(images), bottom + 8 * SCALE), text, GREY, font, anchor="ma")
            before = -np.inf if images == places[-1] else across(images) + 30 * SCALE
    for place, (kind, rows) in enumerate(points.items(), start=-1):
        color = COLORS[kind]
        line = [(across(images) + place * 4 * SCALE, down(float(values.mean()))) for images, values in rows]
        draw.line([xy for point in line for xy in point], color, 2 * SCALE, joint="curve")
        for (x, y), (_, values) in zip(line, rows, strict=True):
            low, high = (down(float(np.clip(values.mean() + sign * values.std(), floor, 1))) for sign in (-1, 1))
            draw.line((x, low, x, high), color, SCALE)
            draw.ellipse((x - 4 * SCALE, y - 4 * SCALE, x + 4 * SCALE, y + 4 * SCALE), fill=color)
    texts = [f"{WORDS[kind]} {found.accuracies[kind].mean():.3f}" for kind in kinds]
    return with_legend(page, draw, font, box, texts, [COLORS[kind] for kind in kinds])


def draw_pairs(pairs: Pairs) -> Image.Image:
    """Histograms of pairs within classes and between them, each as shares of its own pairs."""
    words = "Euclidean distances" if pairs.measure == "distance" else "Cosine similarities"
    page, draw, font, box = start_plot(
        (
            f"{words} of vectors, within classes and between them",
            f"all pairs of {pairs.pictures} pictures; heights are shares of the pairs of a colour",
        ),
        2,
    )
    left, top, right, bottom = box
    shares = [counts / max(counts.sum(), 1) for counts in (pairs.within, pairs.between)]
    highest = max(share.max() for share in shares)
    step = (right - left) / len(pairs.within)
    for share, color in zip(shares, (BAR, BETWEEN), strict=True):
        mask = Image.new("L", page.size)
        brush = ImageDraw.Draw(mask)
        outline: list[tuple[float, float]] = [(left, bottom)]
        for number, value in enumerate(share.tolist()):
            height, x = bottom - (bottom - top) * value / highest, left + number * step
            if value:
                brush.rectangle((round(x), round(height), round(x + step) - 1, bottom), fill=110)
            outline += [(x, height), (x + step, height)]
        page.paste(color, mask=mask)
        draw.line([xy for point in [*outline, (right, bottom)] for xy in point], color, 2 * SCALE)
    draw.line((left, bottom, right, bottom), GREY, SCALE)
    for mark in np.linspace(0, len(shares[0]), 5).round().astype(int).tolist():
        draw.text((left + mark * step, bottom + 8 * SCALE), f"{pairs.edges[mark]:.3g}", GREY, font, anchor="ma")
    texts = [
        f"{name}: mean {mean:.3g}, {int(counts.sum())} pairs"
        for name, mean, counts in zip(("within", "between"), pairs.means, (pairs.within, pairs.between), strict=True)
    ]
    return with_legend(page, draw, font, box, texts, [BAR, BETWEEN])
