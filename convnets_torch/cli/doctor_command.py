"""The command doctor: what is wrong with converted weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from convnets_torch.cli.messages import say, show, warnings_as_lines
from convnets_torch.cli.running import Device, load_network

SHOWN = 10  # hypotheses that are printed; --json has all


def doctor(
    weights: Annotated[str, typer.Argument(metavar="WEIGHTS", help="A .safetensors file, or a name in the cache.")],
    images: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="FOLDER|IMAGE...",
            help="Pictures of known content: with --expect, or folders with one sub-folder a class.",
            show_default=False,
        ),
    ] = None,
    expect: Annotated[
        str | None, typer.Option(help="What all the pictures show: a word, a wnid, a class id or name.")
    ] = None,
    golden: Annotated[
        tuple[Path, Path] | None,
        typer.Option(
            metavar="X.npy Y.npy",
            help="Input and output recorded from the original framework, instead of pictures.",
            show_default=False,
        ),
    ] = None,
    write: Annotated[
        Path | None, typer.Option(metavar="OUT", help="Write the corrected file.", show_default=False)
    ] = None,
    device: Device = "cpu",
    as_json: Annotated[bool, typer.Option("--json", help="Print all of it as one JSON object.")] = False,
) -> None:
    """Find what makes converted weights answer wrongly; exit 1 when that stays undecided."""
    if (golden is None) == (not images):
        raise typer.BadParameter("give pictures, or a recording with --golden (one of the two)")
    if golden is not None and expect is not None:
        raise typer.BadParameter("--expect goes with pictures, not with --golden")
    from converters.doctor import diagnose
    from converters.evidence import Golden, labelled_pictures
    from convnets_torch.files import check_writable
    from convnets_torch.folders import find_pictures
    from convnets_torch.weights import save

    if write is not None:
        check_writable(write)
    network = load_network(weights, device, None)  # faults are told apart by errors of 1e-5, so float32
    with warnings_as_lines():
        if golden is not None:
            diagnosis = diagnose(network, golden=Golden.read(*golden))
        else:
            if expect is not None:
                labelled = [(picture, expect) for picture in find_pictures(images or [])]
            else:
                labelled = [pair for folder in images or [] for pair in labelled_pictures(folder)]
            diagnosis = diagnose(network, [path for path, _ in labelled], [name for _, name in labelled])
    if write is not None and diagnosis.network is not None:
        save(diagnosis.network, write)
    written = str(write) if write is not None and diagnosis.network is not None else None
    if as_json:
        tried = [{"changes": entry.changes, "figure": _finite(entry.figure)} for entry in diagnosis.hypotheses]
        fields = {"verdict": diagnosis.verdict, "sentence": diagnosis.sentence, "untold": diagnosis.untold}
        print(json.dumps({**fields, "figure": diagnosis.measure, "written": written, "hypotheses": tried}))
    else:
        for entry in diagnosis.hypotheses[:SHOWN]:
            show(f"{entry.figure:<8.3g}  {', '.join(entry.changes) or 'the file as it is'}")
        show(diagnosis.sentence)
    if write is not None:
        say(f"{write}: written" if written else f"{write}: not written, as nothing is decided")
    if diagnosis.winner is None:
        raise typer.Exit(1)


def _finite(number: float) -> float | None:
    """JSON has no infinity."""
    return number if number < float("inf") else None
