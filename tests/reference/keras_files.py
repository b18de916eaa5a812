"""Files as `KerasFile` and their arrays, read plainly by h5py or taken from a model in memory."""

from __future__ import annotations

from pathlib import Path

import h5py

from converters.layer_lists import oriented
from converters.options import Questions
from converters.plan import Wishes
from converters.readers.keras_file import KerasArray, KerasFile, KerasLayer
from converters.readers.keras_words import kind_of_arrays, kind_of_name
from converters.weights_only import derive, with_config


def described(path, layers, **more) -> tuple[KerasFile, dict]:
    """`layers`: (name, {role: values}) or (name, {role: values}, parents) -> the file, and place -> values."""
    path, values, found = Path(path), {}, []
    for name, arrays, *more_of in layers:
        parents = tuple(more_of[0]) if more_of else ()
        kind = more_of[1] if len(more_of) > 1 else ""
        places = {}
        for role, array in arrays.items():
            place = "/".join(("", *parents, name, role))
            values[place] = array
            places[role] = KerasArray(path, place, array.shape, array.dtype.str)
        kind = kind or kind_of_name(name) or kind_of_arrays({role: array.shape for role, array in arrays.items()})
        found.append(KerasLayer(name, kind, places, parents=parents))
    return KerasFile(path, layers=tuple(found), **more), values


def of_arrays(values):
    """What `proof.forward` reads arrays by."""
    return lambda array: values[array.place]


def read_old(path: Path, network: str | None = None) -> tuple[KerasFile, dict]:
    """A golden of Keras 1 (named layers) or Keras 0.x (numbered)."""
    with h5py.File(path) as file:
        if "layer_names" in file.attrs:
            names = [str(name) for name in file.attrs["layer_names"]]
            stored = [(name, [file[name][weight][()] for weight in file[name].attrs["weight_names"]]) for name in names]
        else:
            names = [f"layer_{number}" for number in range(file.attrs["nb_layers"])]
            stored = [(name, [file[name][f"param_{i}"][()] for i in range(len(file[name]))]) for name in names]
        named = "layer_names" in file.attrs
    layers = [(name, dict(zip(("kernel", "bias"), arrays, strict=True)) if arrays else {}) for name, arrays in stored]
    return described(path, layers, container="legacy" if named else "nb_layers", named=named)


def of_model(model, *, backend="torch", version="3.15.1", **more) -> tuple[KerasFile, dict]:
    """A model of Keras 3 on torch, in memory, as a reader describes its file."""
    layers = []

    def walk(inner, parents):
        for layer in inner.layers:
            if hasattr(layer, "layers"):
                walk(layer, (*parents, layer.name))
            else:
                weights = [weight for weight in layer.weights if weight.name != "seed_generator_state"]
                arrays = {weight.name: weight.value.detach().numpy().copy() for weight in weights}
                layers.append((layer.name, arrays, parents, type(layer).__name__))

    walk(model, ())
    return described(
        Path("model.keras"), layers, container="archive", named=True, backend=backend, version=version, **more
    )


def with_graph(file, **wishes):
    """A file without config, with the one that its list of layers gives."""
    file = oriented(file)
    return with_config(file, config_of_list(file, **wishes)[0])


def config_of_list(file, **wishes) -> tuple[dict, list[str]]:
    """The config that a file's list of layers gives, and the notes on it."""
    questions = Questions(file.path)
    config, notes, _ = derive(file, Wishes(**wishes), questions)
    questions.check()
    return config, notes
