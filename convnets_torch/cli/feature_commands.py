"""`embed`, `map` and `probe`."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import typer

from convnets_torch.cli import options
from convnets_torch.cli.options import Images, RunOptions, Shown, Weights, argument, command, option
from convnets_torch.cli.output import (
    complain,
    one_line,
    print_columns,
    rows_done,
    say,
    warnings_as_lines,
    with_time_left,
)

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray
    from PIL import Image

    from convnets_torch.card import Card
    from convnets_torch.embeddings.extraction import Embedded
    from convnets_torch.embeddings.image_map import MapEntry
    from convnets_torch.embeddings.probe import Kind, LabelledVectors, LinearKind, Probed
    from convnets_torch.networks import Network


@command()
def embed(
    weights: Weights,
    images: Images,
    output: Path | None = option(None, "File for the vectors, .npz or .safetensors."),
    layer: options.Layers = None,
    pool: options.Pool = "avg",
    normalize: bool = option(False, "L2-normalise each vector."),
    zeros: Path | None = option(None, "Histogram of the share of zero values to write: .png, .svg or .pdf."),
    *,
    run: RunOptions,
    shown: Shown,
) -> None:
    """Turn pictures into feature vectors.

    Without --layer, the vectors are the input of the last dense layer. With it, --precision only changes the number
    format: layers are not fused.
    """
    if output is None and zeros is None and not shown.as_json:
        raise typer.BadParameter("give at least one of -o FILE, --zeros FILE and --json")
    if zeros is not None and layer is not None and len(layer) > 1:
        raise typer.BadParameter(f"--zeros draws the histogram of one layer, but {len(layer)} are given with --layer")
    import numpy as np

    from convnets_torch.embeddings.extraction import Embedder, embed_each
    from convnets_torch.embeddings.files import WRITER, save_vectors
    from convnets_torch.explain.statistics import ZeroShares
    from convnets_torch.files import check_kept
    from convnets_torch.images.levels import said_levels
    from convnets_torch.visualization import charts

    if output is not None:
        WRITER.check(output)
    if zeros is not None:
        options.check_output(zeros, charts.ENDINGS, "histograms are")
        charts.check_chart(zeros)
    network = run.load(weights, whole=layer is not None, bulk=True)
    about = Embedder(network, layer, pool, normalize).about | said_levels(run.reading["depth"], run.background)
    with warnings_as_lines():
        found = run.find(images)
        for file in (output, zeros):
            if file is not None:
                check_kept(file, found)
        rows = embed_each(
            network, map(options.opened, found), layer, pool, normalize, exact=run.precision == "exact", **run.running
        )
        failed: list[Exception] = []
        shares: dict[str, list[float]] = {}
        passing = _reported(with_time_left(rows, len(found)), found, shown.as_json, failed, shares)
        if output is None:
            for _ in passing:
                pass
        else:
            saved = save_vectors(passing, output, about)
            shapes = ", ".join(f"{name} {' x '.join(map(str, shape))}" for name, shape in saved.shapes.items())
            say(f"{output}: {shapes}; {saved.failed} of {len(found)} pictures could not be used")
    if zeros is not None:
        if not shares:
            raise ValueError(f"none of {len(found)} pictures could be used; the first: {failed[0]}")
        [(name, values)] = shares.items()
        drawn = ZeroShares(name, np.array(values))
        charts.save_chart(drawn.draw(), zeros)
        say(f"{zeros}: {drawn.shares.mean():.3f} of the values of {name} are zero")
    if failed:
        raise typer.Exit(1)


def _reported(
    rows: Iterable[Embedded], names: list[str], as_json: bool, failed: list[Exception], shares: dict[str, list[float]]
) -> Iterator[Embedded]:
    """Yield the rows, print their notes, errors and JSON, and collect the errors and the shares of zeros by layer."""
    from convnets_torch.explain.statistics import shares_of_zero

    for name, row in zip(names, rows, strict=True):
        for note in row.notes:
            say(note)
        if row.error is not None:
            failed.append(row.error)
            complain(row.error)
        zeros = {layer: float(shares_of_zero(vector[None])[0]) for layer, vector in row.vectors.items()}
        for layer, share in zeros.items():
            shares.setdefault(layer, []).append(share)
        if as_json and row.error is not None:
            print(json.dumps({"image": name, "error": one_line(row.error)}))
        elif as_json:
            vectors = {layer: vector.tolist() for layer, vector in row.vectors.items()}
            print(json.dumps({"image": name, "vectors": vectors, "zeros": zeros}))
        yield row


@command()
def map_pictures(
    source: str = argument(
        ..., "Weights (a .safetensors file, or a name in the cache), or vectors written by embed.", "SOURCE"
    ),
    images: list[str] | None = argument(
        None, "With weights: image files, folders or quoted glob patterns.", "IMAGE..."
    ),
    output: Path | None = option(None, "Page to write: .html."),
    png: Path | None = option(None, "Picture to write: .png, .jpg or .webp."),
    save: Path | None = option(None, "Map to write for a later --on: .safetensors."),
    on: Path | None = option(None, "Map written by --save, on which to place the pictures."),
    perplexity: float | None = option(
        None, "Perplexity of t-SNE: roughly the number of neighbours per picture.", min=1, show_default="30"
    ),
    title: str | None = option(None, "Title of the page.", show_default="the file's name"),
    *,
    run: RunOptions,
    shown: Shown,
) -> None:
    """Arrange a collection by t-SNE so that similar pictures are close, as an HTML page or a picture."""
    if output is None and png is None and save is None:
        raise typer.BadParameter("give at least one of -o PAGE, --png PICTURE and --save MAP")
    if on is not None and perplexity is not None:
        raise typer.BadParameter("--perplexity applies to new maps; --on uses that of the saved map")
    if on is not None and save is not None:
        raise typer.BadParameter("--on does not change the saved map; to save a map, make a new one of all pictures")
    import numpy as np

    from convnets_torch.embeddings.extraction import Embedder
    from convnets_torch.embeddings.image_map import (
        PERPLEXITY,
        WRITER,
        check_same_kind,
        import_tsne,
        load_map,
        make_map,
        save_map,
    )
    from convnets_torch.embeddings.image_map_drawing import draw_map, save_map_page
    from convnets_torch.files import check_kept, check_page
    from convnets_torch.images.levels import said_levels
    from convnets_torch.visualization import overlays

    import_tsne()  # its error comes before the long work
    if output is not None:
        check_page(output, "a map")
    options.check_output(png, overlays.FORMATS, "a map is drawn as")
    if save is not None:
        WRITER.check(save)
    old = None if on is None else load_map(on)
    outputs = [file for file in (output, png, save) if file is not None]
    for file in outputs:
        check_kept(file, [source, on or source])

    with warnings_as_lines():
        if images:
            network = run.load(source, bulk=True)
            embedder = Embedder(network, logits=network.head is not None)
            about = embedder.about | said_levels(run.reading["depth"], run.background)
        else:
            found = _from_file(source)
            about = found.about
        if old is not None:
            check_same_kind(old, about, str(on))  # before the long work
        if images:
            paths = run.find(images)
            for file in outputs:
                check_kept(file, paths)
            found = _embedded(network, paths, run, about)
        if not found.entries:
            reason = next(iter(found.failed.values()), "there are none")
            raise ValueError(f"none of {len(found.failed)} pictures could be used; the first: {reason}")
        start = time.perf_counter()
        with rows_done("steps of the map") as report:
            if old is None:
                made = make_map(found.vectors, perplexity=perplexity or PERPLEXITY, report=report)
                positions, entries, new = made.positions, found.entries, None
            else:
                placed = old.image_map.place(found.vectors, report=report)
                positions = np.concatenate([old.image_map.positions, placed])
                entries, new = old.entries + found.entries, np.arange(len(positions)) >= len(old.entries)
        took = time.perf_counter() - start
        if same := len(positions) - len(np.unique(positions, axis=0)):
            say(f"{same} pictures are the same as others and are drawn as one with them")
        if save is not None:
            save_map(made, entries, save, found.about)
            say(f"{save}: a map of {len(entries)} pictures, made in {took:.0f} s")
        if output is not None or png is not None:
            small = _thumbnails(entries, run)
        if png is not None:
            drawn = draw_map(positions, small, new=new)
            overlays.save_image(drawn.image, png)
            say(f"{png}: {drawn.shown.sum()} of {len(entries)} pictures; the others would overlap and are dots")
        if output is not None:
            words = title or output.stem
            save_map_page(positions, entries, small, output, title=words, new=new, failed=found.failed)
            say(f"{output}: {len(entries)} pictures, {output.stat().st_size / 1e6:.1f} MB")
    if shown.as_json:
        pictures = [
            {"image": entry.name, "x": float(x), "y": float(y), "words": entry.words, "probability": entry.probability}
            for entry, (x, y) in zip(entries, positions, strict=True)
        ]
        print(json.dumps({"outputs": [*map(str, outputs)], "pictures": pictures, "failed": found.failed}))
    if found.failed:
        raise typer.Exit(1)


class _Found(NamedTuple):
    """Vectors to map, with captions, errors and metadata."""

    vectors: NDArray[np.float32]
    entries: list[MapEntry]
    failed: dict[str, str]
    about: dict[str, str]


def _embedded(network: Network, paths: list[str], run: RunOptions, about: dict[str, str]) -> _Found:
    """Embed pictures, and classify them if the network has a head."""
    import numpy as np

    from convnets_torch.embeddings.extraction import embed_each

    exact, logits = run.precision == "exact", network.head is not None
    rows = embed_each(network, paths, logits=logits, exact=exact, **run.running)
    vectors, entries, failed = [], [], {}
    for path, row in zip(paths, with_time_left(rows, len(paths)), strict=True):
        for note in row.notes:
            say(note)
        if row.vector is None:
            failed[path] = one_line(row.error) if row.error is not None else ""
            complain(failed[path])
            continue
        vectors.append(row.vector.numpy())
        entries.append(_entry(path, network.card, row.logits))
    return _Found(np.stack(vectors) if vectors else np.empty((0, 1), np.float32), entries, failed, about)


def _from_file(path: str) -> _Found:
    """Read vectors written by `embed`; the pictures are only needed for thumbnails."""
    import torch

    from convnets_torch.card import Card
    from convnets_torch.embeddings.files import read_vectors

    found = read_vectors(path)
    try:
        card = Card.from_json(found.about["card"]) if found.about.get("card") else None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    if card is not None and found.logits is not None and card.classes != found.logits.shape[1]:
        raise ValueError(f"{path} has {found.logits.shape[1]} logits a picture, and its card {card.classes} classes")
    logits = [None] * len(found.paths) if found.logits is None else torch.from_numpy(found.logits)
    entries = [_entry(name, card, row) for name, row in zip(found.paths, logits, strict=True)]
    return _Found(found.vectors, entries, found.failed, found.about)


def _entry(name: str, card: Card | None, logits: torch.Tensor | None) -> MapEntry:
    """Return a picture's caption, with its most probable class if known."""
    from convnets_torch.embeddings.extraction import top_class
    from convnets_torch.embeddings.image_map import MapEntry
    from convnets_torch.wordnet.targets import class_name

    class_id, chance = (None, None) if card is None else top_class(logits, card)
    if card is None or class_id is None or chance is None:
        return MapEntry(name)
    return MapEntry(name, class_name(card, class_id), chance)


def _thumbnails(entries: list[MapEntry], run: RunOptions) -> list[Image.Image | None]:
    from convnets_torch.embeddings.image_map_drawing import thumbnail_side, thumbnails

    names = [entry.name for entry in entries]
    made = thumbnails(names, thumbnail_side(len(entries)), workers=run.workers, **run.reading)
    images, errors = zip(*with_time_left(made, len(entries)), strict=True)
    if missing := [one_line(error) for error in errors if error is not None]:
        say(f"{len(missing)} of {len(entries)} pictures have no thumbnail; the first: {missing[0]}")
    return list(images)


@command()
def probe(
    weights: Weights,
    folder: Path = argument(..., "Folder with one subfolder of pictures per class, or a table of them.", "FOLDER"),
    output: Path | None = option(None, "File for the network with the chosen classifier as its head, .safetensors."),
    folds: int = option(5, "Folds of the cross-validation.", min=2),
    choose: Literal["knn", "svm", "logistic"] | None = option(
        None,
        "Classifier to write with -o (svm or logistic) and whose confusion matrix to draw.",
        show_default="the better one of svm and logistic",
    ),
    report: Path | None = option(
        None, "Folder for report.json and the charts curve, confusion, distances and similarities (.png)."
    ),
    *,
    given: options.Labels,
    run: RunOptions,
    shown: Shown,
) -> None:
    """Measure how well a network's features separate your classes, and train a classifier on them."""
    if choose is not None and output is None and report is None:
        raise typer.BadParameter("--choose applies to -o and --report; give one of them")
    if choose == "knn" and output is not None:
        raise typer.BadParameter(
            "k nearest neighbours cannot be written as a layer; use --choose svm or logistic with -o"
        )
    labelling = given.with_exclude(run.exclude)
    from convnets_torch.embeddings.probe import check_counts, check_sklearn, embed_classes
    from convnets_torch.embeddings.probe import probe as measure
    from convnets_torch.files import check_kept, check_writable
    from convnets_torch.images.labelled import find_classes

    check_sklearn()
    options.check_weights(output, weights)
    with warnings_as_lines():
        found = find_classes(folder, **labelling)
    check_counts({name: len(pictures) for name, pictures in found.items()}, folds)
    if report is not None:
        if report.exists() and not report.is_dir():
            raise NotADirectoryError(f"{report} is not a folder; name one for the report")
        report.mkdir(parents=True, exist_ok=True)
        for name in REPORT:
            check_writable(report / name)
            check_kept(report / name, (path for paths in found.values() for path in paths))
    network = run.load(weights, plain=True, bulk=True)
    with warnings_as_lines(), rows_done("pictures") as progress:
        vectors = embed_classes(network, found, precision=run.precision, progress=progress, **run.running)
    for _, error in vectors.failed:
        complain(error)
    for note in vectors.notes:
        say(note)
    count, width = vectors.vectors.shape
    say(
        f"{count} vectors of {width} values, {vectors.computed} of them computed, {count - vectors.computed} from the"
        f" cache; {len(vectors.failed)} pictures could not be used"
    )
    with rows_done("fits") as progress:
        result = measure(vectors, folds, progress=progress)
    for note in result.notes:
        say(note)
    kind: Kind = choose or result.best
    figures = result.to_dict() | {
        "network": str(weights),
        "values": width,
        "failed": {name: one_line(error) for name, error in vectors.failed},
        "remarks": [*vectors.notes, *result.notes],
        "chosen": kind,
    }
    if report is not None:
        _write_report(report, vectors, result, kind, figures)
    if output is not None and kind != "knn":
        _write_network(network, vectors, result, kind, output)
    if shown.as_json:
        print(json.dumps(figures))
    else:
        _print(result)
    if vectors.failed:
        raise typer.Exit(1)


REPORT = ("report.json", "curve.png", "confusion.png", "distances.png", "similarities.png")


def _write_report(folder: Path, vectors: LabelledVectors, result: Probed, kind: Kind, figures: dict[str, Any]) -> None:
    from convnets_torch.embeddings.probe import count_pairs, draw_confusion, draw_curve, draw_pairs
    from convnets_torch.files import replacing
    from convnets_torch.visualization import charts

    distances, similarities = count_pairs(vectors, "distance"), count_pairs(vectors, "similarity")
    numbers, *names = REPORT
    whole = figures | {"distances": distances.to_dict(), "similarities": similarities.to_dict()}
    with replacing(folder / numbers) as temporary:
        temporary.write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")
    if reason := charts.why_not():
        say(f"{folder}: {numbers}; {', '.join(names)} are left out: {reason}")
        return
    drawn = (draw_curve(result), draw_confusion(result, kind), draw_pairs(distances), draw_pairs(similarities))
    for name, chart in zip(names, drawn, strict=True):
        charts.save_chart(chart, folder / name)
    say(f"{folder}: {', '.join(REPORT)}")


def _write_network(network: Network, vectors: LabelledVectors, result: Probed, kind: LinearKind, output: Path) -> None:
    from convnets_torch.card import with_learnt
    from convnets_torch.embeddings.probe import fit_probe, with_probe
    from convnets_torch.files import sha256
    from convnets_torch.weights import save

    accuracy = float(result.accuracies[kind].mean())
    probed = with_probe(network, fit_probe(vectors, kind), {"accuracy": accuracy})
    assert probed.card is not None
    probed.card = with_learnt(probed.card, map(sha256, vectors.paths))
    save(probed, output)
    say(f"{output}: {kind}, trained on {len(vectors.labels)} pictures of {len(vectors.classes)} classes")


def _print(result: Probed) -> None:
    """Print the accuracy of each classifier on a line, then the learning curve as columns."""

    for kind, values in result.accuracies.items():
        print(f"{values.mean():.3f} +/- {values.std():.3f}  {kind}")
    print(f"{result.chance:.3f}            always the most frequent class")
    if result.curve:
        print()
        rows = [
            (str(images), *(f"{values.mean():.3f} +/- {values.std():.3f}" for values in kinds.values()))
            for images, kinds in result.curve.items()
        ]
        print_columns([("images per class", *result.accuracies), *rows])
