"""Find labelled pictures in folders and tables, for `probe`, `finetune`, `evaluate` and the doctor."""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import os
import re
import warnings
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path

from convnets_torch.files import open_file, resolved, sha256
from convnets_torch.images.decoding import MOST_BYTES as MOST_PICTURE_BYTES
from convnets_torch.images.decoding import PictureWarning
from convnets_torch.images.finding import ENDINGS, Listing, few, list_folder, named_by, normal
from convnets_torch.options import FormerAttribute
from convnets_torch.text import printable

SIDES = {
    "train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "test": "test",
    "testing": "test",
}  # fmt: skip
TABLES = (".csv", ".tsv", ".tab", ".txt")

# Known column names, in lower case without blanks, `_` and `-`; the first group that a table has a column of is used.
PATHS = (
    {"path", "filepath", "imagepath", "imgpath"},
    {"file", "filename", "imagefile", "imagefilename"},
    {"image", "img", "imagename", "imgname", "imageid", "imgid", "picture", "photo"},
    {"id", "name", "key"},
)
LABELS = (
    {
        "label", "labels", "class", "classname", "labelname", "category", "breed", "species", "target", "tag", "tags",
        "wnid", "synset", "groundtruth", "truth", "predictionstring",
    },
    {"classid", "labelid", "categoryid", "targetid"},
)  # fmt: skip
SPLITS = ({"split", "subset", "partition"},)
PLURAL = {"labels", "tags"}  # columns whose labels may be separated by blanks
BOXES = "predictionstring"  # column of ImageNet's tables: a class and four numbers for each box

MOST_BYTES = 1 << 28  # maximum size of a table
MOST_ROWS = 2_000_000
MOST_COLUMNS = 1000
MOST_LINE = 1 << 16  # characters
MOST_PATH, MOST_LABEL = 4096, 1000  # characters of a path and of a class name
MOST_NUMBERS = 20  # more numeric labels than this, most with few pictures, are taken for measured values
TAIL = 4096  # bytes at the end of files of equal size that are compared before their whole contents


@dataclass(frozen=True)
class LabelledPictures:
    """Pictures and their labels.

    Attributes:
        where: the folder or table that was read.
        paths: paths of the N pictures, sorted; those of class folders by class first.
        labels: (N) class names, NFC-normalised; several labels of a picture are joined by "|".
        sides: (N) "train", "val" or "test"; None if unknown.
        split: where the sides come from, in words; empty if they are unknown.
        notes: sentences on what was left out or is doubtful.
        empty: names of class folders without pictures.
        doubt: a sentence on what else may be meant, if folders are nested deeper than class folders.
        several: (N) all labels of each picture, if some have several or none; None if each has one.
    """

    where: Path
    paths: tuple[Path, ...]
    labels: tuple[str, ...]
    sides: tuple[str | None, ...]
    split: str = ""
    notes: tuple[str, ...] = ()
    remarks = FormerAttribute("notes")
    empty: tuple[str, ...] = ()
    doubt: str | None = None
    several: tuple[tuple[str, ...], ...] | None = None

    @property
    def every(self) -> tuple[tuple[str, ...], ...]:
        """(N) all labels of each picture."""
        return tuple((label,) for label in self.labels) if self.several is None else self.several

    def of(self, *sides: str | None) -> LabelledPictures:
        """Return only the pictures of the given sides."""
        kept = [number for number, side in enumerate(self.sides) if side in sides]
        paths, labels = tuple(self.paths[each] for each in kept), tuple(self.labels[each] for each in kept)
        several = None if self.several is None else tuple(self.several[each] for each in kept)
        return replace(
            self, paths=paths, labels=labels, sides=tuple(self.sides[each] for each in kept), several=several
        )

    def by_class(self) -> dict[str, list[Path]]:
        """Map each class, or set of labels, to its pictures, sorted by name."""
        found: dict[str, list[Path]] = {}
        for label, path in sorted(zip(self.labels, self.paths, strict=True)):
            found.setdefault(label, []).append(path)
        return found


def find_labelled(
    data: str | os.PathLike[str],
    truth: str | os.PathLike[str] | None = None,
    *,
    columns: Sequence[str] | None = None,
    partial: bool = False,
    exclude: str | Iterable[str] = (),
    several: bool = False,
) -> LabelledPictures:
    """Find pictures and their labels in class folders or a table.

    In a folder, each sub-folder is a class. Sub-folders called `train`, `val` (or `valid`, `validation`) or `test` are
    splits that contain the class folders. A class folder may be a link.

    A table has a line for each picture: its name and its label, separated by commas, semicolons, tabs or blanks, in
    UTF-8 or UTF-16, with or without a header; or, with a folder, only the label, for the pictures sorted by name.
    Columns are recognised by name (`path`, `image_id`, `label`, `Class`, `breed`, ...); instead of a label column,
    there may be one column for each class, with a 1 for the picture's class. A column `split` gives the side. Names of
    pictures are relative to the folder, or to the table's own; the end of the path suffices, with or without the
    file's ending, if it is unique.

    A table has pictures with several labels if a row has several columns with a 1, or none; or if a label consists of
    others, separated by `|`, by a comma or semicolon, or by blanks in a column `labels` or `tags`.

    Args:
        data: a folder, or a table of pictures beside and below it.
        truth: a table of the pictures in the folder `data`.
        columns: names of the two columns of pictures and labels.
        partial: continue if pictures of the folder are not in the table, or pictures of the table are missing.
        exclude: as in `find_pictures`.
        several: accept pictures with several labels, or with none in a table with a column for each class.

    Raises:
        OSError: a folder or table is missing or cannot be read, or pictures of the table are missing.
        ValueError: the folder has no class folders, the table is ambiguous, or its pictures have several labels and
            `several` is False.

    Warns:
        PictureWarning: hidden files, files that are not pictures, or pictures outside class folders were left out.
    """
    place = Path(data)
    if truth is not None:
        if not place.is_dir():
            raise NotADirectoryError(f"{place} is not a folder; name the folder of the pictures that {truth} labels")
        return _read_table(Path(truth), place, columns, partial, exclude, several)
    if place.suffix.lower() in TABLES and not place.is_dir():
        return _read_table(place, None, columns, partial, exclude, several)
    wanted = "name a folder with a sub-folder for each class"
    if not place.exists():
        raise FileNotFoundError(f"{place} does not exist; {wanted}")
    if not place.is_dir():
        raise NotADirectoryError(f"{place} is not a folder, and no table ({', '.join(TABLES)}); {wanted}")
    if columns is not None or partial:
        raise ValueError(f"{place} is a folder; columns and partial are for tables (--truth, truth in Python)")
    return _read_folder(place, exclude)


def find_classes(
    folder: str | os.PathLike[str],
    *,
    truth: str | os.PathLike[str] | None = None,
    columns: Sequence[str] | None = None,
    partial: bool = False,
    exclude: str | Iterable[str] = (),
) -> dict[str, list[Path]]:
    """Map each class to its pictures, sorted by name; with folders `train`, `val` and `test`, only those of `train`.

    Args:
        folder: a folder with a sub-folder for each class, or a table.
        truth, columns, partial, exclude: as in `find_dataset`.

    Raises:
        OSError: `folder` is not a folder or cannot be listed; or as `find_dataset`.
        ValueError: there are fewer than two sub-folders, some without pictures, or pictures nested deeper than class
            folders; a picture is in several classes; or as `find_dataset`.

    Warns:
        PictureWarning: pictures outside sub-folders, files that are not pictures, or other sides were left out.

    >>> find_classes("photos")
    Traceback (most recent call last):
    ...
    FileNotFoundError: photos does not exist; name a folder with a sub-folder for each class
    """
    found = find_labelled(folder, truth, columns=columns, partial=partial, exclude=exclude)
    kept = found.of("train", None)
    check_classes(kept)
    notes = list(kept.notes)
    if len(kept.paths) < len(found.paths):
        others = Counter(side for side in found.sides if side not in ("train", None))
        counts = " and ".join(f"{count} of {side}" for side, count in sorted(others.items()))
        notes.append(f"{found.where}: left out the pictures that are not for training ({counts})")
    for note in (*notes, *number_notes(kept)):
        warnings.warn(printable(note), PictureWarning, stacklevel=2)
    check_once(kept.by_class())
    return kept.by_class()


def check_classes(found: LabelledPictures) -> None:
    """Check that classes can be learnt from the pictures.

    Raises:
        ValueError: class folders are ambiguous or empty, there is only one class, or the labels look like measured
            values.
    """
    if found.doubt:
        raise ValueError(found.doubt)
    if found.empty:
        count = len(found.empty) + len(set(found.labels))
        raise ValueError(
            f"{found.where}: {len(found.empty)} of {count} sub-folders hold no pictures ({few(found.empty)}); fill"
            " them, or remove them"
        )
    names = sorted({label for labels in found.every for label in labels})
    if len(names) < 2:
        alone = ", ".join(names) or "none"
        raise ValueError(f"{found.where} has only one class ({alone}), so nothing to tell apart; add another")
    number_notes(found)


def number_notes(found: LabelledPictures) -> list[str]:
    """Return a note if the labels of a table are numbers.

    Raises:
        ValueError: they look like measured values, such as ages, rather than classes.
    """
    counts = Counter(label for labels in found.every for label in labels)
    number = r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?"
    if found.where.is_dir() or not all(re.fullmatch(number, label, re.ASCII) for label in counts):
        return []
    shown = few(sorted(counts, key=float), 3)
    fractions = [label for label in counts if not label.lstrip("+-").isdecimal()]
    rare = sum(count < 5 for count in counts.values())
    if fractions or (len(counts) > MOST_NUMBERS and 2 * rare > len(counts)):
        raise ValueError(
            f"{found.where}: the labels are {len(counts)} different numbers ({shown}), which look"
            " like measured values, but classes are learnt here; write the name of a class in their place ('20 to"
            " 29'), or name another column with --columns (columns in Python)"
        )
    lowest, highest = min(counts, key=int), max(counts, key=int)
    return [f"{found.where}: the labels are numbers, {lowest} to {highest}; each is taken for the name of a class"]


def check_once(classes: Mapping[str, Iterable[Path]]) -> None:
    """Raise ValueError if a picture is in several classes; the message names the first ones."""
    if words := in_several(classes):
        raise ValueError(
            f"{words}; a picture is learnt as one class: keep it where it belongs, or leave it out (--exclude, exclude"
            " in Python)"
        )


def in_several(classes: Mapping[str, Iterable[Path]]) -> str | None:
    """Describe pictures with the same content in several classes; compares sizes first, so few files are read."""
    pictures = [(path, label) for label, paths in classes.items() for path in paths]
    for key in (_size, _tail, _content):
        groups: defaultdict[object, list[tuple[Path, str]]] = defaultdict(list)
        for path, label in pictures:
            with contextlib.suppress(OSError, ValueError):
                if found := key(path):
                    groups[found].append((path, label))
        several = [group for group in groups.values() if len({label for _, label in group}) > 1]
        pictures = [pair for group in several for pair in group]
    if not pictures:
        return None
    paths = " and ".join(f"{path} ({label})" for path, label in several[0][:4])
    return f"{len(several)} pictures are in several classes, such as {paths}"


def _size(path: Path) -> object:
    return path.stat().st_size


def _tail(path: Path) -> object:
    with open_file(path) as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - TAIL))
        return size, hashlib.sha256(file.read(TAIL)).digest()


def _content(path: Path) -> object:
    return sha256(path, max_bytes=MOST_PICTURE_BYTES)


# Folders


def _read_folder(folder: Path, exclude: str | Iterable[str]) -> LabelledPictures:
    listing = list_folder(folder, exclude=exclude, linked=2)
    listing.warn(others=False)
    parts = {path: path.relative_to(folder).parts + ("",) * (path in listing.closed) for path in listing.pictures}
    places = [*listing.folders, *listing.closed]
    tops = sorted({place.relative_to(folder).parts[0] for place in places})
    if not tops:
        raise ValueError(
            f"{folder} has no sub-folders, so nothing says which class a picture has; sort them into a sub-folder for"
            f" each class, or name a table with their labels (--truth, truth in Python){_label_hint(parts)}"
        )
    depth = dict.fromkeys(tops, 0)  # of the deepest picture in each: 1 in itself, 2 in a folder in it, ...
    for names in parts.values():
        if len(names) > 1:
            depth[names[0]] = max(depth[names[0]], len(names) - 1)
    sides = [top for top in tops if top.lower() in SIDES and depth[top]]
    others = [top for top in tops if top not in sides and depth[top]]
    homes: list[tuple[str | None, Path]] = [(None, folder)]  # side, folder of its class folders
    if len({SIDES[top.lower()] for top in sides}) > 1 or (sides and not others):
        homes = [(SIDES[top.lower()], folder / top) for top in sides if depth[top] > 1]
        others += [top for top in sides if depth[top] == 1]
        if not homes:
            first = min(sides, key=lambda name: SIDES[name.lower()] != "train")
            raise ValueError(
                f"{folder} has the folders {' and '.join(sides)} with pictures and no class folders, so nothing says"
                f" which class a picture has; sort those of {first} into a sub-folder for each class, or name a table"
                " with their labels (--truth, truth in Python)"
                f"{_label_hint(path for path, names in parts.items() if len(names) == 2)}"
            )
    if same := [side for side, count in Counter(side for side, _ in homes).items() if count > 1]:
        twice = " and ".join(home.name for side, home in homes if side == same[0])
        raise ValueError(f"{folder} has the folders {twice}, which mean the same; remove one")
    found: list[tuple[str, Path, str | None]] = []
    doubts, split, notes = [], [], []
    loose = {path for path, names in parts.items() if len(names) == 1}
    for side, home in sorted(homes, key=lambda pair: pair[0] or ""):
        level = len(home.parts) - len(folder.parts)
        inside = [path for path in parts if home in path.parents and path not in loose]
        loose |= {path for path in inside if len(parts[path]) == level + 1}
        classes, doubt = _classes(home, {path: parts[path][level:] for path in inside if path not in loose})
        found += [(label, path, side) for label, path in classes]
        doubts += [doubt] if doubt else []
        split += [home.name] if side in ("train", "val") else []
    if loose:
        which = few(sorted(path.name for path in loose), 3)
        sentence = f"{folder}: left out {len(loose)} pictures that are in no sub-folder, so of no class ({which})"
        warnings.warn(printable(sentence), PictureWarning, stacklevel=4)
    if others and homes[0][0] is not None:
        beside = " and ".join(home.name for _, home in homes)
        notes.append(f"{folder}: left out the folders {few(others)}, beside {beside} with their classes")
    learnt = next((home for side, home in homes if side in (None, "train")), None)
    full = {label for label, _, side in found if side in (None, "train")}
    empty = sorted(place.name for place in places if place.parent == learnt and normal(place.name) not in full)
    return LabelledPictures(
        folder,
        tuple(path for _, path, _ in found),
        tuple(label for label, _, _ in found),
        tuple(side for _, _, side in found),
        f"folders {' and '.join(split)}" if split else "",
        tuple(notes),
        tuple(empty),
        doubts[0] if doubts else None,
    )


def _classes(home: Path, parts: Mapping[Path, tuple[str, ...]]) -> tuple[list[tuple[str, Path]], str | None]:
    """(class, picture) pairs from the parts of paths below `home`, and a sentence if class folders are ambiguous."""
    below: defaultdict[str, set[str]] = defaultdict(set)  # class folder -> folders with pictures in it; "" is itself
    for name, *deeper, _ in parts.values():
        below[name].add("/".join(deeper))
    doubt = None
    if name := min((name for name, inner in below.items() if len(inner) > 1 and "" not in inner), default=""):
        doubt = (
            f"{home / name} holds no pictures itself but the folders {few(sorted(below[name]), 3)}, so whether {name}"
            f" is a class or these are is not sure; name {home / name} if its sub-folders are the classes, move the"
            f" class folders into {home} (or the pictures into {home / name}), or give a table of pictures and labels"
        )
    return sorted((normal(names[0]), path) for path, names in parts.items()), doubt


def _label_hint(pictures: Iterable[Path]) -> str:
    """Hint that names such as `cat.0.jpg` and `dog.7.jpg` contain the labels; empty if they do not."""
    counts = Counter(re.sub(r"[ ._-]*\d+$", "", path.stem) for path in pictures)
    words = sorted(word for word, count in counts.items() if count > 1 and word and not word.isdigit())
    if len(words) < 2 or len(words) > sum(counts.values()) / 2:
        return ""
    return f"; their names begin with {len(words)} words that may be the classes ({few(words)})"


# Tables


@dataclass(frozen=True)
class Row:
    """One picture of a table.

    Attributes:
        line: line number in the file, from 1.
        name: name of the picture; None if its position in the table identifies it.
        labels: stripped, NFC-normalised; one, unless pictures may have several.
        side: "train", "val" or "test"; None if the table has no such column.
    """

    line: int
    name: str | None
    labels: tuple[str, ...]
    side: str | None = None


def _read_table(
    table: Path,
    folder: Path | None,
    columns: Sequence[str] | None,
    partial: bool,
    exclude: str | Iterable[str],
    several: bool,
) -> LabelledPictures:
    lines = read_lines(table)
    header = _header(table, lines, columns)
    listing = None if folder is None else list_folder(folder, exclude=exclude)
    if listing is not None:
        listing.others = [path for path in listing.others if not path.samefile(table)]
        listing.warn()
        if not listing.pictures:
            raise FileNotFoundError(f"{folder} holds no pictures; name another folder")
    finder = _Finder(table, listing, exclude)
    rows = _rows(table, lines, *header) if header is not None else _headerless_rows(table, lines, finder, partial)
    if exclude:
        left_out = named_by(exclude)
        rows = [row for row in rows if row.name is None or not left_out(Path(row.name.replace("\\", "/")))]
    notes = []
    if header is not None and isinstance(header[3][1], dict):
        how = "by their columns of 0 and 1"
        if all(len(row.labels) == 1 or (not row.labels and row.side == "test") for row in rows):
            rows = [row for row in rows if row.labels]
        marked = {label for row in rows for label in row.labels}
        if unmarked := [name for name in header[3][1].values() if name not in marked]:
            notes.append(f"{table}: no picture has a 1 in {len(unmarked)} columns ({few(unmarked)})")
    else:
        rows, how = _split_labels(rows, header is not None and not {*map(_column_key, header[2])}.isdisjoint(PLURAL))
    odd = next((row for row in rows if len(row.labels) != 1), None)
    if odd is not None and not several:
        raise _label_count_error(table, odd)
    if not rows:
        raise ValueError(f"{table} has no rows; give it a line for each picture: its path and its label")
    if all(row.name is None for row in rows):
        found = dict(zip(finder.match_order(len(rows)), rows, strict=True))
    else:
        found, missing = finder.match_rows(rows)
        if missing:
            if not partial:
                named = few([f"line {row.line}: {row.name}" for row in missing])
                raise FileNotFoundError(
                    f"{table}: {len(missing)} of {len(rows)} files are missing in {folder or table.parent} ({named});"
                    " name the folder of the pictures with the table as --truth (truth in Python), or go on without"
                    " these rows: --partial (partial=True in Python)"
                )
            notes.append(f"{table}: left out {len(missing)} of {len(rows)} rows whose pictures are missing")
        if not found:
            raise ValueError(f"{table}: none of {len(rows)} rows names a picture that is there")
        if listing is not None and (extra := [path for path in listing.pictures if path not in found]):
            words = f"{len(extra)} of {len(listing.pictures)} pictures of {folder} ({few([p.name for p in extra], 3)})"
            if not partial:
                raise ValueError(
                    f"{table} has no row for {words}; add rows, or go on without these pictures: --partial"
                    " (partial=True in Python)"
                )
            notes.append(f"{table}: left out {words}, for which it has no row")
    paths = sorted(found)
    every, sides = tuple(found[path].labels for path in paths), tuple(found[path].side for path in paths)
    split = f"column split of {table.name}" if any(sides) else ""
    if odd is not None:
        counts = Counter(min(len(labels), 2) for labels in every)
        none = f", and {counts[0]} none" if counts[0] else ""
        notes.append(
            f"{table}: {counts[2]} of {len(every)} pictures have several labels{none} ({how}); each label is a yes or"
            " no of its own"
        )
    labels = tuple("|".join(each) for each in every)
    return LabelledPictures(
        table, tuple(paths), labels, sides, split, tuple(notes), several=None if odd is None else every
    )


def read_labels(table: Path, columns: Sequence[str] | None = None) -> list[tuple[str, str]]:
    """Read the name and the label of each row of a table with a header, without looking for the pictures.

    Args:
        table, columns: as in `find_labelled`.

    Raises:
        OSError: the table cannot be read.
        ValueError: it has no header with a column of names and one of labels, or a row without a label.
    """
    lines = read_lines(table)
    header = _header(table, lines, columns)
    if header is None:
        raise ValueError(f"{table} has no header; give it one with the columns path and label")
    rows = _rows(table, lines, *header)
    odd = next((row for row in rows if len(row.labels) != 1), None)
    if odd is not None:
        raise _label_count_error(table, odd)
    return [(str(row.name), row.labels[0]) for row in rows]


class _Finder:
    """Resolves names of pictures in a table to paths."""

    def __init__(self, table: Path, listing: Listing | None, exclude: str | Iterable[str]) -> None:
        self._table, self._listing, self._exclude = table, listing, exclude
        self.find = cache(self._find)

    def _find(self, name: str) -> list[Path]:
        """The pictures that a name may refer to."""
        spellings = dict.fromkeys((name.strip(), name.strip().replace("\\", "/")))
        if self._listing is None:
            for path in (self._table.parent / spelling for spelling in spellings):
                if os.path.isfile(path):  # noqa: PTH113 - Path raises where a name is too long
                    return [path]
        for spelling in spellings:
            if found := self._find_by_end(spelling):
                return found
        return []

    @cached_property
    def _ends(self) -> dict[str, list[tuple[Path, str]]]:
        """Name or stem -> (picture, normalised path)."""
        ends = defaultdict(list)
        for path in (self._listing or list_folder(self._table.parent, exclude=self._exclude)).pictures:
            for word in {normal(path.name), normal(path.stem)}:
                ends[word].append((path, _normal_path(path)))
        return ends

    def _find_by_end(self, name: str) -> list[Path]:
        """Pictures whose path ends with `name`, with or without the file's ending; an exact match is preferred."""
        end = "/" + normal(name).removeprefix("./").lstrip("/")
        near = self._ends.get(end.rpartition("/")[2], [])
        found = [path for path, whole in near if whole.endswith(end) or whole.removesuffix(path.suffix).endswith(end)]
        if len(found) == 1 or not near or self._listing is None:
            return found
        exact = (_normal_path(base / name) for base in (self._listing.folder, self._table.parent))
        return next(
            (several for place in exact if (several := [each for each, whole in near if whole == place])), found
        )

    def match_rows(self, rows: Sequence[Row]) -> tuple[dict[Path, Row], list[Row]]:
        """Map pictures to their rows; also return the rows whose pictures are missing.

        Raises:
            ValueError: a row matches several pictures, or several rows match one.
        """
        found: dict[Path, Row] = {}
        first: dict[Path, Row] = {}
        missing = []
        for row in rows:
            assert row.name is not None
            paths = self.find(row.name)
            if len(paths) > 1:
                raise ValueError(
                    f"{self._table}, line {row.line}: {row.name!r:.200} may be {few([*map(str, paths)], 3)}; write the"
                    " folder before the name, or name the folder of the pictures with the table as --truth (truth in"
                    " Python)"
                )
            if not paths:
                missing.append(row)
                continue
            before = first.setdefault(resolved(paths[0]), row)
            if before is not row:
                says = " and ".join(" ".join(filter(None, (*each.labels, each.side))) for each in (before, row))
                raise ValueError(
                    f"{self._table}: lines {before.line} and {row.line} name the same file, {paths[0]} ({says}); keep"
                    " one of them"
                )
            found[paths[0]] = row
        return found, missing

    def match_order(self, count: int) -> list[Path]:
        """The pictures sorted by name, for a table of labels without names.

        Raises:
            ValueError: there is no folder, their number differs from `count`, or they lie in several folders.
        """
        table = self._table
        if self._listing is None:
            raise ValueError(
                f"{table} has no names of pictures that are beside or below it; write a header with the columns path"
                " and label, or name the folder of the pictures with the table as --truth (truth in Python)"
            )
        pictures, folder = self._listing.pictures, self._listing.folder
        if count != len(pictures):
            raise self._count_error(count, len(pictures))
        if below := [path for path in pictures if path.parent != folder]:
            raise ValueError(
                f"{table} has labels without names, for the pictures of one folder sorted by name, but {folder} has"
                f" sub-folders ({below[0].parent.name}); write the name of the picture before each label"
            )
        return pictures

    def check_count(self, lines: int, partial: bool) -> None:
        """Raise ValueError if there are more lines than pictures; one may be a header."""
        if self._listing is not None and lines > len(self._listing.pictures) + 1 and not partial:
            raise self._count_error(lines, len(self._listing.pictures))

    def _count_error(self, lines: int, pictures: int) -> ValueError:
        folder = self._listing.folder if self._listing is not None else self._table.parent
        return ValueError(
            f"{self._table} has {lines} lines, but {folder} holds {pictures} pictures; a line for each is wanted, or"
            " names of pictures before the labels and --partial (partial=True in Python)"
        )


def _normal_path(path: Path) -> str:
    return normal(os.path.abspath(path)).replace(os.sep, "/")  # noqa: PTH100 - links stay links


def read_lines(path: Path) -> list[tuple[int, str]]:
    """Read (number from 1, line with its line break) of a file in UTF-8, or in UTF-16 with a byte order mark.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is not such text, or has too many or too long lines.
    """
    lines = []
    try:
        with open_file(path, max_bytes=MOST_BYTES) as opened:
            encoding = "utf-16" if opened.read(2) in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
            opened.seek(0)
            with io.TextIOWrapper(opened, encoding, newline="") as file:
                number = 0
                while line := file.readline(MOST_LINE):
                    number += 1
                    if len(line) == MOST_LINE or "\0" in line:
                        what = "a NUL byte" if "\0" in line else f"more than {MOST_LINE:,} characters"
                        raise ValueError(f"{path}, line {number} has {what}; is it a table of pictures?")
                    if number > MOST_ROWS + 1:
                        raise ValueError(f"{path} has more than {MOST_ROWS:,} lines; is it a table of pictures?")
                    lines.append((number, line))
    except UnicodeDecodeError as error:
        kind = "UTF-16" if encoding == "utf-16" else "UTF-8"
        raise ValueError(f"{path} is not {kind} text (byte {error.start}); save it as CSV in UTF-8") from None
    return lines


Columns = tuple[int, int | dict[int, str], int | None]  # indices: name; label, or index -> class; split


def _header(
    table: Path, lines: Sequence[tuple[int, str]], columns: Sequence[str] | None
) -> tuple[str, int, list[str], Columns] | None:
    """Return (delimiter, index of the first row, header, columns) if the table has a known header, else None.

    Raises:
        ValueError: a column is missing or ambiguous.
    """
    start = next((number for number, (_, line) in enumerate(lines) if line.strip()), None)
    if start is None:
        raise ValueError(
            f"{table} is empty; give it a header with the columns path and label, and a row for each picture"
        )
    best: tuple[int, str, list[str]] | None = None
    for mark in ",;\t":
        fields = [field.strip() for field in _fields(table, lines[start][1], mark)]
        words = [_column_key(field) for field in fields]
        if columns is None:
            fits = len(fields) > 1 and any(_column_indices(words, groups) for groups in (PATHS, LABELS))
            fits = fits and not any(Path(field).suffix.lower() in ENDINGS for field in fields)
        else:
            fits = all(column in fields for column in columns)
        if fits and (best is None or len(fields) > best[0]):
            best = (len(fields), mark, fields)
    if best is None:
        if columns is not None:
            raise ValueError(
                f"{table} has no columns {' and '.join(columns)} in its first line ({lines[start][1].strip():.200})"
            )
        return None
    _, mark, fields = best
    return mark, start + 1, fields, _columns(table, fields, columns, lines, mark, start + 1)


def _columns(
    table: Path,
    header: list[str],
    columns: Sequence[str] | None,
    lines: Sequence[tuple[int, str]],
    mark: str,
    start: int,
) -> Columns:
    if len(header) > MOST_COLUMNS:
        raise ValueError(f"{table} has more than {MOST_COLUMNS:,} columns; is it a table of pictures? Remove some")
    words = [_column_key(field) for field in header]

    def only(groups: Sequence[Collection[str]], what: str) -> int | None:
        places = _column_indices(words, groups)
        if len(places) > 1:
            twice = ", ".join(header[place] for place in places)
            raise ValueError(f"{table} has several columns for the {what} ({twice}); name the two with --columns")
        return places[0] if places else None

    split = only(SPLITS, "split")
    if columns is not None:
        if len(columns) != 2:
            raise ValueError(f"{len(columns)} columns were named; name two, of the pictures and of their labels")
        return header.index(columns[0]), header.index(columns[1]), split
    path, label = only(PATHS, "path"), only(LABELS, "label")
    names = ", ".join(header[:8])
    if path is None:
        raise ValueError(
            f"{table} has no column of pictures such as path, image, file or id in its first line ({names}); add it, or"
            " name the columns of pictures and labels: --columns PATH,LABEL (columns in Python)"
        )
    if label is None:
        rest = {place: normal(name) for place, name in enumerate(header) if place not in (path, split)}
        sample = [_fields(table, line, mark) for _, line in lines[start : start + 20] if line.strip()]
        marks = {row[place].strip() for row in sample if len(row) == len(header) for place in rest}
        if len(rest) > 1 and marks and marks <= {"0", "1", "0.0", "1.0"}:
            return path, rest, split
        raise ValueError(
            f"{table} has no column label or class in its first line ({names}); add it, or name the columns of pictures"
            " and labels: --columns PATH,LABEL (columns in Python)"
        )
    return path, label, split


def _column_key(field: str) -> str:
    return re.sub(r"[\s_-]", "", field).lower()


def _column_indices(words: Sequence[str], groups: Sequence[Collection[str]]) -> list[int]:
    """Indices of the words in the first group that occurs."""
    found = ([place for place, word in enumerate(words) if word in group] for group in groups)
    return next((places for places in found if places), [])


def _fields(table: Path, line: str, mark: str) -> list[str]:
    try:
        return next(csv.reader([line], delimiter=mark, skipinitialspace=True), [])
    except csv.Error as error:
        raise ValueError(f"{table} cannot be read as CSV ({error}); look for a quote that is not closed") from None


def _rows(
    table: Path, lines: Sequence[tuple[int, str]], mark: str, start: int, header: list[str], columns: Columns
) -> list[Row]:
    """The rows of a table with a header, without empty lines."""
    path, label, split = columns
    found = []
    for line, record in _records(table, lines[start:], mark):
        if len(record) != len(header):
            raise ValueError(
                f"{table}, line {line} has {len(record)} fields, but the header has {len(header)}; quote fields that"
                " hold the mark between columns"
            )
        if not record[path].strip():
            raise ValueError(f"{table}, line {line} names no file; fill in its path, or remove the line")
        if isinstance(label, dict):
            labels = _marked_classes(table, line, record, label)
        elif _column_key(header[label]) == BOXES and len(words := record[label].split()) % 5 == 0:
            labels = list(dict.fromkeys(words[::5]))  # n03995372 85 1 499 272 n03995372 0 0 9 9
        else:
            labels = [record[label]] if record[label].strip() else []
        side = None
        if split is not None:
            side = SIDES.get(record[split].strip().lower())
            if side is None:
                raise ValueError(
                    f"{table}, line {line} has the split {record[split].strip()!r:.80}; write train, val or test"
                )
        if labels or side != "test" or isinstance(label, dict):  # unlabelled test pictures are skipped
            found.append(_row(table, line, record[path], labels, side, bare=isinstance(label, dict)))
    return found


def _records(table: Path, lines: Sequence[tuple[int, str]], mark: str) -> Iterator[tuple[int, list[str]]]:
    """Yield (line number, fields) of each non-empty record."""
    if not lines:
        return
    reader, first = csv.reader((line for _, line in lines), delimiter=mark, strict=True, skipinitialspace=True), 0
    try:
        for record in reader:
            if any(field.strip() for field in record):
                yield lines[first][0], record
            first = reader.line_num
    except csv.Error as error:
        raise ValueError(f"{table} cannot be read as CSV ({error}); look for a quote that is not closed") from None


def _marked_classes(table: Path, line: int, record: list[str], names: Mapping[int, str]) -> list[str]:
    """Classes whose columns contain 1."""
    marked = []
    for place, name in names.items():
        value = record[place].strip()
        if value not in ("0", "1", "0.0", "1.0"):
            raise ValueError(
                f"{table}, line {line} has {value!r:.80} in the column {name}; 0 or 1 is wanted in a column for each"
                " class, or name the columns of pictures and labels: --columns PATH,LABEL (columns in Python)"
            )
        marked += [name] if value[0] == "1" else []
    return marked


def _row(
    table: Path, line: int, name: str | None, labels: Iterable[str], side: str | None = None, *, bare: bool = False
) -> Row:
    """Make a row; raise ValueError if a text is too long, or no label is given and `bare` is False."""
    row = Row(line, name, tuple(normal(label.strip()) for label in labels), side)
    if len(name or "") > MOST_PATH or any(len(label) > MOST_LABEL for label in row.labels):
        longest = max(map(len, row.labels), default=0)
        raise ValueError(
            f"{table}, line {line} has a path of {len(name or '')} characters and a class of {longest}, but {MOST_PATH}"
            f" and {MOST_LABEL} are the maximum; shorten them"
        )
    if not bare and not any(row.labels):
        raise _label_count_error(table, row)
    return row


def _label_count_error(table: Path, row: Row) -> ValueError:
    """The error for a row with several labels or none."""
    if len(row.labels) < 2:
        return ValueError(f"{table}, line {row.line} has no class for {row.name}; fill it in, or remove the line")
    return ValueError(
        f"{table}, line {row.line} has {len(row.labels)} labels ({few(row.labels, 3)}), but a picture has one class"
        " here (finetune and evaluate take several); keep one of them, remove the line, or give pictures with several"
        " labels a class of their own ('several')"
    )


def _split_labels(rows: list[Row], plural: bool) -> tuple[list[Row], str]:
    """Split joined labels such as `rust|scab`; also return, in words, how they were separated."""
    counts = Counter(row.labels[0] for row in rows if len(row.labels) == 1)
    mark = next((mark for mark in ("|,; " if plural else "|,;") if _is_separator(mark, counts, plural)), None)
    if mark is None:
        return rows, "by their boxes"
    parted = ([word for label in row.labels for word in _parts(label, mark) or [label]] for row in rows)
    rows = [replace(row, labels=tuple(dict.fromkeys(words))) for row, words in zip(rows, parted, strict=True)]
    return rows, "separated by blanks" if mark == " " else f"separated by {mark!r}"


def _is_separator(mark: str, labels: Collection[str], plural: bool) -> bool:
    """Whether `mark` separates labels: all parts of some label are labels themselves."""
    words = {label: _parts(label, mark) for label in labels}
    several = [parts for parts in words.values() if len(parts) > 1]
    if not several:
        return False
    parts = Counter(part for parts in words.values() for part in parts)
    if any(all(part in words for part in each) for each in several):
        return True
    if plural and 2 * len(parts) <= len(words):  # few parts make up many labels
        return True
    return mark == "|" and any(parts[part] > 1 for each in several for part in each)


def _parts(label: str, mark: str) -> list[str]:
    return [word for part in label.split(mark) if (word := part.strip())]


# Lines without a header


def _headerless_rows(table: Path, lines: Sequence[tuple[int, str]], finder: _Finder, partial: bool) -> list[Row]:
    """The rows of a table without a known header: a name and a label in each, or only the label."""
    kept = [(number, line.strip()) for number, line in lines if line.strip()]
    finder.check_count(len(kept), partial)
    pairs = [_name_and_label(table, line, finder) for _, line in kept]
    if kept and pairs[0] is None and any(pairs) and _column_indices([_column_key(kept[0][1].split()[0])], PATHS):
        kept, pairs = kept[1:], pairs[1:]  # a header separated by blanks
    known = sum(pair is not None for pair in pairs)
    if 2 * known > len(kept) or any(pair and Path(pair[0]).suffix.lower() in ENDINGS for pair in pairs):
        bare = [
            f"line {number}: {line!r:.60}" for (number, line), pair in zip(kept, pairs, strict=True) if pair is None
        ]
        if bare:
            raise ValueError(
                f"{table}: {len(bare)} lines are no name and label ({few(bare)}); if the first one is a header, name"
                " its columns of pictures and labels: --columns PATH,LABEL (columns in Python)"
            )
        return [
            _row(table, number, pair[0], [pair[1]])
            for (number, _), pair in zip(kept, pairs, strict=True)
            if pair is not None
        ]
    return [_row(table, number, None, [line]) for number, line in kept]


def _name_and_label(table: Path, line: str, finder: _Finder) -> tuple[str, str] | None:
    """Split a line into the picture's name and its label; None if it does not begin with a name."""
    pairs: list[tuple[str, str]] = []
    for mark in ",\t;":
        if mark in line:
            fields = [field.strip() for field in _fields(table, line, mark)]
            if len(fields) == 2:
                pairs.append((fields[0], fields[1]))
    for parts in (line.split(None, 1), line.rsplit(None, 1)):
        if len(parts) == 2:
            pairs.append((parts[0], parts[1]))
    pairs = [(name, label) for name, label in pairs if name and label]
    of_a_picture = [pair for pair in pairs if Path(pair[0]).suffix.lower() in ENDINGS]
    return next((pair for pair in pairs if finder.find(pair[0])), of_a_picture[0] if of_a_picture else None)
