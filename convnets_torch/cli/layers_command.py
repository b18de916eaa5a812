"""The command `layers`."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer

from convnets_torch.cli.picture_commands import Weights


def layers(
    weights: Weights,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object per layer and line.")] = False,
) -> None:
    """Print the layers of a network: what they give, and their stride and receptive field in pixels."""
    from convnets_torch.cli.weights_commands import print_columns
    from convnets_torch.explain.layers import layer_names
    from convnets_torch.weights import load

    found = layer_names(load(weights))
    if as_json:
        for layer in found:
            print(json.dumps(asdict(layer)))
        return
    rows = [("name", "kind", "shape", "stride", "receptive field", "Keras's name")]
    for layer in found:
        rows.append(
            (
                layer.name,
                layer.kind,
                _sides(layer.shape),
                _sides(layer.stride),
                _sides(layer.receptive_field),
                layer.keras_name or "-",
            )
        )
    print_columns(rows)


def _sides(numbers: tuple[int, ...] | None) -> str:
    return "-" if numbers is None else "x".join(map(str, numbers))
