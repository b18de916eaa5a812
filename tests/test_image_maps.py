"""Maps of collections: near in the vectors is near on the plane, the same every time; files of maps."""

from __future__ import annotations

import builtins
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from sklearn.datasets import load_digits
from sklearn.manifold import TSNE, trustworthiness
from sklearn.neighbors import KNeighborsClassifier, NearestNeighbors
from threadpoolctl import threadpool_limits

from convnets_torch.embeddings.image_map import MapEntry, MapWarning, check_same_kind, load_map, make_map, save_map

KNOWN = 700  # digits of which a map is made; the 200 after them are placed on it
CLOUDS = np.random.RandomState(0).normal(size=(3, 12)).repeat(20, 0) * 5
VECTORS = CLOUDS + np.random.RandomState(1).normal(size=(60, 12))


@pytest.fixture(scope="module")
def digits():
    pixels, labels = load_digits(return_X_y=True)
    return pixels[: KNOWN + 200], labels[: KNOWN + 200]


@pytest.fixture(scope="module")
def of_digits(digits):
    return make_map(digits[0][:KNOWN])


@pytest.fixture(scope="module")
def small():
    return make_map(VECTORS, perplexity=8)


@pytest.mark.slow
def test_neighbours_stay_neighbours_as_in_scikit_learns_map(digits, of_digits):
    pixels = digits[0][:KNOWN]
    with threadpool_limits(1):  # its threads wait by spinning, which takes minutes on a busy machine
        peer = TSNE(init="pca", random_state=0).fit_transform(pixels)
    ours = trustworthiness(pixels, of_digits.positions)
    assert ours >= trustworthiness(pixels, peer) - 0.003
    assert ours > 0.98


def test_neighbours_on_a_map_have_the_same_label(digits, of_digits):
    labels = digits[1][:KNOWN]
    near = KNeighborsClassifier(6).fit(of_digits.positions, labels)
    places = near.kneighbors(of_digits.positions, return_distance=False)[:, 1:]  # without itself
    assert (labels[places] == labels[:, None]).mean() > 0.93


def test_new_pictures_land_among_their_class(digits, of_digits):
    pixels, labels = digits
    placed = of_digits.place(pixels[KNOWN:])
    on_the_map = KNeighborsClassifier(10).fit(of_digits.positions, labels[:KNOWN]).score(placed, labels[KNOWN:])
    in_pixels = KNeighborsClassifier(10).fit(pixels[:KNOWN], labels[:KNOWN]).score(pixels[KNOWN:], labels[KNOWN:])
    assert on_the_map > in_pixels - 0.03
    assert on_the_map > 0.9


def test_an_old_picture_is_placed_where_it_is(of_digits, digits):
    placed = of_digits.place(digits[0][:50])
    extent = np.ptp(of_digits.positions, axis=0).max()
    assert np.abs(placed - of_digits.positions[:50]).max() < 0.02 * extent


def test_a_picture_is_placed_by_itself(small):
    new = VECTORS[::7] + 0.3
    together = small.place(new)
    for number in (0, 4, len(new) - 1):
        np.testing.assert_allclose(small.place(new[number : number + 1])[0], together[number], atol=1e-4)


def test_the_same_vectors_give_the_same_map_with_any_number_of_threads():
    threads = torch.get_num_threads()
    maps = []
    try:
        for count in (1, 2, 2):
            torch.set_num_threads(count)
            maps.append(make_map(VECTORS, perplexity=8).positions)
    finally:
        torch.set_num_threads(threads)
    np.testing.assert_array_equal(maps[0], maps[1])
    np.testing.assert_array_equal(maps[1], maps[2])


def test_a_map_is_made_in_the_principal_components(small):
    centred = VECTORS.astype(np.float32) - VECTORS.astype(np.float32).mean(0)
    _, _, rows = np.linalg.svd(centred.astype(np.float64), full_matrices=False)
    np.testing.assert_allclose(np.abs(np.sum(small.axes * rows, axis=1)), 1, atol=1e-4)
    np.testing.assert_allclose(small.reduced @ small.axes, centred, atol=1e-3)  # 12 of 12 components lose nothing


def test_neighbours_are_the_nearest_without_the_picture_itself():
    from convnets_torch.embeddings.tsne import _Neighbours

    rows = VECTORS.astype(np.float32)
    away = np.linalg.norm(rows[:, None].astype(float) - rows, axis=2)
    np.fill_diagonal(away, np.inf)
    places, distances = _Neighbours(rows, 7).build()
    np.testing.assert_array_equal(places, away.argsort(axis=1)[:, :7])
    np.testing.assert_allclose(distances, np.sort(away, axis=1)[:, :7], rtol=1e-6)
    places, distances = _Neighbours(rows, 7).query(rows[:5], 3)
    np.testing.assert_array_equal(places[:, 0], range(5))  # a new picture may be an old one
    np.testing.assert_allclose(distances[:, 0], 0, atol=1e-5)


def test_the_middle_of_a_map_is_at_0(small):
    np.testing.assert_allclose(small.positions.max(0), -small.positions.min(0), rtol=1e-5)


def test_copies_of_one_picture_lie_at_one_place_and_the_others_where_they_would_without():
    """Apart from rounding: the network gives a picture other last digits in another batch."""
    chance = np.random.RandomState(2)
    copies = VECTORS[10] + 1e-7 * chance.normal(size=(200, 12))
    vectors = np.concatenate([copies[:50], VECTORS, copies[50:]])
    found = make_map(vectors, perplexity=8)
    is_copy = np.r_[:50, 60, 110:260]
    assert len(np.unique(found.positions[is_copy], axis=0)) == 1
    assert len(np.unique(found.positions, axis=0)) == len(VECTORS)
    near = NearestNeighbors(n_neighbors=9).fit(found.positions[50:110]).kneighbors(return_distance=False)
    assert (near // 20 == np.arange(60)[:, None] // 20).mean() > 0.95  # each cloud is together
    placed = found.place(VECTORS[10:12] + 0.01)
    assert np.linalg.norm(placed - found.positions[60:62], axis=1).max() < 0.1 * np.ptp(found.positions, axis=0).max()


@pytest.mark.parametrize(("count", "values"), [(3, 12), (4, 2), (5, 1), (9, 12)])
def test_few_pictures_make_a_map_with_a_smaller_perplexity(count, values):
    with pytest.warns(
        MapWarning, match=rf"needs 61 pictures or more, but there are {count}; using {(count - 1) / 2:g}"
    ):
        found = make_map(VECTORS[::-7, :values][:count])
    assert found.perplexity == (count - 1) / 2
    assert np.isfinite(found.positions).all()
    assert len(np.unique(found.positions, axis=0)) == count
    assert np.isfinite(found.place(VECTORS[:2, :values])).all()


def test_steps_are_reported(small):
    said = []
    make_map(VECTORS, perplexity=8, report=lambda done, whole: said.append((done, whole)))
    assert said == sorted(said)
    assert said[-1] == (750, 750)
    said.clear()
    small.place(VECTORS[:2], report=lambda done, whole: said.append((done, whole)))
    assert said[-1] == (250, 250)


def test_vectors_that_make_no_map_are_refused(small):
    broken = VECTORS.copy()
    broken[[7, 9], 3] = np.nan, np.inf
    for vectors, message in [
        (VECTORS[:2], "there are 2 vectors, and a map needs 3 or more"),
        (VECTORS[0], r"the vectors are \(12,\); give \(pictures, values\)"),
        (broken, "2 of 60 vectors contain NaN or infinity, the first at index 7"),
        (np.ones((5, 4)), "all 5 vectors are equal"),
        (VECTORS[[0, 1, 1, 0, 0]], "2 of 5 vectors are distinct, and a map needs 3 or more"),
    ]:
        with pytest.raises(ValueError, match=message):
            make_map(vectors)
    for perplexity in (0.5, -3, np.nan):
        with pytest.raises(ValueError, match="give 1 or more"):
            make_map(VECTORS, perplexity=perplexity)
    with pytest.raises(ValueError, match="of vectors of 12 values, and the new ones have 11"):
        small.place(VECTORS[:, :11])
    with pytest.raises(ValueError, match="NaN or infinity"):
        small.place(broken)


def test_without_opentsne_the_extra_is_named(monkeypatch):
    real = builtins.__import__

    def without(name, *arguments, **options):
        if name.split(".")[0] == "openTSNE":
            raise ModuleNotFoundError("No module named 'openTSNE'", name="openTSNE")
        return real(name, *arguments, **options)

    monkeypatch.delitem(sys.modules, "convnets_torch.embeddings.tsne", raising=False)
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r"pip install 'convnets-torch\[maps\]'"):
        make_map(VECTORS)


@pytest.mark.slow
def test_only_making_a_map_needs_opentsne():
    modules = "convnets_torch.embeddings.index, convnets_torch.evaluation.charts, convnets_torch.embeddings.image_map"
    code = f"import sys; sys.modules['openTSNE'] = None; import {modules}"
    subprocess.run([sys.executable, "-c", code], check=True)


ENTRIES = [MapEntry(f"photos/{number}.jpg", "cat, true cat", number / 100) for number in range(59)] + [MapEntry("\n✓")]


def test_a_map_comes_back_from_its_file_as_it_was(small, tmp_path):
    about = {"network": "vgg16", "card": "{}", "layers": '["fc2"]'}
    save_map(small, ENTRIES, tmp_path / "m.safetensors", about)
    found = load_map(tmp_path / "m.safetensors")
    assert (found.entries, found.about, found.image_map.perplexity) == (ENTRIES, about, 8)
    np.testing.assert_array_equal(found.image_map.positions, small.positions)
    np.testing.assert_array_equal(found.image_map.place(VECTORS[:9] + 1), small.place(VECTORS[:9] + 1))
    first = (tmp_path / "m.safetensors").read_bytes()
    save_map(small, ENTRIES, tmp_path / "m.safetensors", about)
    assert (tmp_path / "m.safetensors").read_bytes() == first


def test_a_map_is_saved_with_an_entry_for_each_place(small, tmp_path):
    with pytest.raises(ValueError, match="59 entries and 60 places"):
        save_map(small, ENTRIES[1:], tmp_path / "m.safetensors")
    with pytest.raises(ValueError, match=r"a map of pictures can be written as \.safetensors"):
        save_map(small, ENTRIES, tmp_path / "m.npz")


def test_a_damaged_map_is_refused(small, tmp_path):
    path = tmp_path / "m.safetensors"
    save_map(small, ENTRIES, path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    with pytest.raises(ValueError, match="truncated"):
        load_map(path)
    path.write_bytes(b"PK" + whole)
    with pytest.raises(ValueError, match="not a safetensors file"):
        load_map(path)
    save_file({"vectors": np.zeros((2, 2), np.float32)}, path)
    with pytest.raises(ValueError, match="holds no map of pictures"):
        load_map(path)
    path.write_bytes(whole)
    arrays = load_file(path)
    with safe_open(path, "numpy") as file:
        facts = file.metadata()
    broken: dict[str, np.ndarray] = {
        "reduced": np.full((60, 12), np.nan, np.float32),
        "mean": np.zeros(11, np.float32),
        "positions": np.zeros((59, 2), np.float32),
        "axes": np.zeros((12, 12), np.float64),
        "entries": np.frombuffer(b'[["a", "b", 7]]', np.uint8),
    }
    for name, array in broken.items():
        save_file(arrays | {name: array}, path, facts)
        with pytest.raises(ValueError, match=r"is damaged \(.*\); create the map again"):
            load_map(path)
        save_file({other: array for other, array in arrays.items() if other != name}, path, facts)
        with pytest.raises(ValueError, match=r"is damaged \(.*\); create the map again"):
            load_map(path)


def test_vectors_of_another_kind_are_refused(small, tmp_path):
    about = {"network": "vgg16", "card": "one", "layers": '["fc2"]', "pool": "avg"}
    save_map(small, ENTRIES, tmp_path / "m.safetensors", about)
    saved = load_map(tmp_path / "m.safetensors")
    check_same_kind(saved, about, "m")
    check_same_kind(saved, {}, "m")
    with pytest.raises(ValueError, match=r"m was made with other weights of vgg16 than these"):
        check_same_kind(saved, about | {"card": "two"}, "m")
    other = about | {"network": "resnet50", "card": "two"}
    with pytest.raises(ValueError, match=r"\(network vgg16\) than these \(network resnet50\); make a new map"):
        check_same_kind(saved, other, "m")
