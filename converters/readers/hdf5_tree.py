"""Survey an HDF5 file's groups and arrays without following links or reading arrays.

Every name is visited once, through h5py's low-level interface, which neither follows links nor reads data; so a
malicious file is detected before any of it is used. `Tree.problems` lists what Keras never writes.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from math import prod
from typing import Any

import h5py
import numpy as np
from h5py import h5d, h5g, h5l, h5o, h5t

MOST_COMPRESSED = 100  # largest compression ratio; weights never compress this well
MOST_OBJECTS = 200_000  # groups and arrays; Keras's largest networks have a few thousand
MOST_LEVELS = 64  # levels of nested groups
MOST_ATTRIBUTE = 16 << 20  # bytes of an attribute; a model's config has a few million
FILTERS = (h5py.h5z.FILTER_DEFLATE, h5py.h5z.FILTER_SHUFFLE, h5py.h5z.FILTER_FLETCHER32, h5py.h5z.FILTER_LZF)

# What h5py raises for broken files.
BROKEN = (OSError, LookupError, RuntimeError, TypeError, AttributeError, ValueError, ArithmeticError, MemoryError)


def reason_of(error: BaseException) -> str:
    """Return an error's message in one line, or the name of its class."""
    return " ".join(str(error).strip("'\"").split()) or type(error).__name__


@dataclass(frozen=True)
class Array:
    """One dataset.

    Attributes:
        place: path in the file, "/conv1/kernel:0".
        shape: as declared.
        dtype: NumPy dtype, "bfloat16", or a description of a type that is not numeric in NumPy.
        declared: bytes implied by shape and dtype.
        stored: bytes in the file.
        problem: why it must not be read, or None.
    """

    place: str
    shape: tuple[int, ...]
    dtype: str
    declared: int
    stored: int
    problem: str | None = None


@dataclass(frozen=True)
class Group:
    """One group; its members by name, in name order."""

    place: str
    members: dict[str, Group | Array] = field(default_factory=dict)

    def groups(self) -> dict[str, Group]:
        return {name: member for name, member in self.members.items() if isinstance(member, Group)}

    def arrays(self) -> Iterator[Array]:
        """Yield all arrays in this group and its subgroups."""
        for member in self.members.values():
            if isinstance(member, Array):
                yield member
            else:
                yield from member.arrays()

    def find(self, path: str) -> Group | Array | None:
        """Return the member at a relative path, "conv1/kernel:0", or None."""
        found: Group | Array | None = self
        for name in path.split("/"):
            if name and isinstance(found, Group):
                found = found.members.get(name)
            elif name:
                return None
        return found


@dataclass(frozen=True)
class Problem:
    """Something that Keras never writes: its path and a description."""

    place: str
    what: str


@dataclass
class Tree:
    """A file's groups and arrays, and its disallowed links."""

    root: Group
    problems: list[Problem]


def survey(file: h5py.File, leave_out: Collection[str] = ()) -> Tree:
    """Survey a file in one walk.

    Args:
        file: the open file.
        leave_out: names at the root to skip.

    Raises:
        any of `BROKEN`: libhdf5 cannot read the file's structure.
    """
    walk = _Walk(file.id.get_filesize())
    root = Group("/")
    walk.look_into(root, h5o.open(file.id, b"/"), frozenset(leave_out), 0)
    return Tree(root, walk.problems)


class _Walk:
    """State shared by the recursive calls of one walk."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.seen: set[tuple[int, int]] = set()
        self.problems: list[Problem] = []

    def look_into(self, group: Group, opened: h5g.GroupID, leave_out: frozenset[str], level: int) -> None:
        names: list[bytes] = []
        opened.links.iterate(names.append)  # names only; libhdf5 opens no objects for this
        for encoded in names:
            name = encoded.decode()
            if name in leave_out:
                continue
            place = f"{group.place.rstrip('/')}/{name}"
            kind = opened.links.get_info(encoded).type
            if kind != h5l.TYPE_HARD:
                self.problems.append(Problem(place, _link(opened, encoded, kind)))
                continue
            if level >= MOST_LEVELS:
                raise ValueError(f"groups are nested deeper than {MOST_LEVELS}")
            if len(self.seen) >= MOST_OBJECTS:
                raise ValueError(f"it holds more than {MOST_OBJECTS} groups and arrays")
            entry = h5o.open(opened, encoded)
            info = h5o.get_info(entry)
            if (key := (info.fileno, info.addr)) in self.seen:
                self.problems.append(Problem(place, "a second name for something else in the file"))
                continue
            self.seen.add(key)
            if isinstance(entry, h5g.GroupID):
                group.members[name] = Group(place)
                self.look_into(group.members[name], entry, frozenset(), level + 1)  # type: ignore[arg-type]
            elif isinstance(entry, h5d.DatasetID):
                group.members[name] = _array(place, entry, self.size)


def _link(opened: h5g.GroupID, name: bytes, kind: int) -> str:
    if kind == h5l.TYPE_EXTERNAL:
        target, inside = opened.links.get_val(name)
        return f"an external link, to {inside.decode('utf-8', 'replace')} in {target.decode('utf-8', 'replace')}"
    if kind != h5l.TYPE_SOFT:
        return "a link of a kind that h5py does not know"
    return f"a soft link, to {opened.links.get_val(name).decode('utf-8', 'replace')}"


def _array(place: str, opened: h5d.DatasetID, file_size: int) -> Array:
    shape = tuple(opened.shape or ())
    size = opened.get_type().get_size()
    declared = prod(shape) * size
    created = opened.get_create_plist()
    stored = 0 if created.get_layout() == h5d.VIRTUAL else opened.get_storage_size()
    return Array(
        place, shape, _dtype(opened), declared, stored, _problem(opened, created, declared, stored, size, file_size)
    )


def _problem(
    opened: h5d.DatasetID, created: h5py.h5p.PropDCID, declared: int, stored: int, size: int, file_size: int
) -> str | None:
    layout = created.get_layout()
    if layout == h5d.VIRTUAL:
        return "a virtual dataset, made of other files"
    if created.get_external_count():
        name = created.get_external(0)[0].decode("utf-8", "replace")
        return f"external storage, its values lie in the file {name}"
    for number in range(created.get_nfilters()):
        code = created.get_filter(number)[0]
        if code not in FILTERS:
            return f"stored through filter {code}, which is not one of Keras's"
    chunk = prod(created.get_chunk()) * size if layout == h5d.CHUNKED else 0
    if stored > file_size:
        return f"said to store {stored} bytes in a file of {file_size}"
    if layout == h5d.CONTIGUOUS and declared and stored and (opened.get_offset() or 0) + stored > file_size:
        return "stored beyond the end of the file"
    if not declared or max(declared, chunk) > stored * (1 if layout != h5d.CHUNKED else MOST_COMPRESSED):
        return f"{tuple(opened.shape or ())}, but only {stored} bytes of it are there"
    return None


def _dtype(opened: h5d.DatasetID) -> str:
    """Return `Array.dtype`; 16-bit integers and opaque byte pairs marked by Keras are "bfloat16"."""
    kind = opened.get_type()
    if isinstance(kind, h5t.TypeFloatID):
        return opened.dtype.str
    if kind.get_size() == 2 and isinstance(kind, h5t.TypeIntegerID | h5t.TypeOpaqueID):
        attributes = h5py.AttributeManager(h5py.Dataset(opened))
        if h5py.h5a.exists(opened, b"dtype") and text(attribute(attributes, "dtype")) == "bfloat16":
            return "bfloat16"
    words = {
        h5t.TypeStringID: "strings", h5t.TypeCompoundID: "compound or complex", h5t.TypeOpaqueID: "opaque",
        h5t.TypeEnumID: "enumerated or boolean",
    }  # fmt: skip
    for type_class, word in words.items():
        if isinstance(kind, type_class):
            return word
    return opened.dtype.str if isinstance(kind, h5t.TypeIntegerID) else "other"


def attribute(attributes: h5py.AttributeManager, name: str) -> Any:
    """Return an attribute's value or None; raise ValueError if it is too large."""
    if name not in attributes:
        return None
    opened = attributes.get_id(name)
    size = prod(opened.shape or ()) * opened.get_type().get_size()
    if size > MOST_ATTRIBUTE:
        raise ValueError(f"attribute {name} declares {size} bytes")
    return attributes[name]


def text(value: Any) -> str | None:
    """Return an attribute, bytes (h5py 2) or str (h5py 3), as str; None if it is not text."""
    if isinstance(value, np.ndarray) and value.shape == ():
        value = value[()]
    if isinstance(value, bytes | np.bytes_):
        return value.decode()
    return str(value) if isinstance(value, str) else None


def texts(attributes: h5py.AttributeManager, name: str) -> list[str] | None:
    """Return a list of names, joining `name0`, `name1`, ... into which Keras splits lists over 64 kB; or None.

    NumPy stores an empty list as an empty array of numbers.
    """
    value = attribute(attributes, name)
    if value is None:
        chunks: list[Any] = []
        while (chunk := attribute(attributes, f"{name}{len(chunks)}")) is not None:
            chunks.append(chunk)
        if not chunks:
            return None
        parts = chunks
    else:
        parts = [value]
    found = [text(entry) for part in parts for entry in np.asarray(part).reshape(-1)]
    if None in found:
        raise ValueError(f"attribute {name} holds something that is not a name")
    return [str(entry) for entry in found]
