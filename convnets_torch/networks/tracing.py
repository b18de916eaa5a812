"""Trace and copy networks without side effects: replicas, tracing, and thread settings after a fork.

`torch.fx.Tracer` replaces `nn.Module.__call__` for the whole process while it traces, so modules that another thread
calls meanwhile end up in its graph, or fail. Here the class of a copy of the module intercepts the calls.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from types import MethodType
from typing import Any, TypeVar

import torch
from torch import nn
from torch.fx import Graph, Node, Tracer
from torch.nn.parallel import DistributedDataParallel


class LocalTracer(Tracer):
    """A `torch.fx.Tracer` without global side effects.

    Parameters that a `forward` uses directly are nodes "get_attr", as with `Tracer`; functions registered with
    `torch.fx.wrap` are traced like any other.

    >>> graph = LocalTracer().trace(nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU()))
    >>> [node.name for node in graph.nodes]
    ['input_1', '_0', '_1', 'output']
    """

    def trace(self, root: nn.Module, concrete_args: None = None) -> Graph:  # type: ignore[override]
        """Return the graph of a module; its nodes name the modules of `root`.

        Raises:
            TraceError, TypeError, ...: whatever `forward` raises for proxies in place of tensors.
        """
        self.root, copies = replicate(root, kind=_intercepted)
        self._proxies: dict[str, Any] = {}
        for copy in copies.values():
            vars(copy)["_tracer"] = self
        self.root_module_name = type(root).__name__
        self.submodule_paths = {copies[module]: name for name, module in root.named_modules()}
        self.tensor_attrs = {}
        self.graph = Graph(tracer_cls=type(self))
        forward, arguments = self.create_args_for_root(type(root).forward, True)
        self.create_node("output", "output", (self.create_arg(forward(*arguments)),), {})
        self.submodule_paths = None
        return self.graph


_classes: weakref.WeakKeyDictionary[type, type] = weakref.WeakKeyDictionary()


def _intercepted(kind: type) -> type:
    """Return a subclass whose calls and parameter accesses go through the tracer."""

    def call(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        forward: Callable[..., Any] = partial(kind.__call__, module)
        return vars(module)["_tracer"].call_module(module, forward, args, kwargs)

    def get(module: nn.Module, name: str) -> Any:
        tracer = vars(module)["_tracer"]
        return tracer.getattr(name, kind.__getattr__(module, name), tracer._proxies)  # type: ignore[attr-defined]

    if kind not in _classes:
        _classes[kind] = type(
            kind.__name__, (kind,), {"__call__": call, "__getattr__": get, "__module__": kind.__module__}
        )
    return _classes[kind]


class LayerTracer(LocalTracer):
    """Trace down to PyTorch's layers and this library's."""

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        if type(module).__module__ in OWN_LAYERS or super().is_leaf_module(module, name):
            return True
        inherits = type(module).forward.__module__.startswith("torch.nn.modules")  # and only sets arguments
        return inherits and not isinstance(module, nn.Sequential)


OWN_LAYERS = tuple(f"convnets_torch.networks.{name}" for name in ("layers", "quantized", "packed", "packed_int8"))


def graphs_of(module: nn.Module) -> Iterator[tuple[str, Graph, nn.Module]]:
    """Yield the graph of a module, or of its traceable parts, as (prefix of names, graph, part)."""
    try:
        yield "", LayerTracer().trace(module), module
    except (torch.fx.proxy.TraceError, TypeError, NotImplementedError, ValueError, RuntimeError):
        for name, part in module.named_children():
            for prefix, graph, found in graphs_of(part):
                yield f"{name}.{prefix}", graph, found


def only_reader(part: nn.Module, node: object) -> Node | None:
    """Return the layer that computes a node, if nothing else reads its output; an `Identity` in between is skipped."""
    while isinstance(node, Node) and node.op == "call_module" and len(node.users) == 1:
        if not isinstance(part.get_submodule(str(node.target)), nn.Identity):
            return node
        node = node.args[0]
    return None


def pairs(network: nn.Module, *kinds: type[nn.Module]) -> Iterator[tuple[str, str]]:
    """Yield names of (layer, next module) for modules of these kinds that are the only reader of the layer's output.

    Only modules that are traced and run once; an `Identity` in between is skipped.
    """
    for prefix, graph, part in graphs_of(network):
        calls: dict[str, int] = {}
        for node in graph.nodes:
            if node.op == "call_module":
                calls[str(node.target)] = calls.get(str(node.target), 0) + 1
        for node in graph.nodes:
            if node.op != "call_module" or not isinstance(part.get_submodule(str(node.target)), kinds):
                continue
            before = only_reader(part, node.args[0] if node.args else None)
            if before is not None and calls[str(before.target)] == calls[str(node.target)] == 1:
                yield f"{prefix}{before.target}", f"{prefix}{node.target}"


AnyModule = TypeVar("AnyModule", bound=nn.Module)
WRAPPERS = (nn.DataParallel, DistributedDataParallel)
# Attributes that `nn.Module` itself keeps in dicts and sets: parameters, buffers, submodules, hooks.
_OWN_DICTS = frozenset(name for name, value in vars(nn.Module()).items() if isinstance(value, dict | set))


def unwrapped(network: nn.Module) -> nn.Module:
    """Return the network inside `torch.compile`, `DataParallel` and `DistributedDataParallel`.

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
    """Copy a tree of modules; tensors and everything else that the modules refer to are shared.

    A copy has its own dicts of parameters, buffers, submodules and hooks. Code compiled by `Module.compile` or
    `prepare` belongs to the original: copies run uncompiled.

    Args:
        root: any module.
        parts: modules to copy, together with their ancestors; all others are shared. None for all.
        kind: maps the class of a module to the class of its copy.

    Returns:
        The copy of `root`, and a dict from each module in the tree to its counterpart in the copy.

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
            vars(copy).update({name: _copied(name, value, module, copy) for name, value in vars(module).items()})
            copy._modules.update(children)
        return stand_ins[module]

    return stand_in(root), stand_ins  # type: ignore[return-value]


def _copied(name: str, value: object, module: nn.Module, copy: nn.Module) -> object:
    if name in _OWN_DICTS:
        return value.copy()  # type: ignore[attr-defined]
    if name == "_compiled_call_impl":
        return None
    if name == "forward":
        value = getattr(value, "uncompiled", value)
    if isinstance(value, MethodType) and value.__self__ is module:
        return MethodType(value.__func__, copy)
    return value


TASKS = Path("/proc/self/task")  # the threads of this process, on Linux

_had_threads = False  # whether threads other than Python's existed at the last fork


def watch_forks() -> None:
    """Limit forked processes to one PyTorch thread if PyTorch already had several threads before the fork.

    They would otherwise deadlock, waiting for threads that a fork does not copy; workers of a `DataLoader` do the
    same. Processes that fork before they run a network, as servers do, keep all threads.
    """
    os.register_at_fork(before=_before_fork, after_in_child=_after_fork)


def _before_fork() -> None:
    global _had_threads
    _had_threads = TASKS.exists() and len(list(TASKS.iterdir())) > threading.active_count()


def _after_fork() -> None:
    if _had_threads and torch.get_num_threads() > 1:
        torch.set_num_threads(1)
