"""Commands about pictures: classify, heatmap and demo."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from convnets_torch.classification import Prediction

Weights = Annotated[str, typer.Argument(metavar="WEIGHTS", help="A .safetensors file, or a name in the cache.")]


def classify(
    weights: Weights,
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE...", readable=False, help="Pictures.")],
    top: Annotated[int, typer.Option(min=1, help="How many classes to print for each picture.")] = 5,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object per picture and line.")] = False,
    only: Annotated[
        str | None, typer.Option(help="Leave out classes that are not of this target; probabilities stay as they are.")
    ] = None,
) -> None:
    """Print the most probable classes of pictures: probability, wnid, words."""
    from convnets_torch import classification
    from convnets_torch.cli.app import one_line
    from convnets_torch.targets import find_target
    from convnets_torch.weights import load

    network = load(weights)
    if only is not None:
        find_target(classification.card_of(network), only)  # an unknown one is refused once, not for each picture
    failed = False
    for image in images:
        try:
            [predictions] = classification.classify(network, image, top, only=only)
        except (OSError, ValueError) as error:
            failed = True
            print(f"convnets-torch: {one_line(error)}", file=sys.stderr)
            if as_json:
                print(json.dumps({"image": str(image), "error": one_line(error)}))
            continue
        if as_json:
            print(json.dumps({"image": str(image), "predictions": [asdict(entry) for entry in predictions]}))
        else:
            if len(images) > 1:
                print(image)
            _print_predictions(predictions)
    if failed:
        raise typer.Exit(1)


def heatmap(
    weights: Weights,
    image: Annotated[Path, typer.Argument(metavar="IMAGE", readable=False, help="A picture.")],
    target: Annotated[
        list[str] | None,
        typer.Option(
            help="What to look for: a word, a wnid, a class id, or 'dog - wolf'; several times for a sheet of maps."
        ),
    ] = None,
    *,
    output: Annotated[
        Path, typer.Option("-o", "--output", help="File to write: .png, .jpg, .webp, or .npy (numbers).")
    ],
    longest_side: Annotated[
        int | None, typer.Option(min=1, help="Resize to so many pixels first; more finds smaller things.")
    ] = None,
    plain: Annotated[bool, typer.Option("--plain", help="The colours alone, without the picture.")] = False,
    argmax: Annotated[
        bool, typer.Option("--argmax", help="What is where: the best class of each cell (of the targets, if any).")
    ] = False,
) -> None:
    """Draw where in a picture a class is, or a whole branch of the WordNet tree."""
    from convnets_torch import heatmaps, render
    from convnets_torch.weights import load

    if not (target or argmax):
        raise typer.BadParameter("name what to look for with --target, or ask what is where with --argmax")
    if argmax and (plain or (target and len(target) > 1)):
        raise typer.BadParameter("--argmax goes with one --target at most, and not with --plain")
    render.check_output(output)
    network = load(weights)
    if argmax:
        classes = heatmaps.class_map(network, image, only=target[0] if target else None, longest_side=longest_side)
        classes.save(output)
        for class_id, words in classes.names.items():
            print(f"{(classes.class_ids == class_id).mean():.3f}  {class_id:<4}  {words}")
        return
    maps = heatmaps.heatmap(network, image, target or [], longest_side=longest_side)
    heatmaps.save_sheet(maps, output, plain=plain)
    for name, found in zip(target or [], maps, strict=True):
        ids, meant = len(found.target.class_ids), filter(None, [found.target.wnid, found.target.label])
        print(f"{name}: {' '.join(meant)} ({ids} {'class' if ids == 1 else 'classes'})", file=sys.stderr)
        left, top, right, bottom = (round(edge) for edge in found.window(*found.peak))
        highest = f"{found.probabilities.max():.3f}"
        prefix = f"{output}: " if len(maps) == 1 else f"{output}: {name}: "
        print(f"{prefix}highest {highest}, in the window x {left} to {right}, y {top} to {bottom} (pixels)")


def demo(
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder to write the pictures into.")] = Path("demo"),
) -> None:
    """See it work without weights of your own: EfficientNet-Lite0 on four photographs."""
    from convnets_torch import first_run

    result = first_run.demo(output)
    for photograph, predictions in result.predictions.items():
        print(photograph)
        _print_predictions(predictions)
    for picture in result.pictures:
        print(picture)
    print(f"the network: {result.weights} (convnets-torch classify efficientnet_lite0 IMAGE)", file=sys.stderr)


def _print_predictions(predictions: list[Prediction]) -> None:
    for entry in predictions:
        print(f"{entry.probability:.3f}  {entry.wnid or entry.class_id:<9}  {entry.words}")
