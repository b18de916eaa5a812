"""What a folder, a pattern and a name mean."""

from __future__ import annotations

import pytest

from convnets_torch.images.decoding import PictureWarning
from convnets_torch.images.finding import find_pictures


@pytest.fixture
def folder(tmp_path):
    """Pictures (empty: nothing here opens them) at two depths, made out of order."""
    for name in ("b.JPG", "sub/c.webp", "a.png", "sub/a.heic"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


def test_a_folder_means_its_pictures_and_those_below_it_sorted(folder):
    (folder / ".git").mkdir()
    for name in (".hidden.jpg", ".git/d.png", ".DS_Store"):
        (folder / name).touch()
    with pytest.warns(PictureWarning, match=r"left out 2 hidden files and .* folders \(\.git, \.hidden\.jpg\)"):
        found = [path.relative_to(folder).as_posix() for path in find_pictures(folder)]
    assert found == ["a.png", "b.JPG", "sub/a.heic", "sub/c.webp"]


def test_other_files_of_a_folder_are_left_out_and_that_is_said(folder):
    for name in ("notes.txt", "sub/Thumbs.db", "vgg16.h5", "LICENSE"):
        (folder / name).touch()
    with pytest.warns(PictureWarning, match=r"left out 4 files .* \(LICENSE, notes\.txt, Thumbs\.db, \.\.\.\)"):
        assert len(find_pictures(folder)) == 4


def test_a_pattern_means_the_files_that_match_it_sorted(folder):
    assert [path.name for path in find_pictures(str(folder / "*.*g"))] == ["a.png"]  # case counts, as in a shell
    assert [path.name for path in find_pictures(f"{folder}/**/*.[hw]e*")] == ["a.heic", "c.webp"]
    (folder / "notes.txt").touch()  # named by the pattern, so it is meant
    assert [path.name for path in find_pictures(f"{folder}/n*")] == ["notes.txt"]


def test_a_file_whose_name_looks_like_a_pattern_is_that_file(folder):
    (folder / "[ab].png").touch()
    assert find_pictures(str(folder / "[ab].png")) == [folder / "[ab].png"]


def test_names_keep_their_order_whether_they_exist_or_not(folder):
    names = [folder / "sub", folder / "none.jpg", folder / "a.png"]
    assert [path.name for path in find_pictures(names)] == ["a.heic", "c.webp", "none.jpg", "a.png"]


def test_a_folder_or_a_pattern_that_means_nothing_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no pictures; name another folder"):
        find_pictures(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no file matches .*\*\.jpg; name another pattern"):
        find_pictures(f"{tmp_path}/*.jpg")


@pytest.mark.parametrize(
    ("exclude", "wanted"),
    [
        ("sub", ["a.png", "b.JPG"]),
        (["*.webp", "b.*"], ["a.png", "sub/a.heic"]),
        ("sub/a*", ["a.png", "b.JPG", "sub/c.webp"]),
        ("A*", ["a.png", "b.JPG", "sub/a.heic", "sub/c.webp"]),
    ],
)
def test_patterns_leave_out_names_and_paths(folder, exclude, wanted):
    exclude = [exclude, folder.name] if isinstance(exclude, str) else exclude  # not of the folder that is named
    found = find_pictures(folder, exclude=exclude)
    assert [path.relative_to(folder).as_posix() for path in found] == wanted
    matching = find_pictures(f"{folder}/**/*.*", exclude=exclude)
    assert {path.relative_to(folder).as_posix() for path in matching} == {*wanted}


def test_links_to_folders_are_named(folder, tmp_path_factory):
    other = tmp_path_factory.mktemp("other")
    (other / "d.png").touch()
    (folder / "sub" / "elsewhere").symlink_to(other)
    with pytest.warns(PictureWarning, match=r"left out 1 links to folders, which are not followed.* \(elsewhere\)"):
        assert len(find_pictures(folder)) == 4
    (other / "only").mkdir()
    (other / "only" / "link").symlink_to(folder)
    with pytest.raises(FileNotFoundError, match="holds no pictures but 1 links to folders, which are not followed"):
        find_pictures(other / "only")


def test_a_link_in_a_circle_is_not_followed(folder):
    (folder / "sub" / "up").symlink_to(folder)
    assert len(find_pictures(folder)) == 4
