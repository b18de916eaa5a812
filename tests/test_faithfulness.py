"""Deletion, insertion, drop and increase: networks made by hand, whose answers are known; one that was trained."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from convnets_torch.explain import faithfulness
from convnets_torch.explain.faithfulness import (
    area,
    average_drop,
    average_increase,
    blur,
    deletion,
    insertion,
    masked,
    measure_faithfulness,
)
from convnets_torch.explain.gradcam import gradcam
from convnets_torch.weights import load


def brightness(images):
    """A network that looks at the left two columns of 6x8 pixels, of the second colour."""
    return images[:, 1, :, :2].mean(dim=(1, 2))


IMAGE = torch.ones(3, 6, 8)
TRUE = torch.zeros(6, 8)
TRUE[:, :2] = 1
FALSE = 1 - TRUE


def test_deletion_falls_as_the_network_loses_what_it_looks_at():
    # 12 of the 48 pixels count; after each of 8 steps 6 more are gone.
    assert deletion(brightness, IMAGE, TRUE, steps=8).tolist() == [1, 0.5, 0, 0, 0, 0, 0, 0, 0]
    assert deletion(brightness, IMAGE, FALSE, steps=8).tolist() == [1, 1, 1, 1, 1, 1, 1, 0.5, 0]
    assert deletion(brightness, IMAGE, TRUE, baseline=0.25, steps=4).tolist() == [1, 0.25, 0.25, 0.25, 0.25]
    colors = torch.tensor([0.0, 0.5, 1.0]).view(3, 1, 1)
    assert deletion(brightness, IMAGE, TRUE, baseline=colors, steps=4)[-1] == 0.5


def test_insertion_rises_as_the_network_gets_what_it_looks_at():
    black = torch.zeros(3, 6, 8)
    found = insertion(brightness, IMAGE, TRUE, blurred=black, steps=8)
    assert found.tolist() == [0, 0.5, 1, 1, 1, 1, 1, 1, 1]
    assert area(found) == (0.25 + 0.75 + 6) / 8
    assert area(insertion(brightness, IMAGE, FALSE, blurred=black, steps=8)) == (0.25 + 0.75) / 8


def test_without_another_canvas_insertion_begins_with_a_blurred_image():
    image = torch.rand(3, 20, 30, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    places = np.arange(11) - 5
    kernel = np.exp(-(places**2) / 50)
    kernel = np.outer(kernel, kernel) / kernel.sum() ** 2
    padded = np.pad(image.numpy(), ((0, 0), (5, 5), (5, 5)), mode="edge")
    expected = [
        [[(padded[c, y : y + 11, x : x + 11] * kernel).sum() for x in range(30)] for y in range(20)] for c in range(3)
    ]
    np.testing.assert_allclose(blur(image), expected, rtol=1e-10)
    curve = insertion(lambda images: images[:, 0, 7, 9], image, image[0], steps=3)
    torch.testing.assert_close(curve[[0, -1]].double(), torch.stack([blur(image)[0, 7, 9], image[0, 7, 9]]))


def test_drop_and_increase_by_hand():
    whole, left = torch.tensor([0.8, 0.5, 0.4, 0.0]), torch.tensor([0.2, 0.6, 0.4, 0.0])
    assert average_drop(whole, left) == pytest.approx(0.75 / 4)
    assert average_increase(whole, left) == 0.25
    assert torch.equal(masked(IMAGE, TRUE)[2], TRUE)
    assert brightness(masked(IMAGE, TRUE)[None]) == 1
    assert brightness(masked(IMAGE, FALSE)[None]) == 0


def test_what_does_not_fit_gets_a_sentence():
    for function in (deletion, insertion):
        with pytest.raises(ValueError, match=r"\(3, 6, 8\), the map \(8, 6\)"):
            function(brightness, IMAGE, TRUE.T)
        with pytest.raises(ValueError, match="steps is 0"):
            function(brightness, IMAGE, TRUE, steps=0)


@pytest.mark.slow
def test_of_a_trained_network_its_own_map_is_better_than_random_ones(lite_weights, photographs):
    network = load(lite_weights)
    found = [gradcam(network, photographs / f"{name}.png", target) for name, target in CASES]
    random = np.random.default_rng(0)
    shuffled = [
        replace(each, values=random.permutation(each.values.ravel()).reshape(each.values.shape)) for each in found
    ]
    true, false = (
        faithfulness.summary([measure_faithfulness(network, each, steps=20) for each in maps])
        for maps in (found, shuffled)
    )
    assert true["insertion_area"] > false["insertion_area"]
    assert true["deletion_area"] < false["deletion_area"]
    assert true["average_drop"] < false["average_drop"]


CASES = [("coffee", "espresso"), ("chelsea", "cat"), ("astronaut", "space shuttle")]


def test_the_probability_of_a_group_is_that_of_all_its_classes(lite_weights, photographs):
    network = load(lite_weights)
    found = gradcam(network, photographs / "chelsea.png", "domestic cat")
    assert len(found.target.class_ids) > 1
    judged = measure_faithfulness(network, found, steps=2)
    for probability in (judged.probability, float(judged.deletion[0]), float(judged.insertion[-1])):
        assert probability == pytest.approx(found.probability, abs=1e-4)
