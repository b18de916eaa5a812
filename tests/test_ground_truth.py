"""Which picture has which class: folders, files of labels, and what would be a guess."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from convnets_torch.card import Card
from convnets_torch.evaluation.labels import find_truth
from convnets_torch.images.preprocessing import preset
from convnets_torch.wordnet import synsets

IMAGENET = Card("vgg16", {"classes": 1000}, preset("vgg16"), "imagenet-1k")
OWN = Card("vgg16", {"classes": 3}, preset("vgg16"), ("cat", "dog", "a cow"))
NUMBERED = Card("vgg16", {"classes": 3}, preset("vgg16"), ("2", "0", "1"))
UNNAMED = Card("vgg16", {"classes": 3}, preset("vgg16"), None)
TENCH, COLLIE, MOUSE = synsets.wnid(0), synsets.wnid(231), synsets.wnid(673)


def make(folder, *names):
    """Small pictures, whose content is that of their name."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.frombytes("L", (16, 16), hashlib.shake_256(name.encode()).digest(256)).save(folder / name)
    return folder


@pytest.fixture
def flat(tmp_path):
    return make(tmp_path / "flat", "b.png", "c d.png", "a.jpg")


def labels_of(folder, text, card=IMAGENET, **options):
    file = folder.parent / "truth.txt"
    file.write_text(text, encoding="utf-8")
    found = find_truth(card, folder, truth=file, **options)
    assert [path.name for path in found.paths] == ["a.jpg", "b.png", "c d.png"]
    assert found.labels.dtype == np.int64
    return found.labels.tolist()


def test_folders_named_by_wnids_or_words_are_their_classes(tmp_path):
    folder = make(tmp_path / "val", f"{COLLIE}/1.png", f"{TENCH}/below/2.png", "mouse, computer mouse/0.png")
    make(folder, "bull_mastiff/1.png", "bull_mastiff/0.png")
    (folder / synsets.wnid(5)).mkdir()
    found = find_truth(IMAGENET, folder)
    assert found.labels.tolist() == [243, 243, 673, 0, 231]  # bull_mastiff, mouse, TENCH, COLLIE: sorted by name
    assert [path.relative_to(folder).as_posix() for path in found.paths] == [
        "bull_mastiff/0.png", "bull_mastiff/1.png", "mouse, computer mouse/0.png", f"{TENCH}/below/2.png",
        f"{COLLIE}/1.png",
    ]  # fmt: skip
    assert found.notes == (
        "996 of the 1000 classes have no pictures (goldfish, great white shark, tiger shark, hammerhead,"
        " electric ray, ...)",
    )


def test_words_after_a_wnid_change_nothing(flat, tmp_path):
    """Lines of ILSVRC's synset_words.txt, and folders that are named so."""
    lines = [f"{COLLIE} collie", f"{MOUSE} mouse, computer mouse", f"{TENCH} tench, Tinca tinca"]
    assert labels_of(flat, "\n".join(lines)) == [231, 673, 0]
    assert labels_of(flat, "\n".join(f"{name}\t{line}" for name, line in zip(
        ("a.jpg", "b.png", "c d.png"), lines, strict=True))) == [231, 673, 0]  # fmt: skip
    folder = make(tmp_path / "val", f"{TENCH}-tench/0.png", f"{COLLIE} collie/0.png")
    assert find_truth(IMAGENET, folder).labels.tolist() == [0, 231]
    own = replace(OWN, class_names=(f"{MOUSE} mouse", COLLIE, "a cow"))
    assert labels_of(flat, f"{COLLIE} collie\n{MOUSE}\na cow", own) == [1, 0, 2]


def test_folders_that_are_no_class_are_refused_all_at_once(tmp_path):
    folder = make(tmp_path / "val", f"{TENCH}/0.png", "n02084071/0.png", "n99999999/0.png", "crane/0.png", "17/0.png")
    with pytest.raises(ValueError, match="4 of 5 labels are none of the network's 1000 classes") as refused:
        find_truth(IMAGENET, folder)
    for words in ("'n02084071' (n02084071 dog.n.01", "is no class", "n99999999", "'crane' has several", "number among"):
        assert words in str(refused.value)
    make(tmp_path / "twice", f"{TENCH}/0.png", "tench/0.png")
    with pytest.raises(ValueError, match=f"the sub-folders {TENCH} and tench are one class, tench, Tinca tinca"):
        find_truth(IMAGENET, tmp_path / "twice")


def test_folders_of_own_classes_bear_the_names_of_the_card(tmp_path):
    folder = make(tmp_path / "val", "dog/0.png", "a cow/0.png", "a cow/1.png")
    found = find_truth(OWN, folder)
    assert found.labels.tolist() == [2, 2, 1]
    assert found.notes == ("1 of the 3 classes have no pictures (cat)",)
    make(folder, "Cat/0.png", "horse/0.png")
    with pytest.raises(ValueError, match=r"2 of 4 labels are none .*'Cat' \(not a class name\); 'horse' \(not a class"):
        find_truth(OWN, folder)
    make(tmp_path / "numbers", "0/a.png", "1/b.png", "2/c.png")
    assert find_truth(NUMBERED, tmp_path / "numbers").labels.tolist() == [1, 2, 0]  # names go before ids
    assert find_truth(NUMBERED, tmp_path / "numbers", labels="class-ids").labels.tolist() == [0, 1, 2]
    assert find_truth(UNNAMED, tmp_path / "numbers").labels.tolist() == [0, 1, 2]


def test_two_classes_of_one_name_are_no_ones(tmp_path):
    card = Card("vgg16", {"classes": 3}, preset("vgg16"), ("cat", "cat", "dog"))
    with pytest.raises(ValueError, match=r"'cat' \(the name of several classes\)"):
        find_truth(card, make(tmp_path / "val", "cat/0.png", "dog/0.png"))


@pytest.mark.parametrize(
    "text",
    [
        f"{MOUSE}\n{TENCH}\n{COLLIE}\n",
        f"\ufeffa.jpg,{MOUSE}\nc d.png,{COLLIE}\nb.png,{TENCH}",
        f"image,label\na.jpg,{MOUSE}\n\nc d.png,collie\nb.png,{TENCH}",
        f"b.png {TENCH}\nc d.png {COLLIE}\n./a.jpg\t{MOUSE}",
        'a.jpg;"mouse, computer mouse"\nb.png;"tench, Tinca tinca"\nc d.png;collie',
        f"a {MOUSE}\nb {TENCH}\nc d {COLLIE}",  # without endings
        "673\n0\n231",
        "a.jpg 673\nb.png 0\nc d.png 231",
    ],
)
def test_every_form_of_a_file_gives_the_same_labels(flat, text):
    assert labels_of(flat, text) == [673, 0, 231]


def test_numbers_that_may_be_ilsvrcs_need_a_word(flat, tmp_path):
    for text in ("1\n1000\n7", "1\n2\n3", "a.jpg 0\nb.png 1\nc d.png 1000"):
        with pytest.raises(ValueError, match=r"may be ILSVRC's ids, .*--id-table.*--labels class-ids"):
            labels_of(flat, text)
    assert labels_of(flat, "1\n2\n3", labels="class-ids") == [1, 2, 3]
    with pytest.raises(ValueError, match=r"'1000' \(not a class id from 0 to 999\)"):
        labels_of(flat, "1\n1000\n7", labels="class-ids")
    table = tmp_path / "map.txt"
    table.write_text(f"{MOUSE} 1 mouse\n1000 {TENCH}\n7,{COLLIE}\n8 n02084071\n")
    assert labels_of(flat, "1\n1000\n7", id_table=table) == [673, 0, 231]
    with pytest.raises(ValueError, match=r"'9' \(not in the table of ILSVRC's ids\)"):
        labels_of(flat, "1\n1000\n9", id_table=table)
    with pytest.raises(ValueError, match=r"'8' \(n02084071 in the table\) .*dog.n.01"):
        labels_of(flat, "1\n1000\n8", id_table=table)
    with pytest.raises(ValueError, match="leave out one of the two"):
        labels_of(flat, "1\n1000\n7", id_table=table, labels="class-ids")
    table.write_text(f"1 {MOUSE}\n1 {TENCH}\n")
    with pytest.raises(ValueError, match=f"the id 1 is {TENCH}, but {MOUSE} in an earlier line"):
        labels_of(flat, "1\n1\n1", id_table=table)
    table.write_text("1 2\n")
    with pytest.raises(ValueError, match="line 1 is '1 2'; expected an id and a wnid"):
        labels_of(flat, "1\n1\n1", id_table=table)


def test_numbers_of_own_classes_may_count_from_one(flat):
    assert labels_of(flat, "0\n2\n2", card=OWN) == [0, 2, 2]
    for text in ("1\n2\n3", "1\n2\n2"):
        with pytest.raises(ValueError, match="without a 0 they may count from 1"):
            labels_of(flat, text, card=OWN)
    assert labels_of(flat, "dog\ncat\na cow", card=OWN) == [1, 0, 2]
    assert labels_of(flat, "a.jpg dog\nb.png a cow\nc d.png cat", card=OWN) == [1, 2, 0]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("0\n1", "has 2 lines, but .* holds 3 pictures"),
        ("a.jpg 0\nb.png 1\nb.png 0", r"lines 2 and 3 name the same file, .*b\.png"),
        ("a.jpg 0\nb.png 1\ne.png 0", r"1 of 3 files are missing in .*\(line 3: e\.png\)"),
        ("a.jpg 0\nb.png\nc d.png 0", r"1 lines are no name and label \(line 2: 'b.png'\)"),
        ("", "is empty; give it a header"),
        ("0\nn01440764\n1", r"'0' \(a number among words\)"),
    ],
)
def test_a_file_that_does_not_fit_is_refused(flat, text, words):
    with pytest.raises((ValueError, OSError), match=words):
        labels_of(flat, text)


def test_folders_that_say_nothing_are_refused(flat, tmp_path):
    with pytest.raises(ValueError, match=r"has no sub-folders, so nothing says which class .*--truth"):
        find_truth(IMAGENET, flat)
    make(flat, "below/e.png")
    (tmp_path / "truth.txt").write_text("0\n1\n2\n3")
    with pytest.raises(ValueError, match="has labels without names"):
        find_truth(IMAGENET, flat, truth=tmp_path / "truth.txt")
    (tmp_path / "empty" / TENCH).mkdir(parents=True)
    with pytest.raises(ValueError, match="none of 1 sub-folders holds a picture"):
        find_truth(IMAGENET, tmp_path / "empty")
    with pytest.raises(FileNotFoundError, match="does not exist; name a folder"):
        find_truth(IMAGENET, tmp_path / "missing")
    with pytest.raises(ValueError, match="an evaluation needs at least 2"):
        find_truth(Card("vgg16", {"classes": None}, preset("vgg16"), None), flat)
    (flat / "below" / "truth.txt").write_text("0")
    with pytest.raises(ValueError, match="unknown labels 'ids'; known: auto, class-ids"):
        find_truth(IMAGENET, flat / "below", truth=flat / "below" / "truth.txt", labels="ids")  # type: ignore[arg-type]
