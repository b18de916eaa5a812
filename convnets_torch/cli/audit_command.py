"""The command `audit`: what a Keras file holds, before anything is done with it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from convnets_torch.cli.messages import show
from convnets_torch.sentences import shortened

if TYPE_CHECKING:
    from converters.auditing import Audit


def audit(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="An .h5 or .keras file of any Keras, trusted or not.")],
    no_isolation: Annotated[
        bool, typer.Option("--no-isolation", help="Read the file in this process, which a damaged file may crash.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """List what a Keras file holds without building or running any of it: layers, code, links, odd sizes."""
    from converters.auditing import Audit
    from converters.isolation import reading_process

    with reading_process(isolated=not no_isolation) as call:
        found = Audit.from_dict(call("audit", path=str(file)))
    if as_json:
        print(json.dumps(found.to_dict()))
        return
    for line in lines(found):
        show(shortened(line))  # --json has all of it


def lines(found: Audit) -> Iterator[str]:
    """An audit for people; the text of the file in it is as the file has it."""
    yield f"{found.path}: {found.size:,} bytes"
    if found.framework:
        backend = f", trained on {found.backend}" if found.backend else ""
        yield f"{found.framework}{backend} ({found.container}), {found.parameters:,} parameters"
    for layer in found.layers:
        arrays = ", ".join(f"{role} {shape} {dtype}" for role, (shape, dtype) in layer.arrays.items())
        yield f"  {layer.name:<28}  {layer.kind:<20}  {arrays}".rstrip()
    if found.optimizer_arrays:
        yield f"optimizer: {found.optimizer_arrays} arrays, {found.optimizer_bytes:,} bytes"
    if found.training:
        yield f"training: {json.dumps(found.training)}"
    for word, entries in (("unlisted", found.unlisted), ("code", found.code), ("problem", found.problems)):
        for entry in entries:
            yield f"{word}: {entry}"
    if found.refused:
        yield f"not readable: {found.refused}"
