"""Seeded damage to Keras files, for `fuzz.py`.

A `Source` knows which bytes of its file are structure (all but the values of arrays). `mutate` returns the bytes of
a damaged copy and a word for the damage.
"""

from __future__ import annotations

import io
import json
import random
import struct
import zipfile
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

NUMBERS = (0, -1, 1, 2, 3, 10**12, -(10**9), 2**31, 2**63, 10**400, 0.5, 1e308, float("nan"), float("inf"))
VALUES: tuple[Any, ...] = (
    *NUMBERS,
    None,
    True,
    False,
    "",
    "x" * 70_000,
    "\x00",
    "\ud800",
    "../..",
    [],
    {},
    [[]],
    [None],
    ["a"],
    [1, 2, 3],
)
WORDS = ("th", "tf", "channels_first", "channels_last", "same", "valid", "Model", "Sequential", "Lambda", "Dense",
         "TimeDistributed", "__keras_tensor__", "relu", "softmax")  # fmt: skip
FIELDS = (0, 1, 2, 7, 8, 0x7F, 0x80, 0xFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 0x7FFFFFFFFFFFFFFF, 0xFFFFFFFFFFFFFFFF)
DATE = (2016, 1, 1, 0, 0, 0)  # of members: the same bytes for the same seed


class Source:
    """An intact file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.data = path.read_bytes()
        self.is_archive = path.suffix == ".keras"

    @cached_property
    def structure(self) -> NDArray[np.int64]:
        """Return the offsets of all bytes that are not array values."""
        inside = np.zeros(len(self.data), bool)
        weights, start = self.data, 0
        if self.is_archive:
            with zipfile.ZipFile(io.BytesIO(self.data)) as archive:
                weights = archive.read("model.weights.h5")
            start = self.data.index(weights)
        with h5py.File(io.BytesIO(weights), "r") as file:

            def mark(_: str, item: Any) -> None:
                if isinstance(item, h5py.Dataset) and item.id.get_offset() is not None:
                    begin = start + item.id.get_offset()
                    inside[begin : begin + item.id.get_storage_size()] = True

            file.visititems(mark)
        return np.flatnonzero(~inside)


def mutate(source: Source, rng: random.Random) -> tuple[str, bytes]:
    """Return a damaged copy of a file, and a word for the damage.

    "swapped", two arrays of the same shape exchanged, is the damage that must be detected.
    """
    kinds = [flip_bits, flip_bits, flip_bits, write_fields, write_fields, move_bytes, truncate, attributes, config]
    kinds += [swapped] + ([members, members, fields_of_zip] if source.is_archive else [])
    chosen = rng.choice(kinds)
    try:
        return chosen.__name__, chosen(source, rng)
    except (OSError, ValueError, RuntimeError):  # libhdf5 or zipfile cannot write it
        return flip_bits.__name__, flip_bits(source, rng)


def edits(sound: bytes, damaged: bytes) -> list[tuple[int, int, str]]:
    """Edits that turn the intact file into the damaged one: (offset, bytes removed, hex inserted), from the end."""
    if len(sound) == len(damaged):
        places = np.flatnonzero(np.frombuffer(sound, np.uint8) != np.frombuffer(damaged, np.uint8))
        runs = np.split(places, np.flatnonzero(np.diff(places) > 1) + 1) if len(places) else []
        return [(int(run[0]), len(run), damaged[run[0] : run[-1] + 1].hex()) for run in reversed(runs)]
    size = min(len(sound), len(damaged))
    first = next((place for place in range(size) if sound[place] != damaged[place]), size)
    last = next((n for n in range(size - first) if sound[-1 - n] != damaged[-1 - n]), size - first)
    return [(first, len(sound) - last - first, damaged[first : len(damaged) - last].hex())]


def _place(source: Source, rng: random.Random) -> int:
    """Draw an offset, nine times out of ten in the structure."""
    if rng.random() < 0.9:
        return int(source.structure[rng.randrange(len(source.structure))])
    return rng.randrange(len(source.data))


def flip_bits(source: Source, rng: random.Random) -> bytes:
    """Flip one or a few bits."""
    data = bytearray(source.data)
    for _ in range(rng.choice((1, 1, 1, 2, 4, 8, 32))):
        data[_place(source, rng)] ^= 1 << rng.randrange(8)
    return bytes(data)


def write_fields(source: Source, rng: random.Random) -> bytes:
    """Write an integer of one to eight bytes, special or random, into the structure."""
    data = bytearray(source.data)
    for _ in range(rng.choice((1, 1, 2, 4))):
        size, place = rng.choice((1, 2, 4, 8)), _place(source, rng)
        place -= place % size if rng.random() < 0.7 else 0
        value = rng.choice(FIELDS) if rng.random() < 0.6 else rng.getrandbits(64)
        if rng.random() < 0.3:  # an address within the file
            value = rng.randrange(len(data))
        field = (value & (2 ** (8 * size) - 1)).to_bytes(size, "little")
        data[place : place + size] = field[: len(data) - place]
    return bytes(data)


def move_bytes(source: Source, rng: random.Random) -> bytes:
    """Copy a piece of the structure over another, or remove or repeat it, which moves everything after it."""
    data = bytearray(source.data)
    size = rng.choice((1, 4, 8, 16, 24, 40, 128, 512))
    begin, to = _place(source, rng), _place(source, rng)
    piece = data[begin : begin + size]
    form = rng.randrange(4)
    if form == 0:
        del data[begin : begin + size]
    elif form == 1:
        data[to:to] = piece
    else:
        data[to : to + len(piece)] = piece
    return bytes(data)


def truncate(source: Source, rng: random.Random) -> bytes:
    """Cut off the end, replace it by zeros, or append to it."""
    size = len(source.data)
    end = rng.choice((rng.randrange(size), rng.randrange(min(size, 4096)), size - 1 - rng.randrange(64)))
    form = rng.randrange(4)
    if form == 0:
        return source.data[:end] + bytes(size - end)
    if form == 1:
        return source.data + rng.randbytes(rng.choice((1, 8, 4096)))
    return source.data[:end]


# Through h5py


def _with_h5(source: Source, change: Callable[[h5py.File], None]) -> bytes:
    if not source.is_archive:
        stream = io.BytesIO(source.data)
        with h5py.File(stream, "r+") as file:
            change(file)
        return stream.getvalue()
    found = _read(source)
    stream = io.BytesIO(found["model.weights.h5"])
    with h5py.File(stream, "r+") as file:
        change(file)
    return _write(list((found | {"model.weights.h5": stream.getvalue()}).items()))


def _holders(file: h5py.File) -> list[Any]:
    """Return all objects of a file that have attributes."""
    found: list[Any] = [file]

    def take(_: str, item: Any) -> None:
        if len(item.attrs):
            found.append(item)

    file.visititems(take)
    return [holder for holder in found if len(holder.attrs)]


def attributes(source: Source, rng: random.Random) -> bytes:
    """Permute, cut, retype, reshape or remove an attribute."""

    def change(file: h5py.File) -> None:
        holders = _holders(file)
        if not holders:
            file.attrs["layer_names"] = [b"a"]
            return
        holder = rng.choice([holders[0], rng.choice(holders)])
        name = rng.choice(sorted(holder.attrs))
        held = holder.attrs[name]
        entries = list(np.asarray(held).reshape(-1)) or [b""]
        form = rng.randrange(9)
        if form == 0:
            del holder.attrs[name]
        elif form == 1:
            rng.shuffle(entries)
            holder.attrs[name] = _plain(entries)
        elif form == 2:
            holder.attrs[name] = _plain([*entries, rng.choice(entries)])
        elif form == 3:
            holder.attrs[name] = _plain(entries[: rng.randrange(len(entries)) or 1])
        elif form == 4:
            entries[rng.randrange(len(entries))] = rng.choice(
                (b"", b"\xff\xfe", b"../..", b"/", b".", b"x" * 3000, b"a/b")
            )
            holder.attrs[name] = _plain(entries)
        elif form == 5:
            value = rng.choice(
                (0, -1, 2**40, 1e300, np.float16(2), [1, 2], [[b"a"], [b"b"]], True, h5py.Empty("f4"), 1j)
            )
            holder.attrs[name] = value
        elif form == 6:
            holder.attrs.create(
                name, np.zeros((0,) if rng.random() < 0.5 else (3, 2)), dtype=rng.choice(("f8", "i1", "S3"))
            )
        elif form == 7:
            other = rng.choice([key for one in holders for key in one.attrs])
            holder.attrs[other] = held
        else:
            holder.attrs[f"{name}0"] = held
            del holder.attrs[name]

    return _with_h5(source, change)


def _plain(entries: list[Any]) -> Any:
    texts = [entry.encode("utf-8", "surrogateescape") if isinstance(entry, str) else entry for entry in entries]
    return np.array(texts) if all(isinstance(entry, bytes) for entry in texts) else [str(entry) for entry in entries]


def config(source: Source, rng: random.Random) -> bytes:
    """Change numbers, types, nesting or text of a model's config; without one, an attribute."""
    if source.is_archive:
        found = _read(source)
        found["config.json"] = edited_json(found["config.json"].decode(), rng)
        return _write(list(found.items()))
    with h5py.File(io.BytesIO(source.data), "r") as file:
        text = file.attrs.get("model_config")
    if text is None:
        return attributes(source, rng)
    text = text.decode() if isinstance(text, bytes) else str(text)

    def change(file: h5py.File) -> None:
        del file.attrs["model_config"]
        edited = edited_json(text, rng)
        file.attrs["model_config"] = np.bytes_(edited) if len(edited) < 60_000 else "[" * 100_000

    return _with_h5(source, change)


def edited_json(text: str, rng: random.Random) -> bytes:
    if rng.random() < 0.1:  # mostly invalid JSON
        place = rng.randrange(len(text))
        return rng.choice(
            (text[:place], text[:place] + "[" * 5000 + text[place:], text[:place] + "}" + text[place:], "[" * 50_000,
             text[:place] + "\x00" + text[place + 1 :], "null", "1" * 5000, '{"a":' * 3000 + "1" + "}" * 3000)
        ).encode()  # fmt: skip
    tree = json.loads(text)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        places: list[tuple[Any, Any]] = []
        _walk(tree, places)
        holder, key = rng.choice(places)
        form = rng.randrange(8)
        other_holder, other_key = rng.choice(places)
        if form == 0:
            del holder[key]
        elif form == 1:
            holder[key] = json.loads(json.dumps(other_holder[other_key]))
        elif form == 2:
            for _ in range(rng.choice((1, 3, 30))):
                holder[key] = (
                    {"class_name": "Sequential", "config": [holder[key]]} if rng.random() < 0.5 else [holder[key]]
                )
        elif form == 3 and isinstance(holder, list):
            holder.insert(key, json.loads(json.dumps(other_holder[other_key])))
        elif form == 4 and isinstance(holder, dict):
            holder[rng.choice(WORDS)] = holder.pop(key)
        elif form == 5:
            holder[key] = rng.choice(WORDS)
        elif form == 6 and isinstance(holder[key], int):
            holder[key] = rng.choice(
                (holder[key] + 1, -holder[key], holder[key] * 10**9, float(holder[key]), str(holder[key]))
            )
        else:
            holder[key] = rng.choice(VALUES)
    return json.dumps(tree).encode()


def _walk(tree: Any, places: list[tuple[Any, Any]], level: int = 0) -> None:
    if level > 60:
        return
    for key in list(tree) if isinstance(tree, dict) else range(len(tree)) if isinstance(tree, list) else ():
        places.append((tree, key))
        _walk(tree[key], places, level + 1)


def swapped(source: Source, rng: random.Random) -> bytes:
    """Swap two layers of the same shape, in the lists of names or their groups."""

    def change(file: h5py.File) -> None:
        shapes: dict[Any, list[str]] = {}
        for name, group in _layers(file):
            held: list[tuple[int, ...]] = []
            group.visititems(lambda _, item, held=held: held.append(item.shape) if hasattr(item, "shape") else None)
            shapes.setdefault(tuple(sorted(held)), []).append(name)
        pairs = [names for shape, names in shapes.items() if shape and len(names) > 1]
        if not pairs:
            return
        one, other = rng.sample(rng.choice(pairs), 2)
        form = rng.randrange(3)
        group = file[one].parent
        if form == 0 and "layer_names" in group.attrs:
            names = list(group.attrs["layer_names"])
            keys = [name.decode() if isinstance(name, bytes) else name for name in names]
            first, second = keys.index(one.split("/")[-1]), keys.index(other.split("/")[-1])
            names[first], names[second] = names[second], names[first]
            group.attrs["layer_names"] = _plain(names)
        elif form == 1 and "weight_names" in file[one].attrs:
            lists = [list(file[name].attrs["weight_names"]) for name in (one, other)]
            file[one].attrs["weight_names"], file[other].attrs["weight_names"] = _plain(lists[1]), _plain(lists[0])
        else:
            file.move(one, "swapped"), file.move(other, one), file.move("swapped", other)

    return _with_h5(source, change)


def _layers(file: h5py.File) -> list[tuple[str, h5py.Group]]:
    top = next(
        (file[name] for name in ("model_weights", "layers", "_layer_checkpoint_dependencies") if name in file), file
    )
    return [
        (f"{top.name.strip('/')}/{name}".strip("/"), top[name]) for name in top if isinstance(top[name], h5py.Group)
    ]


# Of the zip


def _read(source: Source) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(source.data)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def _write(found: list[tuple[str, bytes]], form: int = zipfile.ZIP_STORED) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, data in found:
            member = zipfile.ZipInfo(name, DATE)
            member.compress_type = form
            archive.writestr(member, data)
    return stream.getvalue()


def members(source: Source, rng: random.Random) -> bytes:
    """Compress, damage (within a valid archive), rename, remove or add members."""
    found = list(_read(source).items())
    form = rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))
    place = rng.randrange(len(found))
    name, data = found[place]
    kind = rng.randrange(6)
    if kind == 0:
        del found[place]
    elif kind == 1:
        found[place] = (rng.choice(("../x", "/etc/x", "C:\\x", "", "x" * 300, "model.weights.h5/", "\x00")), data)
    elif kind == 2:
        found.append((rng.choice(("extra", "assets/../../x", "a" * 60_000)), bytes(rng.choice((0, 10, 3_000_000)))))
    elif kind == 3:
        found[place] = (name, data[: rng.randrange(len(data))])
    elif kind == 4:
        spoilt = bytearray(data)
        for _ in range(rng.choice((1, 2, 8))):
            spoilt[rng.randrange(len(spoilt))] ^= 1 << rng.randrange(8)
        found[place] = (name, bytes(spoilt))
    else:
        rng.shuffle(found)
    return _write(found, form)


def fields_of_zip(source: Source, rng: random.Random) -> bytes:
    """Change a field in a zip header: offset, size, length, flags or method."""
    found = list(_read(source).items())
    data = bytearray(_write(found, rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))))
    with zipfile.ZipFile(io.BytesIO(bytes(data))) as archive:
        local = [member.header_offset for member in archive.infolist()]
        central = archive.start_dir
    entries, place = [], central
    while data[place : place + 4] == b"PK\x01\x02":
        entries.append(place)
        place += 46 + sum(struct.unpack_from("<HHH", data, place + 28))
    starts = [*((begin, 30) for begin in local), *((begin, 46) for begin in entries), (place, 22)]
    for _ in range(rng.choice((1, 1, 2))):
        begin, length = rng.choice(starts)
        size = rng.choice((2, 4))
        offset = begin + 2 * rng.randrange(2, (length - size) // 2 + 1)
        value = rng.choice((*FIELDS, *local, *entries, len(data), rng.getrandbits(32))) & (2 ** (8 * size) - 1)
        data[offset : offset + size] = value.to_bytes(size, "little")
    return bytes(data)
