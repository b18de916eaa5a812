"""Write docs/formats.md, the list of supported files, from the tests' lists of files.

    python scripts/build_formats.py [--check]

`--check` writes nothing and exits with 1 if the page is out of date, as a test does too.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from tests.reference.goldens import Golden  # needs the line above
from tests.test_formats import RECORDED_FILES, REFUSED, WRITTEN_NOW
from tests.test_released_by_hand import BY_HAND

PAGE = Path(__file__).resolve().parents[1] / "docs" / "formats.md"
NETWORKS = ("alexnet", "vgg16", "vgg19", "resnet50", "inception_v3")
FORMS = {
    "weights": "`.h5`, weights",
    "model": "`.h5`, whole model",
    ".weights.h5": "`.weights.h5`",
    ".keras": "`.keras`",
}
ORDERS = {"channels_first": "channels first", "channels_last": "channels last"}
TOPS = {
    "standard": "the network's own",
    "none": "none (`include_top=False`)",
    "nested": "`Sequential([network, Flatten, Dense, Dropout, Dense])`",
    "nested top": "the network, then a nested `Sequential([Flatten, Dense, Dropout, Dense])`",
    "flat": "`GlobalAveragePooling2D`, `Dense(1)` with sigmoid, functional",
    "batch norm": "`GlobalAveragePooling2D`, `Dense`, `BatchNormalization`, relu, `Dropout`, `Dense`",
    "flat batch norm": "`Flatten`, `BatchNormalization`, `Dense`",
    "rescaling": "`Rescaling` in front, the nested network, `GlobalAveragePooling2D`, `Dropout`, `Dense`",
    "augmentation": "augmentation and `Rescaling` in front, the same",
}
NEEDS = (
    ("Keras 0.x and 1, which do not store the backend, unless names are those of convnets-keras or TensorFlow (`:0`)",
     "`--backend theano` or `tensorflow`"),
    ("weights-only files of Keras 2.0 and 2.1 on Theano, with a Flatten",
     "`--data-format channels_first` or `channels_last`"),
    ("ResNet50 with old names (`res2a_branch2a`), weights only; default: as in the file's list of layers",
     "`--pool1-padding yes` or `no`"),
    ("your own model, unless it has a Rescaling layer", "`--preprocessing NAME` or `FILE.json`"),
    ("one output, weights only", "`--activation sigmoid` or `none`"),
    ("your own head, weights only: the activation between dense layers; default relu", "`--hidden-activation`"),
    ("your own head, weights only: the output activation; default softmax", "`--activation`"),
    ("your own head, weights only: the input size; default a square with as many cells as the Flatten has",
     "`--input-size 96x128`"),
)  # fmt: skip
TEXT = """# Supported files

Each cell gives the evidence: a *real file* was written by that version of Keras, together with its network's answers;
the test converts it, verifies it (`convert --proof`) and compares the answers: within 1e-4 of the largest value, with
the top five in the same order. The lists come from the tests ([tests/test_formats.py](../tests/test_formats.py)), and
`python scripts/build_formats.py` writes this page from them. *refused* files get a one-sentence error. An empty cell
is not tested: such a file may still work, since adjacent versions write the same format.

Files of Keras 0.x to 2 were written with Theano 1.0.5, the only one of their backends that still runs; files from
TensorFlow only differ in the kernel flip and in names that end in `:0`. Keras 3 ran on PyTorch; its files do not
depend on the backend.

## By format

{formats}

`*` needs options for what the file does not store: see below. `.h5` does not mark bfloat16 layers, so such files are
refused; `.keras` and `.weights.h5` do.

## By head

{tops}

## Constructed by hand

Real files of these kinds can neither be made nor shipped here. Arrays of real files were rearranged to the layout of
the released files, and the answers equal those of the real files
([tests/test_released_by_hand.py](../tests/test_released_by_hand.py)).

{by_hand}

## Options for what a file does not store

{needs}

## Heads in weights-only files

A file without the model's config still lists its layers, and the head is built from that list
([any-model.md](any-model.md#weights-only-files)). A layer without weights and with a custom name is interpreted by
that name (`top_dropout`, `fc1_relu`, `gap`), which a note reports. `LeakyReLU` and `ELU` need their slope:
`--hidden-activation "leaky_relu 0.3"`.

`.weights.h5` numbers the layers of each class but does not store their order. If sizes allow only one order, it is
used and reported; if a normalisation or its activation could be in two positions, the file is refused. No
weights-only file stores functions of `keras.ops`, the settings of layers, or how layers are connected: several
outputs that read the same map look like consecutive layers. The solution is always the same: load the weights into
the model in Keras, save the whole model as `.keras` and convert that; or give the model's `to_json()` with
`--architecture FILE.json`.
"""


def table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Format a Markdown table."""
    lines = [list(header)]
    lines += [["---"] * len(lines[0]), *map(list, rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def cell(goldens: list[Golden]) -> str:
    """Summarise the evidence for some files."""
    if not goldens:
        return ""
    words = sorted({"refused" if golden.file in REFUSED else "real file" for golden in goldens}, reverse=True)
    wanted = [golden for golden in goldens if golden.file not in REFUSED and golden.lineage != "convnets-keras"]
    needs = any(golden.needs for golden in wanted)
    return ", ".join(words) + (" `*`" if needs else "")


def page() -> str:
    """Return the text of the page."""
    goldens = [*RECORDED_FILES, *WRITTEN_NOW]
    formats = []
    keys = dict.fromkeys((golden.version, golden.form, golden.data_format) for golden in goldens)
    for version, form, order in sorted(
        keys, key=lambda key: (version_numbers(key[0]), list(FORMS).index(key[1]), key[2])
    ):
        alike = [one for one in goldens if (one.version, one.form, one.data_format) == (version, form, order)]
        name = "3, the newest" if version == "3" else version
        cells = [cell([one for one in alike if one.network.removesuffix("-keras1") == network]) for network in NETWORKS]
        formats.append([f"Keras {name}", FORMS[form], ORDERS[order], *cells])
    tops = []
    for top, words in TOPS.items():
        rows = [[one for one in goldens if one.top == top and one.form == form] for form in FORMS]
        versions = sorted({one.version for row in rows for one in row}, key=version_numbers)
        tops.append([words, ", ".join("3" if version == "3" else version for version in versions), *map(cell, rows)])
    return TEXT.format(
        by_hand=table(["network", "layout"], [[f"`{network}`", layout] for network, layout, _ in BY_HAND]),
        needs=table(["files", "option"], NEEDS),
        formats=table(["written by", "file", "trained", *(f"`{name}`" for name in NETWORKS)], formats),
        tops=table(["head", "Keras", *FORMS.values()], tops),
    )


def version_numbers(version: str) -> tuple[int, ...]:
    """Sort key of a version; "3" is the newest."""
    return (99,) if version == "3" else tuple(map(int, version.split(".")))


def main() -> None:
    parser = argparse.ArgumentParser(description="Write docs/formats.md from the tests' lists of files.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if the page is out of date")
    if not parser.parse_args().check:
        PAGE.write_text(page(), encoding="utf-8")
    elif PAGE.read_text(encoding="utf-8") != page():
        sys.exit(f"{PAGE} is out of date; run python scripts/build_formats.py")


if __name__ == "__main__":
    main()
