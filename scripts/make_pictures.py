"""Make the pictures of the README from photographs that scikit-image ships.

    pip install '.[demo]' && convnets-torch demo && python scripts/make_pictures.py

Only photographs that their authors released under CC0 are kept in the repository: chelsea by Stefan van der
Walt, coffee by Rachel Michetti.
"""

from __future__ import annotations

from pathlib import Path

import skimage
from PIL import Image

from convnets_torch.heatmaps import class_map, heatmap
from convnets_torch.render import overlay, save_image
from convnets_torch.weights import load

DOCS = Path(__file__).resolve().parent.parent / "docs"
PHOTOGRAPHS = Path(skimage.__file__).parent / "data"
HEIGHT, GAP = 420, 16  # pixels


def main() -> None:
    """Write two heatmaps side by side, and what is where."""
    network = load("efficientnet_lite0")
    maps = []
    for name, target in (("chelsea.png", "cat"), ("coffee.png", "espresso")):
        image = overlay(heatmap(network, PHOTOGRAPHS / name, target, longest_side=600))
        maps.append(image.resize((round(image.width * HEIGHT / image.height), HEIGHT)))
    page = Image.new("RGB", (maps[0].width + GAP + maps[1].width, HEIGHT), (255, 255, 255))
    page.paste(maps[0], (0, 0))
    page.paste(maps[1], (maps[0].width + GAP, 0))
    save_image(page, DOCS / "heatmaps.jpg")
    class_map(network, PHOTOGRAPHS / "coffee.png", longest_side=900).save(DOCS / "what-is-where.jpg")
    print(DOCS / "heatmaps.jpg", DOCS / "what-is-where.jpg")


if __name__ == "__main__":
    main()
