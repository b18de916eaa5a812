"""Time of maps of collections, against scikit-learn's t-SNE; `scripts/benchmarks/benchmark.py maps` runs it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from scripts.benchmarks.rounds import Result

SOME, MANY = 3_000, 20_000
WIDTH = 2048
LIMIT = 300.0  # seconds that a map of MANY may take


def measure_maps(folder: Path, rounds: int) -> list[Result]:
    """Map vectors in 200 clusters, half of their values 0 as after a ReLU: some against the peer, many without it."""
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    from convnets_torch.embeddings.image_map import make_map
    from scripts.benchmarks.rounds import Result, alternate

    def theirs() -> None:
        reduced = PCA(50, random_state=0).fit_transform(some)
        TSNE(init="pca", random_state=0).fit_transform(reduced)

    some, many = _vectors(SOME), _vectors(MANY)
    compared = alternate(
        f"map of {SOME} x {WIDTH}", "scikit-learn's PCA and TSNE", lambda: make_map(some), theirs, max(1, rounds // 3)
    )
    start = time.perf_counter()
    make_map(many)
    took = time.perf_counter() - start
    ratio = LIMIT / took
    return [compared, Result(f"map of {MANY} x {WIDTH}", "the limit of 5 minutes", took, LIMIT, ratio, ratio, ratio)]


def _vectors(count: int) -> NDArray[np.float32]:
    import numpy as np

    random = np.random.RandomState(0)
    groups = random.normal(size=(200, WIDTH))[random.randint(200, size=count)]
    return np.maximum(groups + 0.7 * random.normal(size=(count, WIDTH)), 0).astype(np.float32)
