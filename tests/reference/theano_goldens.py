"""The goldens of tests/data, written by Keras 0.3, 1 and 2 on Theano 1.0.5."""

from __future__ import annotations

from typing import Any

from tests.reference.goldens import DataFormat, Form, Golden, Pixels, Top

CONVNETS_KERAS: dict[str, Any] = {"widths": (8, 16, 32, 64, 64), "hidden": (24, 40), "classes": 60}
GIST: dict[str, Any] = {"widths": (4, 8, 16, 32, 32), "hidden": (24, 40), "classes": 60}
ALEXNET: dict[str, Any] = {"hidden": (24, 40), "classes": 1000}
PIXELS: dict[str, Pixels] = {"vgg16": "keras-caffe", "resnet50": "keras-caffe", "inception_v3": "keras-tf"}
SIZE = {"vgg16": (224, 224), "resnet50": (224, 224), "inception_v3": (299, 299)}
FLATTEN_TRANSPOSES = ("2.2.4", "2.3.1")  # 2.2.0 and later: the rows of the first dense layer are H, W, C in both orders
POOL_PADDED = ("2.2.4", "2.3.1")  # keras_applications 1.0.6 and later, which Keras 2.2.3 and later ask for


def convnets_keras(file: str, network: str, version: str, options: dict[str, Any]) -> Golden:
    alexnet = network == "alexnet"
    return Golden(
        file, network, "convnets-keras", version, "channels_first", "weights", "standard",
        pixels="rgb-mean" if alexnet else "keras-caffe", size=(227, 227) if alexnet else (224, 224),
        needs={"backend": "theano"}, seeds=(11, 12), network_options=options,
    )  # fmt: skip


def keras1(
    name: str, network: str = "vgg16", top: Top = "standard", pixels: Pixels | None = None,
    size: tuple[int, int] | None = None, trained: bool = False, **needs: Any,
) -> Golden:  # fmt: skip
    """Of Keras 1.2.2: files say neither backend nor ordering; the shapes of the kernels tell the ordering."""
    plain = network.removesuffix("-keras1")
    old = {"pool_padding": False, "stride_in": "1x1", "epsilon": 1e-3} if network == "resnet50" else {}
    return Golden(
        f"keras1/{name}.h5", network, "keras-applications-old" if network == "resnet50" else "keras-applications",
        "1.2.2", "channels_first" if "_th" in name else "channels_last",
        "model" if name.endswith("model") else "weights", top, pixels or PIXELS[plain], size or SIZE[plain],
        needs={"backend": "theano", **needs}, trained=trained, network_options=old,
    )  # fmt: skip


def keras2(
    version: str, name: str, network: str = "vgg16", top: Top = "standard", pixels: Pixels | None = None,
    size: tuple[int, int] | None = None, trained: bool = False, new_names: bool = False, **needs: Any,
) -> Golden:  # fmt: skip
    """Of Keras 2: files say the backend; a file of weights does not say the data format."""
    data_format: DataFormat = "channels_first" if "_first" in name else "channels_last"
    form: Form = "model" if name.endswith("model") else "weights"
    options: dict[str, Any] = {}
    if form == "weights" and network == "vgg16" and version not in FLATTEN_TRANSPOSES:
        needs["data_format"] = data_format
    if network == "resnet50":
        padded = version in POOL_PADDED
        options = {"pool_padding": padded, "stride_in": "1x1", "epsilon": 1.001e-5 if new_names else 1e-3}
        if form == "weights" and not new_names:
            needs["pool1_padding"] = padded
    return Golden(
        f"keras{version.replace('.', '')}/{name}.h5", network,
        "keras-applications-old" if network == "resnet50" and not new_names else "keras-applications",
        version, data_format, form, top, pixels or PIXELS[network], size or SIZE[network],
        needs=needs, trained=trained, network_options=options,
    )  # fmt: skip


VGG_OF_KERAS_2 = [
    keras2(version, f"vgg16_{order}{form}")
    for version in ("2.0.8", "2.1.6", "2.2.4", "2.3.1")
    for order in ("first", "last")
    for form in ("", "_model")
]
# Transfer learning: 96 pixels give 3 x 3 cells, 96 x 128 pixels 3 x 4; a file of weights does not say which it was.
SMALL, WIDE = (96, 96), (96, 128)

THEANO: list[Golden] = [
    convnets_keras("keras0/vgg16.h5", "vgg16", "0.3.3", GIST),
    convnets_keras("keras0/vgg19.h5", "vgg19", "0.3.3", GIST),
    convnets_keras("keras1/alexnet.h5", "alexnet", "1.2.2", ALEXNET),
    convnets_keras("keras1/vgg16.h5", "vgg16", "1.2.2", CONVNETS_KERAS),
    convnets_keras("keras1/vgg19.h5", "vgg19", "1.2.2", CONVNETS_KERAS),
    keras1("vgg16_th"),
    keras1("vgg16_tf"),
    keras1("vgg16_th_model", trained=True),
    keras1("vgg16_notop_th", top="none"),
    keras1("resnet50_th", "resnet50"),
    keras1("resnet50_tf", "resnet50"),
    keras1("vgg16_nested_th", top="nested", pixels="unit", size=SMALL, input_size=SMALL),
    keras1("vgg16_nested_tf_model", top="nested", pixels="unit", size=WIDE),
    keras1("vgg16_flat_tf", top="flat", pixels="unit", size=SMALL, input_size=SMALL, activation="sigmoid"),
    keras1("inception_v3_tf", "inception_v3-keras1"),
    *VGG_OF_KERAS_2,
    keras2("2.1.6", "resnet50_first", "resnet50"),
    keras2("2.2.4", "resnet50_first_model", "resnet50"),
    keras2("2.3.1", "resnet50_last", "resnet50"),
    keras2("2.3.1", "resnet50_new_names_last", "resnet50", new_names=True),
    keras2("2.1.6", "inception_v3_first", "inception_v3"),
    keras2("2.3.1", "inception_v3_last_model", "inception_v3"),
    keras2("2.3.1", "vgg16_nested_first", top="nested", pixels="unit", size=SMALL, input_size=SMALL),
    keras2("2.3.1", "vgg16_nested_last_model", top="nested", pixels="unit", size=WIDE, trained=True),
    keras2("2.3.1", "vgg16_nested_top_first_model", top="nested top", pixels="unit", size=WIDE),
    keras2("2.3.1", "vgg16_flat_last", top="flat", pixels="unit", size=SMALL, input_size=SMALL, activation="sigmoid"),
    keras2("2.3.1", "vgg16_flat_first_model", top="flat", pixels="unit", size=WIDE),
]
