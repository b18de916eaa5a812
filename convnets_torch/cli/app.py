"""The `convnets-torch` command: its subcommands and its error handling."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from convnets_torch._version import __version__
from convnets_torch.cli import (
    batch_commands,
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
from convnets_torch.cli.ending import end_on_signals
from convnets_torch.cli.options import HELP, Command
from convnets_torch.cli.output import all_warnings_as_lines, one_line, prefixed

app = typer.Typer(
    help="Convert ImageNet-era Keras weights, classify pictures, and find where in a picture a class is.",
    no_args_is_help=True,
    context_settings=HELP,
    pretty_exceptions_enable=False,
)
PANELS = {  # help panel -> its commands
    "Weights": (
        weights_commands.convert,
        weights_commands.info,
        weights_commands.audit,
        weights_commands.doctor,
        weights_commands.quantize,
        weights_commands.export,
        explain_command.layers,
        explain_command.filters,
    ),
    "Pictures": (
        picture_commands.classify,
        heatmap_command.heatmap,
        explain_command.gradcam,
        explain_command.explain,
        explain_command.activations,
        synset_commands.synsets,
        picture_commands.demo,
    ),
    "Collections": (
        feature_commands.embed,
        feature_commands.map_pictures,
        search_commands.index,
        search_commands.index_vectors,
        search_commands.search,
        search_commands.duplicates,
    ),
    "Training": (
        feature_commands.probe,
        finetune_command.finetune,
        finetune_command.augment,
        evaluate_command.evaluate,
    ),
}
for panel, functions in PANELS.items():
    for function in functions:
        name = "map" if function is feature_commands.map_pictures else None
        app.command(name, cls=Command, rich_help_panel=panel)(function)
app.add_typer(batch_commands.app, name="batch", rich_help_panel="Collections")


def _print_version(wanted: bool) -> None:
    if wanted:
        print(__version__)
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Options that come before a command."""


def run(application: typer.Typer) -> None:
    """Run a command line. Exit codes: 0 done, 1 error (one line on stderr), 2 misuse, 130 or 143 ended by a signal."""
    with end_on_signals(), all_warnings_as_lines():
        try:
            application()
        except (OSError, ValueError, ImportError) as error:
            sys.exit(prefixed(one_line(error)))
        except (MemoryError, RuntimeError) as error:
            if not isinstance(error, MemoryError) and "memory" not in str(error):
                raise
            sys.exit(prefixed("out of memory; use a smaller picture or a smaller --longest-side"))


def main() -> None:
    """Entry point of the console script."""
    run(app)
