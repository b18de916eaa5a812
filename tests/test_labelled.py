"""Tables of labels as people have them, and the layouts of public datasets: the same for every command."""

from __future__ import annotations

import os
import shutil
import unicodedata
from pathlib import Path

import pytest

from convnets_torch.card import Card
from convnets_torch.evaluation.labels import find_truth
from convnets_torch.images.decoding import PictureWarning, read_picture
from convnets_torch.images.finding import find_pictures
from convnets_torch.images.labelled import find_classes, find_labelled
from convnets_torch.images.preprocessing import preset
from convnets_torch.training.datasets import find_dataset
from convnets_torch.training.finetuning import finetune
from convnets_torch.training.settings import Settings
from convnets_torch.weights import save
from tests.finetuned import small_resnet
from tests.test_ground_truth import make


def card(*names: str) -> Card:
    return Card("vgg16", {"classes": len(names)}, preset("vgg16"), names)


@pytest.fixture
def pictures(tmp_path):
    """Six pictures of two folders; the odd ones are bees."""
    return make(tmp_path / "data", *(f"sub/{number}.png" for number in range(4)), "4.png", "5.jpg")


LABELS = {f"{number}": "bee" if number % 2 else "ant" for number in range(6)}
NAMES = ["sub/0.png", "sub/1.png", "sub/2.png", "sub/3.png", "4.png", "5.jpg"]


def rows(names=NAMES, mark=",", header="path,label", more=""):
    return "\n".join([header.replace(",", mark), *(f"{n}{mark}{LABELS[Path(n).stem[-1]]}{more}" for n in names)])


@pytest.mark.parametrize(
    "content",
    [
        rows().encode(),
        rows().encode("utf-8-sig"),
        rows().encode("utf-16"),
        rows(mark=";").encode(),
        rows(mark="\t").replace("\n", "\r\n").encode(),
        rows(header="ImageId,Class").encode(),
        rows(header='"file_name", "Breed"').encode(),
        rows(header="id,species").encode(),
        rows(["sub\\0.png", "sub\\1.png", "sub\\2.png", "sub\\3.png", "4.png", "5.jpg"]).encode(),  # of Windows
        rows(["0", "1", "2", "3", "4", "5"], header="id,breed").encode(),  # without endings and folders
        rows([f"data/{name}" for name in NAMES]).encode(),  # from the folder above
        rows([f"./{name}" for name in NAMES]).encode(),
        rows(header="id,path,label,label_id", more=",0").replace("\n", "\n7,").encode(),
        rows(header="ImageId,PredictionString", more=" 85 1 499 272 x 1 2 3 4").replace(" x ", " ant ").encode(),
        b"image,ant,bee\nsub/0,1,0\nsub/1,0,1\nsub/2,1,0\nsub/3,0,1\n4,1.0,0.0\n5,0,1\n",
        rows().partition("\n")[2].encode(),  # no header
        rows(mark=" ").partition("\n")[2].encode(),
    ],
)  # fmt: skip
def test_every_table_gives_the_same_labels_to_every_command(pictures, content):
    if b"PredictionString" in content:  # several boxes, of one class
        content = content.replace(b"bee 85 1 499 272 ant", b"bee 85 1 499 272 bee")
    table = pictures / "labels.csv"
    table.write_bytes(content)
    wanted = {pictures / name: LABELS[Path(name).stem] for name in NAMES}
    classes = find_classes(table)
    assert {path: label for label, paths in classes.items() for path in paths} == wanted
    dataset = find_dataset(table)
    assert {path: dataset.classes[label] for path, label in dataset.train + dataset.val} == wanted
    truth = find_truth(card("bee", "ant"), table)
    assert {path: ("bee", "ant")[label] for path, label in zip(truth.paths, truth.labels, strict=True)} == wanted
    table.rename(pictures.parent / "labels.csv")
    for found in (
        find_labelled(pictures, pictures.parent / "labels.csv"),
        find_labelled(pictures, Path(os.path.relpath(pictures.parent / "labels.csv"))),
    ):
        assert dict(zip(found.paths, found.labels, strict=True)) == wanted


def test_columns_can_be_named(pictures):
    (pictures / "labels.csv").write_text(rows(header="foto,art").replace("ant", "ameise"))
    found = find_labelled(pictures / "labels.csv", columns=("foto", "art"))
    assert set(found.labels) == {"ameise", "bee"}
    with pytest.raises(ValueError, match=r"no columns foto and kind in its first line \(foto,art\)"):
        find_labelled(pictures / "labels.csv", columns=("foto", "kind"))


def test_a_name_that_may_be_several_pictures_is_asked_about(tmp_path):
    make(tmp_path, "train/1.jpg", "train/2.jpg", "test/1.jpg", "test/2.jpg")
    (tmp_path / "labels.csv").write_text("id,label\n1,cat\n2,dog\n")
    with pytest.raises(ValueError, match=r"line 2: '1' may be .*test/1\.jpg, .*train/1\.jpg; .*--truth"):
        find_dataset(tmp_path / "labels.csv")
    assert len(find_classes(tmp_path / "train", truth=tmp_path / "labels.csv")) == 2
    (tmp_path / "labels.csv").write_text("id,label\ntrain/1,cat\ntrain/2,dog\n")
    with pytest.raises(FileNotFoundError, match=r"2 of 2 files are missing in .*/test "):
        find_labelled(tmp_path / "test", tmp_path / "labels.csv")  # though their names are there as well


def test_fewer_rows_than_pictures_are_said(pictures):
    table = pictures.parent / "labels.csv"
    table.write_text(rows(NAMES[:4]))
    for find in (find_dataset, find_classes):
        with pytest.raises(ValueError, match=r"has no row for 2 of 6 pictures of .* \(4\.png, 5\.jpg\); .*--partial"):
            find(pictures, truth=table)
    found = find_truth(card("ant", "bee"), pictures, truth=table, partial=True)
    assert found.labels.tolist() == [0, 1, 0, 1]
    assert found.notes == (f"{table}: left out 2 of 6 pictures of {pictures} (4.png, 5.jpg), for which it has no row",)


def test_whole_numbers_are_classes_unless_they_look_measured(pictures):
    table = pictures / "labels.csv"
    table.write_text(rows().replace("ant", "0").replace("bee", "1"))
    assert find_dataset(table).notes == (
        f"{table}: the labels are numbers, 0 to 1; each is taken for the name of a class",
    )
    with pytest.warns(PictureWarning, match="the labels are numbers, 0 to 1"):
        assert list(find_classes(table)) == ["0", "1"]
    names = [f"ages/{number}.png" for number in range(42)]
    make(pictures, *names)
    table.write_text("path,age\n" + "".join(f"{name},{20 + number // 2}\n" for number, name in enumerate(names)))
    with pytest.raises(ValueError, match=r"21 different numbers \(20, 21, 22, \.\.\.\), which look like measured"):
        find_dataset(table, columns=("path", "age"))


def test_numbers_for_classes_whose_names_have_numbers_in_another_order_are_asked_about(tmp_path):
    folder = make(tmp_path / "pictures", "a.png", "b.png", "c.png")
    (tmp_path / "truth.txt").write_text("0\n2\n1\n")
    told = card("class_0", "class_1", "class_2")
    assert find_truth(told, folder, truth=tmp_path / "truth.txt").labels.tolist() == [0, 2, 1]
    for names in (("class_0", "class_1", "class_10", "class_2"), ("class_1", "class_2", "class_3")):
        with pytest.raises(ValueError, match=r"may be the class class_\d+ or class id .*--labels class-ids"):
            find_truth(card(*names), folder, truth=tmp_path / "truth.txt")
        found = find_truth(card(*names), folder, truth=tmp_path / "truth.txt", labels="class-ids")
        assert found.labels.tolist() == [0, 2, 1]


def test_names_are_compared_in_one_normal_form(tmp_path):
    """macOS writes é as e and an accent."""
    for composed, side in ((True, "train"), (False, "val")):
        cafe, the = (unicodedata.normalize("NFC" if composed else "NFD", word) for word in ("café", "thé"))
        make(tmp_path / "data" / side, *(f"{name}/{number}.png" for name in (cafe, the) for number in range(2)))
    found = find_dataset(tmp_path / "data", exclude="thé/1.png")
    assert found.classes == (unicodedata.normalize("NFC", "café"), unicodedata.normalize("NFC", "thé"))
    assert (len(found.train), len(found.val)) == (4, 4)  # the pattern is of a path in `data`
    assert len(find_dataset(tmp_path / "data", exclude="*/thé/1.png").val) == 3
    known = card(unicodedata.normalize("NFD", "café"), "the")
    (tmp_path / "labels.csv").write_text(unicodedata.normalize("NFC", "id,label\ncafé/0,café\n"))
    truth = find_truth(known, tmp_path / "data" / "val", truth=tmp_path / "labels.csv", partial=True)
    assert truth.labels.tolist() == [0]


def test_evaluate_judges_by_test_or_val(tmp_path):
    for side in ("train", "val", "test"):
        make(tmp_path, *(f"{side}/{name}/{side}{number}.png" for name in "ab" for number in range(2)))
    found = find_truth(card("a", "b"), tmp_path)
    assert {path.parts[-3] for path in found.paths} == {"test"}
    assert found.notes == (f"{tmp_path}: evaluated on the 4 pictures of test; left out 4 of train and 4 of val",)
    shutil.rmtree(tmp_path / "test")
    assert {path.parts[-3] for path in find_truth(card("a", "b"), tmp_path).paths} == {"val"}
    shutil.rmtree(tmp_path / "val")
    with pytest.raises(ValueError, match="labelled pictures for training only"):
        find_truth(card("a", "b"), tmp_path)
    assert len(find_truth(card("a", "b"), tmp_path / "train").paths) == 4


def test_probe_learns_from_the_side_to_train_on(tmp_path):
    for side in ("train", "test"):
        make(tmp_path, *(f"{side}/{name}/{side}{number}.png" for name in "ab" for number in range(2)))
    with pytest.warns(PictureWarning, match=r"left out the pictures that are not for training \(4 of test\)"):
        found = find_classes(tmp_path)
    assert {path.parts[-3] for paths in found.values() for path in paths} == {"train"}


def test_what_storage_devices_archives_and_notebooks_leave_is_no_class(tmp_path):
    make(tmp_path, *(f"{name}/{number}.png" for name in "ab" for number in range(2)))
    make(tmp_path, "@eaDir/a.png", "a/@eaDir/0.png/thumb.png", "__MACOSX/a/._0.png", "b/._0.png", "#recycle/c.png")
    make(tmp_path, ".ipynb_checkpoints/0-checkpoint.png", "lost+found/d.png", "System Volume Information/e.png")
    (tmp_path / "a" / "Thumbs.db").touch()
    words = r"left out 8 hidden files and hidden or system folders \(#recycle, \.ipynb_checkpoints, @eaDir, \.\.\.\)"
    for find in (find_dataset, find_classes):
        with pytest.warns(PictureWarning, match=words):
            find(tmp_path)
    with pytest.warns(PictureWarning, match=words):
        assert len(find_truth(card("a", "b"), tmp_path).paths) == 4
    with pytest.warns(PictureWarning, match=words):
        assert list(find_classes(tmp_path)) == ["a", "b"]


def test_class_folders_may_be_links_and_are_read_once(tmp_path):
    make(tmp_path / "real", *(f"{name}/{number}.png" for name in "abc" for number in range(2)))
    chosen = tmp_path / "chosen"
    chosen.mkdir()
    for name in "ab":
        (chosen / name).symlink_to(tmp_path / "real" / name)
    (tmp_path / "real" / "a" / "loop").symlink_to(chosen)
    assert {name: len(paths) for name, paths in find_classes(chosen).items()} == {"a": 2, "b": 2}
    (chosen / "same").symlink_to(tmp_path / "real" / "a")
    (chosen / "up").symlink_to(tmp_path)
    with pytest.warns(PictureWarning, match=r"left out 2 links to folders, .* \(same, up\)"):
        assert list(find_classes(chosen)) == ["a", "b"]


def test_a_folder_that_cannot_be_listed_is_one_picture_with_an_error(tmp_path, monkeypatch):
    make(tmp_path, *(f"{name}/{number}.png" for name in "ab" for number in range(3)), "a/closed/x.png")
    listed = os.scandir

    def scandir(place):
        if str(place).endswith("closed"):
            raise PermissionError(13, "Permission denied", str(place))
        return listed(place)

    monkeypatch.setattr(os, "scandir", scandir)
    found = find_classes(tmp_path)
    assert [path.name for path in found["a"]] == ["0.png", "1.png", "2.png", "closed"]
    with pytest.raises(PermissionError, match="Permission denied"):
        read_picture(tmp_path / "a" / "closed")
    dataset = find_dataset(tmp_path)
    assert tmp_path / "a" / "closed" in dict(dataset.train + dataset.val)
    settings = Settings(head_epochs=1, epochs=0, batch=2)
    output = tmp_path / "mine.safetensors"
    done = finetune(small_resnet(), dataset, output, settings, cache=tmp_path / "cache", allow_leaks=True)
    assert list(done.failed) == [tmp_path / "a" / "closed"]


def test_every_command_takes_the_options_of_folders_and_tables(pictures, command, cache, tmp_path):
    """The picture that is excluded is the one that cannot be read: with it, each of them ends with 1."""
    (pictures / "sub" / "bad.png").write_text("no picture")
    weights, network = tmp_path / "small.safetensors", small_resnet()
    save(network, weights)
    for name, *options in (
        ("classify",),
        ("embed", "-o", tmp_path / "vectors.npz"),
        ("heatmap", "-o", tmp_path / "maps", "--target", "class 1", "--format", "npy", "--longest-side", 64),
        ("index", "-o", tmp_path / "pictures.lance"),
    ):
        assert command(name, weights, pictures, *options)[0] == 1
        if name == "heatmap":
            shutil.rmtree(tmp_path / "maps")
        code, _, error = command(name, weights, pictures, *options, "--exclude", "bad*", "--exclude", "5.jpg")
        assert code == 0, error
        assert "bad.png" not in error
    table = tmp_path / "labels.csv"
    table.write_text(rows(NAMES[:5], mark=";", header="foto,art").replace("ant", "class 0").replace("bee", "class 1"))
    reading = ("--truth", table, "--columns", "foto,art", "--exclude", "bad.png")
    for name, *options in (
        ("probe", "--folds", 2),
        ("evaluate", "--json"),
        ("finetune", "-o", tmp_path / "mine.safetensors", "--batch-size", 2, "--epochs", 0, "--allow-leaks"),
    ):
        code, _, error = command(name, weights, pictures, *options, *reading)
        assert (code, "has no row for 1 of 6 pictures" in error) == (1, True)
        code, _, error = command(name, weights, pictures, *options, *reading, "--partial")
        assert (code, "left out 1 of 6 pictures" in error) == (0, True), error
        code, _, error = command(name, weights, pictures, *options, "--columns", "foto")
        assert (code, "must name two columns" in error) == (2, True)


def test_words_of_two_other_labels_may_be_one_class(pictures):
    """Red wine is neither several labels, nor is a table in its own folder said to be left out."""
    (pictures / "labels.csv").write_text("path,label\nsub/0.png,red\nsub/1.png,wine\nsub/2.png,red wine\n")
    assert set(find_labelled(pictures / "labels.csv").labels) == {"red", "wine", "red wine"}
    assert len(find_labelled(pictures, pictures / "labels.csv", partial=True).paths) == 3


@pytest.mark.parametrize("exclude", ["4.png", ["*/3.png", "[45].*"], "sub"])
def test_rows_of_a_table_are_excluded_as_files_are(pictures, exclude):
    table = pictures.parent / "labels.csv"
    table.write_text(rows())
    wanted = set(find_pictures(pictures, exclude=exclude))
    assert 0 < len(wanted) < 6
    assert set(find_labelled(pictures, table, exclude=exclude).paths) == wanted
    table.rename(pictures / "labels.csv")
    assert set(find_labelled(pictures / "labels.csv", exclude=exclude).paths) == wanted


def test_a_name_that_is_misspelt_does_not_turn_all_lines_into_labels(pictures):
    table = pictures.parent / "labels.txt"
    table.write_text("0 ant\n1 bee\n2 ant\n3 bee\n4 ant\nfive bee\n")
    with pytest.raises(ValueError, match=r"1 lines are no name and label \(line 6: 'five bee'\)"):
        find_dataset(pictures, truth=table)


def test_rows_of_test_need_no_label(pictures):
    table = pictures / "labels.csv"
    table.write_text(rows(header="path,label,split", more=",train") + "\n9.png,,test\n")
    assert len(find_labelled(table).paths) == 6
    table.write_text(rows(header="path,label,split", more=",train") + "\n9.png,,train\n")
    with pytest.raises(ValueError, match=r"line 8 has no class for 9\.png"):
        find_labelled(table)
