"""The synsets against WordNet itself, read another way, and against torchvision's names of the classes."""

import subprocess
import sys
from collections import Counter
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from torchvision.models import ResNet50_Weights

from convnets_torch import synsets
from convnets_torch.synsets import class_ids, find, wnid, words
from tests.reference import wordnet

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT / "convnets_torch" / "data"
RECORDED = [line.split("\t") for line in wordnet.CLASS_SETS.read_text(encoding="ascii").splitlines()]
ALL = [row[0] for row in RECORDED]

with_database = pytest.mark.skipif(
    not (wordnet.DATABASE / "data.noun").exists(), reason=f"no WordNet 3.0 in {wordnet.DATABASE}; set WORDNET_DICT"
)


# What WordNet says


def test_each_of_the_1860_synsets_has_the_classes_that_wordnet_has_under_it():
    assert len(ALL) == 1860
    assert {synset: class_ids(synset) for synset in ALL} == {row[0]: wordnet.expand(row[2]) for row in RECORDED}


def test_each_synset_has_the_name_that_wordnet_gives_it():
    assert [find(synset).name for synset in ALL] == [row[1] for row in RECORDED]


@with_database
def test_the_recorded_class_sets_are_those_of_the_database():
    assert wordnet.class_sets(wordnet.DATABASE) == wordnet.CLASS_SETS.read_text(encoding="ascii")


@with_database
def test_the_database_gives_the_shipped_files_again_to_the_byte(tmp_path):
    script = ROOT / "scripts" / "build_synsets.py"
    command = [sys.executable, script, "--wordnet", wordnet.DATABASE, "--output", tmp_path]
    subprocess.run(command, check=True, capture_output=True)
    for name in ("synsets.tsv", "WORDNET_LICENSE"):
        assert (tmp_path / name).read_bytes() == (DATA / name).read_bytes()


def test_the_table_holds_the_1860_synsets_and_no_other():
    table = (DATA / "synsets.tsv").read_text(encoding="ascii").splitlines()[1:]
    assert [line.split("\t")[0] for line in table] == ALL


def test_75_synsets_have_several_parents_and_only_entity_has_none():
    parents = {synset: len(find(synset).parents) for synset in ALL}
    assert Counter(parents.values()) == {0: 1, 1: 1784, 2: 72, 3: 3}
    assert parents["n00001740"] == 0


def test_wheeled_vehicle_is_44_classes_which_46_paths_lead_up_from():
    @cache
    def paths_up(synset: str) -> int:
        return 1 if synset == "n04576211" else sum(paths_up(parent) for parent in find(synset).parents)

    assert sum(paths_up(wnid(class_id)) for class_id in range(1000)) == 46
    assert len(class_ids("n04576211")) == len(set(class_ids("n04576211"))) == 44


def test_the_files_are_small_and_carry_the_notice_of_wordnet():
    assert sum(path.stat().st_size for path in DATA.iterdir()) <= 300_000
    notice = (DATA / "WORDNET_LICENSE").read_text(encoding="ascii")
    assert "WordNet 3.0 Copyright 2006 by Princeton University.  All rights reserved." in notice
    assert "Permission to use, copy, modify and distribute" in notice


# What the released networks say


def test_torchvision_calls_998_classes_by_their_first_word_and_tells_two_pairs_apart_by_one_more():
    differing = {
        class_id: (name, words(class_id))
        for class_id, name in enumerate(ResNet50_Weights.IMAGENET1K_V1.meta["categories"])
        if name != find(class_id).words[0]
    }
    assert differing == {
        134: ("crane bird", "crane"),  # 517 is "crane", the machine
        639: ("maillot tank suit", "maillot, tank suit"),  # 638 is "maillot", the tights
    }


@pytest.mark.parametrize(
    ("class_id", "expected"),
    [(0, "n01440764"), (243, "n02108422"), (673, "n03793489"), (999, "n15075141"), (np.int64(243), "n02108422")],
)
def test_a_class_id_has_the_wnid_that_released_networks_give_it(class_id, expected):
    assert wnid(class_id) == expected
    assert find(class_id).class_ids == [class_id]


def test_the_classes_are_in_the_order_of_their_wnids():
    classes = [wnid(class_id) for class_id in range(1000)]
    assert classes == sorted(set(classes))


def test_the_words_of_a_class_are_spelled_as_in_wordnet():
    assert words(0) == "tench, Tinca tinca"
    assert words(633) == "loupe, jeweler's loupe"
    assert words(661) == "Model T"


# What a target means


@pytest.mark.parametrize(
    "target",
    [
        "n02084071",
        "N02084071",
        "dog",
        "DOG",
        " dog\n",
        "Canis familiaris",
        "canis_familiaris",
        "domestic  dog",
        "dog.n.01",
        "dog.n.1",
        "domestic_dog.n.01",
        "Canis familiaris.n.01",
    ],
)
def test_a_dog_is_classes_151_to_268_however_it_is_written(target):
    assert class_ids(target) == list(range(151, 269))


@pytest.mark.parametrize("target", [281, "281", " 281 ", "n02123045", "tabby cat"])
def test_one_class_is_found_by_its_id_in_digits_too(target):
    assert class_ids(target) == [281]


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("car", "n02958343"),
        ("cat", "n02121620"),
        ("airplane", "n02691156"),
        ("plane", "n02691156"),
        ("wheeled vehicle", "n04576211"),
        ("cardigan", "n02963159"),
        ("maillot", "n03710721"),
    ],
)
def test_a_word_means_its_first_sense_where_that_is_over_the_classes(word, expected):
    assert find(word).wnid == expected


@pytest.mark.parametrize(
    ("word", "expected"), [("mouse", "mouse.n.04"), ("banana", "banana.n.02"), ("PJ's", "pajama.n.02")]
)
def test_a_word_means_a_later_sense_where_only_that_is_over_the_classes(word, expected):
    assert find(word).name == expected


def test_the_first_word_of_a_class_means_another_synset_for_eight_classes_and_is_refused_for_twelve():
    others, refused = {}, {}
    for class_id in range(1000):
        word = find(class_id).words[0]
        try:
            found = find(word)
        except ValueError:
            refused[class_id] = word
        else:
            if found.wnid != wnid(class_id):
                others[class_id] = (word, found.words[0])
    assert others == {
        264: ("Cardigan", "cardigan"),
        358: ("polecat", "skunk"),
        638: ("maillot", "maillot"),
        726: ("plane", "airplane"),
        738: ("pot", "pot"),
        787: ("shield", "shield"),
        876: ("tub", "bathtub"),
        881: ("upright", "upright"),
    }
    assert refused == {
        86: "partridge",
        124: "crayfish",
        134: "crane",
        458: "brass",
        492: "chest",
        517: "crane",
        664: "monitor",
        742: "printer",
        751: "racer",
        778: "scale",
        782: "screen",
        923: "plate",
    }


def test_a_word_of_several_meanings_is_refused_with_all_of_them():
    with pytest.raises(ValueError, match="several meanings") as error:
        find("crane")
    assert str(error.value) == (
        "'crane' has several meanings: n03126707 crane.n.04 (lifts and moves heavy objects: 1 class), "
        "or n02012849 crane.n.05 (large long-necked wading bird of marshes and plains in many ...: 1 class); "
        "give the wnid"
    )
    assert class_ids("crane.n.05") == [134]
    assert class_ids("crane.n.04") == [517]


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("dogs", "unknown word 'dogs'; close: dog"),
        ("bull mastif", "unknown word 'bull mastif'; close: bull mastiff"),
        ("xyzzy", "unknown word 'xyzzy'; no ImageNet class is under anything like it; try a more general word"),
        ("n0208407", "unknown wnid 'n0208407'; close: n02084071"),
        ("dog.n.02", r"no ImageNet class is under sense 2 of 'dog'; known: n02084071 dog\.n\.01 \(.*: 118 classes\)"),
        ("doog.n.01", "unknown word 'doog'; close: dog"),
        ("", "the target is empty; give a word, a wnid"),
        (" _ ", "the target is empty"),
        (1000, "class id 1000 is outside 0 to 999"),
        (-1, "class id -1 is outside 0 to 999"),
        ("1000", "class id 1000 is outside 0 to 999"),
        ("-1", "class id -1 is outside 0 to 999"),
    ],
)
def test_an_unknown_target_is_refused_in_one_line_with_a_way_out(target, message):
    with pytest.raises(ValueError, match=message) as error:
        find(target)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("target", [True, 1.0, None, ["dog"], b"dog"], ids=repr)
def test_what_is_neither_a_string_nor_an_integer_is_no_target(target):
    with pytest.raises(TypeError, match="is no integer; give a class id, 0 to 999"):
        find(target)


def test_a_wnid_is_no_class_id():
    with pytest.raises(TypeError, match="'n02084071' is no integer; give a class id"):
        words("n02084071")  # type: ignore[arg-type]


def test_a_list_of_classes_belongs_to_its_caller():
    class_ids("dog").clear()
    assert len(class_ids("dog")) == 118


def test_importing_the_module_brings_in_neither_torch_nor_numpy_nor_the_data():
    code = (
        "import sys, convnets_torch.synsets as synsets\n"
        "print(synsets._graph.cache_info().currsize, *sorted({'torch', 'torchvision', 'numpy'} & sys.modules.keys()))\n"
        "synsets.class_ids('dog')\n"
        "print(synsets._graph.cache_info().currsize, *sorted({'torch', 'torchvision', 'numpy'} & sys.modules.keys()))\n"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True)
    assert run.stdout.split() == ["0", "1"]
    assert Path(synsets.__file__).parent == ROOT / "convnets_torch"
