"""Compute a file's own model in the reading process, and write the outputs of all layers to a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from converters.proof.proof import forward
from converters.readers.keras_file import KerasArray, KerasFile
from converters.readers.reading import opened, values

IMAGE, OUTPUTS, NAMES = "image.npy", "outputs.npz", "names.txt"  # in the folder


class Sliced:
    """An array of an open file that is read only as far as it is sliced."""

    def __init__(self, file: h5py.File, array: KerasArray) -> None:
        self.file, self.array, self.shape = file, array, array.shape

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return np.asarray(values(self.file, self.array), dtype)

    def __getitem__(self, rows: Any) -> NDArray[Any]:
        if isinstance(rows, slice):
            return values(self.file, self.array, rows)
        return values(self.file, self.array)[rows]


def forward_into(path: str, described: dict[str, Any], folder: str, assumptions: dict[str, Any]) -> None:
    """Run the file's model on the folder's image; write the numbered outputs and their names to the folder."""
    file = KerasFile.from_dict(described)
    image = np.load(Path(folder) / IMAGE)
    with opened(path) as opened_file:
        outputs = dict(forward(file, lambda array: Sliced(opened_file, array), image, **assumptions))
    np.savez(Path(folder) / OUTPUTS, *outputs.values())
    (Path(folder) / NAMES).write_text("\n".join(outputs), encoding="utf-8")
