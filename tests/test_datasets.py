"""Labelled pictures to learn from: who is on which side, and what is refused."""

from __future__ import annotations

import csv
import shutil
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import pytest
from PIL import Image

from convnets_torch.images.decoding import PictureWarning
from convnets_torch.images.labelled import find_classes
from convnets_torch.training.datasets import Dataset, check_batch, find_dataset


def fill(folder: Path, names: Iterable[object], first: int = 0) -> Path:
    """Pictures of different contents in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(names, start=first):
        Image.new("L", (4, 4 + number)).save(folder / f"{name}.png")
    return folder


@pytest.fixture
def pets(tmp_path):
    """Three classes of 20, 10 and 3 pictures, each of its own size."""
    for name, count, first in (("cats", 20, 0), ("dogs", 10, 20), ("eels", 3, 30)):
        fill(tmp_path / "pets" / name, range(count), first)
    return tmp_path / "pets"


def write(path: Path, *rows: tuple[object, ...], encoding: str = "utf-8") -> Path:
    with path.open("w", encoding=encoding, newline="") as file:
        csv.writer(file).writerows(rows)
    return path


def sides(data: Dataset) -> dict[Path, str]:
    return {path: "train" for path, _ in data.train} | {path: "val" for path, _ in data.val}


def test_a_share_of_each_class_is_kept_for_validation(pets):
    found = find_dataset(pets)
    assert found.classes == ("cats", "dogs", "eels")
    assert [sum(label == each for _, label in found.val) for each in range(3)] == [4, 2, 1]
    assert [sum(label == each for _, label in found.train) for each in range(3)] == [16, 8, 2]
    assert {path for path, _ in found.train + found.val} == set(pets.rglob("*.png"))
    assert len(sides(found)) == 33  # none on both
    assert all(found.classes[label] == path.parent.name for path, label in found.train + found.val)
    assert (found.split, found.notes) == ("20 % of each class, seed 0", ())
    assert find_dataset(pets) == found
    assert sides(find_dataset(pets, seed=1)) != sides(found)


@pytest.mark.parametrize(("share", "wanted"), [(0.001, [1, 1, 1]), (0.999, [19, 9, 2]), (0.5, [10, 5, 2])])
def test_both_sides_have_a_picture_of_each_class(pets, share, wanted):
    found = find_dataset(pets, val_share=share)
    assert [sum(label == each for _, label in found.val) for each in range(3)] == wanted


def test_a_class_added_a_file_renamed_and_a_folder_moved_change_no_other_side(pets, tmp_path):
    before = {path.relative_to(pets): side for path, side in sides(find_dataset(pets)).items()}
    fill(pets / "ants", range(7), 40)
    (pets / "cats" / "3.png").rename(pets / "cats" / "renamed.png")
    before[Path("cats", "renamed.png")] = before.pop(Path("cats", "3.png"))
    moved = pets.rename(tmp_path / "moved")
    after = {path.relative_to(moved): side for path, side in sides(find_dataset(moved)).items()}
    assert {path: side for path, side in after.items() if path.parts[0] != "ants"} == before


@pytest.mark.parametrize("seed", range(5))
def test_exact_copies_are_on_one_side(pets, seed):
    for number in range(20):
        shutil.copy(pets / "cats" / f"{number}.png", pets / "cats" / f"copy {number}.png")
    found = sides(find_dataset(pets, seed=seed))
    cats = pets / "cats"
    assert all(found[cats / f"{number}.png"] == found[cats / f"copy {number}.png"] for number in range(20))
    assert sum(side == "val" for path, side in found.items() if path.parent == cats) == 8


def test_a_picture_in_several_classes_is_asked_about(pets):
    shutil.copy(pets / "cats" / "1.png", pets / "dogs" / "a cat.png")
    words = (
        f"1 pictures are in several classes, such as {pets}/cats/1.png \\(cats\\) and {pets}/dogs/a cat.png \\(dogs\\)"
    )
    for find in (find_dataset, find_classes):
        with pytest.raises(ValueError, match=f"{words}; a picture is learnt as one class: keep .*--exclude"):
            find(pets)
        find(pets, exclude="a cat.png")


@pytest.mark.parametrize("find", [find_dataset, find_classes])
def test_pictures_of_one_size_are_told_apart_by_their_content(tmp_path, find):
    """Files of other classes with the same size, and the same end, are not the same picture."""
    for name in "ab":
        fill(tmp_path / name, "xy", first=3 * (name == "b"))
        (tmp_path / name / "z.png").write_bytes(name.encode() + bytes(10_000))
    find(tmp_path)


@pytest.mark.parametrize(("train", "val"), [("train", "val"), ("train", "valid"), ("Train", "Validation")])
def test_folders_train_and_val_are_the_sides(tmp_path, train, val):
    for side, name in ((train, "b"), (train, "a"), (val, "a"), (val, "b"), ("test", "a"), ("test", "b")):
        fill(tmp_path / side / name, "xy", 2 * (name == "b"))
    found = find_dataset(tmp_path)
    assert found.classes == ("a", "b")
    assert found.train == tuple(
        (tmp_path / train / "ab"[each] / f"{name}.png", each) for each in (0, 1) for name in "xy"
    )
    assert found.val == tuple((tmp_path / val / "ab"[each] / f"{name}.png", each) for each in (0, 1) for name in "xy")
    assert found.split == f"folders {train} and {val}"
    assert found.notes == (f"{tmp_path}: left out 4 pictures of test",)


def test_a_class_may_be_called_train(tmp_path):
    fill(tmp_path / "train", "abc")
    fill(tmp_path / "bus", "abc", 3)
    assert find_dataset(tmp_path).classes == ("bus", "train")


def test_a_table_is_split_as_the_folders_are(pets, tmp_path):
    wanted = sides(find_dataset(pets, seed=3))
    paths = sorted(pets.rglob("*.png"))
    rows = [("Path", " label"), *((path.relative_to(tmp_path), path.parent.name) for path in reversed(paths)), ()]
    found = find_dataset(write(tmp_path / "data.csv", *rows), seed=3)
    assert sides(found) == wanted
    assert found == find_dataset(pets, seed=3)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_a_table_may_say_the_sides(tmp_path, encoding):
    fill(tmp_path, ("a", "b", "c, d", "é", "f"))
    table = write(
        tmp_path / "data.csv",
        ("filename", "class", "split", "number"),
        ("a.png", "ünder", "train", 1),
        ("b.png", "ünder", "valid", 2),
        ("c, d.png", "over ", "Train", 3),
        (tmp_path / "é.png", "over", "val", 4),
        ("f.png", "beside", "test", 5),
        encoding=encoding,
    )
    assert find_dataset(table) == Dataset(
        ("over", "ünder"),
        ((tmp_path / "c, d.png", 0), (tmp_path / "a.png", 1)),
        ((tmp_path / "é.png", 0), (tmp_path / "b.png", 1)),
        "column split of data.csv",
        (f"{table}: left out 1 pictures of test",),
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", r"data\.csv is empty; give it a header"),
        ("path,label\n", "has no rows"),
        ("kind,label\nx,y\n", r"no column of pictures such as path, .* \(kind, label\); add it, or name .*--columns"),
        ("path,kind\na.png,x\n", r"no column label or class in its first line \(path, kind\); add it, or name"),
        ("path,label,class\na.png,x,y\n", r"several columns for the label \(label, class\); name the two"),
        ("foto,art\na.png,x\nb.png,y\n", r"1 lines are no name and label \(line 1: 'foto,art'\); .*--columns"),
        ("path,x,y\na.png,0,0\nb.png,0,1\n", r"only one class \(y\)"),
        ("path,label\na.png,20.5\nb.png,31\n", r"2 different numbers \(20\.5, 31\), which look like measured values"),
        ("path,label\na.png,x\n\nb.png\n", "line 4 has 1 fields, but the header has 2"),
        ("path,label\na.png, \n", r"line 2 has no class for a\.png"),
        ("path,label\n,x\n", "line 2 names no file"),
        ("path,label,split\na.png,x,dev\n", "line 2 has the split 'dev'; write train, val or test"),
        ("path,label,split\na.png,x,\n", "line 2 has the split ''"),
        ("path,label\na.png,x\nsub/../a.png,y\n", r"lines 2 and 3 name the same file, .*a\.png \(x and y\); keep one"),
        ("path,label,split\na.png,x,train\na.png,x,val\n", r"the same file, .*\(x train and x val\)"),
        ('path,label\n"a.png,x\n', "cannot be read as CSV .*a quote that is not closed"),
        ("path,label\na.png,x\nb.png,x\n", r"only one class \(x\)"),
        ("path,label\na.png,x\nb.png,y\n", "every class has only one picture, or copies of one, so none is left for"),
        ("path,label,split\na.png,x,train\nb.png,y,val\n", r"1 classes are in val and not in train \(y\)"),
    ],
)  # fmt: skip
def test_tables_that_say_nothing_sure_are_refused(tmp_path, text, words):
    fill(tmp_path, "abc")
    (tmp_path / "sub").mkdir()
    (tmp_path / "data.csv").write_text(text)
    with pytest.raises(ValueError, match=words):
        find_dataset(tmp_path / "data.csv")


def test_a_table_in_another_encoding_is_refused(tmp_path):
    (tmp_path / "data.csv").write_text("path,label\né.png,x\n", encoding="latin-1")
    with pytest.raises(ValueError, match=r"data\.csv is not UTF-8 text \(byte 11\)"):
        find_dataset(tmp_path / "data.csv")


def test_missing_files_of_a_table_are_listed_with_their_lines(tmp_path):
    fill(tmp_path, "ab")
    rows = [("path", "label"), ("a.png", "x"), *((f"none {number}.png", "y") for number in range(7)), ("b.png", "y")]
    with pytest.raises(
        FileNotFoundError, match=r"7 of 9 files are missing .*\(line 3: none 0\.png, .*line 7: .*, \.\.\.\).*--partial"
    ):
        find_dataset(write(tmp_path / "data.csv", *rows))
    rows += [("c.png", "x"), ("d.png", "y")]
    fill(tmp_path, "cd", 2)
    found = find_dataset(write(tmp_path / "data.csv", *rows), partial=True)
    assert len(sides(found)) == 4
    assert found.notes == (f"{tmp_path}/data.csv: left out 7 of 11 rows whose pictures are missing",)


def test_classes_on_one_side_alone_are_named(tmp_path):
    for number, name in enumerate(("train/a", "train/b", "train/c", "val/a", "val/d")):
        fill(tmp_path / name, "xy", 2 * number)
    with pytest.raises(ValueError, match=r"1 classes are in val and not in train \(d\), so they cannot be learnt"):
        find_dataset(tmp_path)
    found = find_dataset(tmp_path, exclude="d")
    assert found.classes == ("a", "b", "c")
    assert Counter(label for _, label in found.val) == {0: 2}
    assert found.notes == (
        f"{tmp_path}: 2 classes have no validation pictures (b, c); they are trained, but not evaluated",
    )


@pytest.mark.parametrize(
    ("folders", "words"),
    [
        (("animals/cats", "animals/dogs", "plants/oaks"), "animals .* the folders cats, dogs, .* name {}/animals if"),
        (("set/train/cats", "set/train/dogs", "set/val/cats"), "set .* the folders train/cats, .* name {}/set if"),
        (("bus", "train/cats", "train/dogs"), "train .* the folders cats, dogs, .* name {}/train if"),
        (
            ("train/pets/cats", "train/pets/dogs", "val/pets/cats"),
            "pets .* the folders cats, dogs, .* move the class folders into {}/train",
        ),
    ],
)
@pytest.mark.parametrize("find", [find_dataset, find_classes])
def test_folders_too_deep_are_named_with_the_one_to_give(tmp_path, folders, words, find):
    for folder in folders:
        fill(tmp_path / folder, "xy")
    with pytest.raises(ValueError, match=words.format(tmp_path)):
        find(tmp_path)


def test_what_lies_below_a_class_folder_belongs_to_its_class(tmp_path):
    """Of a folder with pictures of its own, or with one folder below, as in Tiny ImageNet, no other class is meant."""
    for number, folder in enumerate(("cats", "cats/more", "dogs/images")):
        fill(tmp_path / folder, "xy", 2 * number)
    assert {name: len(paths) for name, paths in find_classes(tmp_path).items()} == {"cats": 4, "dogs": 2}
    assert len(sides(find_dataset(tmp_path))) == 6


def test_a_folder_test_is_left_out_and_a_share_of_train_judges(tmp_path):
    """As CIFAR's folders are, and Kaggle's, whose test pictures have no classes."""
    for number, folder in enumerate(("test/cats", "test/dogs", "train/cats", "train/dogs")):
        fill(tmp_path / "cifar" / folder, "xyz", 3 * number)
    found = find_dataset(tmp_path / "cifar")
    assert {path.parts[-3] for path in sides(found)} == {"train"}
    assert (len(found.train), len(found.val), found.split) == (4, 2, "20 % of each class, seed 0")
    assert found.notes == (f"{tmp_path}/cifar: left out 6 pictures of test",)
    for path in (tmp_path / "cifar" / "test").rglob("*.png"):
        path.rename(tmp_path / "cifar" / "test" / f"{path.parent.name}{path.name}")
    assert sides(find_dataset(tmp_path / "cifar")) == sides(found)


@pytest.mark.parametrize("find", [find_dataset, find_classes])
@pytest.mark.parametrize("folders", [("train", "test"), ("train", "val"), ("Training",), ("test", "train", "bus")])
def test_flat_sides_are_not_taken_for_classes(tmp_path, find, folders):
    """Kaggle's dogs and cats: train/cat.0.jpg, test/1.jpg."""
    for number, folder in enumerate(folders):
        fill(tmp_path / folder, ("cat.0", "cat.1", "dog.0", "dog.1"), 4 * number)
    words = "pictures and no class folders, .* sort those of [Tt]rain.*--truth.*2 words that may be the classes"
    with pytest.raises(ValueError, match=words):
        find(tmp_path)
    with pytest.raises(ValueError, match=r"has no sub-folders, .* 2 words that may be the classes \(cat, dog\)"):
        find(tmp_path / folders[0])


def test_folders_that_cannot_be_learnt_from_are_refused(pets, tmp_path):
    with pytest.raises(FileNotFoundError, match="none does not exist; name a folder with a sub-folder for each class"):
        find_dataset(tmp_path / "none")
    with pytest.raises(FileNotFoundError, match=r"none\.csv does not exist; name a file"):
        find_dataset(tmp_path / "none.csv")
    with pytest.raises(NotADirectoryError, match=r"0\.png is not a folder, and no table \(\.csv, "):
        find_dataset(pets / "cats" / "0.png")
    with pytest.raises(ValueError, match="cats has no sub-folders, so nothing says which class a picture has"):
        find_dataset(pets / "cats")
    for share in (0, 1, -0.1, float("nan")):
        with pytest.raises(ValueError, match="give one above 0 and below 1"):
            find_dataset(pets, val_share=share)
    fill(pets / "ants", "x", 50)
    shutil.copy(pets / "ants" / "x.png", pets / "ants" / "copy.png")
    found = find_dataset(pets)
    assert Counter(found.classes[label] for _, label in found.train)["ants"] == 2
    assert "ants" not in {found.classes[label] for _, label in found.val}
    assert found.notes == (
        f"{pets}: 1 classes have no validation pictures (ants); they are trained, but not evaluated",
    )
    (pets / "bees").mkdir()
    with pytest.raises(ValueError, match=r"1 of 5 sub-folders hold no pictures \(bees\)"):
        find_dataset(pets)
    fill(tmp_path / "one" / "cats", "xy")
    with pytest.raises(ValueError, match=r"one has only one class \(cats\)"):
        find_dataset(tmp_path / "one")
    for side in ("train", "val", "valid"):
        fill(tmp_path / "both" / side / "cats", "xy")
    with pytest.raises(ValueError, match="has the folders val and valid, which mean the same; remove one"):
        find_dataset(tmp_path / "both")


def test_loose_pictures_are_left_out_with_a_warning(pets, tmp_path):
    fill(pets, ["loose"])
    with pytest.warns(PictureWarning, match=r"left out 1 pictures that are in no sub-folder, so of no class \(loose"):
        assert len(sides(find_dataset(pets))) == 33
    for name in ("train/a", "train/b", "val/a", "val/b"):
        fill(tmp_path / "sides" / name, "xy", 2 * name.endswith("b"))
    fill(tmp_path / "sides", ["loose"])
    with pytest.warns(PictureWarning, match=r"left out 1 pictures that are in no sub-folder, so of no class \(loose"):
        assert len(sides(find_dataset(tmp_path / "sides"))) == 8


def test_fewer_pictures_than_a_batch_are_refused(pets):
    found = find_dataset(pets)
    check_batch(found, 26)
    with pytest.raises(
        ValueError, match="there are 26 pictures to train on, fewer than a batch of 27; lower the batch to"
    ):
        check_batch(found, 27)
