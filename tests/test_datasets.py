"""Labelled pictures of folders and tables: who is on which side, and what is refused."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Iterable
from pathlib import Path

import pytest
from PIL import Image

from convnets_torch.images import PictureWarning
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
    assert (found.split, found.remarks) == ("20 % of each class, seed 0", ())
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


def test_a_picture_in_several_classes_is_remarked_on(pets):
    shutil.copy(pets / "cats" / "1.png", pets / "dogs" / "a cat.png")
    assert find_dataset(pets).remarks == (
        f"{pets}: 1 pictures stand in several classes, such as {pets}/dogs/a cat.png",
    )


@pytest.mark.parametrize(("train", "val"), [("train", "val"), ("train", "valid"), ("Train", "Validation")])
def test_folders_train_and_val_are_the_sides(tmp_path, train, val):
    for side, name in ((train, "b"), (train, "a"), (val, "a"), (val, "b"), ("test", "a"), ("test", "b")):
        fill(tmp_path / side / name, "xy")
    found = find_dataset(tmp_path)
    assert found.classes == ("a", "b")
    assert found.train == tuple(
        (tmp_path / train / "ab"[each] / f"{name}.png", each) for each in (0, 1) for name in "xy"
    )
    assert found.val == tuple((tmp_path / val / "ab"[each] / f"{name}.png", each) for each in (0, 1) for name in "xy")
    assert found.split == f"folders {train} and {val}"
    assert found.remarks == (f"{tmp_path}: left out the folders test, neither {train} nor {val}",)


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
        (f"{table}: left out 1 rows whose split is test",),
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", r"data\.csv is empty; give it a header"),
        ("path,label\n", "has a header and no rows"),
        ("path;label\na.png;x\n", r"no column path or image or file or filename .*; separate columns by commas"),
        ("path,kind\na.png,x\n", r"no column label or class in its first line \(path, kind\); add it"),
        ("path,label,class\na.png,x,y\n", r"several columns for the label \(label, class\); rename all but one"),
        ("path,label\na.png,x\n\nb.png\n", "line 4 has 1 fields, but the header has 2"),
        ("path,label\na.png, \n", r"line 2 has no class for a\.png"),
        ("path,label\n,x\n", "line 2 names no file"),
        ("path,label,split\na.png,x,dev\n", "line 2 has the split 'dev'; write train or val"),
        ("path,label,split\na.png,x,\n", "line 2 has the split ''"),
        ("path,label\na.png,x\nsub/../a.png,y\n", r"lines 2 and 3 name the same file, .*a\.png \(x and y\); keep one"),
        ("path,label,split\na.png,x,train\na.png,x,val\n", r"the same file, .*\(x train and x val\)"),
        ('path,label\n"a.png,x\n', "cannot be read as CSV .*a quote that is not closed"),
        ("path,label\na.png,x\nb.png,x\n", r"one class alone \(x\)"),
        ("path,label\na.png,x\nb.png,y\n", r"2 classes have one picture alone, or copies of one \(x, y\)"),
        ("path,label,split\na.png,x,train\nb.png,y,train\n", r"2 classes are in train and not in val \(x, y\)"),
    ],
)  # fmt: skip
def test_tables_that_say_nothing_sure_are_refused(tmp_path, text, words):
    fill(tmp_path, "ab")
    (tmp_path / "sub").mkdir()
    (tmp_path / "data.csv").write_text(text)
    with pytest.raises(ValueError, match=words):
        find_dataset(tmp_path / "data.csv")


def test_a_table_in_another_encoding_is_refused(tmp_path):
    (tmp_path / "data.csv").write_text("path,label\na.png,x\n", encoding="utf-16")
    with pytest.raises(ValueError, match=r"data\.csv is not UTF-8 text \(byte 0\)"):
        find_dataset(tmp_path / "data.csv")


def test_missing_files_of_a_table_are_listed_with_their_lines(tmp_path):
    fill(tmp_path, "ab")
    rows = [("path", "label"), ("a.png", "x"), *((f"none {number}.png", "y") for number in range(7)), ("b.png", "y")]
    with pytest.raises(
        FileNotFoundError, match=r"7 of 9 files are missing \(line 3: .*none 0\.png, .*line 7: .*, \.\.\.\)"
    ):
        find_dataset(write(tmp_path / "data.csv", *rows))


def test_classes_on_one_side_alone_are_named(tmp_path):
    for name in ("train/a", "train/b", "train/c", "val/a", "val/d"):
        fill(tmp_path / name, "xy")
    with pytest.raises(ValueError, match=r"2 classes are in train and not in val \(b, c\)"):
        find_dataset(tmp_path)
    for name in ("train/b", "train/c"):
        shutil.rmtree(tmp_path / name)
    with pytest.raises(
        ValueError, match=r"1 classes are in val and not in train \(d\); a class needs pictures on both"
    ):
        find_dataset(tmp_path)


@pytest.mark.parametrize(
    ("folders", "words"),
    [
        (("animals/cats", "animals/dogs", "plants/oaks"), "animals/cats is too deep: .* give {}/animals if"),
        (("set/train/cats", "set/train/dogs", "set/val/cats"), "set/train/cats is too deep: .* give {}/set if"),
        (("test/cats", "test/dogs", "train/cats", "train/dogs"), "train/cats is too deep: .* give {}/train if"),
        (("cats", "cats/more", "dogs"), "cats/more is too deep: .* move them into {}/cats"),
        (
            ("train/pets/cats", "train/pets/dogs", "val/pets/cats"),
            "is too deep: .* move its class folders into {}/train",
        ),
    ],
)
def test_folders_too_deep_are_named_with_the_one_to_give(tmp_path, folders, words):
    for folder in folders:
        fill(tmp_path / folder, "xy")
    with pytest.raises(ValueError, match=words.format(tmp_path)):
        find_dataset(tmp_path)


def test_folders_that_cannot_be_learnt_from_are_refused(pets, tmp_path):
    with pytest.raises(FileNotFoundError, match="none does not exist; name a folder with a sub-folder for each class"):
        find_dataset(tmp_path / "none")
    with pytest.raises(FileNotFoundError, match=r"none\.csv does not exist; name a file"):
        find_dataset(tmp_path / "none.csv")
    with pytest.raises(NotADirectoryError, match=r"0\.png is neither a folder nor a \.csv file"):
        find_dataset(pets / "cats" / "0.png")
    with pytest.raises(ValueError, match="cats has no sub-folders, but a class is a sub-folder of pictures"):
        find_dataset(pets / "cats")
    for share in (0, 1, -0.1, float("nan")):
        with pytest.raises(ValueError, match="give one above 0 and below 1"):
            find_dataset(pets, val_share=share)
    fill(pets / "ants", "x")
    shutil.copy(pets / "ants" / "x.png", pets / "ants" / "copy.png")
    with pytest.raises(ValueError, match=r"1 classes have one picture alone, or copies of one \(ants\)"):
        find_dataset(pets)
    (pets / "bees").mkdir()
    with pytest.raises(ValueError, match=r"1 of 5 sub-folders hold no pictures \(bees\)"):
        find_dataset(pets)
    fill(tmp_path / "one" / "cats", "xy")
    with pytest.raises(ValueError, match=r"one has one class alone \(cats\)"):
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
        fill(tmp_path / "sides" / name, "xy")
    fill(tmp_path / "sides", ["loose"])
    with pytest.warns(PictureWarning, match=r"left out 1 pictures that are neither in train nor in val \(loose"):
        assert len(sides(find_dataset(tmp_path / "sides"))) == 8


def test_fewer_pictures_than_a_batch_are_refused(pets):
    found = find_dataset(pets)
    check_batch(found, 26)
    with pytest.raises(
        ValueError, match="there are 26 pictures to train on, fewer than a batch of 27; lower the batch to"
    ):
        check_batch(found, 27)
