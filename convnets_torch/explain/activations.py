"""Read what layers compute: activations of a picture, by the name of the layer."""

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
from convnets_torch.fcn.graph import Field, Pair, Step, all_fields, steps_of
from convnets_torch.networks import Network
from convnets_torch.networks.network import check_eval_mode
from convnets_torch.networks.tracing import AnyModule, replicate, unwrapped

BROKEN = "activations of {} are NaN or infinite: weights are broken, or too large for the precision"
Hook = Callable[[str, Tensor], "Tensor | None"]

_recording: ContextVar[frozenset[object]] = ContextVar("_recording", default=frozenset())  # blocks that are entered
_registering = threading.Lock()  # PyTorch numbers hooks without one


@contextlib.contextmanager
def record_activations(network: nn.Module, layers: LayerLike | Iterable[LayerLike]) -> Iterator[dict[str, Tensor]]:
    """Record what layers give while the network runs in the block.

    Each run of a layer replaces what was recorded of it before, so that after a run of the network a layer that is
    called several times stands for its last call. Tensors stay on their device and, where gradients are on, in the
    graph: `torch.autograd.grad(score, activations[name])` works. Layers that overwrite their input, as many of
    torchvision's do, do not change what was recorded. When the block is left, however that happens, the network has
    no hook of it any more; what was recorded stays.

    What other threads run in the meantime is not recorded, unless they were started with a copy of this one's context,
    as by `asyncio.to_thread`.

    Args:
        network: any module; of a compiled or wrapped one, the module inside.
        layers: names, Keras's names, prefixes or patterns, as `find_layers` takes them, or modules of the network.

    Returns:
        A context manager that gives a dict: name of the module -> its output, usually (N, C, h, w) or (N, C).

    Raises:
        ValueError: a layer is not in the network, at once; a layer gives something else than one tensor, when it runs;
            none of the layers ran, when the block is left.

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
            " thread, and not what torch.compile made of it, which runs no hooks"
        )


@contextlib.contextmanager
def hooked(network: nn.Module, names: Iterable[str], see: Hook) -> Iterator[None]:
    """Call `see` with the name and the output of modules whenever the caller runs them in the block.

    Args:
        network: any module. Other threads may run it; its hooks do nothing for them.
        names: of modules in it, as `find_layers` gives them.
        see: what it returns takes the place of the output; None leaves it as it is.

    Raises:
        ValueError: an output is not one tensor, when the module runs.
    """
    block = object()
    with contextlib.ExitStack() as hooks:
        for name in names:
            with _registering:
                handle = network.get_submodule(name).register_forward_hook(_hook(name, see, block))
            hooks.callback(handle.remove)
        _recording.set(_recording.get() | {block})
        hooks.callback(lambda: _recording.set(_recording.get() - {block}))
        yield


def observed(
    network: AnyModule, outputs: Iterable[str], see: Hook, inputs: Iterable[str] = (), see_input: Hook | None = None
) -> AnyModule:
    """A copy of a network, on the same tensors, that tells what its layers give and read.

    Args:
        network: any module; it gets no hook, so that others may run it.
        outputs: names of modules in it, as `find_layers` gives them.
        see: is called with the name and the output of each of them when the copy runs it; what it returns takes the
            place of the output, None leaves it as it is.
        inputs, see_input: the same for what modules read that take one tensor.

    Raises:
        ValueError: an output is not one tensor, when the module runs.
    """
    outputs, inputs = list(outputs), list(inputs)
    copy, stand_ins = replicate(network, map(network.get_submodule, [*outputs, *inputs]))
    for name in outputs:
        stand_ins[network.get_submodule(name)].register_forward_hook(_hook(name, see))
    for name in inputs:
        stand_ins[network.get_submodule(name)].register_forward_pre_hook(_input_hook(name, see_input or see))
    return copy


def _hook(name: str, see: Hook, block: object = None) -> Callable[[nn.Module, Any, Any], Tensor | None]:
    def hook(module: nn.Module, inputs: Any, output: Any) -> Tensor | None:
        if block is not None and block not in _recording.get():
            return None
        if not isinstance(output, Tensor):
            raise ValueError(f"{name} gives {type(output).__name__}, not one tensor; name a layer inside it")
        return see(name, output)

    return hook


def _input_hook(name: str, see: Hook) -> Callable[[nn.Module, Any], Tensor | None]:
    return lambda module, inputs: see(name, inputs[0])


class Reached(Exception):
    """Thrown in a hook once all that is wanted has run; whoever throws it catches it."""


def run_to(network: nn.Module, layers: LayerLike | Iterable[LayerLike], images: Tensor) -> dict[str, Tensor]:
    """What layers give for images; the network runs only as far as the last of them.

    Of a layer that is called several times it is the first call, unless another layer makes the network run on.

    Args:
        network: any module; with gradients on, the outputs are part of the graph.
        layers: as in `record_activations`.
        images: (N, 3, H, W), normalised as the weights want it; for networks of fixed size also of another one, as long
            as the layers are in `features`.

    Returns:
        Name of the module -> its output.

    Raises:
        ValueError: as in `record_activations`; or a layer is not run at all.

    >>> import torch
    >>> from convnets_torch.networks import vgg16
    >>> narrow = vgg16(classes=10, widths=(2, 2, 4, 4, 8), hidden=(8, 8)).eval()
    >>> run_to(narrow, "relu2_2", torch.zeros(1, 3, 64, 96))["features.relu2_2"].shape
    torch.Size([1, 2, 32, 48])
    """
    network = unwrapped(network)
    names = find_layers(network, layers)
    seen: dict[str, Tensor] = {}

    def see(name: str, output: Tensor) -> Tensor:
        seen[name] = output
        if len(seen) == len(names):
            raise Reached
        return output.clone()

    with contextlib.suppress(Reached):
        needed(observed(network, names, see), names)(images)
    if missing := [name for name in names if name not in seen]:
        raise ValueError(f"{missing[0]} is not run by {type(network).__name__}; name another layer")
    return seen


@dataclass(frozen=True)
class Layer:
    """One layer, or a block of them such as those of ResNet50 and InceptionV3.

    Attributes:
        name: as `network.named_modules()` has it.
        kind: its class, such as "Conv2d".
        shape: of its output for one image of the network's own size: (channels, height, width) or (values,).
        stride: (vertical, horizontal) pixels of the image between neighbouring cells; None where that is not known,
            and for layers without cells.
        receptive_field: (height, width) in pixels of the image of what a cell sees at most, padding included; None as
            above.
        keras_name: what Keras calls the layer with this output; None where it has none.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    stride: Pair | None = None
    receptive_field: Pair | None = None
    keras_name: str | None = None


def layer_names(network: nn.Module, size: Pair | None = None) -> list[Layer]:
    """The layers of a network in the order in which they run, by a trial on one black image.

    Args:
        network: in eval mode; any module from images (N, 3, H, W) to a tensor.
        size: (height, width) of the image in pixels; the network's own by default, which modules of other libraries
            do not have. Of networks here, whose heads take their own size alone, another one gives the layers of
            `features`.

    Raises:
        ValueError: the network is in training mode, or its size is not known.

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

    def see(name: str, output: Tensor) -> None:
        shapes[name] = tuple(output.shape[1:])

    copy = observed(network, candidates(network), see)
    run = copy.features if isinstance(copy, Network) and size != copy.size else whole(copy)
    with torch.no_grad():
        run(next(network.parameters()).new_zeros(1, 3, *size))
    fields, aliases = layer_fields(network), {name: alias for alias, name in keras_names(network).items()}
    layers = []
    for name, shape in shapes.items():
        seen = fields.get(name)
        layers.append(
            Layer(
                name,
                type(network.get_submodule(name)).__name__,
                shape,
                None if seen is None else (seen[0].stride, seen[1].stride),
                None if seen is None else (seen[0].size, seen[1].size),
                aliases.get(name),
            )
        )
    return layers


def layer_fields(network: nn.Module) -> dict[str, tuple[Field, Field]]:
    """What a cell of each layer's and block's map sees, where the network can be followed."""
    if not isinstance(network, Network):
        return {}
    found: dict[str, tuple[Field, Field]] = {}
    steps: tuple[Step, ...] = steps_of(network.features)
    for step, field in zip(steps, all_fields(steps), strict=True):
        for name in (step.name, *step.blocks):  # of a block, what its last step sees
            found[f"features.{name}"] = field
    return found
