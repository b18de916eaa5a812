"""Record layer activations and describe layers. No other module of this package registers hooks."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from convnets_torch.explain.layer_names import LayerLike, candidates, find_layers, keras_names, needed, whole
from convnets_torch.fcn.graph import Pair, ReceptiveField, receptive_fields, trace_ops
from convnets_torch.networks import Network
from convnets_torch.networks.network import check_eval_mode
from convnets_torch.networks.packed_int8 import numbers_wanted, writing_integers
from convnets_torch.networks.tracing import AnyModule, replicate, unwrapped

BROKEN = "activations of {} are NaN or infinite: weights are broken, or too large for the precision"
Hook = Callable[[str, Tensor], "Tensor | None"]

_recording: ContextVar[frozenset[object]] = ContextVar("_recording", default=frozenset())  # blocks being executed
_registering = threading.Lock()  # PyTorch numbers hooks without a lock


@contextlib.contextmanager
def record_activations(network: nn.Module, layers: LayerLike | Iterable[LayerLike]) -> Iterator[dict[str, Tensor]]:
    """Record the outputs of layers while the network runs in a `with` block.

    Each call of a layer overwrites its earlier record, so a layer that is called several times keeps its last output.
    Tensors stay on their device and, if gradients are enabled, in the graph: `torch.autograd.grad(score,
    activations[name])` works. In-place layers, which torchvision uses often, do not change the records. The hooks are
    always removed at the end of the block; the records stay.

    Runs in other threads are not recorded, unless they were started with a copy of this thread's context, as
    `asyncio.to_thread` does.

    Args:
        network: any module; a compiled or wrapped one is unwrapped.
        layers: names, Keras names, prefixes or patterns, as in `find_layers`, or modules of the network.

    Returns:
        A context manager that gives a dict: module name -> output, usually (N, C, h, w) or (N, C).

    Raises:
        ValueError: immediately, if a layer is not in the network; when a layer runs, if its output is not one tensor;
            at the end of the block, if none of the layers ran.

    >>> import torch
    >>> from convnets_torch.networks import vgg16
    >>> narrow = vgg16(classes=10, widths=(2, 2, 4, 4, 8), hidden=(8, 8)).eval()
    >>> with record_activations(narrow, ["features.conv5_3", "relu5_*"]) as activations, torch.inference_mode():
    ...     logits = narrow(torch.zeros(1, 3, 224, 224))
    >>> list(activations), activations["features.conv5_3"].shape
    (['features.relu5_1', 'features.relu5_2', 'features.conv5_3', 'features.relu5_3'], torch.Size([1, 8, 14, 14]))
    """
    network = unwrapped(network)
    activations: dict[str, Tensor] = {}

    def record(name: str, output: Tensor) -> Tensor:
        activations[name] = output
        return output.clone()  # for the next layer, which may overwrite it

    with hooked(network, names := find_layers(network, layers), record):
        yield activations
    if not activations:
        raise ValueError(
            f"{names[0]} did not run in this block, so nothing was recorded; call the network in the block and in its"
            " thread, and not the result of torch.compile, which runs no hooks"
        )


@contextlib.contextmanager
def hooked(network: nn.Module, names: Iterable[str], hook: Hook) -> Iterator[None]:
    """Call `hook(name, output)` whenever the caller runs one of the modules in a `with` block, but not other threads.

    The result of `hook` replaces the output; None keeps it. An output that is not one tensor is a ValueError.
    """
    block = object()
    with contextlib.ExitStack() as hooks:
        for name in names:
            with _registering:
                handle = network.get_submodule(name).register_forward_hook(_forward_hook(name, hook, block))
            hooks.callback(handle.remove)
        _recording.set(_recording.get() | {block})
        hooks.callback(lambda: _recording.set(_recording.get() - {block}))
        before = numbers_wanted.set(True)
        hooks.callback(lambda: numbers_wanted.reset(before))
        yield


def observed(
    network: AnyModule, outputs: Iterable[str], hook: Hook, inputs: Iterable[str] = (), input_hook: Hook | None = None
) -> AnyModule:
    """Return a copy of a network, sharing its tensors, that calls `hook(name, output)` for each of the modules.

    The network gets no hook itself, so other threads may run it. The result of `hook` replaces the output; None keeps
    it. An output that is not one tensor is a ValueError. `inputs` and `input_hook` are the same for modules' inputs.
    """
    outputs, inputs = list(outputs), list(inputs)
    integers = writing_integers(network)
    copy, stand_ins = replicate(network, [*map(network.get_submodule, [*outputs, *inputs]), *integers])
    for module in integers:  # hooks see numbers
        vars(stand_ins[module])["gives"] = None
    for name in outputs:
        stand_ins[network.get_submodule(name)].register_forward_hook(_forward_hook(name, hook))
    for name in inputs:
        stand_ins[network.get_submodule(name)].register_forward_pre_hook(_input_hook(name, input_hook or hook))
    return copy


def _forward_hook(name: str, hook: Hook, block: object = None) -> Callable[[nn.Module, Any, Any], Tensor | None]:
    def call(module: nn.Module, inputs: Any, output: Any) -> Tensor | None:
        if block is not None and block not in _recording.get():
            return None
        if not isinstance(output, Tensor):
            raise ValueError(f"{name} gives {type(output).__name__}, not one tensor; name a layer inside it")
        return hook(name, output)

    return call


def _input_hook(name: str, hook: Hook) -> Callable[[nn.Module, Any], Tensor | None]:
    return lambda module, inputs: hook(name, inputs[0])


class Reached(Exception):
    """Raised in a hook to stop the forward pass once all layers have run; the code that runs it catches it."""


def run_to(network: nn.Module, layers: LayerLike | Iterable[LayerLike], images: Tensor) -> dict[str, Tensor]:
    """Return the outputs of layers for images; the network runs only as far as the last of them.

    For a layer that is called several times this is the first call, unless another layer makes the network run on.

    Args:
        network: any module; if gradients are enabled, the outputs are part of the graph.
        layers: as in `record_activations`.
        images: (N, 3, H, W), normalised for the weights; any size if all layers are in `features`, even for networks
            of fixed size.

    Returns:
        Module name -> output.

    Raises:
        ValueError: as in `record_activations`; or the network does not run a layer.

    >>> import torch
    >>> from convnets_torch.networks import vgg16
    >>> narrow = vgg16(classes=10, widths=(2, 2, 4, 4, 8), hidden=(8, 8)).eval()
    >>> run_to(narrow, "relu2_2", torch.zeros(1, 3, 64, 96))["features.relu2_2"].shape
    torch.Size([1, 2, 32, 48])
    """
    network = unwrapped(network)
    names = find_layers(network, layers)
    outputs: dict[str, Tensor] = {}

    def record(name: str, output: Tensor) -> Tensor:
        outputs[name] = output
        if len(outputs) == len(names):
            raise Reached
        return output.clone()

    with contextlib.suppress(Reached):
        needed(observed(network, names, record), names)(images)
    check_run(network, names, outputs)
    return outputs


def check_run(network: nn.Module, names: Iterable[str], outputs: Iterable[str]) -> None:
    """Raise ValueError if a layer of `names` gave no output."""
    if missing := [name for name in names if name not in outputs]:
        raise ValueError(f"{missing[0]} is not run by {type(network).__name__}; name another layer")


@dataclass(frozen=True)
class Layer:
    """One layer, or a block of layers as in ResNet50 and InceptionV3.

    Attributes:
        name: as in `network.named_modules()`.
        kind: its class, such as "Conv2d".
        shape: of its output for one image of the network's input size: (channels, height, width) or (values,).
        stride: (vertical, horizontal) pixels of the image between neighbouring cells; None if unknown, and for layers
            without cells.
        receptive_field: (height, width) of a cell's receptive field in pixels of the image, padding included; None as
            for `stride`.
        keras_name: the Keras layer with this output, or None.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    stride: Pair | None = None
    receptive_field: Pair | None = None
    keras_name: str | None = None


def layer_names(network: nn.Module, size: Pair | None = None) -> list[Layer]:
    """List the layers of a network in execution order, by running it on one black image.

    Args:
        network: any module in eval mode that takes images (N, 3, H, W), or a network of another number of `channels`.
        size: (height, width) of the image in pixels. Defaults to the network's input size, which other libraries'
            modules do not have. With another size, this library's networks list only the layers of `features`, since
            their heads have a fixed size.

    Raises:
        ValueError: the network is in training mode, or its input size is unknown.

    >>> from convnets_torch.networks import vgg16
    >>> narrow = vgg16(classes=10, widths=(2, 2, 4, 4, 8), hidden=(8, 8)).eval()
    >>> for layer in layer_names(narrow)[-10:-7]:
    ...     print(layer.name, layer.shape, layer.receptive_field, layer.keras_name)
    features.relu5_3 (8, 14, 14) (196, 196) block5_conv3
    features.pool5 (8, 7, 7) (212, 212) block5_pool
    head.flatten (392,) None flatten
    """
    network = unwrapped(network)
    if size is None:
        if not isinstance(network, Network):
            raise ValueError(f"{type(network).__name__} does not say what images it takes; give size=(height, width)")
        size = network.size
    check_eval_mode(network)
    shapes: dict[str, tuple[int, ...]] = {}

    def record(name: str, output: Tensor) -> None:
        shapes[name] = tuple(output.shape[1:])

    copy = observed(network, candidates(network), record)
    run = copy.features if isinstance(copy, Network) and size != copy.size else whole(copy)
    with torch.no_grad():
        run(next(network.parameters()).new_zeros(1, getattr(network, "channels", 3), *size))
    fields, aliases = layer_fields(network), {name: alias for alias, name in keras_names(network).items()}
    layers = []
    for name, shape in shapes.items():
        stride, field = None, None
        if name in fields:
            down, across = fields[name]
            stride, field = (down.stride, across.stride), (down.size, across.size)
        layers.append(Layer(name, type(network.get_submodule(name)).__name__, shape, stride, field, aliases.get(name)))
    return layers


def layer_fields(network: nn.Module) -> dict[str, tuple[ReceptiveField, ReceptiveField]]:
    """Map layers and blocks of `features` to their cells' (vertical, horizontal) receptive fields."""
    if not isinstance(network, Network):
        return {}
    try:
        ops = trace_ops(network.features)
    except ValueError:
        if network.no_map is None:
            raise
        return {}  # every cell may see the whole image
    fields = zip(ops, receptive_fields(ops), strict=True)  # a block has its last op's field
    return {f"features.{name}": field for op, field in fields for name in (op.name, *op.blocks)}
