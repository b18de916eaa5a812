"""Make the pictures of the README and of docs/heatmaps.md from photographs that scikit-image ships.

    pip install '.[demo]' && convnets-torch demo && python scripts/make_pictures.py

Only photographs that their authors released under CC0 or into the public domain are kept in the repository: chelsea by
Stefan van der Walt, coffee by Rachel Michetti, rocket by SpaceX.
"""

from __future__ import annotations

from pathlib import Path

import skimage
from PIL import Image

from convnets_torch.heatmaps.api import Heatmap, class_map, heatmap
from convnets_torch.visualization.overlays import save_image
from convnets_torch.weights import load

DOCS = Path(__file__).resolve().parent.parent / "docs"
PHOTOGRAPHS = Path(skimage.__file__).parent / "data"
HEIGHT, GAP = 420, 16  # pixels


def main() -> None:
    """Write two heatmaps side by side, a class map, denser cells, and a picture at two sizes."""
    network = load("efficientnet_lite0")
    chelsea, coffee, rocket = (PHOTOGRAPHS / name for name in ("chelsea.png", "coffee.png", "rocket.jpg"))
    cat = heatmap(network, chelsea, "cat", longest_side=600)
    cup = heatmap(network, coffee, "espresso", longest_side=600)
    save_image(beside(cat, cup), DOCS / "heatmaps.jpg")
    class_map(network, coffee, longest_side=900).save(DOCS / "what-is-where.jpg")
    dense = [heatmap(network, coffee, "espresso", cell_stride=stride) for stride in (32, 8)]
    save_image(beside(*dense), DOCS / "dense-cells.jpg")
    fused = heatmap(network, rocket, "rocket", scales="auto", fuse="max")
    save_image(beside(heatmap(network, rocket, "rocket"), fused), DOCS / "two-scales.jpg")
    print(*sorted(DOCS.glob("*.jpg")))


def beside(one: Heatmap, other: Heatmap) -> Image.Image:
    """Draw two maps over their pictures, side by side."""
    images = [each.draw() for each in (one, other)]
    left, right = (image.resize((round(image.width * HEIGHT / image.height), HEIGHT)) for image in images)
    page = Image.new("RGB", (left.width + GAP + right.width, HEIGHT), (255, 255, 255))
    page.paste(left, (0, 0))
    page.paste(right, (left.width + GAP, 0))
    return page


if __name__ == "__main__":
    main()
