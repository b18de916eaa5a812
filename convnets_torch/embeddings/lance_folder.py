"""The folder of a LanceDB table, looked at before LanceDB opens it.

A table is a folder, but it need not stay in there: a manifest may name other folders and object stores that hold its
data, a table of tables may say that it lies elsewhere, and links lead anywhere. An index of pictures has none of these.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from convnets_torch.files import check_own_folder, open_file

NAMESPACE = "__manifest"  # a folder: LanceDB's table of where tables lie
MOST_MANIFEST = 1 << 28  # bytes; each file of a table takes some hundred
MOST_FIELDS = 2_000_000  # of all manifests together, which takes some seconds
BASE_PATHS = 18  # the field of a manifest that names where else data lie
FOOTER = 16  # bytes at the end: where the manifest begins, the version of the format, "LANC"


def check_table_folder(address: Path, name: str) -> None:
    """Raise OSError, in one sentence, where a table could lead LanceDB out of its folder, or a manifest is damaged.

    Source: `message Manifest` of https://github.com/lance-format/lance/blob/main/protos/table.proto.
    """
    table = address / f"{name}.lance"
    if table.is_symlink():
        raise OSError(f"{table} is a link, and what it leads to is not used; put the table in its place")
    if os.path.lexists(address / NAMESPACE):
        raise OSError(f"{address} holds {NAMESPACE}, which may say that its tables lie elsewhere; remove it")
    check_own_folder(table)
    fields = 0
    for manifest in sorted(table.rglob("*.manifest")):
        try:
            for number in _fields(manifest):
                fields += 1
                if number == BASE_PATHS:
                    raise ValueError("names other folders or stores that hold the table's data")
                if fields > MOST_FIELDS:
                    raise ValueError(f"and others have more than {MOST_FIELDS:,} parts")
        except ValueError as error:
            raise OSError(
                f"{address} cannot be used ({manifest.name} {error}); repair it, or index into another folder"
            ) from None


def _fields(manifest: Path) -> Iterator[int]:
    """The numbers of the fields of a manifest; ValueError where it is none."""
    with open_file(manifest, max_bytes=MOST_MANIFEST, follow_links=False) as file:
        content = file.read()
    start = int.from_bytes(content[-FOOTER : -FOOTER + 8], "little")
    length = int.from_bytes(content[start : start + 4], "little")
    message = memoryview(content)[start + 4 : start + 4 + length]
    if content[-4:] != b"LANC" or len(message) != length:
        raise ValueError("does not end as LanceDB ends it")
    yield from _numbers(message)


def size_of(address: Path, name: str) -> int:
    """Bytes of all files of a table."""
    return sum(
        (Path(folder) / file).lstat().st_size
        for folder, _, files in os.walk(address / f"{name}.lance")
        for file in files
    )


def _numbers(message: memoryview) -> Iterator[int]:
    """The numbers of the fields of a protobuf message; ValueError where it is none.

    Source: https://protobuf.dev/programming-guides/encoding/.
    """
    place = 0
    while place < len(message):
        key, place = _varint(message, place)
        yield key >> 3
        kind = key & 7
        if kind == 0:
            _, place = _varint(message, place)
        elif kind == 2:
            length, place = _varint(message, place)
            place += length
        elif kind in (1, 5):
            place += 8 if kind == 1 else 4
        else:
            raise ValueError(f"has a field of kind {kind}")
    if place > len(message):
        raise ValueError("ends early")


def _varint(message: memoryview, place: int) -> tuple[int, int]:
    """A number of 7 bits a byte, and where the next one begins."""
    found = 0
    for number, byte in enumerate(message[place : place + 10]):
        found |= (byte & 127) << (7 * number)
        if byte < 128:
            return found, place + number + 1
    raise ValueError("has a number that does not end")
