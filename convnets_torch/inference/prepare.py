"""Prepare a network for fast inference: device, precision, packed weights and memory format."""

from __future__ import annotations

import time
import warnings
from typing import Any, Literal, TypeVar, get_args

import torch
from torch import Tensor, nn

from convnets_torch.networks import packed_int8
from convnets_torch.networks.layers import Add
from convnets_torch.networks.network import check_eval_mode
from convnets_torch.networks.packed import FUSIBLE, PackedAdd, PackedConv2d, PackedLinear, fusible, is_available
from convnets_torch.networks.quantized import Rounding, is_quantized, replace_layer, residuals
from convnets_torch.networks.tracing import pairs, replicate, unwrapped
from convnets_torch.text import ConvnetsTorchWarning, check_choice

Precision = Literal["auto", "exact", "float32", "bfloat16", "float16"]
DTYPES = {"exact": torch.float32, "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

AnyModule = TypeVar("AnyModule", bound=nn.Module)


class RuntimeRemark(ConvnetsTorchWarning):
    """Something the caller may not expect: a precision is slow, or compiling took time or failed."""


def prepare(
    network: AnyModule,
    *,
    device: str | torch.device = "auto",
    precision: Precision = "auto",
    compiled: bool = False,
) -> AnyModule:
    """Return a copy of a network that computes the same outputs as fast as the device allows.

    It moves parameters to the device and converts them to the precision; uses channels-last memory format; and folds
    batch normalisation into the preceding convolution. On the CPU it also packs weights in oneDNN's layout, once per
    image size, and fuses activations with the preceding layer. `features`, `head`, `window`, `card` and all layer names
    stay the same; a layer that was folded or fused becomes an `Identity`, so `record_activations` of a convolution
    returns its output after normalisation and activation. Layers of a quantised network hand on integers (uint8), which
    hooks of your own see; `record_activations`, `embed` and the like get numbers.

    Args:
        network: a network of this library, or any module in eval mode, such as torchvision's; it is not changed, and
            shares with the result the parameters whose numbers are the same.
        device: "cpu", "cuda", "cuda:1", "mps"; "auto" selects CUDA, else Metal, else the CPU.
        precision: "exact": float32 with the network's operations in their original order and nothing folded.
            "float32": float32; sums may be in another order, by about 1e-6 of the largest value; on CUDA, PyTorch's
            TF32 settings apply. "bfloat16", "float16": 8 and 11 bits. "auto": bfloat16 on CPUs with hardware support
            (AMX, AVX512-BF16) and on GPUs with it, float16 on Metal, float32 elsewhere; also float32 on CPUs for
            networks with depthwise convolutions, which bfloat16 does not speed up but rounds more.
            docs/speed.md reports how much outputs differ.
        compiled: use `torch.compile`, which compiles on the first call with each shape, for seconds to a minute; if it
            fails, the network runs uncompiled, with a warning.

    Returns:
        A module of the same class, in eval mode, for inference. `save` refuses it: keep the original network.

    Raises:
        ValueError: the device is not available, the precision is unknown, or the network is in training mode.

    Warns:
        RuntimeRemark: the CPU does not support the precision in hardware, so it will be slow; TF32 would round "exact";
            compiling took time, or failed.

    >>> from convnets_torch.networks import vgg16
    >>> narrow = vgg16(classes=10, widths=(2, 2, 4, 4, 8), hidden=(8, 8)).eval()
    >>> ready = prepare(narrow, device="cpu", precision="float32")
    >>> images = torch.rand(2, 3, 224, 224)
    >>> with torch.inference_mode():
    ...     bool((ready(images) - narrow(images)).abs().max() < 1e-5)
    True
    """
    network = unwrapped(network)  # type: ignore[assignment]
    check_eval_mode(network)
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
        fold(ready)
    integers = precision != "exact" and is_quantized(ready) and _check_int8(place) and not compiled
    _convert(ready, place, dtype)
    if integers:
        packed_int8.pack(ready, dtype)
    if precision != "exact":
        if place.type == "cpu" and not compiled:  # the compiler does the same and fuses more
            _pack(ready)
        else:
            ready.to(memory_format=torch.channels_last)
    if compiled:
        _compile(ready, place)
    return ready


def checked_device(device: str | torch.device) -> torch.device:
    """Return the device, resolving "auto"; ValueError if it is unknown or not available."""
    if device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        checked = torch.device(device)
    except RuntimeError:
        raise ValueError(f"unknown device {device!r}; known are auto, cpu, cuda, cuda:1, mps") from None
    if checked.type == "cuda" and (checked.index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"device {device} is not available: PyTorch finds {torch.cuda.device_count()} CUDA devices; use cpu"
        )
    if checked.type == "mps" and not torch.backends.mps.is_available():
        raise ValueError(f"device {device} is not available: PyTorch finds no Metal; use cpu")
    if checked.type not in ("cpu", "cuda", "mps"):
        raise ValueError(f"device {device} cannot take weights; use cpu, cuda or mps")
    return torch.device("cpu") if checked.type == "cpu" else checked


def dtype_of(precision: str, device: torch.device) -> torch.dtype:
    """Return the dtype of a precision on a device; ValueError if unknown, RuntimeRemark if it is slow there."""
    check_choice(precision, get_args(Precision), "precision")
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
    """Return whether the network has depthwise convolutions."""
    convolutions = (module for module in network.modules() if isinstance(module, nn.Conv2d))
    return any(layer.groups == layer.in_channels > 1 for layer in convolutions)


def cpu_has_bfloat16() -> bool:
    """Return whether the processor multiplies bfloat16 in hardware: AMX or AVX512-BF16."""
    return _cpu_has("_is_amx_tile_supported") or _cpu_has("_is_avx512_bf16_supported")


def _cpu_has(question: str) -> bool:
    """Return whether PyTorch reports a processor feature; False if this version lacks the query."""
    ask = getattr(torch.cpu, question, None)
    return ask is not None and bool(ask())


def _check_int8(device: torch.device) -> bool:
    """Return whether a device multiplies integers here; RuntimeRemark if not."""
    if device.type == "cpu" and packed_int8.is_available():
        return True
    what = "this processor has no instructions for 8-bit integers (AVX512-VNNI, AVX-VNNI, AMX)"
    if device.type != "cpu":
        what = f"quantised networks run on {device} in floating point"
    warnings.warn(
        f"{what}, so this network is slower than the one it was made from; the answers are the same",
        RuntimeRemark,
        stacklevel=3,
    )
    return False


def _convert(ready: nn.Module, device: torch.device, dtype: torch.dtype) -> None:
    """Convert parameters and buffers out of place: `Module.to` would change the shared ones."""
    made: dict[int, Tensor] = {}
    for module in ready.modules():
        kept = isinstance(module, Rounding)  # scales and biases of quantised layers stay float32
        for name, tensor in [*module._parameters.items(), *module._buffers.items()]:
            if tensor is None:
                continue
            if id(tensor) not in made:
                same = kept or not tensor.is_floating_point()
                numbers = tensor.detach().to(device, tensor.dtype if same else dtype)
                is_parameter = isinstance(tensor, nn.Parameter)
                made[id(tensor)] = nn.Parameter(numbers, requires_grad=False) if is_parameter else numbers
            kind = module._parameters if name in module._parameters else module._buffers
            kind[name] = made[id(tensor)]  # type: ignore[assignment]


def fold(ready: nn.Module) -> None:
    """Fold each batch normalisation into the preceding convolution, if nothing else reads its output."""
    for conv, normalization in pairs(ready, nn.BatchNorm2d):
        layer, after = ready.get_submodule(conv), ready.get_submodule(normalization)
        if type(layer) is nn.Conv2d and isinstance(after, nn.BatchNorm2d) and after.running_mean is not None:
            replace_layer(ready, conv, torch.nn.utils.fuse_conv_bn_eval(layer, after))
            replace_layer(ready, normalization, nn.Identity())


def _pack(ready: nn.Module) -> None:
    """Pack weights in oneDNN's layout and fuse activations."""
    dtypes = {tensor.dtype for tensor in ready.parameters()}
    if not is_available() or not dtypes <= {torch.float32, torch.bfloat16}:
        ready.to(memory_format=torch.channels_last)
        return
    activations, sums = dict(pairs(ready, *FUSIBLE)), list(residuals(ready))
    for name, layer in list(ready.named_modules()):
        if type(layer) is nn.Conv2d and layer.padding_mode == "zeros" and not isinstance(layer.padding, str):
            after = fusible(ready, activations.get(name))
            replace_layer(ready, name, PackedConv2d(layer, after))
        elif type(layer) is nn.Linear:
            after = fusible(ready, activations.get(name))
            replace_layer(ready, name, PackedLinear(layer, after))
        else:
            continue
        if after is not None:
            replace_layer(ready, activations[name], nn.Identity())
    for found in sums:
        conv = ready.get_submodule(found.conv)
        if type(ready.get_submodule(found.add)) is Add and isinstance(conv, PackedConv2d):
            after = fusible(ready, activations.get(found.add))
            replace_layer(ready, found.add, PackedAdd(conv, found.shortcut, after))
            replace_layer(ready, found.conv, nn.Identity())
            if after is not None:
                replace_layer(ready, activations[found.add], nn.Identity())


def _compile(ready: nn.Module, device: torch.device) -> None:
    """Compile on the first call with each shape and report the time; if compiling fails, warn and run uncompiled."""
    eager = ready.forward
    settings: dict[str, Any] = {"options": {"freezing": True}} if device.type == "cpu" else {"mode": "reduce-overhead"}
    program = torch.compile(eager, **settings)
    seen: set[tuple[int, ...]] = set()
    failed = False

    def forward(images: Tensor) -> Tensor:
        nonlocal failed
        if failed or torch.is_grad_enabled():  # frozen weights have no gradients
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

    forward.uncompiled = eager  # type: ignore[attr-defined]  # used by copies
    ready.forward = forward
