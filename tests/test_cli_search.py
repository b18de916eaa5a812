"""`index`, `search` and `duplicates` from the command line: what they print, their sheets, and what they refuse."""

from __future__ import annotations

import json
import shutil

import pytest
from PIL import Image

from convnets_torch import weights
from convnets_torch.embeddings.search import Index
from tests.test_search import NAMES

pytest.importorskip("lancedb", reason="needs LanceDB, the extra search")


@pytest.fixture(scope="module")
def place(tmp_path_factory, photographs):
    """A folder with train/, of six photographs, and test/, of one of them and another."""
    folder = tmp_path_factory.mktemp("place")
    (folder / "train").mkdir()
    (folder / "test").mkdir()
    for name in NAMES:
        shutil.copy(photographs / name, folder / "train" / name)
    Image.open(photographs / "coffee.png").crop((0, 0, 596, 400)).save(folder / "test" / "cup.png")
    shutil.copy(photographs / "page.png", folder / "test" / "page.png")
    return folder


@pytest.fixture
def indexed(command, lite_weights, place):
    """What indexing them said; their index is photos.lance."""
    return command("index", lite_weights, place / "train", place / "test", "-o", place / "photos.lance")


def test_indexing_says_what_it_did_and_goes_on_from_there(command, lite_weights, place, tmp_path):
    arguments = ("index", lite_weights, place / "train", "-o", tmp_path / "x.lance")
    code, out, error = command(*arguments)
    counts = "6 embedded, 0 moved, 0 duplicates of others, 0 unchanged, 0 could not be used, 0 vanished"
    assert (code, out, error) == (0, "", f"convnets-torch: {tmp_path / 'x.lance'}: {counts}; 6 can be searched\n")
    (tmp_path / "bad.jpg").write_text("no picture")
    code, _, error = command(*arguments, "--hash-all")
    assert (code, "0 embedded, 0 moved, 0 duplicates of others, 6 unchanged" in error) == (0, True)
    code, _, error = command("index", lite_weights, tmp_path / "bad.jpg", "-o", tmp_path / "x.lance")
    assert code == 1
    assert error.splitlines()[1] == (
        f"convnets-torch: {tmp_path / 'bad.jpg'} is not a picture that Pillow can read; convert it to JPEG or PNG"
    )


def test_lines_json_and_a_sheet_are_what_search_found(command, indexed, place, tmp_path):
    database, query = place / "photos.lance", place / "train" / "coffee.png"
    [wanted] = Index.open(database).search(query, 3)
    code, out, _ = command("search", database, query, "-k", 3, "-o", tmp_path / "s.png")
    assert code == 0
    first = wanted.found[0]
    assert out.splitlines()[0] == f"{first.score:.4f}  {first.path}  {first.probability:.3f}  {first.words}"
    assert [line.split()[1] for line in out.splitlines()] == [match.path for match in wanted.found]
    with Image.open(tmp_path / "s.png") as sheet:
        assert sheet.width == 16 + 6 * (128 + 16)  # six tiles in a line
    code, out, _ = command("search", database, query, place / "train" / "rocket.jpg", "-k", 3, "--json")
    found = [json.loads(line) for line in out.splitlines()]
    assert [each["query"] for each in found] == [str(query), str(place / "train" / "rocket.jpg")]
    assert [match["path"] for match in found[0]["matches"]] == [match.path for match in wanted.found]


def test_options_of_search_do_what_they_say(command, indexed, place, photographs, lite_weights, tmp_path):
    database, query = place / "photos.lance", place / "train" / "rocket.jpg"
    index = Index.open(database)
    for options, keywords in (
        (["--metric", "l2"], {"metric": "l2"}),
        (["--target", "vehicle"], {"target": "vehicle"}),
        (["--box", "10,20,300,400"], {"box": (10, 20, 300, 400)}),
        (["--weights", lite_weights], {}),
    ):
        _, out, _ = command("search", database, query, *options)
        [wanted] = index.search(query, **keywords)
        assert [line.split()[1] for line in out.splitlines()] == [match.path for match in wanted.found]
    shutil.copytree(place / "photos.lance", tmp_path / "moved.lance")
    code, _, _ = command("search", tmp_path / "moved.lance", photographs / "brick.png", "-k", 1)
    assert code == 0


def test_duplicates_and_leaks_are_told(command, indexed, place, tmp_path):
    database = place / "photos.lance"
    code, out, _ = command("duplicates", database, "--min-similarity", 0.9, "-o", tmp_path / "d.png")
    cup, coffee = place / "test" / "cup.png", place / "train" / "coffee.png"
    groups = [{line.split()[-1] for line in group.split("\n")} for group in out.strip("\n").split("\n\n")]
    assert (code, {str(cup), str(coffee)} in groups) == (0, True)
    with Image.open(tmp_path / "d.png") as sheet:
        assert sheet.width == 16 + 6 * (128 + 16)
    _, out, _ = command("duplicates", database, "--min-similarity", 0.9, "--json")
    assert [set(json.loads(line)["group"]) for line in out.splitlines()] == groups
    between = ("--between", place / "test", place / "train")
    _, out, _ = command("duplicates", database, *between, "--min-similarity", 0.9, "--json")
    [leak] = map(json.loads, out.splitlines())
    assert (leak["path"], leak["of"]) == (str(cup), str(coffee))
    assert 0.9 <= leak["similarity"] < 1
    _, out, _ = command("duplicates", database, *between, "--min-similarity", 0.9)
    assert out == f"{leak['similarity']:.4f}  {cup}  {coffee}\n"
    assert command("duplicates", database, "--min-similarity", 1)[:2] == (0, "")


def test_what_is_misused_or_cannot_be_done_is_one_line(command, indexed, place, vgg, photographs, tmp_path):
    database, query = place / "photos.lance", place / "train" / "coffee.png"
    before = Index.open(database).table.version
    misused = [
        ("search", database, query, "--metric", "hamming"),
        ("search", database, query, "-k", 0),
        ("search", database, query, "--box", "1,2,3"),
        ("search", database, query, "-o", tmp_path / "s.txt"),
        ("duplicates", database, "--min-similarity", 1.5),
        ("duplicates", database, "-o", tmp_path / "s.txt"),
    ]
    for arguments in misused:
        assert command(*arguments)[0] == 2
    weights.save(vgg, tmp_path / "vgg.safetensors")
    (tmp_path / "empty").mkdir()
    refused = [
        (("search", tmp_path / "none.lance", query), "does not exist; make an index"),
        (("search", place / "train", query), "holds no index; make one"),
        (("search", query, query), "is not an index, which is a folder"),
        (("search", database, tmp_path / "none.jpg"), "is neither a file nor in"),
        (("search", database, query, "--target", "dogz"), "unknown word 'dogz'"),
        (("search", database, query, "--approximate"), "approximate search needs 256 or more"),
        (("search", database, photographs / "brick.png", "--weights", tmp_path / "vgg.safetensors"), "another card"),
        (("index", tmp_path / "vgg.safetensors", place / "train", "-o", database), "vectors of another kind"),
        (("index", tmp_path / "vgg.safetensors", tmp_path / "empty", "-o", database), "holds no pictures"),
        (("duplicates", database, "--between", tmp_path / "empty", place / "train"), "index that folder first"),
        (("duplicates", database, "--between", place, place / "train"), "contains the other"),
    ]
    for arguments, message in refused:
        code, out, error = command(*arguments)
        assert (code, out) == (1, "")
        assert len(error.splitlines()) == 1
        assert message in error
    assert Index.open(database).table.version == before
