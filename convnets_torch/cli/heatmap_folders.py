"""Heatmaps of many pictures: a folder of files and a report in JSON lines."""

from __future__ import annotations

import contextlib
import glob
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convnets_torch.cli.output import complain, one_line, say, warnings_as_lines, with_time_left
from convnets_torch.files import check_writable, make_folder, replacing, resolved
from convnets_torch.images.finding import find_pictures, is_pattern
from convnets_torch.text import check_choice

if TYPE_CHECKING:
    from convnets_torch.heatmaps.many import Mapped
    from convnets_torch.inference.pipeline import Mappable

FORMATS = ("png", "jpg", "webp", "html", "json", "npz", "npy")
REPORT = "report.jsonl"


def is_many(images: list[str]) -> bool:
    """Whether these are several pictures, whose maps go into a folder: several names, a folder, or a pattern."""
    return len(images) > 1 or any(Path(name).is_dir() or is_pattern(name) for name in images)


def map_each(
    network: Mappable,
    names: list[str],
    targets: list[str],
    output: Path,
    *,
    format: str = "png",
    threshold: float = 0.5,
    exclude: Sequence[str] = (),
    as_json: bool = False,
    **options: Any,
) -> int:
    """Write the maps of each picture into a folder, with a report on all of them, `report.jsonl`.

    The map of `tom.jpg` is `tom.jpg.png`. Pictures found in a folder, or by a pattern, keep their path relative to that
    folder, or to the part before the pattern's first wildcard. Each map, and at the end the report, is written
    completely or not at all. Whatever concerns all pictures is refused before the first is read.

    Args:
        names: of pictures, folders and patterns, as in `find_pictures`.
        targets: classes to map; several give one file with several maps.
        as_json: also print each picture's record.
        options: of `heatmap_each`.

    Returns:
        The number of failed pictures; their errors are printed to stderr.
    """
    from convnets_torch.heatmaps.many import heatmap_each
    from convnets_torch.heatmaps.maps import check_threshold

    check_choice(format, FORMATS, "format")
    check_threshold(threshold)
    with warnings_as_lines():
        places = [place for name in names for place in places_of(name, output, format, exclude)]
    check_places(places, output, REPORT)
    results = heatmap_each(network, [picture for picture, _ in places], targets, **options)
    output.mkdir(parents=True, exist_ok=True)
    check_writable(output / REPORT)
    records, failed = [], 0
    with warnings_as_lines(), contextlib.closing(results):
        for (picture, place), result in zip(places, with_time_left(results, len(places)), strict=True):
            for note in result.notes:
                say(note)
            record = _written(result, targets, output, place, threshold)
            if "error" in record:
                failed += 1
                complain(record["error"])
            records.append({"image": str(picture), **record})
            if as_json:
                print(json.dumps(records[-1]))
            del result  # its maps hold the picture
    with replacing(output / REPORT) as temporary:
        temporary.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    say(f"{output}: maps of {len(places)} pictures, {failed} of which failed; {REPORT} lists them")
    return failed


def places_of(name: str, output: Path, format: str, exclude: Sequence[str] = ()) -> list[tuple[Path, Path]]:
    """Return (picture, map path relative to `output`) for each picture that a name stands for."""
    if name == "-":
        raise ValueError("standard input is one picture; name it alone, and a file for its map")
    path = Path(name)
    top = path if path.is_dir() else path.parent
    if is_pattern(path):
        wild = next(number for number, part in enumerate(path.parts) if glob.has_magic(part))
        top = Path(*path.parts[:wild])
    pictures = find_pictures(name, exclude=exclude)
    if path.is_dir() or is_pattern(path):  # leave out the maps of an earlier run
        others = [picture for picture in pictures if not resolved(picture).is_relative_to(resolved(output))]
        if not others:
            raise ValueError(f"all pictures of {name} lie in {output}, where the maps are to go; name another folder")
        if len(others) < len(pictures):
            say(f"{name}: left out {len(pictures) - len(others)} pictures in {output}, where the maps go")
        pictures = others
    found = []
    for picture in pictures:
        place = Path(*(part for part in picture.relative_to(top).parts if part != ".."))
        found.append((picture, place.with_name(f"{place.name}.{format}")))
    return found


def check_places(places: list[tuple[Path, Path]], output: Path, report: str | None = None) -> None:
    """Raise if the maps, and a report in the same folder, cannot all be written; call it before long work.

    Raises:
        ValueError: two pictures would write the same file, or one would be overwritten.
        OSError: the output is not a folder, or is not writable.
    """
    if output.exists() and not output.is_dir():
        raise NotADirectoryError(f"{output} is a file, but the maps of several pictures go into a folder; name one")
    if output.exists() and report is not None:
        check_writable(output / report)
    folder = resolved(output)
    pictures = {resolved(picture): picture for picture, _ in places}
    first: dict[Path, Path] = {}
    for picture, place in places:
        if place in first:
            raise ValueError(
                f"the maps of {first[place]} and {picture} would both be {output / place};"
                " name each picture once, or a folder that holds both"
            )
        first[place] = picture
        if folder / place in pictures:
            raise ValueError(f"the map of {picture} would overwrite {pictures[folder / place]}; name another folder")
    for place, picture in first.items():
        for above in place.parents:
            if above in first:
                raise ValueError(
                    f"the map of {first[above]} would be {output / above}, which is to be a folder for that of"
                    f" {picture}; run them into folders of their own"
                )


def _written(result: Mapped, targets: list[str], output: Path, place: Path, threshold: float) -> dict[str, Any]:
    """Write the maps of a picture to `place` in the folder `output`; return its record for the report."""
    from convnets_torch.heatmaps.api import save_sheet

    if result.error is not None:
        return {"error": one_line(result.error)}
    try:
        save_sheet(result.maps, make_folder(output, place.parent) / place.name, threshold=threshold)
    except (OSError, ValueError) as error:  # for example too many pixels for the format
        return {"error": one_line(error)}
    height, width = result.maps[0].size
    rows, columns = result.maps[0].values.shape
    return {
        "output": place.as_posix(),
        "height": height,
        "width": width,
        "rows": rows,
        "columns": columns,
        "maps": [
            {
                "target": words,
                "label": found.target.label,
                "wnid": found.target.wnid,
                "window": list(found.window(*found.peak)),
                **found.highest_and_regions(threshold),
            }
            for words, found in zip(targets, result.maps, strict=True)
        ],
    }
