"""Share keyword arguments between functions: list them once in a TypedDict, show them in each signature."""

from __future__ import annotations

import functools
import inspect
import sys
import warnings
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

Function = TypeVar("Function", bound=Callable[..., Any])
Options = TypeVar("Options", bound=Mapping[str, object])


def shows(keywords: type, holder: Callable[..., object]) -> Callable[[Function], Function]:
    """Make `help` and `inspect.signature` show the keywords of a function with `**options: Unpack[keywords]`.

    Args:
        keywords: the TypedDict.
        holder: the class or function that takes the keywords; gives their defaults and order.

    >>> from typing import TypedDict
    >>> @shows(TypedDict("Keywords", {"key": "str"}), sorted)
    ... def ordered(items, **options): ...
    >>> inspect.signature(ordered)
    <Signature (items, *, key: 'str' = None)>
    """
    kinds = {name: getattr(kind, "__forward_arg__", kind) for name, kind in keywords.__annotations__.items()}

    def decorate(function: Function) -> Function:
        own = inspect.signature(function)
        shown = [each for each in own.parameters.values() if each.kind is not each.VAR_KEYWORD]
        shown += [
            each.replace(kind=each.KEYWORD_ONLY, annotation=kinds[name])
            for name, each in inspect.signature(holder).parameters.items()
            if name in kinds
        ]
        function.__signature__ = own.replace(parameters=shown)  # type: ignore[attr-defined]
        return function

    return decorate


def checked(options: Options, keywords: type[Options]) -> Options:
    """Return `options`; raise TypeError if one is not in `keywords`."""
    for name in options:
        if name not in keywords.__annotations__:
            known = ", ".join(keywords.__annotations__)
            raise TypeError(f"unexpected keyword argument {name!r}; known: {known}")
    return options


def renamed(**names: str) -> Callable[[Function], Function]:
    """Keep former keywords of a function working for one release, with a `DeprecationWarning`.

    Args:
        names: former keyword -> present one.

    >>> @renamed(rate="lr")
    ... def train(*, lr=0.1):
    ...     return lr
    >>> with warnings.catch_warnings(record=True) as caught:
    ...     warnings.simplefilter("always")
    ...     train(rate=0.2)
    0.2
    >>> print(caught[0].message)
    train(rate=...) is now lr; the old name goes with the next release
    >>> train(lr=0.2, rate=0.2)
    Traceback (most recent call last):
    TypeError: train() takes rate as a former name of lr; give one of them
    """
    return _accepting(names, "a former name")


def synonym(**names: str) -> Callable[[Function], Function]:
    """Accept further names of keywords.

    Args:
        names: further name -> keyword.

    >>> @synonym(num_classes="classes")
    ... def build(classes=1000):
    ...     return classes
    >>> build(num_classes=10)
    10
    """
    return _accepting(names, "another name")


def _accepting(names: Mapping[str, str], kind: str) -> Callable[[Function], Function]:
    def decorate(function: Function) -> Function:
        @functools.wraps(function)
        def call(*arguments: Any, **keywords: Any) -> Any:
            for other in names.keys() & keywords.keys():
                own, name = names[other], function.__qualname__.removesuffix(".__init__")
                if own in keywords:
                    raise TypeError(f"{name}() takes {other} as {kind} of {own}; give one of them")
                if kind == "a former name":
                    _warn(f"{name}({other}=...)", own)
                keywords[own] = keywords.pop(other)
            return function(*arguments, **keywords)

        return call  # type: ignore[return-value]

    return decorate


class FormerAttribute:
    """A former attribute of a class, which works for one release with a `DeprecationWarning`.

    >>> class Options:
    ...     lr = 0.1
    ...     rate = FormerAttribute("lr")
    >>> with warnings.catch_warnings(record=True) as caught:
    ...     warnings.simplefilter("always")
    ...     Options().rate
    0.1
    >>> print(caught[0].message)
    Options.rate is now lr; the old name goes with the next release
    """

    def __init__(self, name: str) -> None:
        self.name = name

    def __set_name__(self, owner: type, former: str) -> None:
        self.former = f"{owner.__name__}.{former}"

    def __get__(self, found: object, owner: type) -> Any:
        if found is None:
            return self
        _warn(self.former, self.name)
        return getattr(found, self.name)


def former_names(module: str, **names: str) -> Callable[[str], Any]:
    """Return a `__getattr__` for a module that keeps its former names working for one release.

    Args:
        module: its `__name__`.
        names: former name -> present one.
    """

    def find(name: str) -> Any:
        if name not in names:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        _warn(f"{module}.{name}", names[name])
        return getattr(sys.modules[module], names[name])

    return find


def _warn(former: str, present: str) -> None:
    warnings.warn(f"{former} is now {present}; the old name goes with the next release", DeprecationWarning, 3)
