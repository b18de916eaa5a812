"""Layers of one shape that were exchanged: refused where a file tells its order twice.

What cannot be told: a legacy `.h5` whose groups and the data sets in them were all renamed alike, a `.weights.h5`
without names whose groups were exchanged, and arrays of one shape that were exchanged themselves. Nothing is left of
the old order.
"""

from __future__ import annotations

import shutil

import h5py
import pytest

from converters import convert
from tests.reference.goldens import DATA

TWINS = "block4_conv2", "block4_conv3"
ONE, OTHER = TWINS
NUMBERS = "conv2d_8", "conv2d_9"  # as `.weights.h5` counts them


@pytest.fixture
def source(tmp_path):
    def copy(file):
        shutil.copy(DATA / file, tmp_path / file.rpartition("/")[2])
        return tmp_path / file.rpartition("/")[2]

    return copy


def exchange(group, one, other):
    group.move(one, "held")
    group.move(other, one)
    group.move("held", other)


def refused(path, message):
    with pytest.raises(ValueError, match=message) as caught:
        convert(path, path.parent / "out.safetensors", preprocessing="keras-caffe", data_format="channels_last")
    assert "\n" not in str(caught.value)
    assert list(path.parent.iterdir()) == [path]


def test_groups_that_were_renamed_are_told_by_the_arrays_in_them(source):
    path = source("keras231/vgg16_last.h5")
    with h5py.File(path, "r+") as file:
        exchange(file, *TWINS)
        for name in TWINS:
            file[name].attrs["weight_names"] = [f"{key}" for key in list_arrays(file[name])]
    refused(path, rf"{ONE} lists the array /{ONE}/{OTHER}/.*, which is named after {OTHER}; .*{OTHER} lists")


def list_arrays(group):
    names = []
    group.visititems(lambda name, held: names.append(name) if isinstance(held, h5py.Dataset) else None)
    return sorted(names, reverse=True)  # kernel, bias


def test_lists_of_weights_that_were_exchanged_list_what_is_not_there(source):
    path = source("keras231/vgg16_last.h5")
    with h5py.File(path, "r+") as file:
        one, other = (file[name].attrs["weight_names"] for name in TWINS)
        file[ONE].attrs["weight_names"], file[OTHER].attrs["weight_names"] = other, one
    refused(path, f"lists layers or arrays that are missing: {ONE}/{OTHER}/")


def test_an_exchange_in_the_list_of_layers_alone_is_refused(source):
    """Keras lists layers in the order of the model, so names and list contradict each other."""
    path = source("keras231/vgg16_last.h5")
    with h5py.File(path, "r+") as file:
        swap = {ONE: OTHER, OTHER: ONE}
        file.attrs["layer_names"] = [swap.get(name, name) for name in file.attrs["layer_names"]]
    refused(path, f"not a complete vgg16: {OTHER} .* stands where {ONE} .* should")


@pytest.mark.parametrize("whole", [True, False])
def test_names_that_were_exchanged_are_told_by_the_numbers_of_their_groups(whole, source):
    path = source("keras360/vgg16.weights.h5")
    with h5py.File(path, "r+") as file:
        if whole:
            exchange(file["layers"], *NUMBERS)
        else:
            one, other = (file["layers"][number]["vars"] for number in NUMBERS)
            one.attrs["name"], other.attrs["name"] = OTHER, ONE
    refused(path, f"{OTHER} stands where {ONE} should; {ONE} stands where {OTHER} should")


def test_names_in_an_archive_are_held_against_its_config(source):
    import zipfile

    path = source("keras360/vgg16.keras")
    folder = path.parent
    with zipfile.ZipFile(path) as archive:
        archive.extractall(folder / "x")
    with h5py.File(folder / "x" / "model.weights.h5", "r+") as file:
        exchange(file["layers"], *NUMBERS)
    path.unlink()
    with zipfile.ZipFile(path, "w") as archive:
        for member in ("metadata.json", "config.json", "model.weights.h5"):
            archive.write(folder / "x" / member, member)
    shutil.rmtree(folder / "x")
    refused(path, "conv2d_8 is named 'block4_conv3', but 'block4_conv2' in the config")


def test_a_layer_whose_name_begins_another_is_not_taken_for_it(source, tmp_path):
    """Keras 1 named arrays `fc_2_W`, of a layer fc_2, which is not those of a layer fc."""
    path = source("keras1/vgg16_nested_th.h5")
    with h5py.File(path, "r+") as file:
        dense = [name for name in file.attrs["layer_names"] if name.startswith("dense")]
        new = dict(zip(dense, ("fc", "fc_2"), strict=True))
        for old, name in new.items():
            file.move(old, name)
            for role in "Wb":
                file[name].move(f"{old}_{role}", f"{name}_{role}")
            file[name].attrs["weight_names"] = [f"{name}_W", f"{name}_b"]
        file.attrs["layer_names"] = [new.get(name, name) for name in file.attrs["layer_names"]]
    report = convert(path, tmp_path / "out.safetensors", backend="theano", preprocessing="unit", input_size=(96, 96))
    assert [row.source for row in report.rows][-4:] == ["fc", "fc", "fc_2", "fc_2"]


def test_a_network_that_is_there_twice_is_refused(source):
    path = source("keras231/vgg16_nested_first.h5")
    with h5py.File(path, "r+") as file:
        nested = next(name for name in file.attrs["layer_names"] if name.startswith("vgg16"))
        file.copy(nested, "second")
        file.attrs["layer_names"] = [nested, "second", *[name for name in file.attrs["layer_names"] if name != nested]]
    refused(path, "lists only the arrays of second, not its layers without arrays")
