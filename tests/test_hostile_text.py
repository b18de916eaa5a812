"""Cards, names and words of strangers: bounded before anything is built, and text whatever is in them."""

from __future__ import annotations

import csv
import io
import json
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save

from convnets_torch import load
from convnets_torch.card import MOST_NAME, Card
from convnets_torch.cli import ending
from convnets_torch.embeddings.result_sheets import contact_sheet
from convnets_torch.images.preprocessing import MOST_INPUT
from convnets_torch.safetensors_io import MOST_HEADER
from convnets_torch.text import LONGEST, cell
from convnets_torch.visualization.charts import draw_counts, png_of
from convnets_torch.visualization.letters import Letters
from convnets_torch.visualization.overlays import shorten
from convnets_torch.weights import save as save_network
from tests.reference.pictures import picture

pytestmark = pytest.mark.hostile

HOSTILE = "\x1b]0;x\x07\x1b[31m[red]\u202e\u2066\ud800\r\u2028=1+1"


@pytest.fixture(scope="module")
def fields(vgg):
    """What the card of a narrow network says."""
    return json.loads(vgg.card.to_json())


@pytest.fixture
def weights(vgg, tmp_path):
    """Write the narrow network with a card of any text, and other arrays."""

    def write(card: str, **arrays: torch.Tensor) -> Path:
        path = tmp_path / "w.safetensors"
        state = {name: array.detach() for name, array in vgg.state_dict().items()} | arrays
        path.write_bytes(save(state, {"card": card}))
        return path

    return write


@pytest.fixture
def photo(tmp_path):
    path = tmp_path / "photo.png"
    Image.fromarray(picture(1, 230, 240)).save(path)
    return path


def with_(fields, place: str, value: object) -> str:
    fields = json.loads(json.dumps(fields))
    entry, *inner = place.split(".")
    (fields[entry] if inner else fields)[inner[0] if inner else entry] = value
    return json.dumps(fields)


def is_a_sentence(text: str) -> bool:
    line = text.removesuffix("\n")
    return line.startswith("convnets-torch: ") and line.isprintable() and len(line) <= LONGEST + 20


# Cards


@pytest.mark.parametrize(
    ("place", "value", "said"),
    [
        ("arguments.hidden", [2] * 3000, "3009 numbers and strings in its arguments; the maximum is 1000"),
        ("arguments.head", [["average"], *[["relu"]] * 3000, ["dense", 10]], "6017 numbers and strings"),
        ("arguments.widths", [[[[1] * 400]] * 3], "numbers and strings in its arguments"),
        ("arguments.classes", 10_000_000, "10000000 classes; the maximum is 1000000"),
        ("arguments.size", [20_000, 20_000], "images of .20000, 20000. pixels; the maximum of a side is 4096"),
        ("class_names", ["x" * 5_000_000, *"abcdefghi"], "a class name of 5000000 characters"),
        ("class_names", ["x" * 999] * 10_000, "header of 10.* bytes|class name"),
        ("preprocessing.resize", 16_384, "resize 16384; give 1 to 4096 pixels"),
        ("preprocessing.size", 16_384, "give 1 to 4096 pixels"),
        ("preprocessing.scale", 1e300, r"scale 1e\+300"),
        ("preprocessing.scale", float("nan"), "scale nan"),
        ("preprocessing.mean", [0, 0, float("inf")], "three finite numbers"),
        ("preprocessing.mean", [0, 0, 10**400], "a number of 401 digits"),
        ("preprocessing.scale", 10**400, "a number of 401 digits"),
        ("preprocessing.std", [1, 1, 0], "std not 0"),
        ("preprocessing.std", [1, 1, 1e-300], "std not 0"),
        ("new", "x" * 1_000_000, "1,000,4.. characters beside its class names"),
        ("source", {"file": [1], "sha256": "", "framework": "", "backend": "", "changes": [], "converter": ""}, "not"),
        ("schema", "\x1b" * 10_000, "schema"),
        ("network", "\x1b[31m", r"unknown network '\\x1b\[31m'"),
        ("layout", "\x1b[31m", r"parameter names of \\x1b\[31m"),
    ],
)  # fmt: skip
def test_a_card_that_asks_for_too_much_is_refused_at_once(command, fields, weights, place, value, said):
    path = weights(with_(fields, place, value))
    began = time.monotonic()
    code, out, error = command("layers", path)
    assert time.monotonic() - began < 5
    assert (code, out) == (1, "")
    assert is_a_sentence(error)
    assert str(path) in error
    assert re.search(said, error)


@pytest.mark.parametrize("depth", [900, 100_000])
def test_a_card_of_many_levels_is_refused(command, fields, weights, depth):
    path = weights(with_(fields, "new", "HERE").replace('"HERE"', "[" * depth + "]" * depth))
    assert "nested more deeply than 64" in command("info", path)[2]


def test_info_refuses_what_load_refuses(command, weights, fields, tmp_path):
    """A header that says `__metadata__` twice, of which one reader takes the first and another the last."""
    content = weights(json.dumps(fields)).read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = content[8 : 8 + length].rstrip()
    header = header[:-1] + b',"__metadata__":{"card":' + json.dumps(json.dumps(fields)).encode() + b"}}"
    path = tmp_path / "twice.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + content[8 + length :])
    for name in ("info", "layers"):
        code, _, error = command(name, path)
        assert code == 1
        assert "it has the name '__metadata__' twice" in error


def test_a_header_beyond_the_limit_is_not_read(command, tmp_path):
    path = tmp_path / "w.safetensors"
    with path.open("wb") as file:
        file.write((MOST_HEADER + 1).to_bytes(8, "little") + b"{")
        file.truncate(10 * MOST_HEADER)
    began = time.monotonic()
    assert "has a header of 16,000,001 bytes" in command("info", path)[2]
    assert time.monotonic() - began < 1


def test_what_is_saved_can_be_loaded(vgg, tmp_path):
    network = load_again(vgg, tmp_path)
    network.card = replace(network.card, class_names=("x" * MOST_NAME, *"abcdefghi"))
    assert load_again(network, tmp_path).card == network.card
    network.card = replace(network.card, unknown={"new": "x" * 100_000})
    with pytest.raises(ValueError, match=r"could not be loaded again: .* characters beside its class names"):
        save_network(network, tmp_path / "w.safetensors")
    assert load(tmp_path / "w.safetensors").card.class_names[0] == "x" * MOST_NAME


def load_again(network, folder):
    save_network(network, folder / "w.safetensors")
    return load(folder / "w.safetensors")


def test_the_largest_input_is_one_that_cards_may_have(fields):
    card = Card.from_json(with_(fields, "preprocessing.resize", MOST_INPUT))
    assert card.preprocessing.resize == 4096


@pytest.mark.parametrize("kind", [torch.float8_e4m3fn, torch.float16, torch.complex64, torch.int8, torch.bool])
def test_numbers_of_another_kind_are_refused(command, fields, weights, photo, kind):
    """Networks do not compute with them, or not with some of them among others."""
    path = weights(json.dumps(fields), **{"features.conv1_1.bias": torch.zeros(8).to(kind)})
    code, out, error = command("classify", path, photo)
    assert (code, out) == (1, "")
    assert is_a_sentence(error)
    assert "torch." in error


def test_weights_that_are_no_numbers_give_no_answer(command, fields, weights, photo):
    path = weights(json.dumps(fields), **{"features.conv1_1.bias": torch.full((8,), float("nan"))})
    code, out, error = command("classify", path, photo)
    assert (code, out) == (1, "")
    assert "NaN or infinite" in error


def test_mapped_weights_outlive_the_file_they_were_read_from(fields, weights):
    path = weights(json.dumps(fields))
    network = load(path)
    before = {name: array.clone() for name, array in network.state_dict().items()}
    path.unlink()
    assert all(torch.equal(array, before[name]) for name, array in network.state_dict().items())


# Words


@pytest.mark.parametrize("form", [[], ["--json"], ["--csv"], ["--table"]])
def test_no_class_name_steers_a_terminal(command, fields, weights, photo, form):
    path = weights(with_(fields, "class_names", [f"{HOSTILE}{number}" for number in range(10)]))
    code, out, error = command("classify", path, photo, *form)
    assert (code, error) == (0, "")
    assert all(line.isprintable() for line in out.split("\n"))
    assert "[red]" in out


@pytest.mark.parametrize(
    "arguments",
    [
        ["info"], ["layers"], ["classify", "PHOTO"], ["heatmap", "PHOTO", "--target", "0", "-o", "OUT.png"],
        ["gradcam", "PHOTO", "--target", "0", "-o", "OUT.png"], ["explain", "PHOTO", "-o", "OUT.html"],
        ["activations", "PHOTO", "-o", "OUT.png"], ["heatmap", "PHOTO", "--target", "0", "-o", "OUT.html"],
    ],
    ids=" ".join,
)  # fmt: skip
@pytest.mark.filterwarnings("ignore::convnets_torch.explain.gradcam.CamWarning")
def test_no_card_steers_a_terminal(command, fields, weights, tmp_path, arguments):
    source = {name: HOSTILE for name in ("file", "sha256", "framework", "backend", "converter")}
    fields = {**fields, "source": {**source, "changes": [HOSTILE], HOSTILE: HOSTILE}, HOSTILE: HOSTILE}
    fields["class_names"] = [f"{HOSTILE}{number}" for number in range(10)]
    path = weights(with_(fields, "preprocessing.name", HOSTILE))
    photo = tmp_path / "\x1b[31m\u202e\x07.png"
    Image.fromarray(picture(1, 230, 240)).save(photo)
    names = {"PHOTO": photo, "OUT.png": tmp_path / "\x1b.png", "OUT.html": tmp_path / "\x1b.html"}
    code, out, error = command(arguments[0], path, *(names.get(each, each) for each in arguments[1:]))
    assert code in (0, 1)
    assert all(line.isprintable() for line in (out + error).split("\n"))


COMMANDS = {
    "convert": ["NAME", "-o", "NAME.safetensors"], "info": ["NAME"], "audit": ["NAME"], "doctor": ["NAME", "NAME"],
    "classify": ["NAME", "NAME"], "heatmap": ["NAME", "NAME", "--target", "NAME", "-o", "NAME.png"],
    "gradcam": ["NAME", "NAME", "-o", "NAME.png"], "explain": ["NAME", "NAME", "-o", "NAME.html"],
    "evaluate": ["NAME", "NAME"], "export": ["NAME", "-o", "NAME.onnx"], "embed": ["NAME", "NAME", "-o", "NAME.npz"],
    "probe": ["NAME", "NAME"], "finetune": ["NAME", "NAME", "-o", "NAME.safetensors"],
    "augment": ["NAME", "-o", "NAME.png"], "index": ["NAME", "NAME", "-o", "NAME"], "search": ["NAME", "NAME"],
    "duplicates": ["NAME"], "map": ["NAME", "NAME", "-o", "NAME.html"], "layers": ["NAME"],
    "activations": ["NAME", "NAME", "--layer", "NAME", "-o", "NAME.png"],
    "filters": ["NAME", "--layer", "NAME", "-o", "NAME.png"], "synsets": ["NAME"],
}  # fmt: skip
NAMES = {
    "steers": "\x1b[31m[red]\u202ea\r\nb", "empty": "", "null": "a\0b", "long": "x" * 10_000, "bytes": "\udcff\udc80",
    "dash": "-", "option": "--\x1b[31m[red]",
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        (name, kind)
        for name in COMMANDS
        for kind in NAMES
        if kind == "steers" or name in ("info", "classify", "convert")
    ],
)
def test_any_argument_gets_a_sentence(command, tmp_path, monkeypatch, name, kind):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"")))
    code, out, error = command(name, *(each.replace("NAME", NAMES[kind]) for each in COMMANDS[name]))
    assert code in ((1,) if kind == "steers" else (1, 2))
    assert all(line.isprintable() for line in (out + error).split("\n"))
    assert code == 2 or is_a_sentence(error)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", " =1", "\n=1", "\uff1d1"])
def test_no_cell_is_a_formula(text):
    written = io.StringIO()
    csv.writer(written).writerow([cell(text), "end"])
    [[first, end]] = csv.reader(io.StringIO(written.getvalue()))
    assert end == "end"
    assert first.startswith(("'", "\\t", "\\r"))


def test_csv_of_classify_has_no_formulas_and_keeps_lines(command, fields, weights, tmp_path):
    names = ["=HYPERLINK(1)", "@SUM(1)", "+a", "-b", "two\nlines", 'a "quoted", one', "\x1b[2J", "x", "y", "z"]
    photo = tmp_path / 'two\nlines, "quoted".png'
    Image.fromarray(picture(1, 230, 240)).save(photo)
    path = weights(with_(fields, "class_names", names))
    _, out, _ = command("classify", path, photo, "--csv", "--top", 10)
    rows = list(csv.DictReader(io.StringIO(out)))
    assert {row["image"] for row in rows} == {str(photo)}
    wanted = ["'=HYPERLINK(1)", "'@SUM(1)", "'+a", "'-b", "two\nlines", 'a "quoted", one', "\\x1b[2J", "x", "y", "z"]
    assert sorted(row["words"] for row in rows) == sorted(wanted)
    assert all(0 < float(row["probability"]) < 1 for row in rows)


# Words in pictures


@pytest.mark.parametrize("text", ["x" * 3_000_000, "\u0301" * 3_000_000, "a\nb\r\tc\x1b\ud800"])
def test_words_in_pictures_take_little_time(text):
    began = time.monotonic()
    assert shorten(text, Letters(17), 200).isprintable()
    tiles = contact_sheet([[(None, f"{text}\n{text}")]], 3, title=text)
    counts = draw_counts(torch.eye(2, dtype=torch.int64).numpy(), [text, text], ["Answers"])
    assert time.monotonic() - began < 5
    assert max(*tiles.size, *Image.open(io.BytesIO(png_of(counts))).size) < 3000
    assert time.monotonic() - began < 10


# Ends

PROGRAM = """
import hashlib, os, signal, sys, threading, typer, atexit
from concurrent.futures import ThreadPoolExecutor
from convnets_torch.cli import app, ending
from convnets_torch.files import replacing
ending.GRACE, ending.AGAIN = float(sys.argv.pop(1)), 0.2

def hang():
    hashlib.pbkdf2_hmac("sha256", b"", b"", 2_000_000_000)  # C that neither returns nor looks for signals

def at_the_end():
    print("begun", flush=True)
    threading.Event().wait(20)

def begin(where: str):
    if where == "at the end":
        atexit.register(at_the_end)
        return
    with replacing("out.txt") as temporary:
        temporary.write_text("half")
        print("begun", flush=True)
        if where == "main":
            hang()
        elif where == "worker":
            with ThreadPoolExecutor() as pool:
                pool.submit(hang).result()
        else:
            threading.Event().wait()

application = typer.Typer(pretty_exceptions_enable=False)
application.command()(begin)
app.run(application)
"""


@pytest.mark.slow
@pytest.mark.parametrize("number", ending.SIGNALS)
@pytest.mark.parametrize(("where", "grace", "times"), [
    ("in order", 60, 1), ("main", 0.5, 1), ("worker", 0.5, 1), ("main", 60, 2), ("worker", 60, 2), ("at the end", 60, 1)
])  # fmt: skip
def test_every_command_ends_when_it_is_told_to(tmp_path, where, grace, times, number):
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(grace), where],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # which tests in the background ignore
    ) as process:
        try:
            assert process.stdout.readline() == "begun\n"
            for _ in range(times):
                time.sleep(0.5)
                process.send_signal(number)
            out, error = process.communicate(timeout=30)
        finally:
            process.kill()
    assert (process.returncode, out, error) == (128 + number, "", "")
    assert not (tmp_path / "out.txt").exists()
    assert where != "in order" or list(tmp_path.iterdir()) == []
