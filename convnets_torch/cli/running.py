"""On which device and in which precision commands run their network."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from convnets_torch.allocation import keep_memory
from convnets_torch.cli.messages import say, warnings_as_lines

if TYPE_CHECKING:
    from convnets_torch.networks import Network
    from convnets_torch.pipeline import Mappable

Device = Annotated[str, typer.Option(help="Where the network runs: cpu, cuda, cuda:1, mps, or auto for the best.")]
Precision = Annotated[
    Literal["auto", "exact", "float32", "bfloat16", "float16"] | None,
    typer.Option(
        help="Make the network ready for many pictures: auto takes bfloat16 where it is fast, which rounds"
        " (docs/speed.md says how far).",
        show_default="as in the file",
    ),
]
EngineName = Annotated[
    Literal["openvino"] | None,
    typer.Option("--engine", help="Run the network in another program; openvino is fast on CPUs.", show_default=False),
]


def load_engine(
    weights: str, device: str, precision: str | None, name: str | None, *, heatmap: bool = False
) -> Mappable:
    """The network of a command that only classifies, or with `heatmap` only maps, in an engine if one is named.

    Raises:
        OSError, ValueError, ImportError: as `load` and `engine`.
    """
    if name is None:
        return load_network(weights, device, precision, bulk=not heatmap)
    if device != "cpu":
        raise typer.BadParameter(f"--engine {name} runs on the CPU, not with --device {device}")
    if precision in ("exact", "float16"):
        raise typer.BadParameter(f"--engine {name} takes --precision auto, float32 or bfloat16, not {precision}")
    from convnets_torch.engines import engine

    network = load_network(weights, device, None)
    with warnings_as_lines():
        return engine(network, name, precision=precision or "float32", heatmap=heatmap)  # type: ignore[arg-type]


def load_network(
    weights: str, device: str, precision: str | None, *, whole: bool = False, bulk: bool = False
) -> Network:
    """The network of a command.

    Args:
        weights: a file, or a name in the cache.
        device, precision: as in `prepare`; None for a network as its file holds it.
        whole: keep every layer by itself, for commands that look into them; then the precision alone is changed.
        bulk: many pictures of one size go through it, for which the process keeps memory between layers.

    Raises:
        OSError, ValueError: as `load`.
    """
    from convnets_torch import runtime
    from convnets_torch import weights as files

    if bulk:
        keep_memory()
    place = runtime.checked_device(device)
    network = files.load(weights, device=place)
    if precision is None:
        return network
    with warnings_as_lines():
        if whole:
            return network.to(runtime.dtype_of(precision, place))
        return runtime.prepare(network, device=place, precision=precision)  # type: ignore[arg-type]


@contextlib.contextmanager
def resumable(folder: Path | None, done: str) -> Iterator[None]:
    """Say how a run that is interrupted goes on.

    Args:
        folder: given with --resume.
        done: what did not happen to anything yet: "written", "reported".
    """
    try:
        yield
    except KeyboardInterrupt:
        way = f"the same command goes on from {folder}" if folder else "with --resume FOLDER a run can go on"
        say(f"interrupted; nothing was {done}; {way}")
        raise typer.Exit(130) from None
