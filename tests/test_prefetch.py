"""Prefetching in threads: in order, not too far, never twice at once for the same picture."""

from __future__ import annotations

import itertools
import threading

import numpy as np
import pytest
import torch
from PIL import Image

from convnets_torch.inference.pipeline import UNKNOWN_PIXELS, each_of, expected_pixels, prefetch
from tests.test_pipeline import decoders


def test_results_come_in_order_whoever_is_ready_first():
    """The first one waits in its thread until the last one has begun; with one core there is one thread."""
    begun = [threading.Event() for _ in range(6)]

    def work(number):
        begun[number].set()
        return number, all(event.wait(0.05) for event in begun)

    assert [done[0] for _, done in prefetch(range(6), work, most=6)] == list(range(6))


def test_no_more_are_begun_than_asked_for():
    taken = itertools.count()
    results = prefetch(itertools.islice(taken, 100), lambda number: -number, most=5)
    assert next(results) == (0, 0)
    assert next(taken) == 5
    results.close()
    assert not decoders()


@pytest.mark.parametrize(("room", "most"), [(100, 9), (35, 4), (5, 2)])
def test_what_waits_has_room(room, most):
    """Of 10 each; one alone may take more, and the one that there is no room for is taken but not begun."""
    taken = iter(range(100))
    results = prefetch(itertools.islice(taken, 9), str, most=20, size=lambda number: 10, room=room)
    next(results)
    assert next(taken) == most
    next(results)  # has room for one more
    assert next(taken) == min(9, most + 1) + 1
    results.close()
    assert [number for number, _ in prefetch(range(9), str, most=20, size=lambda number: 10, room=room)] == list(
        range(9)
    )


def test_one_item_is_never_in_two_threads():
    item, inside, together = object(), threading.Semaphore(1), []

    def work(_):
        free = inside.acquire(blocking=False)
        together.append(not free)
        threading.Event().wait(0.01)
        if free:
            inside.release()

    assert len(list(prefetch([item] * 8, work, most=8))) == 8
    assert not any(together)


def test_an_error_of_the_work_reaches_the_caller_and_leaves_no_thread():
    with pytest.raises(ZeroDivisionError):
        list(prefetch([1, 0, 2], lambda number: 1 / number, most=3))
    assert not decoders()


def test_the_size_of_a_picture_is_known_before_it_is_decoded(tmp_path):
    image = Image.new("RGB", (30, 20))
    image.save(tmp_path / "a.png")
    (tmp_path / "b.png").write_text("no picture")
    with (tmp_path / "a.png").open("rb") as file:
        assert expected_pixels(file) == UNKNOWN_PIXELS
        assert file.tell() == 0
    array = np.zeros((20, 30, 3), np.uint8)
    for picture in (image, array, array[..., 0], torch.zeros(3, 20, 30), tmp_path / "a.png", str(tmp_path / "a.png")):
        assert expected_pixels(picture) == 600
    for none in (tmp_path, tmp_path / "none.png", tmp_path / "b.png"):
        assert expected_pixels(none) == 0


def test_a_single_picture_is_a_list_of_one(tmp_path):
    for one in ("a.png", tmp_path, Image.new("L", (1, 1)), np.zeros((1, 1)), torch.zeros(3, 1, 1)):
        assert [each is one for each in each_of(one)] == [True]
    assert each_of(["a.png", "b.png"]) == ["a.png", "b.png"]
