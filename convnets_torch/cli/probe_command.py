"""The command `probe`: how well features tell a user's classes apart, and a classifier made of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from convnets_torch.cli.labelled_options import Columns, Partial, Truth, reading
from convnets_torch.cli.messages import one_line, say, warnings_as_lines
from convnets_torch.cli.picture_commands import Exclude, Weights
from convnets_torch.cli.running import Device, Precision, load_network

if TYPE_CHECKING:
    from convnets_torch.embeddings.probe_features import LabelledVectors
    from convnets_torch.embeddings.probes import Kind, LinearKind, Probed
    from convnets_torch.networks import Network


def probe(
    weights: Weights,
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="Pictures in one sub-folder for each class, or a table of them.")
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            help="File of weights to write, .safetensors: the network with the chosen classifier as its head.",
            show_default=False,
        ),
    ] = None,
    folds: Annotated[int, typer.Option(min=2, help="Parts that are classified in turn by what the others teach.")] = 5,
    choose: Annotated[
        Literal["knn", "svm", "logistic"] | None,
        typer.Option(
            help="The classifier that is written with -o, svm or logistic, and whose confusions are drawn.",
            show_default="the better one of svm and logistic",
        ),
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option(
            help="Folder to write report.json into, and pictures: curve, confusion, distances, similarities (.png).",
            show_default=False,
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print all figures as one JSON object.")] = False,
    truth: Truth = None,
    columns: Columns = None,
    partial: Partial = False,
    exclude: Exclude = None,
    device: Device = "cpu",
    precision: Precision = None,
) -> None:
    """Measure how well a network's features tell your classes apart, and make a classifier of them."""
    if choose is not None and output is None and report is None:
        raise typer.BadParameter("--choose says what is written with -o or drawn in --report; give one of them")
    if choose == "knn" and output is not None:
        raise typer.BadParameter(
            "nearest neighbours are the training vectors themselves, not a layer that a network could end in; take"
            " --choose svm or logistic for -o"
        )
    options = reading(truth, columns, partial, exclude)
    from convnets_torch.cache import find
    from convnets_torch.cli.progress import rows_done
    from convnets_torch.embeddings.probe_features import embed_classes
    from convnets_torch.embeddings.probes import check_counts, check_sklearn
    from convnets_torch.embeddings.probes import probe as measure
    from convnets_torch.files import check_kept, check_writable
    from convnets_torch.labelled import find_classes

    check_sklearn()
    if output is not None:
        if output.suffix.lower() != ".safetensors":
            raise typer.BadParameter(f"{output} has an unknown ending; weights are written as .safetensors")
        check_writable(output)
        if output.exists() and output.samefile(find(weights)):
            raise ValueError(f"{output} would overwrite the weights that are read; name another output")
    with warnings_as_lines():
        found = find_classes(folder, **options)
    check_counts({name: len(pictures) for name, pictures in found.items()}, folds)
    if report is not None:
        if report.exists() and not report.is_dir():
            raise NotADirectoryError(f"{report} is not a folder; name one for the report")
        report.mkdir(parents=True, exist_ok=True)
        for name in REPORT:
            check_writable(report / name)
            check_kept(report / name, (path for paths in found.values() for path in paths))
    network = load_network(weights, device, None, bulk=True)
    with warnings_as_lines(), rows_done("pictures") as progress:
        vectors = embed_classes(network, found, precision=precision, progress=progress)
    for _, error in vectors.failed:
        say(one_line(error))
    for remark in vectors.remarks:
        say(remark)
    count, width = vectors.vectors.shape
    say(
        f"{count} vectors of {width} values, {vectors.computed} of them computed, {count - vectors.computed} from the"
        f" cache; {len(vectors.failed)} pictures could not be used"
    )
    with rows_done("fits") as progress:
        result = measure(vectors, folds, progress=progress)
    for remark in result.remarks:
        say(remark)
    kind: Kind = choose or result.best
    figures = result.to_dict() | {
        "network": str(weights),
        "values": width,
        "failed": {name: one_line(error) for name, error in vectors.failed},
        "remarks": [*vectors.remarks, *result.remarks],
        "chosen": kind,
    }
    if report is not None:
        _write_report(report, vectors, result, kind, figures)
    if output is not None and kind != "knn":
        _write_network(network, vectors, result, kind, output)
    if as_json:
        print(json.dumps(figures))
    else:
        _print(result)
    if vectors.failed:
        raise typer.Exit(1)


REPORT = ("report.json", "curve.png", "confusion.png", "distances.png", "similarities.png")


def _write_report(folder: Path, vectors: LabelledVectors, result: Probed, kind: Kind, figures: dict[str, Any]) -> None:
    from convnets_torch import render
    from convnets_torch.embeddings.probe_pairs import count_pairs
    from convnets_torch.embeddings.probe_pictures import draw_confusion, draw_curve, draw_pairs
    from convnets_torch.files import replacing

    distances, similarities = count_pairs(vectors, "distance"), count_pairs(vectors, "similarity")
    numbers, *names = REPORT
    pictures = (draw_curve(result), draw_confusion(result, kind), draw_pairs(distances), draw_pairs(similarities))
    for name, picture in zip(names, pictures, strict=True):
        render.save_image(picture, folder / name)
    whole = figures | {"distances": distances.to_dict(), "similarities": similarities.to_dict()}
    with replacing(folder / numbers) as temporary:
        temporary.write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")
    say(f"{folder}: {', '.join(REPORT)}")


def _write_network(network: Network, vectors: LabelledVectors, result: Probed, kind: LinearKind, output: Path) -> None:
    from convnets_torch.embeddings.probe_heads import with_probe
    from convnets_torch.embeddings.probes import fit_probe
    from convnets_torch.files import sha256
    from convnets_torch.learnt_pictures import with_learnt
    from convnets_torch.weights import save

    accuracy = float(result.accuracies[kind].mean())
    probed = with_probe(network, fit_probe(vectors, kind), {"accuracy": accuracy})
    assert probed.card is not None
    probed.card = with_learnt(probed.card, map(sha256, vectors.paths))
    save(probed, output)
    say(f"{output}: {kind}, learnt from {len(vectors.labels)} pictures of {len(vectors.classes)} classes")


def _print(result: Probed) -> None:
    """Accuracies, one classifier on each line; then the learning curve as columns."""
    from convnets_torch.cli.weights_commands import print_columns

    for kind, values in result.accuracies.items():
        print(f"{values.mean():.3f} +/- {values.std():.3f}  {kind}")
    print(f"{result.chance:.3f}            always the most frequent class")
    if result.curve:
        print()
        rows = [
            (str(images), *(f"{values.mean():.3f} +/- {values.std():.3f}" for values in kinds.values()))
            for images, kinds in result.curve.items()
        ]
        print_columns([("images a class", *result.accuracies), *rows])
