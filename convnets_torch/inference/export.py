"""Export networks for other programs: `.onnx` for ONNX Runtime and others, `.pt2` for PyTorch without this library.

Both are made from one `torch.export` program and contain the card as JSON.
"""

from __future__ import annotations

import importlib
import io
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from convnets_torch.card import KEY, Card
from convnets_torch.fcn.convolutional import Convolutional
from convnets_torch.fcn.score_map import score_map
from convnets_torch.files import Output, check_writable, path_of, replacing, to_open_files
from convnets_torch.images.preprocessing import Preprocessing, normalize
from convnets_torch.inference.child_process import apart
from convnets_torch.networks import Network
from convnets_torch.networks.network import MOST_SIDE, NO_HEAD, as_network, check_eval_mode
from convnets_torch.networks.packed import PackedConv2d, PackedLinear
from convnets_torch.networks.quantized import for_export, is_quantized

OPSET = 18  # ONNX opset that PyTorch's exporter writes natively, and every ONNX Runtime since 1.14 reads
MOST_ONNX = 2**31 - 2**22  # bytes of parameters in one file: protobuf messages have 31-bit sizes
MOST_BATCH = 2**16
TOLERANCE = 1e-4  # relative to the largest logit, for sums in another order
QUANTIZED = 0.1  # of quantised networks, where a sum that rounds the other way changes all later layers
ENDINGS = (".onnx", ".pt2")

Runner = Callable[[Tensor], Tensor]
Side = int | str  # a number, or the name of a dynamic dimension


@dataclass(frozen=True)
class Exported:
    """Description of an exported file.

    Attributes:
        path: the file.
        kind: dtype of the input, "float32" or "uint8".
        images: shape of the input `images`: numbers, and names of dynamic dimensions.
        logits: shape of the output `logits`.
        smallest: (height, width) in pixels of the smallest images accepted.
        bytes: file size.
        difference: largest difference between the file's outputs and the network's, as a fraction of the largest logit;
            None if the file was not run.
        unchecked: why it was not run; None if it was.
    """

    path: Path
    kind: str
    images: tuple[Side, ...]
    logits: tuple[Side, ...]
    smallest: tuple[int, int]
    bytes: int
    difference: float | None
    unchecked: str | None


@to_open_files(".pt2")
def export(
    network: Network,
    path: Output,
    *,
    heatmap: bool = False,
    with_preprocessing: bool = False,
) -> Exported:
    """Export a network as a program that runs without this library.

    The classifier takes images of the network's own size, any number at once. The score map takes larger images, from
    one stride above that size in both directions, because a dynamic dimension cannot be 1, which PyTorch treats as a
    constant. At the network's own size the map is one cell, equal to the classifier's output; export two files, with
    and without `heatmap`, if you need both.

    Pixels: without `with_preprocessing` the input `images` is float32 (N, C, H, W), normalised as the card says. With
    it, the input is uint8 (N, H, W, 3), RGB, 0 to 255, and the program applies channel order, scale, mean and standard
    deviation. Resizing and cropping are never included: Pillow's antialiased filters differ from ONNX's Resize. Use
    `convnets_torch.images.preprocessing.center_crop` for them.

    Before the file takes its place, it is run (`.onnx` if onnxruntime is installed) and compared with the network.

    Args:
        network: in eval mode, float32, on the CPU, as `load` and `densify` return it.
        path: `.onnx` (opset 18, one file, with the card under `card` in its metadata) or `.pt2` (for
            `torch.export.load`, with the card as its extra file `card`).
        heatmap: export the score map, logits (N, classes, h, w), instead of the classifier, logits (N, classes).
        with_preprocessing: take uint8 pixels.

    Returns:
        A description of the file, with the difference between its outputs and the network's.

    Raises:
        ValueError: the file ending is not supported; the network has no head, is in training mode, prepared, in another
            precision or on another device, has no card for `with_preprocessing`, or exceeds 2 GB for `.onnx`; or the
            file's outputs differ from the network's, and nothing is written.
        ImportError: onnx or onnxscript is missing.
        OSError: `path` cannot be written; an existing file there is kept.

    Source: Fully Convolutional Networks for Semantic Segmentation, arXiv:1411.4038, section 3.1, for the score map.

    >>> from convnets_torch import load
    >>> written = export(load("alexnet.safetensors"), "alexnet.pt2")
    >>> written.images, written.logits, written.difference < 1e-4
    (('batch', 3, 227, 227), ('batch', 1000), True)
    >>> program = torch.export.load("alexnet.pt2").module()
    >>> program(torch.zeros(5, 3, 227, 227)).shape
    torch.Size([5, 1000])
    """
    network = as_network(network)
    path = path_of(path)
    check_ending(path)
    check_exportable(network)
    _check_fits(network, path, with_preprocessing)
    check_writable(path)
    with replacing(path) as temporary:
        difference, unchecked = apart(
            __name__, "write", network, str(temporary), str(path), heatmap, with_preprocessing
        )
        written = temporary.stat().st_size
    smallest = _smallest_size(network, heatmap)
    sides: tuple[Side, ...] = ("height", "width") if heatmap else smallest
    return Exported(
        path=path,
        kind="uint8" if with_preprocessing else "float32",
        images=("batch", *sides, network.channels) if with_preprocessing else ("batch", network.channels, *sides),
        logits=("batch", _classes(network), *(("rows", "columns") if heatmap else ())),
        smallest=smallest,
        bytes=written,
        difference=difference,
        unchecked=unchecked,
    )


def write(
    network: Network, temporary: str, path: str, heatmap: bool, with_preprocessing: bool, *, progress: object = None
) -> tuple[float | None, str | None]:
    """Write an export to `temporary`, in the format of `path`; return its `difference` and `unchecked`."""
    taken = for_export(network, "onnx" if path.endswith(".onnx") else "plain")
    program = traced(taken, heatmap=heatmap, with_preprocessing=with_preprocessing)
    card = None if network.card is None else replace(network.card, proof=None)  # of the parameters, not of the program
    run: Runner | None
    unchecked = None
    if path.endswith(".onnx"):
        _write_onnx(program, Path(temporary), card, _dynamic_shapes(network, heatmap, with_preprocessing))
        run, unchecked = _onnx_runner(Path(temporary))
    else:
        _write_pt2(program, Path(temporary), card)
        with Path(temporary).open("rb") as stream:
            run = torch.export.load(stream).module()
    del program
    difference = None if run is None else _difference(run, network, path, heatmap, with_preprocessing)
    return difference, unchecked


def check_ending(path: Path) -> None:
    """Raise ValueError if no export format has this ending, ImportError if its packages are missing."""
    if path.suffix not in ENDINGS:
        raise ValueError(f"{path} ends in {path.suffix!r}; an export is a file that ends in {' or '.join(ENDINGS)}")
    if path.suffix == ".onnx":
        try:
            importlib.import_module("onnx")
            importlib.import_module("onnxscript")
        except ImportError:
            raise ImportError("an .onnx file needs onnx and onnxscript: pip install 'convnets-torch[export]'") from None


def traced(network: Network, *, heatmap: bool = False, with_preprocessing: bool = False) -> ExportedProgram:
    """Return the network as one graph of PyTorch operations; arguments as for `export`."""
    height, width = network.size
    module: nn.Module = network
    if heatmap:
        module = Convolutional(network)
        # any size larger than one window; the sides must differ, so that none is treated as a constant
        height, width = height + 2 * network.stride, width + 3 * network.stride
    example = torch.zeros(2, network.channels, height, width)
    if with_preprocessing:
        assert network.card is not None
        module = _FromPixels(module, network.card.preprocessing)
        example = torch.zeros(2, height, width, network.channels, dtype=torch.uint8)
    changing = (_dynamic_shapes(network, heatmap, with_preprocessing),)
    with torch.no_grad():  # faster
        program = torch.export.export(module.eval(), (example,), dynamic_shapes=changing, strict=False)
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # contains paths of the exporting machine
    return program


class _FromPixels(nn.Module):
    """Apply `preprocessing.normalize` to batches in front of a network."""

    mean: Tensor
    std: Tensor
    scale: Tensor

    def __init__(self, network: nn.Module, rule: Preprocessing) -> None:
        super().__init__()
        self.network, self.rule = network, rule
        self.register_buffer("mean", torch.tensor(rule.mean, dtype=torch.float32).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(rule.std, dtype=torch.float32).view(-1, 1, 1))
        self.register_buffer("scale", torch.tensor(rule.scale, dtype=torch.float32))

    def forward(self, images: Tensor) -> Tensor:
        """Run images (N, H, W, C), uint8: RGB, grey or RGBA."""
        values = images.permute(0, 3, 1, 2).contiguous()  # else the memory format becomes a constraint on the size
        if self.rule.channels == "bgr":
            values = values.flip(1)
        return self.network((values.float() * self.scale - self.mean) / self.std)


def check_exportable(network: nn.Module) -> None:
    """Raise ValueError if a module cannot be exported: it must be in eval mode, not prepared, float32, on the CPU."""
    if getattr(network, "head", network) is None:
        raise ValueError(NO_HEAD)
    check_eval_mode(network)
    packed = any(isinstance(module, PackedConv2d | PackedLinear) for module in network.modules())
    if packed or "forward" in vars(network):
        raise ValueError("the network was prepared to run, not to be exported; export the one given to `prepare`")
    tensors = [*network.parameters(), *network.buffers()]
    others = {str(tensor.dtype) for tensor in tensors if tensor.is_floating_point()} - {"torch.float32"}
    if others:
        raise ValueError(f"the network has parameters in {', '.join(sorted(others))}; export it in float32")
    places = {str(tensor.device) for tensor in tensors} - {"cpu"}
    if places:
        raise ValueError(f"the network is on {', '.join(sorted(places))}; export it from the CPU: network.cpu()")


def _check_fits(network: Network, path: Path, with_preprocessing: bool) -> None:
    if with_preprocessing and network.card is None:
        raise ValueError("the network has no card, so its preprocessing is unknown; export it without preprocessing")
    size = sum(tensor.numel() * tensor.element_size() for tensor in network.state_dict().values())
    if path.suffix == ".onnx" and size > MOST_ONNX:
        raise ValueError(f"the parameters take {size / 1e9:.1f} GB, but an .onnx file holds 2; write a .pt2")


def _smallest_size(network: Network, heatmap: bool) -> tuple[int, int]:
    more = network.stride if heatmap else 0
    return (network.size[0] + more, network.size[1] + more)


def _dynamic_shapes(network: Network, heatmap: bool, with_preprocessing: bool) -> dict[int, Any]:
    """Return the dynamic dimensions of the images."""
    axes: dict[int, Any] = {0: Dim("batch", min=1, max=MOST_BATCH)}
    if heatmap:
        first = 1 if with_preprocessing else 2
        for axis, (name, least) in enumerate(zip(("height", "width"), _smallest_size(network, heatmap), strict=True)):
            axes[first + axis] = Dim(name, min=least, max=max(MOST_SIDE, 2 * least))
    return axes


def _classes(network: Network) -> int:
    assert network.head is not None
    dense = [layer for layer in network.head if isinstance(layer, nn.Linear | nn.Conv2d)][-1]
    return dense.out_features if isinstance(dense, nn.Linear) else dense.out_channels


def _write_onnx(program: ExportedProgram, file: Path, card: Card | None, changing: dict[int, Any]) -> None:
    made = torch.onnx.export(
        program,
        dynamo=True,
        input_names=["images"],
        output_names=["logits"],
        dynamic_shapes=(changing,),  # names the dimensions
        opset_version=OPSET,
        verbose=False,
    )
    assert made is not None
    if card is not None:
        made.model.metadata_props[KEY] = card.to_json()
    made.save(file, external_data=False)


def _write_pt2(program: ExportedProgram, file: Path, card: Card | None) -> None:
    program.example_inputs = None
    with _Output(io.FileIO(file, "wb")) as output:
        torch.export.save(program, output, extra_files={} if card is None else {KEY: card.to_json()})
        if output.error is not None:
            raise output.error


class _Output(io.BufferedWriter):
    """A file for PyTorch's writer, which aborts the process if `write` raises; the first error is stored instead."""

    error: BaseException | None = None

    def write(self, data: Any) -> int:
        if self.error is None:
            try:
                return super().write(data)
            except BaseException as error:  # a full disk, or a signal
                self.error = error
        return memoryview(data).nbytes


def import_without_telemetry(name: Literal["onnxruntime", "openvino"]) -> ModuleType:
    """Import a runtime with its telemetry disabled, unless the program has already imported it.

    OpenVINO's telemetry starts processes and writes to the home folder; ONNX Runtime's, since 1.29, starts a thread
    that uploads.
    """
    if name not in sys.modules:
        if name == "openvino":
            sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # importing it now fails
        else:
            os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # read on import
    return importlib.import_module(name)


def _onnx_runner(file: Path) -> tuple[Runner | None, str | None]:
    try:
        onnxruntime = import_without_telemetry("onnxruntime")
    except ImportError:
        return None, "onnxruntime is not installed: pip install 'convnets-torch[export]'"
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0]), None


def _difference(run: Runner, network: Network, path: str, heatmap: bool, with_preprocessing: bool) -> float:
    """Return the largest difference on noise of several shapes, relative to the largest logit; raise if too large."""
    random = np.random.default_rng(0)
    height, width = _smallest_size(network, heatmap)
    shapes = [(1, height, width), (3, height, width)]
    if heatmap:
        shapes = [(1, height, width), (2, height + 37, width + network.stride + 5)]
    most, allowed = 0.0, QUANTIZED if is_quantized(network) else TOLERANCE
    for batch, down, across in shapes:
        if with_preprocessing:
            assert network.card is not None
            pixels = random.integers(0, 256, (batch, down, across, network.channels), dtype=np.uint8)
            given = torch.from_numpy(pixels)
            images = torch.from_numpy(np.stack([normalize(each, network.card.preprocessing) for each in pixels]))
        else:
            shape = (batch, network.channels, down, across)
            given = images = torch.from_numpy(random.standard_normal(shape, np.float32))
        with torch.inference_mode():
            wanted = score_map(network, images) if heatmap else network(images)
            found = run(given)
        largest = float(wanted.abs().max())
        difference = float((found - wanted).abs().max()) / largest if largest else float(found.abs().max())
        if found.shape != wanted.shape or not difference <= allowed:
            raise ValueError(
                f"the program's outputs differ from the network's by {difference:.2g} of the largest logit for images"
                f" {tuple(given.shape)}, so {path} was not written; {allowed:g} is allowed"
            )
        most = max(most, difference)
    return most
