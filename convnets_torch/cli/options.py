"""Options that several commands share: dataclasses whose fields are options, and the decorator that adds them."""

from __future__ import annotations

import contextlib
import functools
import inspect
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import Field, dataclass, field, fields, is_dataclass, make_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_type_hints

import typer
from typer.core import TyperCommand

from convnets_torch.cli.output import complain, say, speaking, warnings_as_lines
from convnets_torch.inference.allocation import keep_memory
from convnets_torch.training.settings import Augmentation

if TYPE_CHECKING:
    from convnets_torch.inference.pipeline import Mappable
    from convnets_torch.networks import Network

PICTURES, NETWORK, DATA, AUGMENTATION = (  # panels of the help
    "Reading pictures", "Running the network", "Data", "Changes of pictures at random",
)  # fmt: skip


def option(default: Any, help: str, *names: str, **more: Any) -> Any:
    """An option of commands: a field of a dataclass that they take, or the default of one of their parameters.

    Args:
        default: ... where there is none.
        names: the spellings, by default that of the field or parameter.
        more: goes to `typer.Option`.
    """
    return field(default=default, metadata={"help": help, "names": names, **more})


def argument(default: Any, help: str, metavar: str, **more: Any) -> Any:
    """An argument of a command, as `option`; `more` goes to `typer.Argument`."""
    return field(default=default, metadata={"help": help, "metavar": metavar, "names": None, **more})


_picture = functools.partial(option, rich_help_panel=PICTURES)
_network = functools.partial(option, rich_help_panel=NETWORK)
_data = functools.partial(option, rich_help_panel=DATA)
_augmentation = functools.partial(option, rich_help_panel=AUGMENTATION)


SHORT = {"output": ["-o"], "quiet": ["-q"], "verbose": ["-v"]}


def _parameter(name: str, kind: Any, found: Field[Any]) -> inspect.Parameter:
    """What typer makes an option of."""
    more = dict(found.metadata)
    names = more.pop("names")
    if names is None:
        how: Any = typer.Argument(**more)
    else:
        spelled = [*SHORT.get(name, ()), "--" + name.replace("_", "-")]
        how = typer.Option(*(names or (spelled if name in SHORT or found.default is False else ())), **more)
    default = inspect.Parameter.empty if found.default is ... else found.default
    return inspect.Parameter(name, KEYWORD, default=default, annotation=Annotated[kind, how])


KEYWORD = inspect.Parameter.KEYWORD_ONLY


def command(old: Mapping[str, str] | None = None) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Make a function a command: each parameter that is a dataclass becomes an option for each of its fields.

    Args:
        old: spellings of earlier versions, which still work, and the present ones.
    """

    def make(function: Callable[..., None]) -> Callable[..., None]:
        groups: dict[str, tuple[type, list[str]]] = {}
        taken: list[inspect.Parameter] = []
        shared: list[inspect.Parameter] = []
        for name, each in inspect.signature(function, eval_str=True).parameters.items():
            if isinstance(kind := each.annotation, type) and is_dataclass(kind):
                types = get_type_hints(kind)
                made = [found for found in fields(kind) if "help" in found.metadata]
                groups[name] = kind, [found.name for found in made]
                shared += [_parameter(found.name, types[found.name], found) for found in made]
            elif isinstance(each.default, Field):
                taken.append(_parameter(name, kind, each.default))
            else:
                taken.append(each.replace(kind=KEYWORD))

        @functools.wraps(function)
        def run(**given: Any) -> None:
            for name, (kind, names) in groups.items():
                given[name] = kind(**{each: given.pop(each) for each in names})
            shown = given.get("shown", Shown())
            with speaking(quiet=shown.quiet, verbose=shown.verbose):
                function(**given)

        del run.__wrapped__
        run.__annotations__ = {}
        run.__signature__ = inspect.Signature(taken + shared)  # type: ignore[attr-defined]
        run.old = dict(old or {})  # type: ignore[attr-defined]
        return run

    return make


HELP = {"help_option_names": ["-h", "--help"]}  # of every command


class Command(TyperCommand):
    """A command that still takes the spellings of earlier versions, and says what they are now."""

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """Keep hidden arguments out of the usage."""
        hidden = [piece for each in self.params if vars(each)["hidden"] for piece in each.get_usage_pieces(ctx)]
        return [piece for piece in super().collect_usage_pieces(ctx) if piece not in hidden]

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put the present spelling in the place of an old one."""
        old: dict[str, str] = getattr(self.callback, "old", {})
        end = args.index("--") if "--" in args else len(args)
        for place, word in enumerate(args[:end]):
            name, equals, value = word.partition("=")
            if name in old:
                deprecated(name, old[name])
                args[place] = old[name] + equals + value
        return super().parse_args(ctx, args)


def deprecated(old: str, new: str) -> None:
    """Say that a spelling will go."""
    complain(f"DeprecationWarning: {old} is now {new}; the old spelling will go in a later version")


Weights = Annotated[str, typer.Argument(metavar="WEIGHTS", help="A .safetensors file, or a name in the cache.")]
Images = Annotated[
    list[str],
    typer.Argument(metavar="IMAGE...", help="Pictures, folders of them, quoted patterns, or - for standard input."),
]
Targets = Annotated[
    list[str] | None,
    typer.Option(
        "--target",
        help="Which classes: a word, a wnid, a class id, or 'dog - hunting dog + wolf'; several times for more.",
    ),
]
Layers = Annotated[
    list[str] | None,
    typer.Option(
        "--layer",
        help="A layer's name, Keras's name, prefix or quoted pattern, as in 'relu5_*'; several times for more.",
    ),
]
Layer = Annotated[str | None, typer.Option("--layer", help="A layer's name, or Keras's, such as fc2.")]
Top = Annotated[int, typer.Option(min=1, help="How many classes of each picture, the most probable first.")]
SEED = "Of all that is drawn at random."  # help of --seed
Method = Annotated[Literal["gradcam", "gradcam++", "hirescam", "layercam"], typer.Option(help="How cells are weighed.")]
Pool = Annotated[
    Literal["avg", "max", "flatten", "gem"], typer.Option(help="How maps become vectors: of each channel one value.")
]
Reduced = Annotated[
    bool,
    typer.Option(
        "--reduced",
        help="Decode JPEG files at 1/2, 1/4 or 1/8 of their scale: faster, with slightly other numbers; heatmap does"
        " so for several pictures, with --longest-side.",
    ),
]
Against = Annotated[str | None, typer.Option(help="What counts against the target: why this rather than that.")]
LongestSide = Annotated[
    int | None,
    typer.Option(min=1, help="The whole picture, resized to so many pixels first; more finds smaller things."),
]
ResumeFolder = Annotated[
    Path | None, typer.Option(metavar="FOLDER", help="Keep what is finished there; an interrupted run goes on from it.")
]
Strength = Annotated[
    Literal["none", "light", "medium", "strong"],
    typer.Option(
        help="How much pictures are changed, in one word; the switches below change single values of it.",
        rich_help_panel=AUGMENTATION,
    ),
]


@dataclass(frozen=True)
class Shown:
    """How much a command says."""

    as_json: bool = option(False, "Print results as JSON: one object, or one on each line.", "--json")
    quiet: bool = option(False, "Print results and errors alone: no progress, no notes.")
    verbose: bool = option(False, "Say also device, precision and time taken, and where an error arose.")


def _background(text: str) -> str:
    from convnets_torch.images.levels import check_levels

    try:
        check_levels(None, text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    return text


@dataclass(frozen=True)
class ReadOptions:
    """How pictures are found and read."""

    max_pixels: int | None = _picture(
        None, "Refuse files of more pixels (height times width).", min=1, show_default="178956970"
    )
    allow_truncated: bool = _picture(False, "Read what is there of pictures whose end is missing.")
    exclude: list[str] | None = _picture(  # noqa: RUF009
        None,
        "Leave out files and folders of a folder by their name or path in it, such as thumbs or '*_mask.png';"
        " several times for more.",
        metavar="PATTERN",
    )
    depth: Literal["8", "10", "12", "14", "16", "auto"] | None = _picture(
        None,
        "Bits of the values in files of 16 bits a channel; auto takes as few as hold each picture's largest.",
        show_default="as the file says, or 16",
    )
    background: str | None = _picture(
        None,
        "What shows through transparency.",
        metavar="white|black|checker|#RRGGBB",
        parser=_background,
        show_default="the colours as stored",
    )

    @property
    def reading(self) -> dict[str, Any]:
        """As keywords of the functions that read pictures."""
        names = ("max_pixels", "allow_truncated", "depth", "background")
        return {name: getattr(self, name) for name in names}

    def find(self, names: str | Iterable[str]) -> list[str]:
        """The pictures that names mean; - stays itself."""
        from convnets_torch.images.finding import find_pictures

        several = [names] if isinstance(names, str) else names
        return [
            path
            for name in several
            for path in ([name] if name == "-" else map(str, find_pictures(name, exclude=self.exclude or ())))
        ]


@dataclass(frozen=True)
class RunOptions(ReadOptions):
    """How a network runs, and on which pictures."""

    device: str = _network("auto", "Where the network runs: cpu, cuda, cuda:1, mps, or auto for the best.")
    precision: Literal["auto", "exact", "float32", "bfloat16", "float16"] | None = _network(
        None,
        "Make the network ready for many pictures: auto takes bfloat16 where it is fast, which rounds"
        " (docs/speed.md says how far).",
        show_default="as in the file",
    )
    engine: Literal["openvino"] | None = _network(
        None, "Run the network in another program, to classify, evaluate and draw heatmaps; openvino is fast on CPUs."
    )
    batch_size: int | None = _network(
        None, "Pictures that go through the network together.", min=1, show_default="as memory allows"
    )
    workers: int | None = _network(
        None, "Threads that read pictures ahead of the network.", min=1, show_default="one a core, at most 16"
    )

    @property
    def batch(self) -> Any:
        """As a keyword of functions that choose a batch by themselves."""
        return "auto" if self.batch_size is None else self.batch_size

    @property
    def running(self) -> dict[str, Any]:
        """As keywords of the functions that run many pictures: how they are read, batch and workers."""
        return {"batch": self.batch, "workers": self.workers, **self.reading}

    def load(self, weights: str, *, whole: bool = False, bulk: bool = False, plain: bool = False) -> Network:
        """The network of a command.

        Args:
            weights: a file, or a name in the cache.
            whole: keep every layer by itself, for commands that look into them; then the precision alone is changed.
            bulk: many pictures of one size go through it, for which the process keeps memory between layers.
            plain: leave it as its file holds it, for commands that make it ready themselves.

        Raises:
            OSError, ValueError: as `load`.
        """
        self.without_engine()
        network = self._loaded(weights, self.device, bulk)
        if not plain:
            return self.ready(network, whole=whole)
        self._say_place(next(network.parameters()).device)
        return network

    def without_engine(self) -> None:
        """Refuse an engine in a command that needs more than it gives."""
        if self.engine is not None:
            raise typer.BadParameter(
                f"--engine {self.engine} gives answers and score maps alone, but this command needs more of the"
                " network, its layers or gradients; leave it out"
            )

    def ready(self, network: Network, *, whole: bool = False) -> Network:
        """A network on the device and in the precision that are wished; `whole` as in `load`."""
        from convnets_torch.inference import prepare

        place = prepare.checked_device(self.device)
        self._say_place(place)
        if self.precision is None:
            return network.to(place)
        with warnings_as_lines():
            if whole:
                return network.to(prepare.dtype_of(self.precision, place))
            return prepare.prepare(network, device=place, precision=self.precision)

    def runnable(self, weights: str, *, heatmap: bool = False) -> Mappable:
        """The network of a command that only classifies, or with `heatmap` only maps, in an engine if one is named.

        Raises:
            OSError, ValueError, ImportError: as `load` and `engine`.
        """
        if self.engine is None:
            return self.ready(self._loaded(weights, self.device, not heatmap))
        if self.device not in ("auto", "cpu"):
            raise typer.BadParameter(f"--engine {self.engine} runs on the CPU, not with --device {self.device}")
        if self.precision in ("exact", "float16"):
            raise typer.BadParameter(
                f"--engine {self.engine} takes --precision auto, float32 or bfloat16, not {self.precision}"
            )
        from convnets_torch.inference.engines import engine

        self._say_place(f"cpu, in {self.engine}")
        network, precision = self._loaded(weights, "cpu", False), self.precision or "float32"
        with warnings_as_lines():
            return engine(network, self.engine, precision=precision, heatmap=heatmap)  # type: ignore[arg-type]

    def _loaded(self, weights: str, device: str, bulk: bool) -> Network:
        from convnets_torch import weights as files
        from convnets_torch.inference.prepare import checked_device

        if bulk:
            keep_memory()
        place = checked_device(device)
        return files.load(weights, device=place)

    def _say_place(self, place: object) -> None:
        say(f"the network runs on {place}, precision {self.precision or 'as in the file'}", verbose=True)


@dataclass(frozen=True)
class Labels:
    """What the pictures of a folder show."""

    truth: Path | None = _data(  # noqa: RUF009
        None,
        "Table of the pictures in the folder: name and label in each line. Columns are known by their names; one for"
        " each class, with a 1 in the right one, will do as well.",
    )
    columns: str | None = _data(
        None, "The table's columns of pictures and labels.", metavar="PATH,LABEL", show_default="known by their names"
    )
    partial: bool = _data(False, "Go on where pictures have no row in the table, or rows no picture.")

    def with_exclude(self, exclude: list[str] | None) -> dict[str, Any]:
        """As keywords of `find_dataset`, `find_classes` and `find_truth`."""
        names = None if self.columns is None else [name.strip() for name in self.columns.split(",")]
        if names is not None and (len(names) != 2 or not all(names)):
            raise typer.BadParameter(
                f"--columns {self.columns} names no two columns; give one of pictures and one of labels"
            )
        return {"truth": self.truth, "columns": names, "partial": self.partial, "exclude": exclude or ()}


@dataclass(frozen=True)
class Mixing:
    """Changes of pictures at random: blends, and as `Changes` the fields of `Augmentation` that are given."""

    mixup: float | None = _augmentation(
        None, "Blend pictures: alpha of the shares.", "--mixup", min=0.01, max=100, show_default="off"
    )
    cutmix: float | None = _augmentation(
        None, "Cover a part by another picture: alpha of the shares.", "--cutmix", min=0.01, max=100, show_default="off"
    )

    @property
    def mixing(self) -> tuple[Literal["mixup", "cutmix"], float] | None:
        """Kind and alpha of the mixing that was asked for."""
        if self.mixup is not None and self.cutmix is not None:
            raise typer.BadParameter("--mixup and --cutmix exclude each other")
        if self.mixup is not None:
            return "mixup", self.mixup
        return None if self.cutmix is None else ("cutmix", self.cutmix)

    def of(self, strength: str) -> Augmentation:
        """The named strength with the switches that were given."""
        from convnets_torch.training.settings import augmentation

        given = {each.name: getattr(self, each.name) for each in fields(Augmentation)}
        for name in ("flip", "vertical_flip"):  # on: half of the pictures
            given[name] = None if given[name] is None else 0.5 * given[name]
        given["no_flip"] = tuple(dict.fromkeys(given["no_flip"] or ())) or None
        return augmentation(strength, **{name: value for name, value in given.items() if value is not None})


def _switches() -> Iterator[tuple[str, Any, Any]]:
    """The fields of `Augmentation`, each of which may be left out."""
    for each in fields(Augmentation):
        value: Any = {"int": int, "float": float}.get(str(each.type), list[str])
        more = {"rich_help_panel": AUGMENTATION, **each.metadata, **({"show_default": "off"} if value is int else {})}
        if "/" in str(more.get("names")):  # on or off
            value = bool
            del more["min"], more["max"]
        yield each.name, value | None, field(default=None, metadata=more)


if TYPE_CHECKING:
    Changes = Mixing
else:
    Changes = make_dataclass("Changes", _switches(), bases=(Mixing,), frozen=True)


def check_output(output: Path | None, endings: Iterable[str], what: str) -> None:
    """Refuse, before long work begins, a file whose ending says nothing that can be written, or no writable one."""
    from convnets_torch.files import check_writable

    if output is None:
        return
    known = list(endings)
    if output.suffix.lower() not in known:
        raise typer.BadParameter(f"{output} has an unknown ending; {what} {', '.join(known)}")
    check_writable(output)


def check_weights(output: Path | None, weights: str | None = None) -> None:
    """Refuse a file that weights cannot be written to, or the one that they are read from."""
    from convnets_torch.files import find

    check_output(output, [".safetensors"], "weights are written as")
    if output is not None and weights is not None and output.exists() and output.samefile(find(weights)):
        raise ValueError(f"{output} would overwrite the weights that are read; name another output")


def one_target(targets: list[str] | None) -> str | None:
    """Targets as one that means the classes of all; signs apply from left to right, so what takes away comes first."""
    narrowed = [each for each in targets or () if " - " in each or " & " in each]
    if len(narrowed) > 1:
        raise typer.BadParameter(
            f"several --target with - or & ({', '.join(narrowed)}) are not joined; give one of them"
        )
    return " + ".join([*narrowed, *(each for each in targets or () if each not in narrowed)]) or None


def opened(name: str) -> Any:
    """A picture's name, or standard input."""
    return sys.stdin.buffer if name == "-" else name


@contextlib.contextmanager
def resumable(folder: Path | None, done: str) -> Iterator[None]:
    """Say how a run that is interrupted goes on.

    Args:
        folder: given with --resume-folder.
        done: what did not happen to anything yet: "written", "reported".
    """
    try:
        yield
    except KeyboardInterrupt:
        way = f"the same command goes on from {folder}" if folder else "with --resume-folder FOLDER a run can go on"
        complain(f"interrupted; nothing was {done}; {way}")
        raise typer.Exit(130) from None
