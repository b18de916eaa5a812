"""Exact search and near-duplicates over arrays, against slow derivations in float64."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from convnets_torch.embeddings import duplicates, neighbours
from convnets_torch.embeddings.duplicates import find_duplicates, find_leaks


def made(count, width, seed):
    return np.maximum(np.random.default_rng(seed).standard_normal((count, width)), 0).astype(np.float32)


def by_definition(vectors, query, metric):
    """Scores in float64, one after another."""
    vectors, query = vectors.astype(np.float64), query.astype(np.float64)
    if metric == "l2":
        return np.array([np.sqrt(sum((a - b) ** 2 for a, b in zip(row, query, strict=True))) for row in vectors])
    scores = np.array([sum(a * b for a, b in zip(row, query, strict=True)) for row in vectors])
    if metric == "cosine":
        scores /= np.array([max(np.sqrt((row**2).sum() * (query**2).sum()), 1e-300) for row in vectors])
    return scores


@pytest.mark.parametrize("metric", ["cosine", "l2", "dot"])
@pytest.mark.parametrize("queries", [1, 5])
def test_the_nearest_are_those_of_the_definition(metric, queries, monkeypatch):
    monkeypatch.setattr(neighbours, "SCORES", 1000)  # three queries at a time
    vectors, asked = made(300, 7, 0), made(queries, 7, 1)
    vectors[17] = 0
    found = neighbours.nearest(vectors, asked, 12, metric)
    for query, (rows, scores) in zip(asked, found, strict=True):
        wanted = by_definition(vectors, query, metric)
        order = np.argsort(wanted if metric == "l2" else -wanted, kind="stable")[:12]
        assert rows.tolist() == order.tolist()
        np.testing.assert_allclose(scores, wanted[order], rtol=1e-12)


def test_neighbours_nearer_than_float32_tells_are_in_their_right_order():
    base = made(1, 512, 0)[0] + 1
    vectors = np.stack([base + np.float32(4e-6) * step * (np.arange(512) == 3) for step in range(20, 0, -1)])
    vectors = np.concatenate([vectors, made(100, 512, 1)]).astype(np.float32)
    [(rows, scores)] = neighbours.nearest(vectors, base[None], 20, "l2")
    assert np.array_equal(np.sort(rows), np.arange(20))
    assert (np.diff(scores) >= 0).all()
    np.testing.assert_allclose(scores, np.linalg.norm(vectors[rows].astype(float) - base.astype(float), axis=1))


def test_what_is_not_allowed_or_left_out_is_not_found():
    vectors, asked = made(50, 4, 0), made(2, 4, 1)
    allowed = np.arange(50) % 2 == 0
    found = neighbours.nearest(vectors, asked, 50, allowed=allowed, left_out=[np.array([0, 2]), np.array([4])])
    assert [sorted(rows.tolist()) for rows, _ in found] == [
        [row for row in range(0, 50, 2) if row not in (0, 2)],
        [row for row in range(0, 50, 2) if row != 4],
    ]
    assert neighbours.nearest(vectors, asked[:1], 3, allowed=np.zeros(50, bool))[0][0].tolist() == []
    assert neighbours.nearest(vectors[:0], asked[:1], 3)[0][0].tolist() == []


def test_misuse_is_one_sentence():
    vectors = made(5, 4, 0)
    with pytest.raises(ValueError, match="unknown metric 'hamming'; known: cosine, l2, dot"):
        neighbours.nearest(vectors, vectors, 1, "hamming")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="k must be 1 or more, got 0"):
        neighbours.nearest(vectors, vectors, 0)
    with pytest.raises(ValueError, match="the vectors have 4 values each"):
        neighbours.nearest(vectors, vectors[:, :3], 1)
    for threshold in (0, 1.01, float("nan")):
        with pytest.raises(ValueError, match="give a cosine above 0 and at most 1"):
            find_duplicates(vectors, threshold)


def groups_by_definition(vectors, threshold):
    """Connected components of all pairs, found by walking."""
    lengths = np.linalg.norm(vectors.astype(np.float64), axis=1)
    cosines = (vectors.astype(np.float64) @ vectors.T) / np.maximum(np.outer(lengths, lengths), 1e-300)
    left, groups = set(range(len(vectors))), []
    while left:
        group, edge = set(), {min(left)}
        while edge:
            group |= edge
            edge = {b for a, b in itertools.product(edge, left) if cosines[a, b] >= threshold} - group
        left -= group
        groups += [sorted(group)] if len(group) > 1 else []
    return groups


@pytest.mark.parametrize("threshold", [0.9, 0.97, 0.999])
def test_groups_are_the_connected_components_of_all_pairs(threshold, monkeypatch):
    monkeypatch.setattr(duplicates, "BLOCK", 37)
    vectors = made(200, 6, 0)
    vectors[150:160] = 2 * vectors[20:30]
    told = []
    found = find_duplicates(vectors, threshold, lambda done, total: told.append((done, total)))
    assert found == groups_by_definition(vectors, threshold)
    assert any(len(group) > 2 for group in found)
    assert told == [(done, 21) for done in range(1, 22)]  # 6 blocks: 21 pairs of them


def test_a_thousand_equal_vectors_are_one_group_and_zeros_are_none():
    vectors = np.tile(made(1, 300, 0) / 3, (1000, 1))
    vectors[500:] *= 7
    assert find_duplicates(vectors, 1) == [list(range(1000))]
    vectors[:] = 0
    assert find_duplicates(vectors, 0.5) == []


def test_leaks_are_the_nearest_of_the_other_collection(monkeypatch):
    monkeypatch.setattr(duplicates, "BLOCK", 16)
    train, test = made(100, 30, 0), made(40, 30, 1)
    test[7], test[30] = 3 * train[90], train[5] + 0.05
    found = find_leaks(test, train, 0.95)
    assert [(leak.row, leak.of) for leak in found] == [(7, 90), (30, 5)]
    assert found[0].similarity == pytest.approx(1, abs=1e-6)
    wanted = by_definition(train[5:6], test[30], "cosine")[0]
    assert found[1].similarity == pytest.approx(wanted, abs=1e-6)
    assert find_leaks(test[:0], train, 0.5) == []
    [leak] = find_leaks(test[7:8], train[90:91], 1)
    assert (leak.row, leak.of) == (0, 0)
    assert leak.similarity == pytest.approx(1, abs=1e-6)
