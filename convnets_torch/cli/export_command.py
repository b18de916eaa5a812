"""The command `export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from convnets_torch.cli.picture_commands import Weights


def export(
    weights: Weights,
    output: Annotated[Path, typer.Option("-o", "--output", help="File to write: .onnx or .pt2.", show_default=False)],
    heatmap: Annotated[
        bool, typer.Option("--heatmap", help="The score map of larger images, instead of the classifier.")
    ] = False,
    with_preprocessing: Annotated[
        bool,
        typer.Option(
            "--with-preprocessing", help="Take uint8 RGB pixels: channel order, scale, mean and std are in the file."
        ),
    ] = False,
) -> None:
    """Write a network as a program for ONNX Runtime (.onnx) or plain PyTorch (.pt2)."""
    from convnets_torch.cli.weights_commands import print_columns
    from convnets_torch.exports import check_ending
    from convnets_torch.exports import export as write
    from convnets_torch.files import check_writable
    from convnets_torch.weights import load

    check_ending(output)
    check_writable(output)
    written = write(load(weights), output, heatmap=heatmap, with_preprocessing=with_preprocessing)
    pixels = "RGB, 0 to 255" if with_preprocessing else "normalised as the card says"
    checked = f"not checked: {written.unchecked}"
    if written.difference is not None:
        checked = f"{written.difference:.1e} of the largest logit"
    print_columns(
        [
            ("file", str(written.path)),
            ("bytes", f"{written.bytes:,}"),
            ("images", f"{written.kind} {_shape(written.images)}, {pixels}"),
            ("logits", f"float32 {_shape(written.logits)}"),
            ("smallest images" if heatmap else "images of", "x".join(map(str, written.smallest)) + PIXELS),
            ("largest difference", checked),
        ]
    )


PIXELS = " pixels (height x width)"


def _shape(sides: tuple[int | str, ...]) -> str:
    return f"({', '.join(map(str, sides))})"
