"""The `convnets-torch` command, and what it does with errors."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from convnets_torch._version import __version__
from convnets_torch.cli import (
    evaluate_command,
    explain_command,
    feature_commands,
    finetune_command,
    heatmap_command,
    picture_commands,
    search_commands,
    synset_commands,
    weights_commands,
)
from convnets_torch.cli import (
    explain_command as activations_command,
)
from convnets_torch.cli import (
    explain_command as filters_command,
)
from convnets_torch.cli import (
    explain_command as gradcam_command,
)
from convnets_torch.cli import (
    explain_command as layers_command,
)
from convnets_torch.cli import (
    finetune_command as augment_command,
)
from convnets_torch.cli import (
    weights_commands as audit_command,
)
from convnets_torch.cli import (
    weights_commands as doctor_command,
)
from convnets_torch.cli import (
    weights_commands as export_command,
)
from convnets_torch.cli.ending import ends_when_told
from convnets_torch.cli.output import all_warnings_as_lines, one_line, ours

app = typer.Typer(
    help="Convert ImageNet-era Keras weights, classify pictures, and find where in a picture a class is.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command()(weights_commands.convert)
app.command()(weights_commands.info)
app.command()(audit_command.audit)
app.command()(doctor_command.doctor)
app.command()(picture_commands.classify)
app.command()(heatmap_command.heatmap)
app.command()(gradcam_command.gradcam)
app.command()(explain_command.explain)
app.command()(evaluate_command.evaluate)
app.command()(export_command.export)
app.command()(feature_commands.embed)
app.command()(feature_commands.probe)
app.command()(finetune_command.finetune)
app.command()(augment_command.augment)
app.command()(search_commands.index)
app.command()(search_commands.search)
app.command()(search_commands.duplicates)
app.command("map")(feature_commands.map_pictures)
app.command()(layers_command.layers)
app.command()(activations_command.activations)
app.command()(filters_command.filters)
app.command()(synset_commands.synsets)
app.command()(picture_commands.demo)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(__version__)
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    """Options before any command."""


def run(application: typer.Typer) -> None:
    """Run a command line: exit 0 done, 1 cannot (one line on stderr), 2 misused, 130 or 143 told to end."""
    with ends_when_told(), all_warnings_as_lines():
        try:
            application()
        except (OSError, ValueError, ImportError) as error:
            sys.exit(ours(one_line(error)))
        except (MemoryError, RuntimeError) as error:
            if not isinstance(error, MemoryError) and "memory" not in str(error):
                raise
            sys.exit(ours("the memory does not suffice; take a smaller picture, or a smaller --longest-side"))


def main() -> None:
    """The console script."""
    run(app)
