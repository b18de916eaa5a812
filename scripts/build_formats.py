"""Write docs/formats.md: which files are converted, as the tests' own lists of files say it.

    python scripts/build_formats.py [--check]

`--check` writes nothing and exits 1 when the page is not what the lists say; the tests do so too.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from tests.reference.goldens import Golden  # found through the line above
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
    ("Keras 0.x and 1, which do not say the backend, unless names are those of convnets-keras or TensorFlow's (`:0`)",
     "`--backend theano` or `tensorflow`"),
    ("weights alone of Keras 2.0 and 2.1 on Theano, with a Flatten",
     "`--data-format channels_first` or `channels_last`"),
    ("ResNet50 of old names (`res2a_branch2a`), weights alone; by default as the file's list of layers has it",
     "`--pool1-padding yes` or `no`"),
    ("your own model, unless a Rescaling layer in it says it", "`--preprocessing NAME` or `FILE.json`"),
    ("one output, weights alone", "`--activation sigmoid` or `none`"),
    ("your own head, weights alone: the functions between the dense layers; relu by default", "`--hidden-activation`"),
    ("your own head, weights alone: the function of the outputs; softmax by default", "`--activation`"),
    ("your own head, weights alone: the pictures' size; by default a square of as many cells as the Flatten has",
     "`--input-size 96x128`"),
)  # fmt: skip
TEXT = """# Files that are converted

Each cell says how it is known: a *real file* was written by that version of Keras, with what its network answered, and
the test converts it, proves it (`convert --proof`) and compares the answers: within 1e-4 of the largest value, the best
five in the same order. The lists are the tests' own ([tests/test_formats.py](../tests/test_formats.py)), and `python
scripts/build_formats.py` writes this page from them. *refused* files get one sentence that says why. An empty cell is
not tested: such a file may still be read, since neighbouring versions write the same.

Files of Keras 0.x to 2 were made on Theano 1.0.5, the backend of theirs that still runs; those of TensorFlow differ in
the flip alone, and in names that end in `:0`. Keras 3 ran on PyTorch; its files do not depend on the backend.

## By format

{formats}

`*` with what the file cannot tell: see below. `.h5` of bfloat16 layers carries no mark of it and is refused; `.keras`
and `.weights.h5` do.

## By what stands on the network

{tops}

## Laid out by hand

Of these no real file can be made or shipped here. The arrays of real files were laid out as the released ones are, and
the answers are those of the real files ([tests/test_released_by_hand.py](../tests/test_released_by_hand.py)).

{by_hand}

## What a file cannot tell, and is asked for

{needs}

## Heads in files of weights alone

A file without the model's config still lists its layers, and the head is what it lists: dense layers and normalisations
in their places, dropout and noise as nothing, `Activation` as `--hidden-activation` where it stands, `ReLU` as itself;
where no activation is listed between two dense layers, it is taken to be part of the first. A layer of your own name
without weights is taken for what the name says (`top_dropout`, `fc1_relu`, `gap`). All this is said in notes, and
`--proof` follows the list by itself. Any other layer is refused by its name, wherever it stands: gates and sums of
branches, poolings before a Flatten, `Lambda`, a name that tells nothing. `LeakyReLU` and `ELU` need their number:
`--hidden-activation "leaky_relu 0.3"`. Layers before the first convolution are part of the preprocessing that you name.

`.weights.h5` counts the layers of each class without their order. The order is taken where sizes allow only one, and is
said; where a normalisation or its activation could stand in two places, the file is refused. No file of weights lists
functions of `keras.ops`, the settings of layers, or which layer reads which: of several outputs that read the same map,
it tells as much as of layers one after another. The way on is always the same: load the weights into the model in
Keras, save the whole model as `.keras` and convert that.
"""


def table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A table in Markdown."""
    lines = [list(header)]
    lines += [["---"] * len(lines[0]), *map(list, rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def cell(goldens: list[Golden]) -> str:
    """What is known of some files."""
    if not goldens:
        return ""
    words = sorted({"refused" if golden.file in REFUSED else "real file" for golden in goldens}, reverse=True)
    wanted = [golden for golden in goldens if golden.file not in REFUSED and golden.lineage != "convnets-keras"]
    needs = any(golden.needs for golden in wanted)
    return ", ".join(words) + (" `*`" if needs else "")


def page() -> str:
    """The whole text."""
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
    """For sorting; "3" stands for the newest."""
    return (99,) if version == "3" else tuple(map(int, version.split(".")))


def main() -> None:
    parser = argparse.ArgumentParser(description="Write docs/formats.md from the tests' lists of files.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 when the page is out of date")
    if not parser.parse_args().check:
        PAGE.write_text(page(), encoding="utf-8")
    elif PAGE.read_text(encoding="utf-8") != page():
        sys.exit(f"{PAGE} is out of date; run python scripts/build_formats.py")


if __name__ == "__main__":
    main()
