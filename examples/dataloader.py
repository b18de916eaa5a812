"""A network of this library in a plain PyTorch loop: a DataLoader over a folder, with the card's preprocessing.

    python examples/dataloader.py WEIGHTS FOLDER [WORKERS]

Prints the best class of each picture. `convnets_torch.predict` does the same with less; this is for pipelines that have
a DataLoader already.
"""

from __future__ import annotations

import sys

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

import convnets_torch
from convnets_torch.images.decoding import read_picture
from convnets_torch.inference.classification import prediction, square_input


class Pictures(Dataset[tuple[Tensor, str]]):
    """The pictures of a folder as the network wants them: (3, H, W) float32, and their paths."""

    def __init__(self, folder: str, card: convnets_torch.Card) -> None:
        self.paths, self.card = convnets_torch.find_pictures(folder), card

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, number: int) -> tuple[Tensor, str]:
        path = self.paths[number]
        pixels = read_picture(path, exif=self.card.preprocessing.exif)
        return torch.from_numpy(square_input(pixels, self.card)), str(path)


def main(weights: str, folder: str, workers: str = "2") -> None:
    """Classify a folder."""
    network = convnets_torch.load(weights, device="auto", precision="auto")
    assert network.card is not None  # `load` gives every network one
    some = next(network.parameters())
    loader = DataLoader(Pictures(folder, network.card), batch_size=16, num_workers=int(workers))
    for images, paths in loader:
        with torch.inference_mode():
            chances = network(images.to(some.device, some.dtype)).float().softmax(dim=1)
        for path, best in zip(paths, chances.max(dim=1).indices.tolist(), strict=True):
            print(path, prediction(network.card, best, 1.0).words)


if __name__ == "__main__":
    main(*sys.argv[1:])
