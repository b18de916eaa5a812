"""Run a network in another runtime: the same outputs from an engine optimised for the processor."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import shutil
import tempfile
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.export import Dim

from convnets_torch._version import __version__
from convnets_torch.card import Card, network_digest
from convnets_torch.fcn.densify import Densified
from convnets_torch.files import (
    cache_folder,
    check_own_folder,
    is_scratch,
    loads,
    make_folder,
    read_text,
    scratch_folder,
    sha256,
)
from convnets_torch.inference.child_process import apart
from convnets_torch.inference.export import MOST_BATCH, check_exportable, import_without_telemetry, traced
from convnets_torch.inference.prepare import RuntimeRemark
from convnets_torch.networks import Network
from convnets_torch.networks.network import Size, check_size
from convnets_torch.networks.quantized import for_export
from convnets_torch.networks.tracing import unwrapped
from convnets_torch.text import check_choice

EnginePrecision = Literal["auto", "float32", "bfloat16"]
ENGINES = ("openvino",)
HINTS = {"float32": "f32", "bfloat16": "bf16"}  # OpenVINO's names


@functools.cache  # once per process
def _core() -> Any:
    """Return OpenVINO's core, which is never destroyed.

    A core gives the thread that creates it a signal stack of its own (for AMX registers), and unmaps it when it is
    destroyed. If another thread does that, the next signal that the first one handles ends the process.
    """
    return import_without_telemetry("openvino").Core()


class Engine:
    """A network in another runtime, called like the network; safe to call from several threads.

    Attributes:
        name: of the engine, "openvino".
        precision: "float32" or "bfloat16", in which it multiplies.
        channels: of the images.
        size: (height, width) in pixels of the images; with `mapped`, of the smallest ones.
        card: describes the weights; None if the network had none.
        mapped: the original network, if the engine computes its score maps; None if it classifies.
    """

    def __init__(self, module: nn.Module, name: str, precision: str, size: Size, heatmap: bool) -> None:
        """See `engine`."""
        core = _core()
        if precision == "auto":
            precision = "bfloat16" if "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES") else "float32"
        self.name, self.size, self.channels = name, size, getattr(module, "channels", 3)
        self.card: Card | None = getattr(module, "card", None)
        self.mapped = module if heatmap and isinstance(module, Network) else None
        settings = {"INFERENCE_PRECISION_HINT": HINTS[precision], "PERFORMANCE_HINT": "LATENCY"}
        with _program(module, self.mapped is not None, size) as program:
            self._compiled = core.compile_model(str(program), "CPU", settings)
        self._one_at_a_time = threading.Lock()  # openvino refuses concurrent requests
        taken = str(self._compiled.get_property("INFERENCE_PRECISION_HINT").to_string())
        self.precision = {hint: word for word, hint in HINTS.items()}.get(taken, taken)
        if self.precision != precision:
            warnings.warn(
                f"this processor has no instructions for {precision}; openvino runs in {self.precision}",
                RuntimeRemark,
                stacklevel=3,
            )

    def __call__(self, images: Tensor) -> Tensor:
        """Classify images, or with `mapped` compute score maps.

        Args:
            images: (N, C, H, W), normalised as the weights expect; any device and precision. (H, W) is `size`, or
                with `mapped` at least that; else ValueError.

        Returns:
            Logits (N, classes), or with `mapped` (N, classes, h, w) as `score_map` returns them; float32, on the CPU.
        """
        (height, width), shape = self.size, tuple(images.shape)
        larger = self.mapped is not None and len(shape) == 4 and shape[2] >= height and shape[3] >= width
        if len(shape) != 4 or shape[0] < 1 or shape[1] != self.channels or not (larger or shape[2:] == self.size):
            raise ValueError(
                f"images are {shape}, but this engine takes (N, {self.channels}, {height}, {width})"
                f"{'' if self.mapped is None else ' or larger'}, one or more"
            )
        given = images.detach().to("cpu", torch.float32).contiguous()
        with self._one_at_a_time:
            return torch.from_numpy(self._compiled([given.numpy()])[0].copy())  # openvino reuses its own buffer

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of its activations."""
        return torch.bfloat16 if self.precision == "bfloat16" else torch.float32


def engine(
    network: nn.Module,
    name: str = "openvino",
    *,
    precision: EnginePrecision = "auto",
    size: int | Size | None = None,
    heatmap: bool = False,
) -> Engine:
    """Compile a network for another runtime, for maximum speed on a CPU.

    The weights are copied and converted, which takes seconds; the network itself is not changed. For a network of this
    library, the program is kept in the folder `engines` of the cache, where the same network finds it again.

    Args:
        network: in eval mode, float32, on the CPU, as `load` returns it; or any module that `torch.export` can trace,
            such as torchvision's.
        name: "openvino".
        precision: "auto" uses bfloat16 if OpenVINO reports that the processor supports it, else float32.
        size: pixels of the images, a side or (height, width), for modules without a `size`.
        heatmap: compute score maps, of images of any size from the network's own upwards, instead of classifying. One
            program handles all sizes; the first pass over each size takes some tenths of a second longer.

    Returns:
        A function from images (N, 3, H, W), for any N, to logits (N, classes) in float32; with `heatmap`, to logits
        (N, classes, h, w) as `score_map(network, images)` returns them.

    Raises:
        ValueError: the engine or the precision is unknown, no size is given and the module has none, or the network
            has no head, is in training mode, prepared, in another precision or on another device; with `heatmap`, it
            is not a network of this library, or its head has a layer without a convolutional form.
        ImportError: openvino is missing.

    Warns:
        RuntimeRemark: the processor does not support the precision, and the engine uses another.
    """
    check_choice(name, ENGINES, "engine")
    check_choice(precision, get_args(EnginePrecision), "engine precision")
    network = unwrapped(network)
    check_exportable(network)
    if heatmap and not isinstance(network, Network):
        raise ValueError(
            f"{type(network).__name__} cannot compute score maps; convert it first with convnets_torch.densify"
        )
    sides = getattr(network, "size", None) if size is None else (size, size) if isinstance(size, int) else size
    if sides is None:
        raise ValueError(f"{type(network).__name__} has no image size; give it, for example size=224")
    own = getattr(network, "size", sides)
    if tuple(own) != tuple(sides):
        raise ValueError(f"size is {tuple(sides)}, but the network classifies {tuple(own)}; leave size out")
    try:
        import_without_telemetry("openvino")
    except ImportError:
        raise ImportError("the engine openvino needs its package: pip install 'convnets-torch[openvino]'") from None
    return Engine(network, name, precision, check_size(sides), heatmap)


MOST_KEPT = 4  # programs in the cache; the ones used longest ago are removed


@contextlib.contextmanager
def _program(module: nn.Module, heatmap: bool, size: Size) -> Iterator[Path]:
    """Yield the OpenVINO program of a module: that in the cache, else a new one, which is kept there if possible."""
    folder = cache_folder() / "engines"
    try:
        kept = None
        if isinstance(module, Network) and not isinstance(module, Densified) and module.card is not None:
            kept = folder / _key(module, heatmap, size)  # the code of others is the user's, and may change
        if kept is not None:
            make_folder(folder.parent, folder.name)
            check_own_folder(kept)
            if _is_whole(kept):
                os.utime(kept)
                yield kept / PROGRAM
                return
    except OSError:  # a cache that cannot be used
        kept = None
    with tempfile.TemporaryDirectory(prefix="convnets-torch-") if kept is None else scratch_folder(folder) as made:
        program = Path(made) / PROGRAM
        apart(__name__, "write", module, str(program), heatmap, size)
        if kept is not None:
            (program.parent / SUMS).write_text(json.dumps(_sums(program.parent)), encoding="utf-8")
        yield program
        if kept is not None:
            with contextlib.suppress(OSError):
                shutil.rmtree(kept, ignore_errors=True)  # a damaged one
                program.parent.replace(kept)
                _remove_oldest(folder)


PROGRAM, SUMS = "program.xml", "sha256.json"


def _key(network: Network, heatmap: bool, size: Size) -> str:
    """Return the name of a network's program in the cache: a digest of its numbers and of all that makes it."""
    assert network.card is not None
    arrays = {name: array.numpy(force=True) for name, array in network.state_dict().items()}
    versions = [__version__, torch.__version__, import_without_telemetry("openvino").__version__]
    made_of = [network_digest(network.card, arrays), repr(network), heatmap, list(size), versions]
    return hashlib.sha256(json.dumps(made_of).encode()).hexdigest()[:32]


def _sums(folder: Path) -> dict[str, str]:
    """Return the sha256 of a program's two files."""
    return {path.name: sha256(path) for path in (folder / PROGRAM, (folder / PROGRAM).with_suffix(".bin"))}


def _is_whole(folder: Path) -> bool:
    """Return whether a kept program is as it was written."""
    try:
        return bool(loads(read_text(folder / SUMS, max_bytes=1000)) == _sums(folder))
    except (OSError, ValueError):
        return False


def _remove_oldest(folder: Path) -> None:
    programs = [path for path in folder.iterdir() if path.is_dir() and not is_scratch(path.name)]
    for path in sorted(programs, key=lambda path: -path.stat().st_mtime)[MOST_KEPT:]:
        shutil.rmtree(path, ignore_errors=True)


def write(module: nn.Module, path: str, heatmap: bool, size: Size, *, progress: object = None) -> None:
    """Write a module as an OpenVINO program, an .xml at `path` with a .bin beside it."""
    module = for_export(module, "openvino")
    if heatmap:
        assert isinstance(module, Network)
        program = traced(module, heatmap=True)
    else:
        batch = ({0: Dim("batch", min=1, max=MOST_BATCH)},)
        example = torch.zeros(2, getattr(module, "channels", 3), *size)
        program = torch.export.export(module, (example,), dynamic_shapes=batch, strict=False)
    openvino = import_without_telemetry("openvino")
    openvino.serialize(openvino.convert_model(program), path)
