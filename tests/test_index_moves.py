"""Pictures that are moved, deleted, unmounted or reached by several paths: what their index says of them."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from convnets_torch.embeddings.index import index_pictures
from convnets_torch.embeddings.index_table import KEY, PictureTable, files_of, is_there
from convnets_torch.embeddings.search import Index
from convnets_torch.files import sha256
from tests.reference.made_index import add, filled
from tests.reference.pictures import picture
from tests.test_index import rows_of

lancedb = pytest.importorskip("lancedb", reason="needs LanceDB, the extra search")


@pytest.fixture
def photos(tmp_path):
    """Two pictures in one/, two in two/."""
    for number, name in enumerate(("one/a.png", "one/b.png", "two/c.png", "two/d.png")):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(picture(number, 40 + number, 60)).save(path)
    return tmp_path


@pytest.fixture
def indexed(vgg, photos):
    """An index of both folders, and how to index into it."""
    address = photos / "x.lance"
    index_pictures(vgg, [photos / "one", photos / "two"], address)

    def again(*names, network=None, **options):
        return index_pictures(network or vgg, [photos / name for name in names], address, **options)

    return address, again


def marked(address):
    return sorted(name for name, row in rows_of(address).items() if row["vanished"])


def no_network(*_):
    raise AssertionError("the network ran")


def put(address, vectors):
    """An index of files with vectors of one's own: path -> vector."""
    width = len(next(iter(vectors.values())))
    table = filled(address, 0, width)
    place = {"size": 1, "modified": 1, "class_id": 0, "probability": 0.5, "thumbnail": None, "error": None}
    table.put(
        [
            {"path": str(path), "sha256": sha256(path), "vector": np.float32(vector), "vanished": False, **place}
            for path, vector in vectors.items()
        ]
    )
    return Index.open(address)


# Moved


def test_rows_move_with_a_renamed_folder_and_nothing_is_left_of_it(indexed, vgg, photos):
    address, again = indexed
    before = rows_of(address)
    (photos / "one").rename(photos / "new")
    handle = vgg.features.register_forward_hook(no_network)
    done = again("new")
    handle.remove()
    assert (done.embedded, done.moved, done.copied, done.vanished) == (0, 2, 0, 0)
    wanted = {name: row | {"path": row["path"].replace("/one/", "/new/")} for name, row in before.items()}
    assert rows_of(address) == wanted
    assert all(is_there(path) for path in done.index.vectors.paths())
    assert not [path for group in done.index.duplicates(1) for file in group.files for path in file.paths if file.gone]


def test_as_many_rows_move_as_there_are_new_files(vgg, indexed, photos):
    address, again = indexed
    shutil.copy(photos / "one" / "a.png", photos / "one" / "copy.png")
    again("one")
    (photos / "one").rename(photos / "new")
    (photos / "new" / "copy.png").unlink()
    done = again("new")
    assert (done.moved, done.vanished) == (2, 1)
    assert marked(address) == ["copy.png"]
    shutil.copy(photos / "new" / "a.png", photos / "new" / "more.png")
    assert again("new").moved == 1  # the row that was left
    assert marked(address) == []


def test_a_file_that_overwrites_another_keeps_its_own_vector(indexed, photos):
    address, again = indexed
    before = rows_of(address)
    (photos / "one" / "a.png").replace(photos / "one" / "b.png")
    done = again("one")
    assert (done.embedded, done.moved) == (0, 1)
    rows = rows_of(address)
    assert "a.png" not in rows
    assert rows["b.png"]["vector"] == before["a.png"]["vector"]


# Gone


def test_what_is_gone_is_marked_whatever_folder_is_named(indexed, photos):
    address, again = indexed
    (photos / "one" / "a.png").unlink()
    (photos / "two" / "d.png").unlink()
    assert again("two").vanished == 2
    assert marked(address) == ["a.png", "d.png"]
    assert again("two").vanished == 2


def test_rows_of_a_disk_that_is_not_mounted_are_kept_and_are_back_with_it(indexed, vgg, photos):
    address, again = indexed
    before = rows_of(address)
    (photos / "two").rename(photos / "away")
    (photos / "two").mkdir()  # where it was mounted
    assert again("one").vanished == 2
    assert marked(address) == ["c.png", "d.png"]
    assert len(Index.open(address).vectors) == 2
    (photos / "two").rmdir()
    (photos / "away").rename(photos / "two")
    handle = vgg.features.register_forward_hook(no_network)
    done = again("one")  # which does not name it
    handle.remove()
    assert (done.unchanged, done.vanished) == (4, 0)
    assert rows_of(address) == before


def test_pruning_removes_what_is_gone_and_nothing_else(indexed, photos):
    address, again = indexed
    (photos / "two" / "bad.png").write_text("no picture")
    again("two")
    before = rows_of(address)
    for name in ("one/a.png", "two/bad.png"):
        (photos / name).unlink()
    (photos / "two" / "c.png").unlink()
    (photos / "two" / "c.png").mkdir()  # nothing that could be read as a file
    assert again("one").vanished == 3
    done = again("one", prune=True)
    assert (done.pruned, done.vanished) == (3, 0)
    assert rows_of(address) == {name: before[name] for name in ("b.png", "d.png")}
    assert again("one", prune=True).pruned == 0


@pytest.mark.skipif(os.name == "nt" or os.geteuid() != 0, reason="needs to become another user")
def test_what_may_not_be_looked_at_is_neither_marked_nor_removed(photos):
    (photos / "two").chmod(0o700)
    for parent in [photos, *photos.parents]:
        if parent.stat().st_uid == 0 and str(parent) not in ("/", "/tmp"):
            parent.chmod(parent.stat().st_mode | 0o011)
    program = """
import os, sys
from convnets_torch.embeddings.index_table import files_of, is_there
os.setuid(65534)
print(*map(is_there, sys.argv[1:]), *((file.gone, file.bytes) for file in files_of(sys.argv[1:])))
"""
    places = [photos / "two" / "c.png", photos / "one" / "none.png"]
    done = subprocess.run([sys.executable, "-c", program, *places], capture_output=True, text=True, check=True)
    assert done.stdout == "True False (False, None) (True, None)\n"


# One picture, several paths


def test_a_picture_is_found_once_with_all_paths_that_are_there(indexed, photos):
    address, again = indexed
    one, two = photos / "one", photos / "two"
    (one / "a-link.png").symlink_to("a.png")
    os.link(one / "a.png", two / "hard.png")
    shutil.copy(one / "a.png", two / "copy.png")
    again("one", "two")
    [matches] = Index.open(address).search(two / "d.png", 3)
    assert len({match.sha256 for match in matches.found}) == 3  # copies take no other picture's place
    [found] = [match for match in matches.found if match.sha256 == sha256(one / "a.png")]
    names = ("one/a.png", "one/a-link.png", "two/hard.png", "two/copy.png")
    assert set(found.paths) == {str(photos / name) for name in names}
    assert found.paths[-1] == str(one / "a-link.png")
    (one / "a.png").unlink()  # the link leads nowhere now
    index = Index.open(address)
    [again_found] = [match for match in index.search(two / "d.png")[0].found if match.sha256 == found.sha256]
    assert (set(again_found.paths), again_found.gone) == ({str(two / "hard.png"), str(two / "copy.png")}, False)
    shutil.rmtree(one)
    (two / "hard.png").unlink()
    (two / "copy.png").unlink()
    gone = {match.gone: match for match in index.search(two / "d.png")[0].found}
    assert sorted(gone) == [False, True]
    assert gone[False].path == str(two / "c.png")


def test_the_first_row_of_each_content_stands_for_all(tmp_path):
    table = filled(tmp_path / "x.lance", 0, width=4)
    for seed in (3, 4):
        add(table, 30, seed)
    rows = [row for batch in table.read(table.table.schema.names) for row in batch.to_pylist()]
    table.put([row | {"path": f"/again{number}.jpg", "sha256": rows[number % 7]["sha256"]} for number, row in
               enumerate(rows[:20])])  # fmt: skip
    held = Index.open(tmp_path / "x.lance").vectors
    contents = [row.tobytes() for row in held.hashes]
    assert held.first.tolist() == [contents.index(content) for content in contents]
    assert len(set(held.first.tolist())) == 60


def test_approximate_search_gives_each_picture_once(tmp_path):
    table = filled(tmp_path / "x.lance", 400)
    rows = [row for batch in table.read(table.table.schema.names) for row in batch.to_pylist()]
    for copy in range(6):
        table.put([row | {"path": f"/copy{copy}{row['path']}"} for row in rows])
    index = Index.open(tmp_path / "x.lance")
    [found] = index.search("/made/0-7.jpg", 12, approximate=True)
    assert len({match.sha256 for match in found.found}) == len(found.found) == 12
    assert {len(match.paths) for match in found.found} == {7}
    [exact] = index.search("/made/0-7.jpg", 12)
    assert len({match.sha256 for match in exact.found}) == 12


def test_one_file_behind_another_mount_is_one(photos):
    (photos / "mounted").mkdir()
    mount = ["mount", "--bind", photos / "one", photos / "mounted"]
    try:
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("may not mount")
    try:
        files = files_of([str(photos / name) for name in ("mounted/a.png", "two/c.png", "one/a.png", "one/none.png")])
    finally:
        subprocess.run(["umount", photos / "mounted"], check=True)
    assert [(len(file.paths), file.gone) for file in files] == [(2, False), (1, False), (1, True)]
    assert (files[0].width, files[0].height) == (60, 40)
    assert files[0].bytes == (photos / "one" / "a.png").stat().st_size


# Duplicates


@pytest.fixture
def several(tmp_path):
    """Files that are alike in vectors of one's own, the smallest first in the index; one of them goes afterwards."""
    names = {"a-gone.png": (64, 64), "b-small.png": (20, 20), "c-large.png": (30, 40), "e-other.png": (9, 9)}
    for name, size in names.items():
        Image.new("RGB", size, (len(name), size[0], 0)).save(tmp_path / name)
    os.link(tmp_path / "c-large.png", tmp_path / "b-hard.png")
    (tmp_path / "a-link.png").symlink_to("b-small.png")
    Image.new("RGB", (99, 99)).save(tmp_path / "huge.png")
    (tmp_path / "d-link.png").symlink_to("huge.png")  # the largest, and not in the index itself
    angles = {"a-gone.png": 0, "a-link.png": 1, "b-small.png": 1, "b-hard.png": 5, "c-large.png": 5, "d-link.png": 3,
              "e-other.png": 90}  # fmt: skip
    vectors = {tmp_path / name: (np.cos(np.deg2rad(each)), np.sin(np.deg2rad(each))) for name, each in angles.items()}
    put(tmp_path / "x.lance", vectors)
    (tmp_path / "a-gone.png").unlink()
    return tmp_path


def test_the_keeper_is_the_largest_and_neither_gone_nor_a_link(several):
    [group] = Index.open(several / "x.lance").duplicates(0.99)
    assert group.keeper == group.files[0].paths[0]
    names = [[os.path.basename(path) for path in file.paths] for file in group.files]  # noqa: PTH119
    assert [set(each) for each in names] == [
        {"c-large.png", "b-hard.png"}, {"b-small.png", "a-link.png"}, {"d-link.png"}, {"a-gone.png"}
    ]  # fmt: skip
    assert names[1] == ["b-small.png", "a-link.png"]
    cosines = [file.cosine for file in group.files]
    np.testing.assert_allclose(cosines, np.cos(np.deg2rad([0, 4, 2, 5])), atol=1e-6)
    assert [(file.width, file.height) for file in group.files] == [(30, 40), (20, 20), (99, 99), (None, None)]
    assert group.files[0].bytes == (several / "c-large.png").stat().st_size
    assert [(file.gone, file.link) for file in group.files] == [(False, False)] * 2 + [(False, True), (True, False)]
    assert group.least_cosine == pytest.approx(np.cos(np.deg2rad(5)), abs=1e-6)
    assert not group.chain


def test_paths_of_one_file_alone_are_no_duplicates(tmp_path):
    Image.new("RGB", (20, 20)).save(tmp_path / "a.png")
    os.link(tmp_path / "a.png", tmp_path / "b.png")
    (tmp_path / "c.png").symlink_to("a.png")
    index = put(tmp_path / "x.lance", {tmp_path / f"{letter}.png": (1, 0) for letter in "abc"})
    assert index.duplicates(0.9) == []
    shutil.copy(tmp_path / "a.png", tmp_path / "d.png")  # this is one, to the byte
    index = put(tmp_path / "y.lance", {tmp_path / f"{letter}.png": (1, 0) for letter in "abcd"})
    assert [len(file.paths) for file in index.duplicates(1)[0].files] == [3, 1]


@pytest.mark.parametrize(("steps", "chain"), [(2, False), (12, True)])
def test_a_group_that_only_others_connect_is_named_a_chain(tmp_path, steps, chain):
    """Of 0.99, which is 8.1 degrees: in steps of 5 degrees, 5 to 10 of them in all, or 60."""
    vectors = {}
    for number in range(steps + 1):
        path = tmp_path / f"{number}.png"
        Image.new("RGB", (8, 8), (number, 0, 0)).save(path)
        vectors[path] = (np.cos(np.deg2rad(5 * number)), np.sin(np.deg2rad(5 * number)))
    [group] = put(tmp_path / "x.lance", vectors).duplicates(0.99)
    assert len(group.files) == steps + 1
    assert group.least_cosine == pytest.approx(np.cos(np.deg2rad(5 * steps)), abs=1e-6)
    assert group.chain is chain


def test_the_command_says_the_same_as_lines_json_and_csv(command, several):
    code, out, error = command("duplicates", several / "x.lance", "--min-similarity", 0.99, "-o", several / "d.csv")
    assert (code, "1 of these files are gone" in error) == (0, True)
    lines = [line.split() for line in out.strip("\n").split("\n")]
    marks = [line[0] for line in lines if not line[0].startswith("0.")]
    assert marks == ["keep", "same", "same", "link", "gone"]
    assert lines[0][1:] == ["1.0000", "30", "x", "40", str((several / "c-large.png").stat().st_size), lines[0][-1]]
    code, out, _ = command("duplicates", several / "x.lance", "--min-similarity", 0.99, "--json")
    [group] = map(json.loads, out.splitlines())
    assert group["keeper"] == group["group"][0] == group["files"][0]["paths"][0] == lines[0][-1]
    with (several / "d.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["path"] for row in rows] == group["group"] == [line[-1] for line in lines]
    assert [row["mark"] for row in rows] == ["keep", "same", "", "same", "link", "gone"]
    assert rows[0]["width"] == "30"
    assert rows[-1]["bytes"] == ""


def test_leaks_are_a_table_too(command, photos):
    index = put(photos / "x.lance", {photos / "one" / "a.png": (3, 4), photos / "two" / "c.png": (4, 3)})
    (photos / "two" / "c.png").unlink()
    folders = ("--between", photos / "one", photos / "two", "--min-similarity", 0.9)
    code, out, error = command("duplicates", index.address, *folders, "-o", photos / "leaks.csv")
    assert (code, "1 of these files are gone" in error) == (0, True)
    paths = [str(photos / name) for name in ("one/a.png", "two/c.png")]
    assert out.split() == ["0.9600", *paths]
    assert (photos / "leaks.csv").read_text() == f"path,of,cosine\n{','.join(paths)},0.960000\n"


def test_a_class_without_a_match_is_said(command, indexed, photos):
    address, _ = indexed
    query = photos / "two" / "d.png"
    [matches] = Index.open(address).search(query)
    held = {match.words for match in matches.found}
    other = next(letter for letter in "abcdefghij" if letter not in held)
    code, out, error = command("search", address, query, "--target", other)
    assert (code, out) == (0, "")
    assert f"the index has no other picture whose most probable class is of '{other}'" in error
    assert command("search", address, query, "--target", matches.found[0].words)[2] == ""
    shutil.rmtree(photos / "one")
    _, out, error = command("search", address, query)
    assert sorted("(gone)" in line for line in out.splitlines()) == [False, True, True]
    assert "2 of these pictures are gone; index again" in error


# Indexes that older versions wrote


def test_an_index_of_an_older_version_is_opened_and_brought_up_to_date(vgg, indexed, photos):
    """Written by LanceDB itself, with the columns of the first version."""
    import pyarrow as pa

    address, _ = indexed
    about = PictureTable.open(str(address)).about
    unique = {"lance-schema:unenforced-primary-key": "true"}
    schema = pa.schema(
        [
            pa.field("path", pa.string(), nullable=False, metadata=unique),
            pa.field("sha256", pa.string()),
            pa.field("size", pa.int64()),
            pa.field("modified", pa.int64()),
            pa.field("vector", pa.list_(pa.float32(), about.width)),
            pa.field("class_id", pa.int32()),
            pa.field("probability", pa.float32()),
            pa.field("thumbnail", pa.binary()),
            pa.field("error", pa.string()),
            pa.field("vanished", pa.bool_(), nullable=False),
        ],
        metadata={KEY: about.to_json()},
    )
    rows = list(rows_of(address).values())
    ghosts = [row | {"path": row["path"].replace("/one/", "/ghost/")} for row in rows if "/one/" in row["path"]]
    database = lancedb.connect(str(photos / "old.lance"))
    database.create_table("pictures", schema=schema).add(pa.Table.from_pylist([*ghosts, *rows], schema=schema))
    assert len(Index.open(photos / "old.lance").vectors) == 6
    done = index_pictures(vgg, photos / "one", photos / "old.lance", prune=True)
    assert (done.unchanged, done.pruned) == (2, 2)
    assert rows_of(photos / "old.lance") == rows_of(address)
