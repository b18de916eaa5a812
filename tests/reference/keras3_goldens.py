"""The files of Keras 3: those that `keras3_files.py` writes with the Keras that is installed, and recorded ones."""

from __future__ import annotations

from typing import Any, get_args

from tests.reference.goldens import SIZES, Form, Golden, Pixels, Top

SUFFIXES: dict[Form, str] = {"weights": ".legacy.h5", "model": ".h5", ".weights.h5": ".weights.h5", ".keras": ".keras"}
PIXELS: dict[str, Pixels] = {"inception_v3": "keras-tf"}
WIDE = (96, 128)  # 3 x 4 cells
NEEDS_SIZE: tuple[Top, ...] = (
    "nested", "nested top", "flat", "batch norm", "flat batch norm", "rescaling", "augmentation",
)  # fmt: skip


def goldens(
    name: str, network: str, top: Top = "standard", pixels: Pixels | None = None, size: tuple[int, int] | None = None,
    version: str = "3", folder: str = "", full: bool = False, **needs: Any,
) -> list[Golden]:  # fmt: skip
    """One model in all forms; what `needs` says and the size are wanting in the files without a config only."""
    size = size or SIZES[network]
    if top in NEEDS_SIZE:
        needs["input_size"] = size
    options = {"pool_padding": True, "stride_in": "1x1", "epsilon": 1.001e-5} if network == "resnet50" else {}
    return [
        Golden(
            f"{folder}{name}{SUFFIXES[form]}", network, "keras-applications", version,
            "channels_first" if "_first" in name else "channels_last", form, top,
            pixels or PIXELS.get(network, "keras-caffe"), size,
            needs={} if form in ("model", ".keras") else needs, full=full, network_options=options,
        )
        for form in get_args(Form)
    ]  # fmt: skip


# model -> its files; all are written in a few seconds
KERAS3: dict[str, list[Golden]] = {
    name: goldens(name, network, **options)
    for name, network, options in (
        ("vgg16", "vgg16", {}),
        ("vgg16_first", "vgg16", {}),
        ("vgg16_bfloat16", "vgg16", {}),
        ("vgg16_float16", "vgg16", {}),
        ("vgg16_notop", "vgg16", {"top": "none"}),
        ("vgg16_nested", "vgg16", {"top": "nested", "pixels": "unit", "size": WIDE}),
        ("vgg16_nested_top", "vgg16", {"top": "nested top", "pixels": "unit", "size": WIDE}),
        ("vgg16_batch_norm", "vgg16", {"top": "batch norm", "pixels": "unit", "size": WIDE}),
        ("vgg16_flat_batch_norm", "vgg16", {"top": "flat batch norm", "pixels": "unit", "size": WIDE}),
        ("vgg19", "vgg19", {}),
        ("resnet50", "resnet50", {}),
        ("resnet50_notop", "resnet50", {"top": "none"}),
        ("resnet50_flat", "resnet50", {"top": "flat", "size": WIDE, "activation": "sigmoid"}),
        ("resnet50_rescaling", "resnet50", {"top": "rescaling", "pixels": "raw", "size": WIDE}),
        ("inception_v3", "inception_v3", {}),
        ("inception_v3_notop", "inception_v3", {"top": "none"}),
        ("inception_v3_augmentation", "inception_v3", {"top": "augmentation", "pixels": "raw", "size": (139, 171)}),
    )
}
FULL: dict[str, list[Golden]] = {  # as wide as the released ones, up to 575 MB a file: for slow tests
    network: goldens(network, network, full=True) for network in ("vgg16", "vgg19", "resnet50", "inception_v3")
}
RECORDED_FORMS: dict[tuple[str, str], tuple[Form, ...]] = {  # (version, network) -> forms; a few, as they are large
    ("3.0.5", "vgg16"): ("model", ".weights.h5", ".keras"),
    ("3.0.5", "resnet50"): (".weights.h5",),
    ("3.6.0", "vgg16"): (".weights.h5", ".keras"),
}
# In tests/data: folder and model -> files. The `.weights.h5` of 3.0.5 hold no names of layers, those of 3.6.0 do.
RECORDED: dict[str, list[Golden]] = {}
for (_version, _network), _forms in RECORDED_FORMS.items():
    _folder = f"keras{_version.replace('.', '')}/"
    _all = goldens(_network, _network, version=_version, folder=_folder)
    RECORDED[_folder + _network] = [golden for golden in _all if golden.form in _forms]
