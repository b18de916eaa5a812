"""Search in an index: queries of every kind, filters, the mapped vectors, and LanceDB's approximate index."""

from __future__ import annotations

import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from convnets_torch import weights
from convnets_torch.embeddings import neighbours
from convnets_torch.embeddings.extraction import embed
from convnets_torch.embeddings.index import index_pictures
from convnets_torch.embeddings.search import Index, recall
from convnets_torch.files import sha256
from convnets_torch.images.decoding import read_picture
from convnets_torch.weights import load
from tests.reference.made_index import add, filled

pytest.importorskip("lancedb", reason="needs LanceDB, the extra search")

NAMES = ("astronaut.png", "chelsea.png", "coffee.png", "motorcycle_left.png", "motorcycle_right.png", "rocket.jpg")


@pytest.fixture(scope="module")
def photos(tmp_path_factory, photographs):
    """Six photographs, a copy of one and a mirror image of another."""
    folder = tmp_path_factory.mktemp("photos")
    for name in NAMES:
        shutil.copy(photographs / name, folder / name)
    shutil.copy(folder / "chelsea.png", folder / "copy.png")
    Image.open(folder / "coffee.png").transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(folder / "mirrored.png")
    return folder


@pytest.fixture(scope="module")
def address(tmp_path_factory, lite_weights, photos):
    """Their index."""
    place = tmp_path_factory.mktemp("index") / "photos.lance"
    index_pictures(load(lite_weights), photos, place, weights=lite_weights)
    return place


def names_of(matches):
    return [match.path.rpartition("/")[2] for match in matches.found]


def test_what_is_alike_is_near_and_the_query_is_left_out_by_content(address, photos):
    index = Index.open(address)
    coffee, cat, left = index.search([photos / name for name in ("coffee.png", "copy.png", "motorcycle_left.png")])
    assert names_of(coffee)[0] == "mirrored.png"
    assert len(coffee.found) == 6  # seven pictures, of which one has two paths
    assert sorted(names_of(cat)) == sorted({*NAMES, "mirrored.png"} - {"chelsea.png"})  # both copies are left out
    assert names_of(left)[0] == "motorcycle_right.png"
    assert coffee.sha256 == sha256(photos / "coffee.png")


@pytest.mark.parametrize("metric", ["cosine", "l2", "dot"])
def test_scores_are_those_of_the_vectors(address, photos, lite_weights, metric):
    [found] = Index.open(address).search(photos / "rocket.jpg", 3, metric=metric)
    paths = [photos / "rocket.jpg", *(match.path for match in found.found)]
    query, *others = embed(load(lite_weights), paths).double().numpy()
    wanted = {
        "cosine": [query @ each / np.linalg.norm(query) / np.linalg.norm(each) for each in others],
        "l2": [np.linalg.norm(query - each) for each in others],
        "dot": [query @ each for each in others],
    }[metric]
    np.testing.assert_allclose([match.score for match in found.found], wanted, rtol=1e-5)
    assert sorted(wanted, reverse=metric != "l2") == wanted


def test_a_query_is_a_file_a_path_of_a_row_a_sha256_or_a_vector(address, photos, tmp_path, monkeypatch):
    index = Index.open(address)
    [wanted] = index.search(photos / "coffee.png")
    shutil.copy(photos / "coffee.png", tmp_path / "elsewhere.png")
    monkeypatch.chdir(photos)
    for query in (tmp_path / "elsewhere.png", "coffee.png", wanted.sha256):
        [found] = index.search(query)
        assert found.found == wanted.found
    row = index.row_of("coffee.png")
    [by_vector] = index.search(index.vectors.vectors[row])
    assert names_of(by_vector)[0] == "coffee.png"  # a vector has no content that could be left out
    assert names_of(by_vector)[1:] == names_of(wanted)
    with pytest.raises(OSError, match="is neither a file nor in"):
        index.search("none.png")
    with pytest.raises(OSError, match="is neither a file nor in"):
        index.search("0" * 64)
    with pytest.raises(ValueError, match="there is no query"):
        index.search([])


def test_a_box_and_a_new_picture_go_through_the_network(address, photos, photographs, lite_weights, tmp_path):
    index, network = Index.open(address), load(lite_weights)
    [new] = index.search(photographs / "page.png", 1)
    held = index.vectors
    for query, pixels in ((new, read_picture(photographs / "page.png")),):
        vector = embed(network, pixels).numpy()[0]
        assert index.search(vector, 1)[0].found[0].score == pytest.approx(query.found[0].score, rel=1e-4)
    [part] = index.search(photos / "chelsea.png", box=(100, 20, 300, 250))
    vector = embed(network, read_picture(photos / "chelsea.png")[20:250, 100:300]).numpy()[0]
    wanted = [match for match in index.search(vector)[0].found if match.sha256 != part.sha256]
    assert [match.path for match in part.found] == [match.path for match in wanted]
    assert len(part.found) == len(held) - 2  # rows of the cat
    with pytest.raises(ValueError, match=r"is not in .*chelsea\.png, which is 451 x 300 pixels"):
        index.search(photos / "chelsea.png", box=(0, 0, 452, 300))


def test_a_class_filter_keeps_a_branch_of_the_tree(address, photos):
    index = Index.open(address)
    [vehicles] = index.search(photos / "rocket.jpg", target="vehicle")
    assert {match.wnid for match in vehicles.found} == {"n03785016"}  # moped
    assert names_of(vehicles) == [name for name in names_of(index.search(photos / "rocket.jpg")[0]) if "motor" in name]
    with pytest.raises(ValueError, match="unknown word"):
        index.search(photos / "rocket.jpg", target="dogz")
    with pytest.raises(ValueError, match="unknown metric 'hamming'"):
        index.search(photos / "rocket.jpg", metric="hamming")  # type: ignore[arg-type]


def test_another_network_is_refused_as_the_one_that_asks(address, photographs, vgg, lite_weights, tmp_path, photos):
    index = Index.open(address)
    with pytest.raises(ValueError, match="has vectors of efficientnet_lite0 with another card"):
        index.search(photographs / "page.png", network=vgg)
    weights.save(vgg, tmp_path / "moved.safetensors")
    done = index_pictures(vgg, photos, tmp_path / "x.lance", weights=tmp_path / "moved.safetensors")
    shutil.copy(lite_weights, tmp_path / "moved.safetensors")
    with pytest.raises(ValueError, match="is not the network that made"):
        done.index.search(photographs / "page.png")
    (tmp_path / "moved.safetensors").unlink()
    with pytest.raises(OSError, match=r"are not at .*moved\.safetensors any more"):
        Index.open(tmp_path / "x.lance").search(photographs / "page.png")
    assert len(Index.open(tmp_path / "x.lance").search(photographs / "page.png", network=vgg)[0].found) == 7


def test_a_stored_row_needs_neither_torch_nor_lancedb(address, photos):
    code = f"""
import sys
from convnets_torch import Index
found = Index.open({str(address)!r}).search({str(photos / "coffee.png")!r}, 1)
print(found[0].found[0].path, *({{"torch", "lancedb", "pyarrow"}} & set(sys.modules)))
"""
    assert len(Index.open(address).vectors) == 8  # written by now
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(photos / "mirrored.png")]


@pytest.mark.parametrize("metric", ["cosine", "l2", "dot"])
def test_approximate_search_finds_nearly_all_and_keeps_the_filters(tmp_path, metric):
    filled(tmp_path / "x.lance", 2000)
    index = Index.open(tmp_path / "x.lance")
    queries = [f"/made/0-{number}.jpg" for number in range(0, 200, 20)]
    exact = index.search(queries, 10, metric=metric)
    found = index.search(queries, 10, metric=metric, approximate=True)
    assert recall(exact, found) > 0.9
    assert recall(exact, exact) == 1
    for query, matches in zip(queries, found, strict=True):
        assert query not in [match.path for match in matches.found]
        scores = [match.score for match in matches.found]
        assert sorted(scores, reverse=metric != "l2") == scores
    [some] = index.search(queries[0], 10, metric=metric, target="c", approximate=True)
    assert {match.class_id for match in some.found} == {2}


def test_few_vectors_are_searched_exactly_or_not_at_all(address, photos):
    with pytest.raises(ValueError, match="has 8 vectors, and approximate search needs 256 or more"):
        Index.open(address).search(photos / "coffee.png", approximate=True)


def test_the_kept_vectors_follow_the_table(tmp_path):
    table = filled(tmp_path / "x.lance", 300)
    first = Index.open(tmp_path / "x.lance")
    assert len(first.vectors) == 300
    file = neighbours.cache_file(str(tmp_path / "x.lance"))
    before = file.read_bytes()
    add(table, 50, seed=1)
    assert len(first.vectors) == 300  # what was opened stays what it was
    second = Index.open(tmp_path / "x.lance")
    assert len(second.vectors) == 350
    assert np.array_equal(second.vectors.vectors[second.row_of("/made/0-7.jpg")], first.vectors.vectors[7])
    assert file.read_bytes() != before
    for damaged in (before, b"", b"damaged", file.read_bytes()[:-1]):  # older, or broken
        file.write_bytes(damaged)
        assert len(Index.open(tmp_path / "x.lance").vectors) == 350
    table.mark_vanished(["/made/0-7.jpg"])
    third = Index.open(tmp_path / "x.lance")
    assert len(third.vectors) == 349
    with pytest.raises(OSError, match="is neither a file nor in"):
        third.row_of("/made/0-7.jpg")


def test_rows_are_what_the_table_says(tmp_path):
    table = filled(tmp_path / "x.lance", 300, width=5)
    held = Index.open(tmp_path / "x.lance").vectors
    rows = [row for batch in table.read(["path", "sha256", "vector", "class_id"]) for row in batch.to_pylist()]
    assert held.paths() == [row["path"] for row in rows]
    assert [held.path(number) for number in (0, 150, 299)] == [rows[number]["path"] for number in (0, 150, 299)]
    assert np.array_equal(held.vectors, np.array([row["vector"] for row in rows], np.float32))
    np.testing.assert_allclose(held.lengths, np.linalg.norm(held.vectors, axis=1), rtol=1e-6)
    assert held.class_ids.tolist() == [row["class_id"] for row in rows]
    assert held.rows_with(rows[123]["sha256"]).tolist() == [123]
    assert [held.row_of(row["path"]) for row in rows] == list(range(300))
    assert held.row_of(rows[123]["path"][1:]) is held.row_of("") is None
    with pytest.raises(ValueError, match="read-only"):
        held.vectors[0] = 0
