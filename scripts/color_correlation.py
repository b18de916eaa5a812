"""Compute the colour correlation of photographs, used in `convnets_torch/explain/filters.py`.

    python scripts/color_correlation.py

It needs scikit-image and scikit-learn (the `dev` extra) for their photographs, which are weighted equally, whatever
their size. It prints the covariance of red, green and blue, 0 to 1, and a square root of it.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from convnets_torch.images.decoding import decode

PHOTOGRAPHS = {
    "skimage": ("astronaut.png", "chelsea.png", "coffee.png", "motorcycle_left.png", "rocket.jpg"),
    "sklearn": ("china.jpg", "flower.jpg"),
}


def photographs() -> list[Path]:
    """Return the paths of the photographs."""
    import skimage
    import sklearn

    folders = {
        "skimage": Path(skimage.__file__).parent / "data",
        "sklearn": Path(sklearn.__file__).parent / "datasets" / "images",
    }
    return [folders[package] / name for package, names in PHOTOGRAPHS.items() for name in names]


def covariance(paths: list[Path]) -> np.ndarray:
    """Return the mean (3, 3) of the covariances within each photograph."""
    return np.mean([np.cov(decode(path).pixels.reshape(-1, 3).T / 255.0) for path in paths], axis=0)


def square_root(matrix: np.ndarray) -> np.ndarray:
    """Return R with R @ R.T = matrix; its columns are the principal axes, longest first, with positive red."""
    values, axes = np.linalg.eigh(matrix)
    axes = axes * np.where(axes[0] < 0, -1, 1)
    return (axes * np.sqrt(values))[:, ::-1]


def main() -> None:
    found = covariance(photographs())
    print("covariance\n", found.round(4))
    print("square root\n", square_root(found).round(4))


if __name__ == "__main__":
    main()
