"""What layers give for an image; the one place that registers hooks."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from torch import Tensor, nn

from convnets_torch.explain.names import find_layers, needed

BROKEN = "activations of {} are NaN or infinite: weights are broken, or too large for the precision"
Hook = Callable[[str, Tensor], "Tensor | None"]


@contextlib.contextmanager
def record_activations(network: nn.Module, layers: str | Iterable[str]) -> Iterator[dict[str, Tensor]]:
    """Record what layers give while the network runs in the block.

    Each run of a layer replaces what was recorded of it before, so that after a run of the network a layer that is
    called several times stands for its last call. Tensors stay on their device and, where gradients are on, in the
    graph: `torch.autograd.grad(score, activations[name])` works. Layers that overwrite their input, as many of
    torchvision's do, do not change what was recorded. When the block is left, however that happens, the network has
    no hook of it any more; what was recorded stays.

    Args:
        network: any module.
        layers: names, Keras's names, prefixes or patterns, as `find_layers` takes them.

    Returns:
        A context manager that gives a dict: name of the module -> its output, usually (N, C, h, w) or (N, C).

    Raises:
        ValueError: a layer is not in the network, at once; a layer gives something else than one tensor, when it runs.

    >>> import torch
    >>> from convnets_torch.networks import vgg16
    >>> narrow = vgg16(classes=10, widths=(2, 2, 4, 4, 8), hidden=(8, 8)).eval()
    >>> with record_activations(narrow, ["features.conv5_3", "relu5_*"]) as activations, torch.inference_mode():
    ...     logits = narrow(torch.zeros(1, 3, 224, 224))
    >>> list(activations), activations["features.conv5_3"].shape
    (['features.relu5_1', 'features.relu5_2', 'features.conv5_3', 'features.relu5_3'], torch.Size([1, 8, 14, 14]))
    """
    activations: dict[str, Tensor] = {}

    def record(name: str, output: Tensor) -> Tensor:
        activations[name] = output
        return output.clone()  # for the next layer, which may overwrite it

    with hooked(network, find_layers(network, layers), record):
        yield activations


@contextlib.contextmanager
def hooked(network: nn.Module, names: Iterable[str], see: Hook) -> Iterator[None]:
    """Call `see` with the name and the output of modules whenever they run in the block.

    Args:
        network: any module.
        names: of modules in it, as `find_layers` gives them.
        see: what it returns takes the place of the output; None leaves it as it is.

    Raises:
        ValueError: an output is not one tensor, when the module runs.
    """

    def hook_of(name: str) -> Callable[[nn.Module, Any, Any], Tensor | None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> Tensor | None:
            if not isinstance(output, Tensor):
                raise ValueError(f"{name} gives {type(output).__name__}, not one tensor; name a layer inside it")
            return see(name, output)

        return hook

    with contextlib.ExitStack() as hooks:
        for name in names:
            hooks.callback(network.get_submodule(name).register_forward_hook(hook_of(name)).remove)
        yield


@contextlib.contextmanager
def hooked_inputs(network: nn.Module, names: Iterable[str], see: Callable[[str, Tensor], None]) -> Iterator[None]:
    """Call `see` with the name and the input of modules before they run in the block.

    Args:
        network: any module.
        names: of modules in it that take one tensor.
        see: must leave the input as it is.
    """

    def hook_of(name: str) -> Callable[[nn.Module, Any], None]:
        return lambda module, inputs: see(name, inputs[0])

    with contextlib.ExitStack() as hooks:
        for name in names:
            hooks.callback(network.get_submodule(name).register_forward_pre_hook(hook_of(name)).remove)
        yield


class Reached(Exception):
    """Thrown in a hook once all that is wanted has run; whoever throws it catches it."""


def run_to(network: nn.Module, layers: str | Iterable[str], images: Tensor) -> dict[str, Tensor]:
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
    names = find_layers(network, layers)
    seen: dict[str, Tensor] = {}

    def see(name: str, output: Tensor) -> Tensor:
        seen[name] = output
        if len(seen) == len(names):
            raise Reached
        return output.clone()

    with hooked(network, names, see), contextlib.suppress(Reached):
        needed(network, names)(images)
    if missing := [name for name in names if name not in seen]:
        raise ValueError(f"{missing[0]} is not run by {type(network).__name__}; name another layer")
    return seen
