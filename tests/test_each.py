"""What holds for every function that takes any number of pictures: order, bad files, memory, threads, limits."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from convnets_torch.embeddings.extraction import embed_each
from convnets_torch.explain.gradcam import gradcam_each
from convnets_torch.explain.patches import top_patches
from convnets_torch.explain.statistics import channel_statistics, zero_shares
from convnets_torch.heatmaps.many import heatmap_each
from convnets_torch.inference.batching import MemoryWarning
from convnets_torch.inference.classification import classify_each
from convnets_torch.inference.pipeline import Input, Result, predict, run_pictures
from tests.reference.pictures import picture
from tests.test_pipeline import decoders, small

# Rows of results, and what each of them holds as an array.
EACH: dict[str, tuple[Callable[..., Any], Callable[[Any], Any]]] = {
    "predict": (predict, lambda row: row.logits),
    "classify_each": (classify_each, lambda row: sorted((each.class_id, each.probability) for each in row.predictions)),
    "embed_each": (embed_each, lambda row: row.vector),
    "heatmap_each": (
        lambda network, pictures, **options: heatmap_each(network, pictures, 3, **options),
        lambda row: row.maps[0].values,
    ),
    "gradcam_each": (
        lambda network, pictures, **options: gradcam_each(network, pictures, 3, method="layercam", **options),
        lambda row: row.maps[0].values * row.maps[0].raw_maximum,
    ),
}


def statistics(network: Any, pictures: Any) -> tuple[Any, Any]:
    found = channel_statistics(network, pictures, "relu_2")
    return found.layers[0].mean, found.errors


def shares(network: Any, pictures: Any) -> tuple[Any, Any]:
    found = zero_shares(network, pictures, "relu_2")
    return found.shares, found.errors


def patches(network: Any, pictures: Any) -> tuple[Any, Any]:
    found = top_patches(network, pictures, "relu_2", channels=[1])
    return [patch.activation for patch in found.patches[0]], found.failed


# One answer for all pictures: as an array, and the errors.
TOGETHER = {"channel_statistics": statistics, "zero_shares": shares, "top_patches": patches}
each_function = pytest.mark.parametrize("name", EACH)
pytestmark = pytest.mark.filterwarnings(
    "ignore::convnets_torch.images.decoding.PictureWarning"  # by `top_patches`, which has no rows for remarks
)


@pytest.fixture
def good(tmp_path):
    paths = [tmp_path / f"{number}.jpg" for number in range(4)]
    for number, path in enumerate(paths):
        Image.fromarray(picture(number, 240, 300)).save(path)
    return paths


@pytest.fixture
def mixed(good, tmp_path):
    """Good and bad pictures, and which are good."""
    (tmp_path / "text.jpg").write_text("no picture")
    (tmp_path / "half.jpg").write_bytes(good[0].read_bytes()[:4000])
    frames = [Image.fromarray(picture(seed, 240, 300)) for seed in (8, 9)]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    names = ["none.jpg", "0.jpg", "text.jpg", "half.jpg", "moving.gif", "1.jpg", "none.jpg"]
    return [*(tmp_path / name for name in names), np.zeros((2, 2, 5))], [1, 4, 5]


def rows_of(name: str, network: Any, pictures: Iterable[Any], **options: Any) -> list[Any]:
    return list(EACH[name][0](network, pictures, **options))


@each_function
def test_bad_pictures_are_rows_in_their_place_and_the_others_are_as_without_them(name, mixed, tmp_path):
    given, places = mixed
    wanted = [FileNotFoundError, None, OSError, OSError, None, None, FileNotFoundError, ValueError]
    several = rows_of(name, small(), given * 3)  # more than a batch
    assert [None if row.error is None else type(row.error) for row in several] == wanted * 3
    assert all(row.picture is one for row, one in zip(several, given * 3, strict=True))
    rows = rows_of(name, small(), given)
    assert all(isinstance(row, Result) for row in rows)
    assert [None if row.error is None else type(row.error) for row in rows] == wanted
    for row in rows:
        assert (row.value is None) == (row.error is not None)
        if row.error is not None:  # frames would keep pixels and activations
            assert row.error.__traceback__ is None
            assert row.error.__context__ is None
    assert [row.notes for row in rows if row.error] == [()] * 5
    notes = [note for row in rows for note in row.notes if "no cell supports" not in note]
    assert notes == [f"{tmp_path / 'moving.gif'} has 2 frames or pages; the first was read"]
    value = EACH[name][1]
    alone = rows_of(name, small(), [given[place] for place in places])
    for place, row in zip(places, alone, strict=True):
        np.testing.assert_array_equal(value(rows[place]), value(row))
        for each in several[place :: len(given)]:
            np.testing.assert_allclose(value(each), value(row), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", TOGETHER)
def test_bad_pictures_are_told_and_the_others_count_as_without_them(name, mixed):
    given, places = mixed
    found, errors = TOGETHER[name](small(), given)
    assert [type(error) for _, error in errors] == [FileNotFoundError, OSError, OSError, FileNotFoundError, ValueError]
    assert all(error.__traceback__ is None for _, error in errors)
    alone, none = TOGETHER[name](small(), [given[place] for place in places])
    np.testing.assert_array_equal(found, alone)
    assert not none


@pytest.mark.parametrize("name", [*EACH, "channel_statistics", "zero_shares"])
def test_a_batch_is_halved_when_memory_runs_out_and_stays_so(name, good):
    """A network that has no room for more than two pictures."""

    def answer() -> Any:
        if name in TOGETHER:
            return TOGETHER[name](network, pictures)[0]
        return [EACH[name][1](row) for row in rows_of(name, network, pictures)]

    def full(_: torch.nn.Module, inputs: tuple[torch.Tensor]) -> None:
        if len(inputs[0]) > 2:
            raise RuntimeError("CUDA out of memory")
        sizes.append(len(inputs[0]))

    network, pictures = small(), good[:2] * 35
    sizes: list[int] = []
    with warnings.catch_warnings():
        warnings.simplefilter("error", MemoryWarning)
        wanted = answer()
    network.features.register_forward_pre_hook(full)
    with pytest.warns(MemoryWarning, match="memory ran out") as said:
        found = answer()
    assert sizes == [2] * 35  # also of the pictures that come after those that waited together at first
    messages = [str(each.message) for each in said if each.category is MemoryWarning]
    assert messages[-1].endswith("going on with 2")
    assert len(set(messages)) == len(messages)  # each size was tried once
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-5)


@each_function
def test_pictures_are_taken_as_they_are_needed_and_close_leaves_no_thread(name, good):
    taken = itertools.count()
    rows = EACH[name][0](small(), (good[number % 4] for number in taken))
    assert not decoders()  # before the first picture is asked for
    for _ in range(9):
        assert next(rows).error is None
    assert next(taken) < 150
    rows.close()
    assert not decoders()


@each_function
def test_bad_files_alone_do_not_wait_for_a_good_one(name, tmp_path):
    taken = itertools.count()
    rows = EACH[name][0](small(), (tmp_path / f"none-{number}.jpg" for number in taken))
    assert isinstance(next(rows).error, FileNotFoundError)
    assert next(taken) < 70
    rows.close()


@each_function
def test_no_picture_and_a_single_one_are_no_rows_and_one(name, good):
    assert rows_of(name, small(), []) == []
    [row] = rows_of(name, small(), good[0])
    assert row.picture == good[0]


@each_function
def test_limits_are_handed_to_the_decoder(name, mixed):
    [_, _, _, half, *_], _ = mixed
    [row] = rows_of(name, small(), half)
    assert "truncated" in str(row.error)
    [row] = rows_of(name, small(), half, allow_truncated=True)
    assert "truncated" in row.notes[0]
    [row] = rows_of(name, small(), half, max_pixels=100)
    assert "more than 100" in str(row.error)
    Image.fromarray(picture(1, 240, 300)[..., 0].astype(np.uint16) * 16).save(half.with_name("deep.png"))
    deep = half.with_name("deep.png")
    values = [EACH[name][1](*rows_of(name, small(), deep, depth=depth)) for depth in (12, 16)]
    assert not np.array_equal(*values)
    Image.new("RGBA", (300, 240), (200, 10, 10, 90)).save(deep)
    values = [EACH[name][1](*rows_of(name, small(), deep, background=color)) for color in ("white", "black")]
    assert not np.array_equal(*values)


@pytest.mark.parametrize(
    ("letters", "wanted"),
    [
        ("aabbabbbcab", ["aaa", "bbb", "bbb", "c", "a"]),  # as soon as three of a kind wait
        ("abcdeab", ["a", "b", "c", "d", "e", "a", "b"]),  # at most five wait
        ("abcab", ["aa", "bb", "c"]),
    ],
)
def test_pictures_go_with_those_of_their_group_and_come_back_in_order(letters, wanted):
    batches: list[str] = []

    def prepare(letter: str) -> Input:
        return Input(extra=letter)

    def run(items: list[Input]) -> list[str]:
        batches.append("".join(each.extra for each in items))
        return [each.extra.upper() for each in items]

    rows = list(run_pictures(letters, prepare, run, batch=3, group=lambda item: item.extra, waiting=5))
    assert "".join(row.value or "" for row in rows) == letters.upper()
    assert batches == wanted
