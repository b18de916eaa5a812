"""Copies of modules on the same tensors: what a call hooks or changes in them does not reach the network itself."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from types import MethodType
from typing import TypeVar

from torch import nn
from torch.nn.parallel import DistributedDataParallel

AnyModule = TypeVar("AnyModule", bound=nn.Module)
WRAPPERS = (nn.DataParallel, DistributedDataParallel)
# What `nn.Module` itself keeps in dicts and sets: parameters, buffers, submodules, hooks.
_OWN = frozenset(name for name, value in vars(nn.Module()).items() if isinstance(value, dict | set))


def unwrapped(network: nn.Module) -> nn.Module:
    """The network inside what `torch.compile`, `DataParallel` and `DistributedDataParallel` make of it.

    >>> layer = nn.Linear(2, 3)
    >>> unwrapped(nn.DataParallel(layer)) is layer
    True
    """
    while True:
        if isinstance(network, WRAPPERS):
            network = network.module
        elif isinstance(inner := getattr(network, "_orig_mod", None), nn.Module):
            network = inner
        else:
            return network


def replicate(
    root: AnyModule, parts: Iterable[nn.Module] | None = None, kind: Callable[[type], type] = lambda kind: kind
) -> tuple[AnyModule, dict[nn.Module, nn.Module]]:
    """Copy a tree of modules; tensors, and whatever else the modules refer to, are shared.

    A copy has dicts of its own for parameters, buffers, submodules and hooks. Code that `Module.compile` or `prepare`
    compiled belongs to the original: copies run uncompiled.

    Args:
        root: any module.
        parts: modules in it that are to be copied, with those around them; the rest is shared. None for all.
        kind: the class of the copy of a module, given its class.

    Returns:
        The copy of `root`, and of each module in the tree what stands for it in the copy.

    >>> network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU())
    >>> copy, stand_ins = replicate(network, [network[0]])
    >>> copy[0] is network[0], copy[0].weight is network[0].weight, copy[1] is network[1]
    (False, True, True)
    """
    wanted = None if parts is None else set(parts)
    stand_ins: dict[nn.Module, nn.Module] = {}

    def stand_in(module: nn.Module) -> nn.Module:
        if module in stand_ins:
            return stand_ins[module]
        children = {name: None if child is None else stand_in(child) for name, child in module._modules.items()}
        same = all(child is children[name] for name, child in module._modules.items())
        if same and wanted is not None and module is not root and module not in wanted:
            stand_ins[module] = module
        else:
            copy: nn.Module = object.__new__(kind(type(module)))
            stand_ins[module] = copy
            vars(copy).update({name: _own(name, value, module, copy) for name, value in vars(module).items()})
            copy._modules.update(children)
        return stand_ins[module]

    return stand_in(root), stand_ins  # type: ignore[return-value]


def _own(name: str, value: object, module: nn.Module, copy: nn.Module) -> object:
    if name in _OWN:
        return value.copy()  # type: ignore[attr-defined]
    if name == "_compiled_call_impl":
        return None
    if name == "forward":
        value = getattr(value, "uncompiled", value)
    if isinstance(value, MethodType) and value.__self__ is module:
        return MethodType(value.__func__, copy)
    return value
