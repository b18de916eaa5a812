"""MixUp and CutMix against their definitions, pixel by pixel, and the numbers that they draw."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from convnets_torch.training.augmentation import Mix, draw_mix

COUNT, HEIGHT, WIDTH, CLASSES = 5, 24, 36, 7


def mixed(images, targets, kind, alpha, generator):
    return draw_mix(len(images), kind, alpha, (HEIGHT, WIDTH), generator).apply(images, targets)


@pytest.fixture(scope="module")
def batch():
    generator = torch.Generator().manual_seed(0)
    targets = torch.nn.functional.one_hot(torch.arange(COUNT), CLASSES).double()
    return torch.randn(COUNT, 3, HEIGHT, WIDTH, dtype=torch.float64, generator=generator), targets


def drawn(kind, alpha=1.0, count=COUNT, seeds=300):
    for seed in range(seeds):
        yield draw_mix(count, kind, alpha, (HEIGHT, WIDTH), torch.Generator().manual_seed(seed))


def test_mixup_is_its_definition(batch):
    """mixup, equation before section 2.1: x = lambda x_i + (1 - lambda) x_j, and y alike."""
    images, targets = batch
    for mix in drawn("mixup", seeds=5):
        seen, wanted = mix.apply(images, targets)
        for i, j in enumerate(mix.permutation.tolist()):
            torch.testing.assert_close(seen[i], mix.share * images[i] + (1 - mix.share) * images[j])
            torch.testing.assert_close(wanted[i], mix.share * targets[i] + (1 - mix.share) * targets[j])


def test_cutmix_is_its_definition(batch):
    """CutMix, equation 1: each pixel is the picture's or its partner's, and the share is that of its own pixels."""
    images, targets = batch
    for mix in drawn("cutmix", seeds=20):
        seen, wanted = mix.apply(images, targets)
        top, left, bottom, right = mix.box
        for i, j in enumerate(mix.permutation.tolist()):
            own = 0
            for y, x in itertools.product(range(HEIGHT), range(WIDTH)):
                inside = top <= y < bottom and left <= x < right
                assert torch.equal(seen[i, :, y, x], images[j if inside else i, :, y, x])
                own += not inside
            assert mix.share == pytest.approx(own / (HEIGHT * WIDTH), abs=1e-12)
            torch.testing.assert_close(wanted[i], mix.share * targets[i] + (1 - mix.share) * targets[j])


def test_a_box_that_no_border_cuts_has_the_papers_sides():
    """CutMix, equation 2: both sides are those of the picture times the root of one minus lambda."""
    whole = 0
    for mix, blended in zip(drawn("cutmix"), drawn("mixup"), strict=True):  # which have the same lambda
        top, left, bottom, right = mix.box
        assert 0 <= top <= bottom <= HEIGHT
        assert 0 <= left <= right <= WIDTH
        if top > 0 and left > 0 and bottom < HEIGHT and right < WIDTH:
            whole += 1
            root = (1 - blended.share) ** 0.5
            assert HEIGHT * root - 2 < bottom - top <= HEIGHT * root
            assert WIDTH * root - 2 < right - left <= WIDTH * root
    assert whole > 30


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_rows_of_targets_add_up_to_what_they_did(kind):
    smoothed = torch.nn.functional.one_hot(torch.arange(COUNT), CLASSES) * 0.9 + 0.1 / CLASSES
    images = torch.zeros(COUNT, 3, HEIGHT, WIDTH)
    for seed in range(50):
        _, targets = mixed(images, smoothed, kind, 0.4, torch.Generator().manual_seed(seed))
        torch.testing.assert_close(targets.sum(dim=1), torch.ones(COUNT))


def test_shares_come_from_the_beta_distribution():
    """Its mean is 1/2 and its variance 1 / (4 (2 alpha + 1))."""
    for alpha in (0.2, 1.0, 4.0):
        shares = np.array([mix.share for mix in drawn("mixup", alpha, count=1, seeds=2000)])
        variance = 1 / (4 * (2 * alpha + 1))
        assert shares.mean() == pytest.approx(0.5, abs=5 * (variance / 2000) ** 0.5)
        assert shares.var() == pytest.approx(variance, rel=0.1)


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_the_generator_alone_decides_and_draws_permutations(kind, batch):
    (images, targets), before = batch, torch.get_rng_state()
    first, second = (mixed(images, targets, kind, 1.0, torch.Generator().manual_seed(7)) for _ in range(2))
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])
    assert torch.equal(torch.get_rng_state(), before)
    mixes = list(drawn(kind, seeds=30))
    assert all(sorted(mix.permutation.tolist()) == list(range(COUNT)) for mix in mixes)
    assert len({(mix.share, *mix.permutation.tolist()) for mix in mixes}) == 30


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_processes_that_hold_some_rows_each_give_the_whole_batch(kind, batch):
    images, targets = batch
    originals = images.clone(), targets.clone()
    mix = draw_mix(COUNT, kind, 1.0, (HEIGHT, WIDTH), torch.Generator().manual_seed(3))
    whole = mix.apply(images, targets)
    parts = []
    for rows in (slice(0, 2), slice(2, 5)):
        order = mix.permutation[rows]
        parts.append(mix.apply(images[rows], targets[rows], images[order], targets[order]))
    assert torch.equal(torch.cat([part[0] for part in parts]), whole[0])
    assert torch.equal(torch.cat([part[1] for part in parts]), whole[1])
    assert torch.equal(images, originals[0])
    assert torch.equal(targets, originals[1])


def test_what_cannot_be_mixed_is_refused(batch):
    images, targets = batch
    generator = torch.Generator()
    with pytest.raises(ValueError, match="unknown kind of mixing 'cut'; known: mixup, cutmix"):
        draw_mix(2, "cut", 1.0, (4, 4), generator)  # type: ignore[arg-type]
    for alpha in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="alpha is above 0"):
            draw_mix(2, "mixup", alpha, (4, 4), generator)
    mix = Mix(torch.arange(4), 0.5)
    with pytest.raises(ValueError, match="5 images, but the mix is for a batch of 4"):
        mix.apply(images, targets)
    with pytest.raises(ValueError, match="give both or neither"):
        mix.apply(images, targets, images)
    with pytest.raises(ValueError, match=r"targets \(4, 7\) and \(4, 7\)"):
        mix.apply(images, targets[:4], images, targets[:4])
