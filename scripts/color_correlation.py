"""How colours of photographs go together: the numbers in `convnets_torch/explain/fourier.py`.

    python scripts/color_correlation.py

Needs scikit-image and scikit-learn (the `dev` extra), whose photographs it reads: each counts the same, whatever its
size. It prints the covariance of the pixels' red, green and blue, 0 to 1, and a square root of it.
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
    """Where they are."""
    import skimage
    import sklearn

    folders = {
        "skimage": Path(skimage.__file__).parent / "data",
        "sklearn": Path(sklearn.__file__).parent / "datasets" / "images",
    }
    return [folders[package] / name for package, names in PHOTOGRAPHS.items() for name in names]


def covariance(paths: list[Path]) -> np.ndarray:
    """(3, 3): the mean over photographs of the covariance within each."""
    return np.mean([np.cov(decode(path).pixels.reshape(-1, 3).T / 255.0) for path in paths], axis=0)


def square_root(matrix: np.ndarray) -> np.ndarray:
    """R with R @ R.T = matrix: its columns are the principal axes, the longest first, red positive."""
    values, axes = np.linalg.eigh(matrix)
    axes = axes * np.where(axes[0] < 0, -1, 1)
    return (axes * np.sqrt(values))[:, ::-1]


def main() -> None:
    """Print both matrices."""
    found = covariance(photographs())
    print("covariance\n", found.round(4))
    print("square root\n", square_root(found).round(4))


if __name__ == "__main__":
    main()
