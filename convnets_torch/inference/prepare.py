"""Prepare a network for many pictures: device, precision, packed weights and memory."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator
from typing import Any, Literal, TypeVar, get_args

import torch
from torch import Tensor, nn
from torch.fx import Graph, Node

from convnets_torch.networks.packed import FUSIBLE, PackedConv2d, PackedLinear, is_available
from convnets_torch.networks.tracing import LocalTracer, replicate, unwrapped
from convnets_torch.text import ConvnetsTorchWarning

Precision = Literal["auto", "exact", "float32", "bfloat16", "float16"]
DTYPES = {"exact": torch.float32, "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

AnyModule = TypeVar("AnyModule", bound=nn.Module)


class RuntimeRemark(ConvnetsTorchWarning):
    """What the caller may not expect: that a precision will be slow, that compiling took its time, or failed."""


def prepare(
    network: AnyModule,
    *,
    device: str | torch.device = "auto",
    precision: Precision = "auto",
    compiled: bool = False,
) -> AnyModule:
    """A network that gives the same answers as fast as the device allows.

    What is done: parameters go to the device and into the precision; maps lie with the channels of a cell side by side;
    batch normalisation becomes part of the convolution before it; on the CPU, weights are laid out as oneDNN multiplies
    them, once for each size of images, and an activation is applied while the layer before it writes. `features`,
    `head`, `window` and `card` stay, and so do the names of all layers; one that became part of another is an
    `Identity`, so that what `record_activations` finds of a convolution is what comes after its normalisation and
    activation.

    Args:
        network: a network of this library, or any module in eval mode, such as torchvision's; it is left as it is, and
            shares parameters with what is returned where their numbers stay the same.
        device: "cpu", "cuda", "cuda:1", "mps"; "auto" takes CUDA, else Metal, else the CPU.
        precision: "exact": float32 with the operations of the network in their own order, nothing folded.
            "float32": float32; sums may be in another order, by some 1e-6 of the largest value; on CUDA as PyTorch's
            own switches of TF32 say. "bfloat16", "float16": 8 and 11 bits. "auto": bfloat16 on CPUs that multiply it
            (AMX, AVX512-BF16) and on GPUs that do, float16 on Metal, float32 elsewhere; also float32 on CPUs for
            networks with depthwise convolutions, which gain no time by bfloat16 and lose more by its rounding.
            docs/speed.md says how far answers differ.
        compiled: have PyTorch's compiler make one program of it, at the first call with each shape, which takes from
            seconds to a minute; if it fails, the network runs uncompiled, and says so.

    Returns:
        A module of the same class, in eval mode, for inference. `save` does not take it: keep the network itself.

    Raises:
        ValueError: the device is not there, the precision is not known, or the network is in training mode.

    Warns:
        RuntimeRemark: the CPU has no instructions for the precision, so that it will be slow; "exact" would be rounded
            by TF32; compiling took its time, or failed.

    >>> from convnets_torch.networks import vgg16
    >>> narrow = vgg16(classes=10, widths=(2, 2, 4, 4, 8), hidden=(8, 8)).eval()
    >>> ready = prepare(narrow, device="cpu", precision="float32")
    >>> images = torch.rand(2, 3, 224, 224)
    >>> with torch.inference_mode():
    ...     bool((ready(images) - narrow(images)).abs().max() < 1e-5)
    True
    """
    network = unwrapped(network)  # type: ignore[assignment]
    if any(module.training for module in network.modules()):
        raise ValueError("the network is in training mode, which cannot be prepared; call its eval()")
    place = checked_device(device)
    dtype = dtype_of(precision, place)
    if precision == "auto" and place.type == "cpu" and is_depthwise(network):
        dtype = torch.float32
    if precision == "exact" and place.type == "cuda" and torch.backends.cudnn.allow_tf32:
        warnings.warn(
            "PyTorch may round convolutions to TF32; set torch.backends.cudnn.allow_tf32 = False",
            RuntimeRemark,
            stacklevel=2,
        )
    ready, _ = replicate(network)
    if precision != "exact":
        _fold(ready)
    _convert(ready, place, dtype)
    if precision != "exact":
        if place.type == "cpu" and not compiled:  # the compiler does the same, and knows more of the neighbours
            _pack(ready)
        else:
            ready.to(memory_format=torch.channels_last)
    if compiled:
        _compile(ready, place)
    return ready


def checked_device(device: str | torch.device) -> torch.device:
    """The device, found where it is "auto".

    Raises:
        ValueError: it is not known, or not there.
    """
    if device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        checked = torch.device(device)
    except RuntimeError:
        raise ValueError(f"unknown device {device!r}; known are auto, cpu, cuda, cuda:1, mps") from None
    if checked.type == "cuda" and (checked.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"device {device} is not there: PyTorch finds {torch.cuda.device_count()} of CUDA; use cpu")
    if checked.type == "mps" and not torch.backends.mps.is_available():
        raise ValueError(f"device {device} is not there: PyTorch finds no Metal; use cpu")
    if checked.type not in ("cpu", "cuda", "mps"):
        raise ValueError(f"device {device} cannot take weights; use cpu, cuda or mps")
    return torch.device("cpu") if checked.type == "cpu" else checked


def dtype_of(precision: str, device: torch.device) -> torch.dtype:
    """The kind of number of a precision on a device.

    Raises:
        ValueError: the precision is not known.

    Warns:
        RuntimeRemark: the CPU has no instructions for it.
    """
    check_precision(precision)
    if precision == "auto":
        if device.type == "mps":
            return torch.float16
        fast = torch.cuda.is_bf16_supported(including_emulation=False) if device.type == "cuda" else cpu_has_bfloat16()
        return torch.bfloat16 if fast else torch.float32
    slow = {"bfloat16": not cpu_has_bfloat16(), "float16": not _cpu_has("_is_amx_fp16_supported")}
    if device.type == "cpu" and slow.get(precision, False):
        warnings.warn(
            f"this processor has no instructions for {precision}, so it will be slow; float32 is faster here",
            RuntimeRemark,
            stacklevel=3,
        )
    return DTYPES[precision]


def is_depthwise(network: nn.Module) -> bool:
    """Whether some of its convolutions look at each channel by itself."""
    convolutions = (module for module in network.modules() if isinstance(module, nn.Conv2d))
    return any(layer.groups == layer.in_channels > 1 for layer in convolutions)


def check_precision(precision: str) -> None:
    """ValueError where it is none."""
    if precision not in get_args(Precision):
        raise ValueError(f"unknown precision {precision!r}; known: {', '.join(get_args(Precision))}")


def cpu_has_bfloat16() -> bool:
    """Whether the processor multiplies bfloat16 in hardware: AMX, or AVX512-BF16."""
    return _cpu_has("_is_amx_tile_supported") or _cpu_has("_is_avx512_bf16_supported")


def _cpu_has(question: str) -> bool:
    """What PyTorch finds of the processor; no where it does not know the question."""
    ask = getattr(torch.cpu, question, None)
    return ask is not None and bool(ask())


def _convert(ready: nn.Module, device: torch.device, dtype: torch.dtype) -> None:
    """Parameters and buffers on a device and in a precision, as new ones: `Module.to` would change the shared ones."""
    made: dict[int, Tensor] = {}
    for module in ready.modules():
        for name, tensor in [*module._parameters.items(), *module._buffers.items()]:
            if tensor is None:
                continue
            if id(tensor) not in made:
                numbers = tensor.detach().to(device, dtype if tensor.is_floating_point() else tensor.dtype)
                is_parameter = isinstance(tensor, nn.Parameter)
                made[id(tensor)] = nn.Parameter(numbers, requires_grad=False) if is_parameter else numbers
            kind = module._parameters if name in module._parameters else module._buffers
            kind[name] = made[id(tensor)]  # type: ignore[assignment]


def _fold(ready: nn.Module) -> None:
    """Make each batch normalisation part of the convolution before it, where nothing else reads that."""
    for conv, normalization in _pairs(ready, nn.BatchNorm2d):
        layer, after = ready.get_submodule(conv), ready.get_submodule(normalization)
        if type(layer) is nn.Conv2d and isinstance(after, nn.BatchNorm2d) and after.running_mean is not None:
            _replace(ready, conv, torch.nn.utils.fuse_conv_bn_eval(layer, after))
            _replace(ready, normalization, nn.Identity())


def _pack(ready: nn.Module) -> None:
    """Lay weights out as oneDNN multiplies them, and apply activations while results are written."""
    dtypes = {tensor.dtype for tensor in ready.parameters()}
    if not is_available() or not dtypes <= {torch.float32, torch.bfloat16}:
        ready.to(memory_format=torch.channels_last)
        return
    activations = dict(_pairs(ready, *FUSIBLE))
    for name, layer in list(ready.named_modules()):
        if type(layer) is nn.Conv2d and layer.padding_mode == "zeros" and not isinstance(layer.padding, str):
            after = _activation(ready, activations.get(name))
            _replace(ready, name, PackedConv2d(layer, after))
        elif type(layer) is nn.Linear:
            after = _activation(ready, activations.get(name))
            _replace(ready, name, PackedLinear(layer, after))
        else:
            continue
        if after is not None:
            _replace(ready, activations[name], nn.Identity())


def _activation(ready: nn.Module, name: str | None) -> nn.Module | None:
    module = None if name is None else ready.get_submodule(name)
    return module if type(module) in FUSIBLE else None


def _pairs(ready: nn.Module, *kinds: type[nn.Module]) -> Iterator[tuple[str, str]]:
    """Names of layers and of the modules of some kinds that read nothing else, and are all that reads the layer.

    Only modules that run once, as far as they can be followed; an `Identity` between both is looked through.
    """
    for prefix, graph, part in _graphs(ready):
        calls: dict[str, int] = {}
        for node in graph.nodes:
            if node.op == "call_module":
                calls[str(node.target)] = calls.get(str(node.target), 0) + 1
        for node in graph.nodes:
            if node.op != "call_module" or not isinstance(part.get_submodule(str(node.target)), kinds):
                continue
            before = _only_reader(node)
            while before is not None and isinstance(part.get_submodule(str(before.target)), nn.Identity):
                before = _only_reader(before)
            if before is not None and calls[str(before.target)] == calls[str(node.target)] == 1:
                yield f"{prefix}{before.target}", f"{prefix}{node.target}"


def _only_reader(node: Node) -> Node | None:
    """The layer whose output this module reads, if no one else does."""
    before = node.args[0] if node.args else None
    if isinstance(before, Node) and before.op == "call_module" and len(before.users) == 1:
        return before
    return None


def _graphs(ready: nn.Module) -> Iterator[tuple[str, Graph, nn.Module]]:
    """What of a module can be followed: it itself, or else its parts."""
    try:
        yield "", LocalTracer().trace(ready), ready
    except (torch.fx.proxy.TraceError, TypeError, NotImplementedError, ValueError, RuntimeError):
        for name, part in ready.named_children():
            for prefix, graph, module in _graphs(part):
                yield f"{name}.{prefix}", graph, module


def _replace(ready: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, last = name.rpartition(".")
    setattr(ready.get_submodule(parent), last, module.eval())


def _compile(ready: nn.Module, device: torch.device) -> None:
    """Compile at the first call of each shape; say how long that took, or that it failed, and go on without."""
    eager = ready.forward
    settings: dict[str, Any] = {"options": {"freezing": True}} if device.type == "cpu" else {"mode": "reduce-overhead"}
    program = torch.compile(eager, **settings)
    seen: set[tuple[int, ...]] = set()
    failed = False

    def forward(images: Tensor) -> Tensor:
        nonlocal failed
        if failed or torch.is_grad_enabled():  # weights that are frozen have no gradients
            return eager(images)
        start, new = time.perf_counter(), tuple(images.shape) not in seen
        try:
            result = program(images)
        except (torch._dynamo.exc.TorchDynamoException, RuntimeError) as error:
            failed = True
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            warnings.warn(f"compiling failed ({reason}); going on uncompiled", RuntimeRemark, stacklevel=2)
            return eager(images)
        if new:
            seen.add(tuple(images.shape))
            seconds = time.perf_counter() - start
            warnings.warn(f"compiled for {tuple(images.shape)} in {seconds:.1f} s", RuntimeRemark, stacklevel=2)
        return result

    forward.uncompiled = eager  # type: ignore[attr-defined]  # of copies
    ready.forward = forward
