"""What a weights file of Keras says of itself: ordered layers, arrays by role, the model's config; plain data.

Nothing here needs h5py, torch or Keras. A `KerasFile` can be told as JSON (`to_dict`), which is how it comes out of
the process that reads it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

Container = Literal["nb_layers", "legacy", "weights", "archive"]
KernelOrder = Literal["oihw", "hwio"]
DataFormat = Literal["channels_first", "channels_last"]

# Keras's own names of what a layer holds; those of Keras 1 (`W`, `b`, `running_std`) are told by these too.
ROLES = (
    "kernel", "bias", "depthwise_kernel", "pointwise_kernel", "gamma", "beta", "moving_mean", "moving_variance",
)  # fmt: skip


@dataclass(frozen=True)
class KerasArray:
    """Where one array lies.

    Attributes:
        path: the file, an `.h5` or a `.keras`.
        place: of the dataset in the HDF5 file, "/block1_conv1/block1_conv1/kernel:0".
        shape: as stored.
        dtype: NumPy's, as stored ("<f4", ">f8"), or "bfloat16" where Keras marked 16-bit integers so.
    """

    path: Path
    place: str
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class KerasLayer:
    """One layer, with or without weights.

    Attributes:
        name: as the author or Keras named it; where the file has no names, its place, such as "layer_3" (Keras 0.x)
            or "conv2d_12" (`.weights.h5` before Keras 3.15: the class and a number that counts layers of the class).
        kind: the class, "Conv2D", in Keras 3's spelling ("Convolution2D" of Keras 1 is "Conv2D"); "" where neither a
            config nor the names and shapes of the arrays tell it.
        arrays: role -> array, in the order of the file; the roles are `ROLES`, or the file's own word for others.
        config: the layer's own config of a whole model, else None.
        parents: names of the nested models that it is in, outermost first.
        kernel_order: how convolution kernels are stored, (out, in, height, width) or (height, width, in, out);
            None where nothing tells it.
    """

    name: str
    kind: str
    arrays: Mapping[str, KerasArray]
    config: Mapping[str, Any] | None = None
    parents: tuple[str, ...] = ()
    kernel_order: KernelOrder | None = None


@dataclass(frozen=True)
class KerasFile:
    """What a weights file says of itself.

    Attributes:
        path: the file.
        container: "nb_layers" (Keras 0.x), "legacy" (`.h5` of Keras 1 to 3), "weights" (`.weights.h5`), "archive"
            (`.keras`).
        named: whether layers have their own names; else only numbers.
        layers: in the order of the file (nested models in their parent's place); where a file without names does not
            keep the order, by class and number.
        unlisted: places of arrays that no layer lists, optimizer slots left aside.
        config: of the whole model, {"class_name": ..., "config": ...}, where there is one.
        version: of Keras, where the file says it.
        backend: "theano", "tensorflow", "torch", "jax", where the file says it.
        data_format: of the convolutions, where the config says it.
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
        """Keras, with the version as far as the file gives it away."""
        known = {"nb_layers": "0", "legacy": "1" if self.backend is None else "2", "weights": "3", "archive": "3"}
        return f"Keras {self.version or known[self.container]}"

    @property
    def weighted(self) -> tuple[KerasLayer, ...]:
        """The layers that have arrays."""
        return tuple(layer for layer in self.layers if layer.arrays)

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON can hold it."""
        values = asdict(self)
        values["path"] = str(self.path)
        for layer in values["layers"]:
            for array in layer["arrays"].values():
                array["path"] = str(array["path"])
        return values

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> KerasFile:
        """The inverse of `to_dict`."""
        layers = tuple(
            KerasLayer(
                **{
                    **layer,
                    "arrays": {
                        role: KerasArray(**{**array, "path": Path(array["path"]), "shape": tuple(array["shape"])})
                        for role, array in layer["arrays"].items()
                    },
                    "parents": tuple(layer["parents"]),
                }
            )
            for layer in values["layers"]
        )
        return cls(**{**values, "path": Path(values["path"]), "layers": layers, "unlisted": tuple(values["unlisted"])})
