"""Plain-data description of a Keras weights file: ordered layers, arrays by role, the model's config.

Nothing here needs h5py, torch or Keras. `to_dict` gives a `KerasFile` as JSON values, for transfer from the reading
process.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

Container = Literal["nb_layers", "legacy", "weights", "archive"]
KernelOrder = Literal["oihw", "hwio"]
DataFormat = Literal["channels_first", "channels_last"]

# Keras 3's weight names; those of Keras 1 (`W`, `b`, `running_std`) are mapped to these.
ROLES = (
    "kernel", "bias", "depthwise_kernel", "pointwise_kernel", "gamma", "beta", "moving_mean", "moving_variance",
)  # fmt: skip


@dataclass(frozen=True)
class KerasArray:
    """The location of one array.

    Attributes:
        path: the file, an `.h5` or a `.keras`.
        place: path of the dataset in the HDF5 file, "/block1_conv1/block1_conv1/kernel:0".
        shape: as stored.
        dtype: NumPy dtype, as stored ("<f4", ">f8"), or "bfloat16" for 16-bit integers that Keras marked as such.
    """

    path: Path
    place: str
    shape: tuple[int, ...]
    dtype: str

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> KerasArray:
        """Return the array that JSON values describe."""
        return cls(Path(values["path"]), values["place"], tuple(values["shape"]), values["dtype"])


@dataclass(frozen=True)
class KerasLayer:
    """One layer, with or without weights.

    Attributes:
        name: the layer's name; if the file has no names, its group, such as "layer_3" (Keras 0.x) or "conv2d_12"
            (`.weights.h5` before Keras 3.15: the class and a number within it).
        kind: the class in Keras 3's spelling ("Conv2D" also for "Convolution2D" of Keras 1); "" if neither a config nor
            the names and shapes of the arrays determine it.
        arrays: role -> array, in file order; the roles are `ROLES`, or the file's own names for others.
        config: the layer's settings if the file holds a whole model, else None.
        parents: names of the enclosing nested models, outermost first.
        kernel_order: axis order of convolution kernels, "oihw" for (out, in, height, width) or "hwio" for (height,
            width, in, out); None if unknown.
    """

    name: str
    kind: str
    arrays: Mapping[str, KerasArray]
    config: Mapping[str, Any] | None = None
    parents: tuple[str, ...] = ()
    kernel_order: KernelOrder | None = None


@dataclass(frozen=True)
class KerasFile:
    """A description of a weights file; attributes that the file does not specify are None.

    Attributes:
        path: the file.
        container: "nb_layers" (Keras 0.x), "legacy" (`.h5` of Keras 1 to 3), "weights" (`.weights.h5`), "archive"
            (`.keras`).
        named: whether layers have names, not just numbers.
        layers: in file order, with the layers of nested models in place; by class and number if a file without names
            does not keep the order.
        unlisted: paths of arrays that belong to no layer, except optimizer state.
        config: config of the whole model, {"class_name": ..., "config": ...}.
        version: version of Keras.
        backend: "theano", "tensorflow", "torch" or "jax".
        data_format: data format of the convolutions.
    """

    path: Path
    container: Container
    named: bool
    layers: tuple[KerasLayer, ...]
    unlisted: tuple[str, ...] = ()
    config: Mapping[str, Any] | None = None
    version: str | None = None
    backend: str | None = None
    data_format: DataFormat | None = None

    @property
    def framework(self) -> str:
        """ "Keras" with its version, as far as it can be determined."""
        return f"Keras {self.version or self._generation}"

    @property
    def release(self) -> tuple[int, ...]:
        """Major and minor version; the major one alone if only the layout of the file tells it."""
        return tuple(map(int, re.findall(r"\d+", self.version or "")[:2])) or (int(self._generation),)

    @property
    def _generation(self) -> str:
        known = {"nb_layers": "0", "legacy": "1" if self.backend is None else "2", "weights": "3", "archive": "3"}
        return known[self.container]

    @property
    def weighted(self) -> tuple[KerasLayer, ...]:
        """The layers that have arrays."""
        return tuple(layer for layer in self.layers if layer.arrays)

    def to_dict(self) -> dict[str, Any]:
        """Return all attributes as JSON values."""
        values = asdict(self)
        values["path"] = str(self.path)
        for layer in values["layers"]:
            for array in layer["arrays"].values():
                array["path"] = str(array["path"])
        return values

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> KerasFile:
        """The inverse of `to_dict`."""
        layers = []
        for layer in values["layers"]:
            arrays = {role: KerasArray.from_dict(array) for role, array in layer["arrays"].items()}
            layers.append(KerasLayer(**{**layer, "arrays": arrays, "parents": tuple(layer["parents"])}))
        whole = {"path": Path(values["path"]), "layers": tuple(layers), "unlisted": tuple(values["unlisted"])}
        return cls(**{**values, **whole})
