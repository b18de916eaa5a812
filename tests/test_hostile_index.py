"""Indexes, vectors and maps from strangers: nothing runs, nothing is written elsewhere, nothing takes for ever."""

from __future__ import annotations

import io
import json
import os
import shutil
import struct
import subprocess
import sys
import time
import warnings
import zipfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from convnets_torch.embeddings import index_table, neighbours
from convnets_torch.embeddings.files import read_vectors
from convnets_torch.embeddings.image_map import KEY, ImageMap, MapEntry, load_map, save_map
from convnets_torch.embeddings.index import index_pictures
from convnets_torch.embeddings.index_table import IndexWarning, PictureTable
from convnets_torch.embeddings.search import Index
from convnets_torch.npz import read_npz
from tests.reference.made_index import filled
from tests.reference.pictures import picture

lancedb = pytest.importorskip("lancedb", reason="needs LanceDB, the extra search")
pa = pytest.importorskip("pyarrow")

pytestmark = pytest.mark.hostile


# A stranger's table


@pytest.fixture
def address(tmp_path):
    """An index of 20 made vectors, as a stranger may send it."""
    filled(tmp_path / "x.lance", 20, width=4)
    return tmp_path / "x.lance"


def rows_of(address):
    table = PictureTable.open(str(address))
    names = index_table.table_schema(table.about).names
    return [row for batch in table.read(names) for row in batch.to_pylist()]


def written(address, rows, about, schema=None, metadata=None):
    """A table that LanceDB wrote without our looking at its rows."""
    from lancedb.background_loop import LOOP

    schema = schema or index_table.table_schema(about)
    database = lancedb.connect(str(address))
    if metadata is not None:  # LanceDB's Python would build what they name

        async def create():
            full = schema.with_metadata({**schema.metadata, **metadata})
            await database._conn._inner.create_empty_table("pictures", "create", full)

        LOOP.run(create())
    else:
        database.create_table("pictures", schema=schema)
        database.open_table("pictures").add(pa.Table.from_pylist(rows, schema=schema))
    return address


def test_a_function_that_metadata_name_is_not_built(address, vgg, tmp_path):
    from lancedb.embeddings import EmbeddingFunction, get_registry

    built = []

    @get_registry().register(f"stranger{os.getpid()}")
    class Stranger(EmbeddingFunction):
        @classmethod
        def create(cls, **model):
            built.append(model)

            return cls()

        def ndims(self):
            return 4

        def compute_query_embeddings(self, *args, **kwargs):
            return []

        def compute_source_embeddings(self, *args, **kwargs):
            return []

    function = {"name": f"stranger{os.getpid()}", "model": {}, "source_column": "error", "vector_column": "vector"}
    about = PictureTable.open(str(address)).about
    place = written(tmp_path / "evil.lance", [], about, metadata={"embedding_functions": json.dumps([function])})
    lancedb.connect(str(place)).open_table("pictures").embedding_functions  # noqa: B018 - what LanceDB does by itself
    assert built == [{}]
    Image.fromarray(picture(0, 60, 90)).save(tmp_path / "a.png")
    for use in (
        lambda: Index.open(place),
        lambda: PictureTable.open(str(place)),
        lambda: index_pictures(vgg, tmp_path / "a.png", place),
    ):
        with pytest.raises(ValueError, match=r"evil\.lance has other columns or metadata than `convnets-torch index`"):
            use()
    assert built == [{}]


def test_columns_of_another_name_or_type_are_refused(address, tmp_path):
    about, rows = PictureTable.open(str(address)).about, rows_of(address)
    schema = index_table.table_schema(about)
    wider = [row | {"vector": [0.0] * 8} for row in rows]
    for number, (other, held) in enumerate(
        [
            (schema.append(pa.field("more", pa.int32())), [row | {"more": 1} for row in rows]),
            (schema.set(4, pa.field("vector", pa.list_(pa.float32(), 8))), wider),
            (schema.set(2, pa.field("size", pa.string())), [row | {"size": "1"} for row in rows]),
            (schema.remove(8), [{name: row[name] for name in row if name != "error"} for row in rows]),
        ]
    ):
        place = written(tmp_path / f"{number}.lance", held, about, other)
        with pytest.raises(ValueError, match=r"has other columns or metadata than `convnets-torch index` gives"):
            Index.open(place)


@pytest.mark.parametrize(
    "changed",
    [
        {"width": 0}, {"width": 10**12}, {"width": True}, {"width": "4"}, {"card": 3}, {"card": "{}"}, {"pool": None},
        {"layer": [1]}, {"weights": "a\0b"}, {"weights": [[]]}, {"made": {}}, {"more": 1}, {"schema": 2},
        {"schema": "x" * 9999},
    ],
    ids=lambda changed: str(changed)[:30],
)  # fmt: skip
def test_what_a_table_says_of_its_network_is_looked_at(changed, address, tmp_path):
    about = PictureTable.open(str(address)).about
    text = json.dumps(asdict(about) | {"schema": 1} | changed)
    schema = index_table.table_schema(about).with_metadata({index_table.KEY: text})
    place = written(tmp_path / "evil.lance", rows_of(address), about, schema)
    with pytest.raises(ValueError, match=r"evil\.lance: ") as caught:
        Index.open(place)
    assert len(str(caught.value)) < 400


def fields(message):
    """The fields of a protobuf message: their numbers, and what they are in bytes."""
    place = 0

    def varint():
        nonlocal place
        found = shift = 0
        while True:
            byte = message[place]
            place += 1
            found |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return found

    while place < len(message):
        begin = place
        key = varint()
        if key & 7 == 2:
            length = varint()
            place += length
        elif key & 7 == 0:
            varint()
        else:
            place += 8 if key & 7 == 1 else 4
        yield key >> 3, message[begin:place]


def text_field(number, content):
    assert len(content) < 128
    key = number << 3 | 2
    return (bytes([key]) if key < 128 else bytes([key & 127 | 128, key >> 7])) + bytes([len(content)]) + content


def with_base_path(manifest, place):
    """Let a manifest say that the data of its files lie somewhere else."""
    content = manifest.read_bytes()
    start = int.from_bytes(content[-16:-8], "little")
    length = int.from_bytes(content[start : start + 4], "little")
    found = b""
    for number, field in fields(content[start + 4 : start + 4 + length]):
        if number == 2:  # a fragment, whose file gets the number of the base path
            body = field[2:]
            head, file = body[:2], body[2:]
            if head[0] != 0x12:  # its own number comes first
                skipped, (head, file) = body[:2], (body[2:4], body[4:])
            else:
                skipped = b""
            size = head[1]
            file, rest = file[:size] + b"\x38\x01", file[size:]
            body = skipped + bytes([0x12, size + 2]) + file + rest
            field = bytes([0x12, len(body)]) + body
        found += field
    found += text_field(18, b"\x08\x01\x18\x01" + text_field(4, os.fsencode(place)))
    manifest.write_bytes(content[:start] + struct.pack("<I", len(found)) + found + content[-16:])


def test_data_that_a_manifest_has_elsewhere_are_not_read(address, tmp_path):
    shutil.copytree(address / "pictures.lance" / "data", tmp_path / "private" / "data")
    shutil.rmtree(address / "pictures.lance" / "data")
    newest = min((address / "pictures.lance" / "_versions").glob("*.manifest"))
    with_base_path(newest, tmp_path / "private")
    opened = lancedb.connect(str(address)).open_table("pictures")
    assert len(opened.search().select(["path"]).to_list()) == 20  # LanceDB itself reads a folder that was not named
    for use in (Index.open, lambda place: PictureTable.open(str(place))):
        with pytest.raises(OSError, match=r"x\.lance cannot be used \(\d+\.manifest names other folders or stores"):
            use(address)


def test_a_table_of_tables_beside_the_table_is_refused(address):
    (address / "__manifest").mkdir()
    with pytest.raises(OSError, match=r"x\.lance holds __manifest, which may say that its tables lie elsewhere"):
        Index.open(address)


@pytest.mark.parametrize("part", ["pictures.lance", "pictures.lance/data", "pictures.lance/_versions", "a file"])
def test_a_link_in_an_index_is_refused_and_nothing_is_written_where_it_leads(part, address, vgg, tmp_path):
    inside = next((address / "pictures.lance" / "data").iterdir()) if part == "a file" else address / part
    shutil.move(inside, tmp_path / "far")
    inside.symlink_to(tmp_path / "far")
    before = sorted((path, path.lstat().st_mtime_ns) for path in (tmp_path / "far").rglob("*"))
    Image.fromarray(picture(0, 60, 90)).save(tmp_path / "a.png")
    for use in (lambda: Index.open(address).vectors, lambda: index_pictures(vgg, tmp_path / "a.png", address)):
        with pytest.raises(OSError, match="is a link, and what it leads to is not used"):
            use()
    assert sorted((path, path.lstat().st_mtime_ns) for path in (tmp_path / "far").rglob("*")) == before


def test_an_address_that_hides_a_folder_is_refused(address):
    for scheme in ("file://", "file-object-store://"):
        with pytest.raises(ValueError, match="is a folder; name it without file://"):
            Index.open(f"{scheme}{address}")


def test_looking_at_a_table_of_ten_thousand_files_takes_seconds_at_most(address):
    table = address / "pictures.lance"
    newest = min((table / "_versions").glob("*.manifest"))
    for number in range(5000):
        shutil.copy(newest, table / "_versions" / f"{int(newest.stem) + 10 + number}.manifest")
        (table / "data" / f"{number}.lance").touch()
    start = time.process_time()
    PictureTable.open(str(address))
    assert time.process_time() - start < 20


# Rows


BAD = {
    "no path": {"path": ""},
    "a path of 100,000 letters": {"path": "/x" * 50_000},
    "a path with a zero byte": {"path": "/a\0b"},
    "a sha256 of other letters": {"sha256": "z" * 64},
    "a short sha256": {"sha256": "ab"},
    "no sha256": {"sha256": None},
    "a class that there is not": {"class_id": 10},
    "a negative class": {"class_id": -7},
    "a probability of 7": {"probability": 7.0},
    "NaN": {"vector": [12345.5] * 4, "bits": np.nan},
    "infinite values": {"vector": [12345.5] * 4, "bits": np.inf},
}


@pytest.mark.parametrize("changed", BAD.values(), ids=BAD.keys())
def test_a_row_of_wrong_values_is_left_out_with_a_remark(changed, address, tmp_path):
    first, *others = rows_of(address)
    bits = changed.get("bits")
    row = first | {name: value for name, value in changed.items() if name != "bits"}
    place = written(tmp_path / "evil.lance", [row, *others], PictureTable.open(str(address)).about)
    if bits is not None:  # which LanceDB itself would not write
        [file] = (place / "pictures.lance" / "data").iterdir()
        content = file.read_bytes()
        assert content.count(struct.pack("<f", 12345.5)) == 4
        file.write_bytes(content.replace(struct.pack("<f", 12345.5), struct.pack("<f", bits)))
    for _ in range(2):  # from the table, and from what is kept of it
        with pytest.warns(IndexWarning, match=r"evil\.lance: left out 1 of its rows"):
            held = Index.open(place).vectors
        assert held.paths() == [other["path"] for other in others]
    found = Index.open(address).search(others[0]["path"], 3)
    with pytest.warns(IndexWarning):
        [same] = Index.open(place).search(others[0]["path"], 3)
    assert [match for match in same.found if match.path != first["path"]] == list(same.found)
    assert {match.path for match in found[0].found} - {match.path for match in same.found} <= {first["path"]}


def test_a_wrong_row_is_indexed_as_if_it_were_not_there(vgg, tmp_path):
    Image.fromarray(picture(0, 60, 90)).save(tmp_path / "a.png")
    done = index_pictures(vgg, tmp_path / "a.png", tmp_path / "x.lance")
    [row] = rows_of(tmp_path / "x.lance")
    place = written(tmp_path / "evil.lance", [row | {"sha256": "?"}], done.index.about)
    again = index_pictures(vgg, tmp_path / "a.png", place)
    assert (again.embedded, again.unchanged) == (1, 0)
    assert rows_of(place)[0]["sha256"] == row["sha256"]


def test_names_and_thumbnails_of_a_stranger_make_no_sheet_long(command, address, tmp_path):
    first, second, *others = rows_of(address)
    huge = io.BytesIO()
    Image.new("RGB", (5000, 5000)).save(huge, "JPEG")
    rows = [
        first | {"path": "/made/" + "\n" * 9000 + "\x1b[31mx", "thumbnail": b"%!PS"},
        second | {"path": "/made/" + "m" * 16_000, "thumbnail": huge.getvalue()},
        *others,
    ]
    place = written(tmp_path / "evil.lance", rows, PictureTable.open(str(address)).about)
    start = time.process_time()
    code, out, _ = command("search", place, others[0]["path"], "-k", 19, "-o", tmp_path / "s.png")
    assert code == 0
    assert time.process_time() - start < 20
    assert "\x1b" not in out
    assert len(out.splitlines()) == 19
    with Image.open(tmp_path / "s.png") as sheet:
        assert sheet.height < 2000


def test_a_small_table_cannot_fill_the_disk(address):
    table = PictureTable.open(str(address))
    table.check_room()
    table.about = replace(table.about, width=1 << 24)
    with pytest.raises(ValueError, match=r"x\.lance has [\d,]+ bytes, but its vectors need 1,342,177,280"):
        table.check_room()


@pytest.mark.parametrize("where", ["data", "_versions"])
def test_a_damaged_table_is_one_sentence(where, address):
    for file in (address / "pictures.lance" / where).iterdir():
        content = bytearray(file.read_bytes())
        for place in range(len(content) // 3, len(content), 7):
            content[place] ^= 0x55
        file.write_bytes(content)
    with pytest.raises(OSError, match=r"x\.lance cannot be used \(.*\); repair it") as caught:
        Index.open(address).vectors  # noqa: B018
    assert str(caught.value).isprintable()


# The network that a table names


@pytest.mark.parametrize(
    "named", ["pipe", "/dev/zero", "folder", "http://example.org/x.safetensors", "//host/x", "\\\\host\\x"]
)
def test_only_a_file_is_read_as_the_network_of_an_index(named, address, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe")
    Path("folder").mkdir()
    Image.fromarray(picture(0, 60, 90)).save("a.png")
    about = replace(PictureTable.open(str(address)).about, weights=named)
    place = written(tmp_path / "evil.lance", rows_of(address), about)
    with pytest.raises((OSError, ValueError), match=rf"{tmp_path}/evil\.lance.* (are not at|are at) "):
        Index.open(place).search("a.png")


# Where vectors are kept


def test_nothing_in_an_index_is_taken_for_kept_vectors_or_written(address, tmp_path):
    (tmp_path / "precious").write_text("precious")
    (address / "vectors.cache").symlink_to(tmp_path / "precious")
    before = sorted(address.rglob("*"))
    assert len(Index.open(address).vectors) == 20
    assert (tmp_path / "precious").read_text() == "precious"
    assert sorted(address.rglob("*")) == before
    assert neighbours.cache_file(str(address)).is_relative_to(os.environ["CONVNETS_TORCH_HOME"])


@pytest.mark.skipif(os.name == "nt" or os.geteuid() != 0, reason="needs to become another user")
def test_an_index_that_may_only_be_read_is_searched(address, tmp_path):
    shutil.copytree(address, tmp_path / "readonly.lance")
    for place in [tmp_path / "readonly.lance", *(tmp_path / "readonly.lance").rglob("*")]:
        place.chmod(0o555 if place.is_dir() else 0o444)
    for parent in [tmp_path, *tmp_path.parents]:
        if parent.stat().st_uid == os.geteuid() and parent not in (Path("/"), Path("/tmp")):
            parent.chmod(parent.stat().st_mode | 0o011)
    (tmp_path / "home").mkdir()
    os.chown(tmp_path / "home", 65534, 65534)
    program = """
import os, sys
from convnets_torch.embeddings.search import Index
for number in range(3):
    index = Index.open(sys.argv[2])
    print(len(index.search("/made/0-3.jpg", 5)[0].found), index.thumbnails(["/made/0-3.jpg"]), index.duplicates(1))
    if number == 0:  # all modules are there, which the other user may not read
        os.setgid(65534)
        os.setuid(65534)
        os.environ["CONVNETS_TORCH_HOME"] = sys.argv[1]
"""
    arguments = [sys.executable, "-c", program, tmp_path / "home", tmp_path / "readonly.lance"]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert done.stdout == "5 {} []\n" * 3, done.stderr


def test_vectors_of_an_index_that_is_gone_are_removed(tmp_path, cache):
    for name in ("first", "second"):
        filled(tmp_path / name, 3, width=4)
        assert len(Index.open(tmp_path / name).vectors) == 3
    assert len(list((cache / "vectors").iterdir())) == 2
    shutil.rmtree(tmp_path / "first")
    filled(tmp_path / "third", 3, width=4)
    assert len(Index.open(tmp_path / "third").vectors) == 3
    kept = {neighbours.cache_file(str(tmp_path / name)) for name in ("second", "third")}
    assert set((cache / "vectors").iterdir()) == kept


def test_kept_vectors_behind_a_link_are_refused(address, tmp_path, cache):
    assert len(Index.open(address).vectors) == 20
    place = neighbours.cache_file(str(address))
    shutil.move(place, tmp_path / "far")
    place.symlink_to(tmp_path / "far")
    with pytest.raises(OSError, match="is a link, and what it leads to is not used"):
        Index.open(address)
    shutil.rmtree(cache / "vectors")
    (tmp_path / "elsewhere").mkdir()
    (cache / "vectors").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="is a link, and what it leads to is not used"):
        Index.open(address).vectors  # noqa: B018
    assert not list((tmp_path / "elsewhere").iterdir())


@pytest.mark.parametrize("name", sorted(neighbours.Vectors.__dataclass_fields__))
def test_kept_vectors_whose_arrays_disagree_are_made_anew(name, address, cache):
    wanted = Index.open(address).vectors
    place = neighbours.cache_file(str(address))
    content = place.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    header[name]["shape"][0] -= 1
    header[name]["data_offsets"][0] += 4
    place.write_bytes(content[:8] + json.dumps(header).encode().ljust(length) + content[8 + length :])
    found = Index.open(address).vectors
    assert found.paths() == wanted.paths()
    assert np.array_equal(found.vectors, wanted.vectors)


def test_kept_vectors_with_a_row_that_stands_for_none_are_made_anew(address, cache):
    wanted = Index.open(address).search("/made/0-3.jpg", 5)
    place = neighbours.cache_file(str(address))
    content = place.read_bytes()
    length = int.from_bytes(content[:8], "little")
    begin, end = json.loads(content[8 : 8 + length])["first"]["data_offsets"]
    for wrong in (10**9, -1):
        rows = np.full((end - begin) // 8, wrong, "<i8").tobytes()
        place.write_bytes(content[: 8 + length + begin] + rows + content[8 + length + end :])
        assert Index.open(address).search("/made/0-3.jpg", 5) == wanted


@pytest.mark.slow
def test_two_that_make_an_index_at_once_make_one(address, tmp_path):
    program = """
import json, sys
import lancedb
from convnets_torch.embeddings.index_table import About, PictureTable
for number, line in enumerate(sys.stdin):
    about = About.from_json(json.dumps(json.loads(sys.argv[1]) | {"made": sys.argv[2]}))
    print(PictureTable.create(f"{line.strip()}{number}", about).about.made, flush=True)
"""
    about = PictureTable.open(str(address)).about.to_json()
    both = [
        subprocess.Popen(
            [sys.executable, "-c", program, about, name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for name in ("one", "other")
    ]
    made = []
    for _ in range(6):
        for process in both:
            process.stdin.write(f"{tmp_path}/at-once\n")
            process.stdin.flush()
        made.append([process.stdout.readline() for process in both])
    errors = [process.communicate()[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], errors
    assert [len(set(each)) for each in made] == [1] * 6


# Files of vectors


def zipped(*members, form=zipfile.ZIP_DEFLATED):
    """A zip of names and contents."""
    file = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(file, "w", form) as archive:
        warnings.simplefilter("ignore")  # zipfile says of a name that it is there twice
        for name, content in members:
            archive.writestr(name, content)
    return file.getvalue()


def npy(array, **changed):
    """The bytes of an .npy file whose header says something else."""
    file = io.BytesIO()
    header = {"descr": array.dtype.str, "fortran_order": False, "shape": array.shape} | changed
    np.lib.format.write_array_header_1_0(file, header)
    return file.getvalue() + array.tobytes()


def pickled():
    file = io.BytesIO()
    np.save(file, np.array([{}], object), allow_pickle=True)
    return file.getvalue()


SOME = np.arange(6, dtype=np.float32)
BAD_NPZ = {
    "nothing": b"",
    "no zip": b"no zip" * 9,
    "an object": zipped(("a.npy", pickled())),
    "a record": zipped(("a.npy", npy(np.zeros(3, [("x", "<f4")]), descr=[("x", "<f4")]))),
    "a date": zipped(("a.npy", npy(np.zeros(3, "<M8[s]")))),
    "texts of no letters": zipped(("a.npy", npy(np.zeros(0, np.uint8), descr="<U0", shape=(10**12,)))),
    "texts of no Unicode": zipped(("a.npy", npy(np.array([0x7FFFFFFF], "<u4"), descr="<U1"))),
    "more than there is": zipped(("a.npy", npy(SOME, shape=(10**10,)))),
    "less than there is": zipped(("a.npy", npy(SOME, shape=(2,)))),
    "a negative shape": zipped(("a.npy", npy(SOME, shape=(-2, -3)))),
    "a name twice": zipped(("a.npy", npy(SOME)), ("a.npy", npy(SOME))),
    "another file": zipped(("a.txt", b"text")),
    "20,000 members": zipped(*((f"{number}.npy", b"") for number in range(20_000))),
    "another compression": zipped(("a.npy", npy(SOME)), form=zipfile.ZIP_LZMA),
    "parentheses": zipped(("a.npy", b"\x93NUMPY\x01\x00" + struct.pack("<H", 5000) + b"(" * 5000)),
    "a comment": zipped(("a.npy", npy(SOME)))[:-2] + b"\x04\x00note",
}


@pytest.mark.parametrize("content", BAD_NPZ.values(), ids=BAD_NPZ.keys())
def test_an_npz_that_is_none_is_one_sentence(content, tmp_path):
    (tmp_path / "x.npz").write_bytes(content)
    with pytest.raises(
        ValueError, match=r"x\.npz is not an \.npz of plain arrays, or is damaged \(.+\); write it again$"
    ):
        read_npz(tmp_path / "x.npz")
    with pytest.raises(ValueError, match=r"x\.npz holds no vectors of one layer, or is damaged"):
        read_vectors(tmp_path / "x.npz")


def test_nothing_is_read_or_allocated_that_a_file_only_claims(tmp_path):
    (tmp_path / "x.npz").write_bytes(BAD_NPZ["more than there is"])
    with pytest.raises(ValueError, match=r"'a\.npy' has 24 bytes, not those of \(10000000000,\) float32"):
        read_npz(tmp_path / "x.npz")
    sound = bytearray(zipped(("a.npy", npy(SOME))))
    sound[-10:-6] = struct.pack("<I", 20_000_000)  # bytes of the list of members
    (tmp_path / "x.npz").write_bytes(sound)
    with pytest.raises(ValueError, match=r"its list of members has 20,000,000 bytes"):
        read_npz(tmp_path / "x.npz")


def test_what_is_sound_is_read_as_numpy_reads_it(tmp_path):
    arrays = {
        "plain": SOME.reshape(2, 3), "columns": np.asfortranarray(SOME.reshape(2, 3)), "one": np.array("text"),
        "texts": np.array(["a", "bcd", "\U0001f600"]), "none": np.zeros((0, 5)), "other": SOME.astype(">f8"),
        "flags": np.array([True, False]),
    }  # fmt: skip
    for save in (np.savez, np.savez_compressed):
        save(tmp_path / "x.npz", **arrays)  # type: ignore[arg-type]
        for name, found in read_npz(tmp_path / "x.npz", max_bytes=10_000).items():
            assert (found.dtype, found.shape) == (arrays[name].dtype, arrays[name].shape)
            assert np.array_equal(found, arrays[name])
        with pytest.raises(ValueError, match="more than 100"):
            read_npz(tmp_path / "x.npz", max_bytes=100)


def test_a_bomb_is_refused_before_it_takes_memory(tmp_path):
    zeros = np.zeros(64 << 20, np.float32)
    np.savez_compressed(tmp_path / "x.npz", vectors=zeros, more=zeros[:1000])
    assert (tmp_path / "x.npz").stat().st_size < 1 << 20
    program = """
import resource, sys
from convnets_torch.npz import read_npz
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    read_npz(sys.argv[1])
except ValueError as error:
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, error)
"""
    done = subprocess.run(
        [sys.executable, "-c", program, tmp_path / "x.npz"], capture_output=True, text=True, check=True
    )
    grown, words = done.stdout.split(" ", 1)
    assert "unpack to 268," in words
    assert int(grown) * (1 if sys.platform == "darwin" else 1024) < 30 << 20


def vectors_file(**changed):
    """What `embed` writes of two pictures, with other arrays among them."""
    arrays = {
        "vectors": np.ones((2, 3), np.float32),
        "logits": np.ones((2, 4), np.float32),
        "paths": ["a.png", "b.png"],
        "failed": ["c.png"],
        "errors": ["c.png is no picture"],
        "about": {"pool": "avg"},
    }
    return {name: value for name, value in (arrays | changed).items() if value is not None}


BAD_VECTORS = {
    "no paths": {"paths": None},
    "one path too few": {"paths": ["a.png"]},
    "paths that are numbers": {"paths": [1, 2]},
    "paths within paths": {"paths": [["a.png"], ["b.png"]]},
    "vectors of float64": {"vectors": np.ones((2, 3))},
    "vectors in a row": {"vectors": np.ones(2, np.float32)},
    "vectors of nothing": {"vectors": np.ones((2, 0), np.float32)},
    "logits of one picture": {"logits": np.ones((1, 4), np.float32)},
    "logits that are NaN": {"logits": np.full((2, 4), np.nan, np.float32)},
    "fewer errors than failed": {"errors": []},
}


def write_vectors(path, arrays):
    about = arrays.pop("about")
    lists = {name for name, value in arrays.items() if isinstance(value, list)}
    if path.suffix == ".npz":
        texts = {name: np.array(arrays[name]) if arrays[name] else np.array([], "<U1") for name in lists}
        np.savez(path, about=json.dumps(about), **arrays | texts)
    else:
        texts = {name: np.frombuffer(json.dumps(arrays[name]).encode(), np.uint8) for name in lists}
        save_file(arrays | texts, path, about)


@pytest.mark.parametrize("changed", BAD_VECTORS.values(), ids=BAD_VECTORS.keys())
@pytest.mark.parametrize("ending", [".npz", ".safetensors"])
def test_arrays_that_disagree_are_no_vectors(changed, ending, tmp_path):
    path = tmp_path / f"x{ending}"
    write_vectors(path, vectors_file())
    assert read_vectors(path).failed == {"c.png": "c.png is no picture"}
    write_vectors(path, vectors_file(**changed))
    with pytest.raises(ValueError, match=r"holds no vectors of one layer, or is damaged \(.+\); create it again"):
        read_vectors(path)


# Maps


def test_a_map_of_wrong_kinds_is_one_sentence(tmp_path):
    some = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    sound = ImageMap(some[:, :2].copy(), 3.0, some[0].copy(), some[:2].copy(), some[:, :2].copy())
    save_map(sound, [MapEntry(f"{number}.jpg") for number in range(4)], tmp_path / "x.safetensors", {"pool": "avg"})
    assert load_map(tmp_path / "x.safetensors").entries[3] == MapEntry("3.jpg")

    def changed(said=None, **arrays):
        held: dict[str, Any] = {
            "positions": sound.positions, "mean": sound.mean, "axes": sound.axes, "reduced": sound.reduced,
            "entries": [[f"{number}.jpg", "", None] for number in range(4)],
        } | arrays  # fmt: skip
        held["entries"] = np.frombuffer(json.dumps(held["entries"]).encode(), np.uint8)
        text = said if isinstance(said, str) else json.dumps({"schema": 1, "perplexity": 3, "about": {}} | (said or {}))
        save_file(held, tmp_path / "x.safetensors", {KEY: text})

    cases: list[tuple[Any, dict[str, Any]]] = [
        ("[" * 100_000, {}), ("[]", {}), ({"perplexity": "x"}, {}), ({"perplexity": 1e999}, {}), ({"about": []}, {}),
        ({"perplexity": 10**400}, {}), ({"schema": "9" * 9999}, {}), (None, {"entries": 5}),
        (None, {"entries": [5] * 4}),
        (None, {"entries": [[{}]] * 4}), (None, {"entries": [["a", "b", 7]] * 4}), (None, {"entries": [["a"] * 9] * 4}),
        (None, {"entries": [["a", "b", True]] * 3}), (None, {"mean": np.full(3, np.nan, np.float32)}),
        (None, {"axes": sound.axes.T.copy()}), (None, {"positions": sound.positions.astype(np.float64)}),
        (None, {name: np.zeros((0, 2), np.float32) for name in ("positions", "reduced")} | {"entries": []}),
    ]  # fmt: skip
    for said, arrays in cases:
        changed(said, **arrays)
        with pytest.raises(ValueError, match=r"x\.safetensors is damaged \(.+\); create the map again") as caught:
            load_map(tmp_path / "x.safetensors")
        assert len(str(caught.value)) < 500


def test_a_full_disk_is_one_sentence_and_leaves_nothing(tmp_path):
    program = """
import resource, signal, sys
import numpy as np
from convnets_torch.embeddings.image_map import MapEntry, save_map
from convnets_torch.embeddings.image_map import ImageMap
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
many = np.ones((50_000, 50), np.float32)
made = ImageMap(many[:, :2].copy(), 3.0, many[0], many[:50].copy(), many)
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
try:
    save_map(made, [MapEntry("a")] * 50_000, sys.argv[1])
except OSError as error:
    print(error)
"""
    (tmp_path / "x.safetensors").write_text("old")
    done = subprocess.run(
        [sys.executable, "-c", program, tmp_path / "x.safetensors"], capture_output=True, text=True, check=False
    )
    assert "x.safetensors cannot be written (" in done.stdout, done.stderr
    assert done.stdout.endswith("what was there before is untouched\n")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]
