"""The command `synsets`: its trees against the table of synsets and the class sets of WordNet, and its columns."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import convnets_torch
from tests.reference import wordnet

TABLE = Path(convnets_torch.__file__).parent / "wordnet" / "data" / "synsets.tsv"
ROWS = [line.split("\t") for line in TABLE.read_text(encoding="ascii").splitlines()[1:]]
OWN_ID = {row[0] for row in ROWS if row[1]}  # the classes themselves
RECORDED = [line.split("\t") for line in wordnet.CLASS_SETS.read_text(encoding="ascii").splitlines()]
CLASSES = {wnid: wordnet.expand(ids) for wnid, _, ids in RECORDED}
LINE = re.compile(r"(?P<bars>(?:[│├└─ ]{4})*)(?P<words>.*)  (?P<wnid>n\d{8})  (?P<count>.*?)(?P<again>, shown above)?")


def read_tree(text):
    """Lines of a drawn tree: (steps from the root, wnid, count, whether it is shown above)."""
    for line in text.splitlines():
        match = LINE.fullmatch(line)
        yield len(match["bars"]) // 4, match["wnid"], match["count"], bool(match["again"])


def test_the_tree_of_entity_has_every_step_of_the_table_once_and_counts_each_class_once(command):
    code, out, _ = command("synsets", "entity", "--tree")
    assert code == 0
    edges, full = [], []
    way: list[str] = []
    for level, wnid, count, again in read_tree(out):
        way[level:] = [wnid]
        edges += [(way[-2], wnid)] if level else []
        full += [] if again else [wnid]
        ids = CLASSES[wnid]
        assert count == (f"class {ids[0]}" if wnid in OWN_ID else f"{len(ids)} class{'es' * (len(ids) > 1)}")
    assert sorted(edges) == sorted((parent, row[0]) for row in ROWS for parent in row[2].split())
    assert sorted(full) == [row[0] for row in ROWS]


def test_what_stands_a_second_time_has_nothing_below_it_and_stands_in_full_above(command):
    lines = list(read_tree(command("synsets", "artifact", "--tree")[1]))
    seen, repeated = set(), 0
    for (level, wnid, _, again), (next_level, *_) in zip(lines, [*lines[1:], (0,)], strict=True):
        assert again == (wnid in seen)
        assert not (again and next_level > level)
        seen.add(wnid)
        repeated += again
    assert repeated > 10


def test_the_tree_of_several_targets_has_their_classes_alone(command):
    code, out, _ = command("synsets", "big cat - lion + tabby", "--tree")
    assert code == 0
    lines = list(read_tree(out))
    assert lines[0] == (0, "n02120997", "6 classes", False)  # feline
    assert sorted(count for _, _, count, _ in lines if count.startswith("class ")) == [
        f"class {number}" for number in (281, 288, 289, 290, 292, 293)
    ]
    assert (1, "n02127808", "5 classes", False) in lines  # big cat, without the lion


def test_a_synset_is_printed_in_columns(command):
    code, out, error = command("synsets", "big cat")
    assert (code, error) == (0, "")
    assert out.splitlines() == [
        "wnid       n02127808",
        "name       big_cat.n.01",
        "words      big cat, cat",
        "gloss      any of several large cats typically able to roar and living in the wild",
        "depth      13",
        "parents    n02120997 feline",
        "children   n02128385 leopard, n02128757 snow leopard, n02128925 jaguar, n02129165 lion, n02129604 tiger, "
        "n02130308 cheetah",
        "classes    6",
        "class ids  288-293",
    ]


def test_a_synset_is_printed_as_json(command):
    record = json.loads(command("synsets", "domestic cat", "--json")[1])
    assert record["wnid"] == "n02121808"
    assert record["words"] == ["domestic cat", "house cat", "Felis domesticus", "Felis catus"]
    assert record["parents"] == ["n02121620", "n01317541"]
    assert record["class_ids"] == [281, 282, 283, 284, 285]
    assert record["classes"] == 5
    several = json.loads(command("synsets", "domestic cat - 281 + lion", "--json")[1])
    assert several == {"label": "domestic cat - tabby + lion", "classes": 5, "class_ids": [282, 283, 284, 285, 291]}


def test_several_targets_are_printed_in_columns(command):
    assert command("synsets", "plane - n04552348 + 3")[1].splitlines() == [
        "label      airplane - warplane + tiger shark",
        "classes    2",
        "class ids  3, 404",
    ]


def test_a_search_prints_wnid_number_of_classes_and_words(command):
    code, out, _ = command("synsets", "retriev", "--search")
    assert code == 0
    lines = out.splitlines()
    assert lines[0] == "n02099029     5  retriever"
    assert len(lines) == 6
    assert all("retriever" in line for line in lines)
    records = [json.loads(line) for line in command("synsets", "retriev", "--search", "--json")[1].splitlines()]
    assert [record["wnid"] for record in records] == [line.split()[0] for line in lines]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["crane"], "'crane' has several meanings: "),
        (["crane", "--tree"], "'crane' has several meanings: "),
        (["dog - - cat"], "a target is missing at >>> in 'dog - >>>- cat'"),
        (["dog - animal", "--tree"], "no class is left: the target at >>> in 'dog - >>>animal' removes the last 118"),
        (["dogs"], "unknown word 'dogs'; close: dog"),
        (["xyzzy", "--search"], "no synset over the ImageNet classes has 'xyzzy' in a word; try a shorter part"),
        (["", "--search"], "the text to search for is empty"),
    ],
)
def test_what_means_nothing_is_refused_in_one_line(arguments, message, command):
    code, out, error = command("synsets", *arguments)
    assert (code, out) == (1, "")
    assert error.startswith(f"convnets-torch: {message}")
    assert len(error.splitlines()) == 1


def test_a_tree_is_neither_json_nor_a_search(command):
    assert command("synsets", "dog", "--tree", "--json")[0] == 2
    assert command("synsets", "dog", "--tree", "--search")[0] == 2


def test_a_piped_tree_is_plain_whole_and_without_torch_whatever_the_terminal_says(monkeypatch):
    for name, value in (("FORCE_COLOR", "1"), ("COLUMNS", "20"), ("PYTHONIOENCODING", "utf-8")):
        monkeypatch.setenv(name, value)
    code = """
import sys
from convnets_torch.cli.app import app
app(standalone_mode=False)
print(*{"torch", "numpy", "PIL"} & sys.modules.keys(), file=sys.stderr)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, "synsets", "car", "--tree"], capture_output=True, check=True, encoding="utf-8"
    )
    assert done.stderr.split() == []
    assert "\x1b" not in done.stdout
    assert (
        "├── beach wagon, station wagon, wagon, estate car, beach waggon, station waggon, waggon  n02814533  class 436"
        in done.stdout
    )
    assert len(done.stdout.splitlines()) == 11
