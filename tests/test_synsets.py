"""The synsets against WordNet itself, read another way, and against torchvision's names of the classes."""

import subprocess
import sys
from collections import Counter
from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from torchvision.models import ResNet50_Weights

from convnets_torch.wordnet import synsets
from convnets_torch.wordnet.expressions import is_expression
from convnets_torch.wordnet.synsets import class_id, class_ids, common_ancestor, find, search, wnid, words
from tests.reference import wordnet

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT / "convnets_torch" / "wordnet" / "data"
RECORDED = [line.split("\t") for line in wordnet.CLASS_SETS.read_text(encoding="ascii").splitlines()]
ALL = [row[0] for row in RECORDED]
PLACE = {synset: place for place, synset in enumerate(ALL)}

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
    assert sum(path.stat().st_size for path in DATA.iterdir() if path.suffix != ".ttf") <= 300_000
    notice = (DATA / "WORDNET_LICENSE").read_text(encoding="ascii")
    assert "WordNet 3.0 Copyright 2006 by Princeton University.  All rights reserved." in notice
    assert "Permission to use, copy, modify and distribute" in notice


# What lies around a synset, against powers of the adjacency matrix


@cache
def steps_down():
    """(1860, 1860): 1 where the table says that the column's synset has the row's as a parent."""
    table = (DATA / "synsets.tsv").read_text(encoding="ascii").splitlines()[1:]
    matrix = np.zeros((len(ALL), len(ALL)), dtype=np.float32)
    for line in table:
        synset, _, parents, *_ = line.split("\t")
        for parent in parents.split():
            matrix[PLACE[parent], PLACE[synset]] = 1
    return matrix


@cache
def lengths_of_paths():
    """(steps, 1860): how many paths of so many steps lead from entity, the first of all, to each synset."""
    rows = [np.eye(1, len(ALL), dtype=np.float32)[0]]
    while rows[-1].any():
        rows.append(rows[-1] @ steps_down())
    return np.array(rows[:-1])


@cache
def reachable():
    """(1860, 1860): whether the row's synset is the column's or lies above it."""
    reached = np.eye(len(ALL), dtype=np.float32) + steps_down()
    for _ in range(5):  # paths of up to 32 steps; the longest has 18
        reached = np.minimum(reached @ reached, 1)
    return reached > 0


@cache
def depths():
    return np.array([np.flatnonzero(column).max() for column in lengths_of_paths().T])


def test_the_depth_of_a_synset_is_the_number_of_steps_of_its_longest_path():
    assert [find(synset).depth for synset in ALL] == depths().tolist()
    assert depths().max() == 18


def test_a_dog_is_13_steps_deep_and_8_by_its_shortest_path():
    """As NLTK's max_depth and min_depth say."""
    assert find("dog").depth == 13
    assert min(len(path) for path in find("dog").paths) - 1 == 8


def test_each_synset_is_deeper_than_its_parents():
    assert all(find(parent).depth < find(synset).depth for synset in ALL for parent in find(synset).parents)


def test_the_paths_to_a_synset_are_all_there_is_once_and_step_by_step():
    for synset in ALL:
        paths = find(synset).paths
        assert len(set(paths)) == len(paths)
        assert [len(path) for path in paths] == sorted(len(path) for path in paths)
        counts = Counter(len(path) - 1 for path in paths)
        expected = lengths_of_paths()[:, PLACE[synset]]
        assert counts == {steps: count for steps, count in enumerate(expected.tolist()) if count}
        for path in paths:
            assert path[0] == "n00001740"
            assert path[-1] == synset
            assert all(steps_down()[PLACE[upper], PLACE[lower]] for upper, lower in pairwise(path))


def test_the_ancestors_of_a_synset_are_all_above_it_the_deepest_first():
    for synset in ALL:
        above = {ALL[place] for place in np.flatnonzero(reachable()[:, PLACE[synset]])} - {synset}
        expected = sorted(above, key=lambda entry: (-depths()[PLACE[entry]], entry))
        assert list(find(synset).ancestors) == expected


def test_children_are_the_synsets_that_have_this_one_as_a_parent():
    for synset in ALL:
        assert list(find(synset).children) == [ALL[place] for place in np.flatnonzero(steps_down()[PLACE[synset]])]


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        (("dog", "cat"), "carnivore.n.01"),
        (("dog", "beagle"), "dog.n.01"),
        ((152, 282), "carnivore.n.01"),  # not domestic animal, over fewer classes but less deep
        ((281, 281), "tabby.n.01"),
        ((281,), "tabby.n.01"),
        (("tench", "espresso"), "physical_entity.n.01"),
        (("tabby", "beagle", "tench"), "vertebrate.n.01"),
        (range(1000), "entity.n.01"),
    ],
)
def test_the_common_ancestor_is_the_nearest_synset_over_all(targets, expected):
    assert common_ancestor(*targets).name == expected


def test_the_common_ancestor_of_classes_is_the_deepest_over_both_and_no_common_one_lies_under_it():
    rng = np.random.default_rng(0)
    for first, second in rng.integers(0, 1000, (300, 2)):
        found = PLACE[common_ancestor(first, second).wnid]
        common = np.flatnonzero(reachable()[:, PLACE[wnid(first)]] & reachable()[:, PLACE[wnid(second)]])
        assert found in common
        assert depths()[found] == depths()[common].max()
        assert reachable()[found, common].sum() == 1  # itself


@pytest.mark.parametrize(
    ("first", "second", "deepest", "taken"),
    [
        (401, 687, {"keyboard_instrument.n.01": 4, "wind_instrument.n.01": 12}, "keyboard_instrument.n.01"),
        (403, 895, {"craft.n.02": 20, "military_vehicle.n.01": 5}, "military_vehicle.n.01"),
        (589, 785, {"consumer_goods.n.01": 62, "device.n.01": 130}, "consumer_goods.n.01"),
    ],
)
def test_of_two_equally_deep_ancestors_the_one_over_fewer_classes_is_taken(first, second, deepest, taken):
    common = np.flatnonzero(reachable()[:, PLACE[wnid(first)]] & reachable()[:, PLACE[wnid(second)]])
    tied = [find(ALL[place]) for place in common if depths()[place] == depths()[common].max()]
    assert {synset.name: len(synset.class_ids) for synset in tied} == deepest
    assert common_ancestor(first, second).name == common_ancestor(second, first).name == taken


def test_no_target_has_no_common_ancestor():
    with pytest.raises(ValueError, match="no target"):
        common_ancestor()


# Searching


def test_a_search_finds_each_synset_with_the_text_in_a_word_in_capitals_or_not():
    for text in ("RETRIEV", "dog", "n", "St Bernard", "_dog"):
        part = text.lower().replace("_", " ").strip()
        expected = {synset for synset in ALL if any(part in word.lower() for word in find(synset).words)}
        found = [entry.wnid for entry in search(text)]
        assert set(found) == expected
        assert len(found) == len(expected) > 0


def test_a_search_puts_the_word_itself_first_then_beginnings_of_words_then_the_rest():
    names = [entry.name for entry in search("dog")]
    assert names[:2] == ["dog.n.01", "hunting_dog.n.01"]
    assert names.index("dogsled.n.01") < names.index("bulldog.n.01")
    counts = [len(entry.class_ids) for entry in search("crane")[:2]]
    assert [entry.wnid for entry in search("crane")[:2]] == ["n02012849", "n03126707"]
    assert counts == [1, 1]


@pytest.mark.slow
def test_a_search_for_a_word_puts_all_synsets_of_this_word_first_those_over_most_classes_before():
    for word in sorted({word.lower() for synset in ALL for word in find(synset).words})[::10]:
        own = {synset for synset in ALL if word in map(str.lower, find(synset).words)}
        found = search(word)[: len(own)]
        assert {entry.wnid for entry in found} == own
        counts = [len(entry.class_ids) for entry in found]
        assert counts == sorted(counts, reverse=True)


def test_a_search_may_find_nothing_but_not_everything():
    assert search("xyzzy") == []
    with pytest.raises(ValueError, match="empty; give a part of a word"):
        search(" _ ")


# What the released networks say


def test_torchvision_calls_998_classes_by_their_first_word_and_tells_two_pairs_apart_by_one_more():
    differing = {
        number: (name, words(number))
        for number, name in enumerate(ResNet50_Weights.IMAGENET1K_V1.meta["categories"])
        if name != find(number).words[0]
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


def test_the_words_of_a_class_lead_back_to_its_id_for_all_but_seven():
    """Seven classes have one word alone, and that word another class has as well: crane names two of them."""
    for number in range(1000):
        ways = (number, str(number), wnid(number), find(number).name)
        assert [class_id(way) for way in ways] == [number] * 4
    found = {number: meaning(class_id, words(number)) for number in range(1000)}
    assert all(back in (number, None) for number, back in found.items())
    refused = [(number, words(number)) for number, back in found.items() if back is None]
    assert refused == [
        (86, "partridge"),
        (134, "crane"),
        (474, "cardigan"),
        (517, "crane"),
        (594, "harp"),
        (638, "maillot"),
        (657, "missile"),
    ]


@pytest.mark.parametrize(("word", "ids"), [("crane", (134, 517)), ("Maillot", (638, 639)), ("wagon", (436, 734))])
def test_a_word_of_two_classes_is_refused_with_both(word, ids):
    with pytest.raises(ValueError, match="has several meanings") as error:
        class_id(word)
    assert all(wnid(number) in str(error.value) for number in ids)


def meaning(function, target):
    """What a function makes of a target, None where it refuses it."""
    try:
        return function(target)
    except ValueError:
        return None


def test_no_word_means_one_class_to_class_id_and_another_synset_to_find():
    for number in range(1000):
        for word in find(number).words:
            assert meaning(class_id, word) in (number, None)
            if meaning(class_id, word) == number:
                assert meaning(find, word) in (find(number), None)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (
            "dog",
            "n02084071 dog.n.01 .*: 118 classes.* is no class; give one under it, such as n02085620 chihuahua.n.03",
        ),
        ("n02084071", "is no class"),
        ("plane", "n02691156 airplane.n.01 .* or n03954731 plane.n.05"),
        ("dogs", "unknown word 'dogs'; close: dog"),
        ("tench, Tinca", "unknown words 'tench, tinca'; close: tench, tinca tinca"),
        ("", "the target is empty"),
        (1000, "class id 1000 is outside 0 to 999"),
        ("lion + tiger", "'lion \\+ tiger' is several targets with signs; a single one is wanted here"),
    ],
)
def test_what_is_not_one_class_has_no_class_id(target, message):
    with pytest.raises(ValueError, match=message):
        class_id(target)


def test_all_words_of_a_synset_are_a_target():
    for synset in ALL:
        label = find(synset).label
        if "," in label:
            assert find(label).wnid == find(label.upper().replace(", ", ",")).wnid == synset


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
    for number in range(1000):
        word = find(number).words[0]
        try:
            found = find(word)
        except ValueError:
            refused[number] = word
        else:
            if found.wnid != wnid(number):
                others[number] = (word, found.words[0])
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


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("dog - hunting dog + wolf", set(range(151, 269)) - set(class_ids("n02087122")) | set(range(269, 273))),
        ("all-terrain bike", {671}),
        ("all-terrain bike + lion", {671, 291}),
        ("n02084071 & 281 + dog.n.01 - 151", set(range(152, 269))),
        ("tench, Tinca tinca + goldfish, Carassius auratus", {0, 1}),
        ("keyboard instrument & wind instrument", {401, 687}),  # accordion and organ
        ("entity - animal - artifact & flora", {985, 986}),  # daisy and yellow lady's slipper
    ],
)
def test_signs_between_targets_mean_sets_of_classes(expression, expected):
    assert class_ids(expression) == sorted(expected)


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("dog - - cat", r"a target is missing at >>> in 'dog - >>>- cat'"),
        ("dog - catt", r"unknown word 'catt'; close: cat, .*\(at >>> in 'dog - >>>catt'\)"),
        ("dog + crane", r"n03126707 crane\.n\.04 .* n02012849 crane\.n\.05 .*\(at >>> in 'dog \+ >>>crane'\)"),
        ("dog - animal", r"no class is left: the target at >>> in 'dog - >>>animal' removes the last 118"),
        ("dog + 1000", r"class id 1000 is outside 0 to 999 \(at >>> in 'dog \+ >>>1000'\)"),
    ],
)
def test_a_wrong_expression_is_refused_in_one_line_with_the_place(expression, message):
    with pytest.raises(ValueError, match=message) as error:
        class_ids(expression)
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="is several targets with signs; a single one is wanted here"):
        find(expression)


def test_no_word_of_wordnet_here_reads_as_an_expression():
    assert not any(is_expression(word) for synset in ALL for word in (*find(synset).words, find(synset).label))


def test_a_list_of_classes_belongs_to_its_caller():
    class_ids("dog").clear()
    assert len(class_ids("dog")) == 118


def test_importing_the_module_brings_in_neither_torch_nor_numpy_nor_the_data():
    code = (
        "import sys, convnets_torch.wordnet.synsets as synsets\n"
        "print(synsets._graph.cache_info().currsize, *sorted({'torch', 'torchvision', 'numpy'} & sys.modules.keys()))\n"
        "synsets.class_ids('dog')\n"
        "print(synsets._graph.cache_info().currsize, *sorted({'torch', 'torchvision', 'numpy'} & sys.modules.keys()))\n"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True)
    assert run.stdout.split() == ["0", "1"]
    assert Path(synsets.__file__).parent == ROOT / "convnets_torch" / "wordnet"
