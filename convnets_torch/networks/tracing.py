"""Modules as graphs, by `torch.fx`, beside threads that run the same modules or others.

`torch.fx.Tracer` replaces `nn.Module.__call__` for the whole process while it follows a module, so that modules which
another thread calls meanwhile end up in its graph, or fail. Here calls are caught by the class of a copy of the module.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn
from torch.fx import Graph, Tracer

from convnets_torch.networks.replicas import replicate


class LocalTracer(Tracer):
    """A `torch.fx.Tracer` that changes nothing outside of itself.

    Parameters that a `forward` uses by itself are nodes "get_attr", as with `Tracer`; functions that were given to
    `torch.fx.wrap` are followed like any other.

    >>> graph = LocalTracer().trace(nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU()))
    >>> [node.name for node in graph.nodes]
    ['input_1', '_0', '_1', 'output']
    """

    def trace(self, root: nn.Module, concrete_args: None = None) -> Graph:  # type: ignore[override]
        """The graph of a module; its nodes name the modules of `root`.

        Raises:
            TraceError, TypeError, ...: whatever `forward` raises when it is given proxies in place of tensors.
        """
        self.root, copies = replicate(root, kind=_followed)
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


_kinds: weakref.WeakKeyDictionary[type, type] = weakref.WeakKeyDictionary()


def _followed(kind: type) -> type:
    """A class whose modules come to their tracer when they are called, or asked for a parameter."""

    def call(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        forward: Callable[..., Any] = partial(kind.__call__, module)
        return vars(module)["_tracer"].call_module(module, forward, args, kwargs)

    def get(module: nn.Module, name: str) -> Any:
        tracer = vars(module)["_tracer"]
        return tracer.getattr(name, kind.__getattr__(module, name), tracer._proxies)  # type: ignore[attr-defined]

    if kind not in _kinds:
        _kinds[kind] = type(
            kind.__name__, (kind,), {"__call__": call, "__getattr__": get, "__module__": kind.__module__}
        )
    return _kinds[kind]
