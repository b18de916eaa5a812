"""Options shared by several commands: dataclasses whose fields are options, and the `command` decorator."""

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

from convnets_torch.cli.output import complain, say, verbosity, warnings_as_lines
from convnets_torch.inference.allocation import keep_memory
from convnets_torch.training.settings import Augmentation, Settings

if TYPE_CHECKING:
    from convnets_torch.inference.pipeline import Mappable
    from convnets_torch.networks import Network

PICTURES, NETWORK, DATA, AUGMENTATION, CLUSTER = (  # help panels
    "Reading pictures", "Running the network", "Data", "Random augmentation", "Past one machine",
)  # fmt: skip


def option(default: Any, help: str, *names: str, **more: Any) -> Any:
    """Declare an option, as a field of a shared dataclass or as the default of a command's parameter.

    Args:
        default: the default value, or ... for a required option.
        names: spellings of the option; derived from the field or parameter if empty.
        more: passed to `typer.Option`.
    """
    return field(default=default, metadata={"help": help, "names": names, **more})


def argument(default: Any, help: str, metavar: str, **more: Any) -> Any:
    """Declare an argument, like `option`; `more` is passed to `typer.Argument`."""
    return field(default=default, metadata={"help": help, "metavar": metavar, "names": None, **more})


_picture = functools.partial(option, rich_help_panel=PICTURES)
_network = functools.partial(option, rich_help_panel=NETWORK)
_data = functools.partial(option, rich_help_panel=DATA)
_augmentation = functools.partial(option, rich_help_panel=AUGMENTATION)


SHORT = {"output": ["-o"], "quiet": ["-q"], "verbose": ["-v"]}


def _parameter(name: str, kind: Any, found: Field[Any]) -> inspect.Parameter:
    """Turn a field into a parameter annotated for typer."""
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
    """Make a function a command; a parameter that is a dataclass becomes one option per field.

    Args:
        old: deprecated spelling -> current spelling.
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
            with verbosity(quiet=shown.quiet, verbose=shown.verbose):
                function(**given)

        del run.__wrapped__
        run.__annotations__ = {}
        run.__signature__ = inspect.Signature(taken + shared)  # type: ignore[attr-defined]
        run.old = dict(old or {})  # type: ignore[attr-defined]
        return run

    return make


HELP = {"help_option_names": ["-h", "--help"]}  # for every command


class Command(TyperCommand):
    """A command that accepts deprecated option spellings with a warning."""

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """Leave hidden arguments out of the usage line."""
        hidden = [piece for each in self.params if vars(each)["hidden"] for piece in each.get_usage_pieces(ctx)]
        return [piece for piece in super().collect_usage_pieces(ctx) if piece not in hidden]

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Replace deprecated spellings by the current ones."""
        old: dict[str, str] = getattr(self.callback, "old", {})
        end = args.index("--") if "--" in args else len(args)
        for place, word in enumerate(args[:end]):
            name, equals, value = word.partition("=")
            if name in old:
                deprecated(name, old[name])
                args[place] = old[name] + equals + value
        return super().parse_args(ctx, args)


def deprecated(old: str, new: str) -> None:
    """Warn that a spelling is deprecated."""
    complain(f"DeprecationWarning: {old} is now {new}; the old spelling will be removed in a later version")


Weights = Annotated[str, typer.Argument(metavar="WEIGHTS", help="A .safetensors file or the name of cached weights.")]
Images = Annotated[
    list[str],
    typer.Argument(metavar="IMAGE...", help="Image files, folders, quoted glob patterns, or - for standard input."),
]
Targets = Annotated[
    list[str] | None,
    typer.Option(
        "--target",
        help="Target: a word, a wnid, a class id, or an expression such as 'dog - hunting dog + wolf'; repeatable.",
    ),
]
Layers = Annotated[
    list[str] | None,
    typer.Option(
        "--layer",
        help="Layer name, ours or Keras's, a prefix, or a quoted pattern such as 'relu5_*'; repeatable.",
    ),
]
Layer = Annotated[str | None, typer.Option("--layer", help="Layer name, ours or Keras's, such as fc2.")]
Top = Annotated[int, typer.Option(min=1, help="Number of classes per picture, most probable first.")]
SEED = Settings.__dataclass_fields__["seed"].metadata["help"]  # the same help in all commands
Method = Annotated[
    Literal["gradcam", "gradcam++", "hirescam", "layercam"], typer.Option(help="Method that weights the cells.")
]
Pool = Annotated[
    Literal["avg", "max", "flatten", "gem"], typer.Option(help="Pooling that turns feature maps into vectors.")
]
Half = Annotated[bool, typer.Option("--half", help="Write vectors as float16.")]
Shard = Annotated[
    int, typer.Option(min=1, max=1_000_000, help="Pictures of a shard, the unit of work and of resuming.")
]
Column = Annotated[str | None, typer.Option(help="Column of the tables.", show_default="found by its name")]
Reduced = Annotated[
    bool,
    typer.Option(
        "--reduced",
        help="Decode JPEG files at 1/2, 1/4 or 1/8 scale: faster, with slightly different numbers. For heatmap, only"
        " with --longest-side and several pictures.",
    ),
]
Against = Annotated[
    str | None, typer.Option(help="Class to contrast with the target: why the target rather than this.")
]
LongestSide = Annotated[
    int | None,
    typer.Option(
        min=1, help="Resize the whole picture to this longest side in pixels first; larger finds smaller objects."
    ),
]
ResumeFolder = Annotated[
    Path | None,
    typer.Option(
        metavar="FOLDER", help="Folder for intermediate results; rerun the same command to resume an interrupted run."
    ),
]
Strength = Annotated[
    Literal["none", "light", "medium", "strong"],
    typer.Option(
        help="Strength of the augmentation; the options below override single values.",
        rich_help_panel=AUGMENTATION,
    ),
]


@dataclass(frozen=True)
class Shown:
    """How results and messages are printed."""

    as_json: bool = option(False, "Print results as JSON: one object, or one per line.", "--json")
    quiet: bool = option(False, "Print only results and errors, no progress or notes.")
    verbose: bool = option(False, "Also print device, precision, time taken, and tracebacks of errors.")


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
        None, "Refuse files with more pixels (height times width).", min=1, show_default="178956970"
    )
    allow_truncated: bool = _picture(False, "Read truncated pictures as far as they go.")
    exclude: list[str] | None = _picture(  # noqa: RUF009
        None,
        "Skip files and subfolders whose name or path within a folder matches, such as thumbs or '*_mask.png';"
        " repeatable.",
        metavar="PATTERN",
    )
    depth: Literal["8", "10", "12", "14", "16", "auto"] | None = _picture(
        None,
        "Bit depth of the values in 16-bit files; auto takes the smallest that holds each picture's largest value.",
        show_default="as the file says, or 16",
    )
    background: str | None = _picture(
        None,
        "Background behind transparent pixels.",
        metavar="white|black|checker|#RRGGBB",
        parser=_background,
        show_default="the colours as stored",
    )

    @property
    def reading(self) -> dict[str, Any]:
        """Keyword arguments of functions that read pictures."""
        names = ("max_pixels", "allow_truncated", "depth", "background")
        return {name: getattr(self, name) for name in names}

    def find(self, names: str | Iterable[str]) -> list[str]:
        """Return the pictures that file, folder and pattern names stand for; - is kept."""
        from convnets_torch.images.finding import find_pictures

        several = [names] if isinstance(names, str) else names
        return [
            path
            for name in several
            for path in ([name] if name == "-" else map(str, find_pictures(name, exclude=self.exclude or ())))
        ]


Precision = Literal["auto", "exact", "float32", "bfloat16", "float16"]


_device = functools.partial(_network, "auto", "Device: cpu, cuda, cuda:1, mps, or auto for the best available.")
_precision = functools.partial(
    _network,
    None,
    "Prepare the network for many pictures in this precision; auto uses bfloat16 where it is fast"
    " (docs/speed.md has the rounding errors).",
    show_default="as in the file",
)
_batch_size = functools.partial(_network, None, "Pictures per batch.", min=1, show_default="as memory allows")
_workers = functools.partial(
    _network,
    None,
    "Threads that decode pictures ahead of the network.",
    min=1,
    show_default="one per core, at most 16",
)


@dataclass(frozen=True)
class PlanOptions(ReadOptions):
    """How pictures of a job are read, and what its network computes in."""

    precision: Precision | None = _precision()  # noqa: RUF009


@dataclass(frozen=True)
class PlaceOptions:
    """Where and how the network of a job is run."""

    device: str = _device()
    batch_size: int | None = _batch_size()
    workers: int | None = _workers()

    @property
    def batch(self) -> Any:
        """Value of `batch` for functions that can choose it."""
        return "auto" if self.batch_size is None else self.batch_size


_cluster = functools.partial(option, rich_help_panel=CLUSTER)


@dataclass(frozen=True)
class WorkOptions:
    """Who computes the shards of a job."""

    executor: Literal["auto", "local", "static", "ray"] = _cluster(
        "auto",
        "Who computes: this process; static, this process as one of those that SLURM, Kubernetes or torchrun started;"
        " or actors of a Ray cluster.",
    )
    address: str | None = _cluster(
        None, "Ray cluster: auto, ray://host:10001, or local to start one here.", show_default="RAY_ADDRESS, or local"
    )
    actors: int | None = _cluster(None, "With Ray: number of actors.", min=1, show_default="one per GPU")
    cpus: int | None = _cluster(
        None, "With Ray: CPUs of each actor.", min=1, show_default="2, or its share beside a GPU"
    )
    tries: int = _cluster(3, "How often a shard may fail.", min=1)


@dataclass(frozen=True)
class FetchOptions(WorkOptions):
    """Who computes the shards of a job over pictures, and how these are fetched."""

    fetch_threads: int = _cluster(64, "Pictures fetched at the same time.", min=1)
    allow_bad: bool = _cluster(False, "Also write shards of which more than half of the pictures cannot be read.")


@dataclass(frozen=True)
class RunOptions(ReadOptions):
    """How pictures are read and the network is run."""

    device: str = _device()
    precision: Precision | None = _precision()  # noqa: RUF009
    engine: Literal["openvino"] | None = _network(
        None, "Inference engine for classify, evaluate and heatmap; openvino is fast on CPUs."
    )
    batch_size: int | None = _batch_size()
    workers: int | None = _workers()

    @property
    def batch(self) -> Any:
        """Value of `batch` for functions that can choose it."""
        return "auto" if self.batch_size is None else self.batch_size

    @property
    def running(self) -> dict[str, Any]:
        """Keyword arguments of functions that run many pictures: reading options, batch and workers."""
        return {"batch": self.batch, "workers": self.workers, **self.reading}

    def load(self, weights: str, *, whole: bool = False, bulk: bool = False, plain: bool = False) -> Network:
        """Load the network of a command.

        Args:
            weights: a file, or a name in the cache.
            whole: keep every layer separate, for commands that read activations; only the precision is changed.
            bulk: keep memory allocated between layers, for many pictures of one size.
            plain: leave the network as stored, for commands that prepare it themselves.

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
        """Refuse --engine in a command that needs layers or gradients."""
        if self.engine is not None:
            raise typer.BadParameter(
                f"--engine {self.engine} only computes outputs and score maps, but this command needs more of the"
                " network, its layers or gradients; leave it out"
            )

    def ready(self, network: Network, *, whole: bool = False) -> Network:
        """Move a network to the chosen device and precision; `whole` as in `load`."""
        from convnets_torch.inference import prepare
        from convnets_torch.networks.quantized import is_quantized

        place = prepare.checked_device(self.device)
        self._say_place(place)
        if self.precision is None and (whole or not is_quantized(network)):
            return network.to(place)
        with warnings_as_lines():
            if whole and self.precision is not None:
                return network.to(prepare.dtype_of(self.precision, place))
            return prepare.prepare(network, device=place, precision=self.precision or "auto")

    def runnable(self, weights: str, *, heatmap: bool = False) -> Mappable:
        """Load the network of a command that only classifies, or only maps if `heatmap`; in an engine if one is given.

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
    """Where the labels of a folder's pictures come from."""

    truth: Path | None = _data(  # noqa: RUF009
        None,
        "Table of the pictures in the folder, with a name and a label per row. Columns are found by their headers; one"
        " column per class with 0 or 1 also works.",
    )
    columns: str | None = _data(
        None,
        "Headers of the columns with pictures and labels.",
        metavar="PATH,LABEL",
        show_default="found by their headers",
    )
    partial: bool = _data(False, "Allow pictures without a row in the table, and rows without a picture.")

    def with_exclude(self, exclude: list[str] | None) -> dict[str, Any]:
        """Keyword arguments of `find_dataset`, `find_classes` and `find_truth`."""
        names = None if self.columns is None else [name.strip() for name in self.columns.split(",")]
        if names is not None and (len(names) != 2 or not all(names)):
            raise typer.BadParameter(
                f"--columns {self.columns} must name two columns, one of pictures and one of labels"
            )
        return {"truth": self.truth, "columns": names, "partial": self.partial, "exclude": exclude or ()}


@dataclass(frozen=True)
class Mixing:
    """Random augmentation: MixUp and CutMix; the subclass `Changes` adds the fields of `Augmentation`."""

    mixup: float | None = _augmentation(
        None,
        "Blend pairs of pictures (MixUp): alpha of the Beta distribution.",
        "--mixup",
        min=0.01,
        max=100,
        show_default="off",
    )
    cutmix: float | None = _augmentation(
        None,
        "Paste a box from another picture (CutMix): alpha of the Beta distribution.",
        "--cutmix",
        min=0.01,
        max=100,
        show_default="off",
    )

    @property
    def mixing(self) -> tuple[Literal["mixup", "cutmix"], float] | None:
        """Kind and alpha of the chosen mixing, or None."""
        if self.mixup is not None and self.cutmix is not None:
            raise typer.BadParameter("--mixup and --cutmix exclude each other")
        if self.mixup is not None:
            return "mixup", self.mixup
        return None if self.cutmix is None else ("cutmix", self.cutmix)

    def of(self, strength: str) -> Augmentation:
        """Return the augmentation of the named strength, with the given options replaced."""
        from convnets_torch.training.settings import augmentation

        given = {each.name: getattr(self, each.name) for each in fields(Augmentation)}
        for name in ("flip", "vertical_flip"):  # a flag here, a probability there
            given[name] = None if given[name] is None else 0.5 * given[name]
        given["no_flip"] = tuple(dict.fromkeys(given["no_flip"] or ())) or None
        return augmentation(strength, **{name: value for name, value in given.items() if value is not None})


def _switches() -> Iterator[tuple[str, Any, Any]]:
    """Yield the fields of `Augmentation` as optional options."""
    for each in fields(Augmentation):
        value: Any = {"int": int, "float": float}.get(str(each.type), list[str])
        more = {"rich_help_panel": AUGMENTATION, **each.metadata, **({"show_default": "off"} if value is int else {})}
        if "/" in str(more.get("names")):  # --flip/--no-flip
            value = bool
            del more["min"], more["max"]
        yield each.name, value | None, field(default=None, metadata=more)


if TYPE_CHECKING:
    Changes = Mixing
else:
    Changes = make_dataclass("Changes", _switches(), bases=(Mixing,), frozen=True)


def check_output(output: Path | None, endings: Iterable[str], what: str) -> None:
    """Raise if an output has an unknown ending or is not writable, before any long work."""
    from convnets_torch.files import check_writable

    if output is None:
        return
    known = list(endings)
    if output.suffix.lower() not in known:
        raise typer.BadParameter(f"{output} has an unknown ending; {what} {', '.join(known)}")
    check_writable(output)


def check_weights(output: Path | None, weights: str | None = None) -> None:
    """Raise if weights cannot be written to `output`, or if it is the file that they are read from."""
    from convnets_torch.files import find

    check_output(output, [".safetensors"], "weights are written as")
    if output is not None and weights is not None and output.exists() and output.samefile(find(weights)):
        raise ValueError(f"{output} would overwrite the input weights; name another output")


def one_target(targets: list[str] | None) -> str | None:
    """Join targets into one expression; operators apply left to right, so the one with - or & comes first."""
    narrowed = [each for each in targets or () if " - " in each or " & " in each]
    if len(narrowed) > 1:
        raise typer.BadParameter(f"only one --target may contain - or &, not all of {', '.join(narrowed)}")
    return " + ".join([*narrowed, *(each for each in targets or () if each not in narrowed)]) or None


def opened(name: str) -> Any:
    """Return standard input for -, else the name."""
    return sys.stdin.buffer if name == "-" else name


@contextlib.contextmanager
def resumable(folder: Path | None, done: str) -> Iterator[None]:
    """On Ctrl-C, print how to resume the run and exit with 130.

    Args:
        folder: of --resume-folder.
        done: what nothing has been yet: "written" or "reported".
    """
    try:
        yield
    except KeyboardInterrupt:
        way = (
            f"the same command goes on from {folder}" if folder else "use --resume-folder FOLDER to make runs resumable"
        )
        complain(f"interrupted; nothing was {done}; {way}")
        raise typer.Exit(130) from None
