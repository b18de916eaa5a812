"""Interpret the pickles of PyTorch's state dicts without importing or calling anything that they name.

A pickle is a program. `pickletools` decodes its instructions; this module executes those that `torch.save` writes for a
state dict. Calls that would build a tensor give a `Stored` description instead; any other name is refused.

Source: `torch._weights_only_unpickler`, which supports the same instructions, and `torch._utils` for the functions.
"""

from __future__ import annotations

import pickletools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import IO, Any

MOST_INSTRUCTIONS = 2_000_000  # ResNet50 has about ten thousand
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
GIVEN = ("BININT", "BININT1", "BININT2", "BINFLOAT", "BINUNICODE", "SHORT_BINSTRING", "LONG1")
SCALARS = (str, int, float, type(None))  # allowed types of keys; comparing others could take long
KINDS = {
    "Double": "float64", "Float": "float32", "Half": "float16", "BFloat16": "bfloat16", "Long": "int64", "Int": "int32",
    "Short": "int16", "Char": "int8", "Byte": "uint8", "Bool": "bool", "Untyped": "bytes",
}  # fmt: skip


@dataclass(frozen=True)
class Named:
    """A Python object named in a pickle, "torch.FloatStorage"; it is never imported."""

    name: str

    @property
    def dtype(self) -> str:
        """The dtype of a storage or tensor class, "float32"; "bytes" if each tensor specifies its own."""
        module, _, name = self.name.rpartition(".")
        kind = name.removesuffix("Storage").removesuffix("Tensor")
        if module not in ("torch", "torch.cuda", "torch.storage") or kind not in KINDS:
            raise refusal(self.name)
        return KINDS[kind]


@dataclass(frozen=True)
class Storage:
    """The elements that tensors share.

    Attributes:
        dtype: dtype of the elements, or "bytes".
        key: the storage's key in the file.
        start: index of the first element, if this is a view of another storage.
    """

    dtype: str
    key: str
    start: int = 0


UNKNOWN = Storage("bytes", "")


@dataclass
class Stored:
    """A tensor as a view of a storage; offset and strides are in elements."""

    storage: Storage = UNKNOWN
    dtype: str = ""
    offset: int = 0
    shape: tuple[int, ...] = ()
    strides: tuple[int, ...] = ()


class Refused(ValueError):
    """A problem with a pickle; the message lacks its subject, the file name."""


def refusal(name: str) -> Refused:
    if name.startswith(("torch._utils.", "torch._tensor.", "torch.serialization.")):
        return Refused(f"holds tensors that are not plain, dense and real ({name:.80}); convert them and save again")
    return Refused(f"holds more than tensors, or is broken ({name:.80}); save the state dict alone")


def broken() -> Refused:
    return Refused("holds more than tensors, or is broken; save the state dict alone")


def read_pickle(stream: IO[bytes]) -> Any:
    """Read one pickle of dicts, lists, tuples, strings, numbers and `Stored`, leaving the stream after it.

    Raises:
        Refused: the pickle holds anything else, or is broken.
    """
    reader = _Reader()
    try:
        for number, (opcode, argument, _) in enumerate(pickletools.genops(stream)):
            if number == MOST_INSTRUCTIONS:
                raise Refused(f"has a pickle of more than {MOST_INSTRUCTIONS} instructions; no state dict has so many")
            reader.follow(opcode.name, argument)
        [result] = reader.stack
    except Refused:
        raise
    except (IndexError, KeyError, TypeError, AttributeError, ValueError, Warning):
        raise broken() from None  # missing stack or memo entry; or an odd old string, if warnings are errors
    return result


class _Reader:
    """The stack machine that executes a pickle."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []  # stacks saved by marks
        self.memo: dict[int, Any] = {}

    def follow(self, opcode: str, argument: Any) -> None:
        stack = self.stack
        if opcode in GIVEN:
            stack.append(argument)
        elif opcode in CONSTANTS:
            stack.append(CONSTANTS[opcode])
        elif opcode in ("EMPTY_DICT", "EMPTY_LIST"):
            stack.append({} if opcode == "EMPTY_DICT" else [])
        elif opcode in ("BINPUT", "LONG_BINPUT"):
            self.memo[argument] = stack[-1]
        elif opcode in ("BINGET", "LONG_BINGET"):
            stack.append(self.memo[argument])
        elif opcode == "MARK":
            self.below.append(stack)
            self.stack = []
        elif opcode == "TUPLE":
            marked = tuple(self._marked())
            self.stack.append(marked)
        elif opcode in ("TUPLE1", "TUPLE2", "TUPLE3"):
            count = int(opcode[-1])
            stack[-count:] = [tuple(stack[place] for place in range(-count, 0))]
        elif opcode in ("SETITEM", "SETITEMS"):
            items = [stack.pop(-2), stack.pop()] if opcode == "SETITEM" else self._marked()
            _set(self.stack[-1], list(zip(items[::2], items[1::2], strict=True)))
        elif opcode in ("APPEND", "APPENDS"):
            items = [stack.pop()] if opcode == "APPEND" else self._marked()
            if not isinstance(self.stack[-1], list):
                raise broken()
            self.stack[-1].extend(items)
        elif opcode == "GLOBAL":
            stack.append(Named(".".join(argument.split(" ", 1))))
        elif opcode in ("REDUCE", "NEWOBJ"):
            arguments, called = stack.pop(), stack.pop()
            stack.append(_made(called, arguments))
        elif opcode == "BUILD":
            state = stack.pop()
            _build(stack[-1], state)
        elif opcode == "BINPERSID":
            stack.append(_storage(stack.pop()))
        elif opcode not in ("PROTO", "STOP"):
            raise broken()

    def _marked(self) -> list[Any]:
        items, self.stack = self.stack, self.below.pop()
        return items


def _set(target: Any, pairs: Sequence[Any]) -> None:
    if not isinstance(target, dict) or not all(isinstance(key, SCALARS) for key, _ in pairs):
        raise broken()
    target.update(pairs)


def _made(called: Any, arguments: Any) -> Any:
    """Return the result of a call: a dict or a tensor description."""
    if not isinstance(called, Named) or not isinstance(arguments, tuple):
        raise broken()
    name = called.name
    if name == "collections.OrderedDict":
        found: dict[Any, Any] = {}
        _set(found, [tuple(pair) for pair in (arguments[0] if arguments else ())])  # Python 2 stores a list of pairs
        return found
    if name in ("torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v2"):
        storage, offset, shape, strides = arguments[:4]
        if any(arguments[6:]):  # conjugated or negated
            raise refusal(name)
        return Stored(storage, storage.dtype, offset, shape, strides)
    if name == "torch._utils._rebuild_tensor_v3":
        storage, offset, shape, strides = arguments[:4]
        if any(arguments[7:]) or not arguments[6].name.startswith("torch."):
            raise refusal(name)
        return Stored(storage, arguments[6].name.removeprefix("torch."), offset, shape, strides)
    if name in ("torch._utils._rebuild_parameter", "torch.nn.parameter.Parameter"):
        if not isinstance(arguments[0], Stored):
            raise broken()
        return arguments[0]
    if name.endswith("Tensor") and not arguments:  # before 2017; a BUILD instruction sets its attributes
        return Stored(dtype=called.dtype)
    raise refusal(name)


def _build(made: Any, state: Any) -> None:
    """Set an object's state, which matters only for tensors from before 2017."""
    if isinstance(made, Stored) and made.storage is UNKNOWN:
        made.storage, made.offset, made.shape, made.strides = state
    elif not isinstance(made, dict | Stored):
        raise broken()


def _storage(persistent_id: Any) -> Storage:
    word, kind, key, _, _, *view = persistent_id
    if word != "storage" or not isinstance(key, str | int):
        raise broken()
    start = 0
    if any(view):  # a view of another storage, before 2020
        _, start, _ = view[0]
    return Storage(kind.dtype, str(key), start)
