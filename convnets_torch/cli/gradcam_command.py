"""The command `gradcam`."""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from convnets_torch.cli.messages import one_line, say, show, warnings_as_lines
from convnets_torch.cli.picture_commands import AllowTruncated, BackgroundOption, DepthOption, MaxPixels, Weights
from convnets_torch.cli.running import Device, Precision, load_network

if TYPE_CHECKING:
    from convnets_torch.explain.cam_maps import GradCam
    from convnets_torch.explain.cam_running import Explained
    from convnets_torch.explain.faithfulness import Faithfulness


def gradcam(
    weights: Weights,
    images: Annotated[
        list[str],
        typer.Argument(metavar="IMAGE...", help="A picture, or - for standard input; or several, folders, patterns."),
    ],
    target: Annotated[
        list[str] | None,
        typer.Option(
            help="What to explain: a word, a wnid, a class id, or 'dog - wolf'; several times for a map of each."
            " By default the most probable class.",
            show_default=False,
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            help="File to write: .png, .jpg, .webp, .json, .npz or .npy (numbers); of several pictures a folder.",
            show_default=False,
        ),
    ] = None,
    against: Annotated[
        str | None, typer.Option(help="What counts against the target: why this rather than that.")
    ] = None,
    layer: Annotated[
        str | None,
        typer.Option(help="Whose cells are looked at; Keras's names do, too.", show_default="the last convolution"),
    ] = None,
    method: Annotated[
        Literal["gradcam", "gradcam++", "hirescam", "layercam"], typer.Option(help="How cells are weighed.")
    ] = "gradcam",
    form: Annotated[
        Literal["png", "jpg", "webp", "json", "npz", "npy"],
        typer.Option("--format", help="Ending of the files of several pictures."),
    ] = "png",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object per picture and line.")] = False,
    report: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.json",
            help="File for how faithful each map is: deletion and insertion curves, average drop and increase.",
            show_default=False,
        ),
    ] = None,
    device: Device = "cpu",
    precision: Precision = None,
    max_pixels: MaxPixels = None,
    allow_truncated: AllowTruncated = False,
    depth: DepthOption = None,
    background: BackgroundOption = None,
) -> None:
    """Draw what in a picture speaks for a class: Grad-CAM and its relatives."""
    if output is None and not as_json and report is None:
        raise typer.BadParameter("name a file to write with -o, or ask for --json or a --report")
    if against is not None and not target:
        raise typer.BadParameter("--against goes with --target")
    from convnets_torch.cli.heatmap_folders import check_places, is_many, places_of
    from convnets_torch.cli.progress import with_time_left
    from convnets_torch.explain.cam_maps import check_cam_output
    from convnets_torch.explain.cam_running import gradcam_each
    from convnets_torch.files import check_kept, check_writable, replacing, resolved
    from convnets_torch.folders import find_pictures

    several = is_many(images)
    places: list[tuple[Path, Path | None]]
    with warnings_as_lines():
        if several and output is not None:
            found = [place for name in images for place in places_of(name, output, form)]
            check_places(found, output)
            places = [(picture, output / file) for picture, file in found]
        elif several:
            places = [(place, None) for name in images for place in find_pictures(name)]
        else:
            places = [(Path(images[0]), output)]
    if output is not None and not several:
        check_cam_output(output)
        check_kept(output, images)
    if report is not None:
        if report.suffix.lower() != ".json":
            raise typer.BadParameter(f"--report is {report}; name a file that ends in .json")
        check_writable(report)
        if any(file is not None and resolved(file) == resolved(report) for _, file in places):
            raise typer.BadParameter(f"--report and -o are both {report}; name two files")
    network = load_network(weights, device, precision)
    sources = [sys.stdin.buffer if str(picture) == "-" else picture for picture, _ in places]
    entries = gradcam_each(
        network,
        sources,
        target or None,
        against=against,
        layer=layer,
        method=method,
        max_pixels=max_pixels,
        allow_truncated=allow_truncated,
        depth=depth,
        background=background,
    )
    writer = _Writer(output if several else None, as_json, guessed=not target)
    measured: list[Faithfulness] = []
    records: list[dict[str, Any]] = []
    with warnings_as_lines(), contextlib.closing(entries):
        for (picture, file), entry in zip(places, with_time_left(entries, len(places)), strict=True):
            writer.write(str(picture), file, entry)
            if report is not None:
                records.append({"image": str(picture), **_judged(network, entry, measured)})
    if report is not None:
        from convnets_torch.explain.faithfulness import summary

        whole = {"summary": summary(measured) if measured else None, "images": records}
        with replacing(report) as temporary:
            temporary.write_text(json.dumps(whole, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
        if measured:
            means = whole["summary"]
            assert isinstance(means, dict)
            say(
                f"{report}: average drop {means['average_drop']:.1%}, average increase {means['average_increase']:.1%},"
                f" area under deletion {means['deletion_area']:.3f}, insertion {means['insertion_area']:.3f}"
            )
    if several:
        say(f"{output or 'done'}: {len(places)} pictures, {writer.failed} of which failed")
    if writer.failed:
        raise typer.Exit(1)


class _Writer:
    """Writes the maps of one picture after another and says what became of it."""

    def __init__(self, folder: Path | None, as_json: bool, guessed: bool) -> None:
        self.folder, self.as_json, self.guessed = folder, as_json, guessed
        self.failed = 0

    def write(self, picture: str, file: Path | None, entry: Explained) -> None:
        """The maps into `file`, if there is one; a line for each on stdout."""
        from convnets_torch.explain.cam_maps import save_cams
        from convnets_torch.files import make_folder

        for remark in entry.remarks:
            say(remark)
        error = entry.error
        if error is None and file is not None:
            try:
                if self.folder is not None:
                    make_folder(self.folder, file.relative_to(self.folder).parent)
                save_cams(entry.maps, file)
            except (OSError, ValueError) as failure:
                if self.folder is None:
                    raise
                error = failure
        if error is not None:
            self.failed += 1
            say(one_line(error))
            if self.as_json:
                print(json.dumps({"image": picture, "error": one_line(error)}))
            return
        if self.guessed:
            say(f"{picture}: no --target; the most probable class is {entry.maps[0].label}")
        if self.as_json:
            named = {} if file is None else {"output": str(file)}
            print(json.dumps({"image": picture, **named, "maps": [found.to_dict() for found in entry.maps]}))
            return
        for found in entry.maps:
            show(_line(str(file or picture), found))


def _line(name: str, found: GradCam) -> str:
    x, y = found.peak_pixel
    where = f"peak at x {x:.0f}, y {y:.0f} (pixels)" if found.raw_maximum else "nothing speaks for it"
    return f"{name}: {found.label}: probability {found.probability:.3f}, {where}"


def _judged(network: Any, entry: Explained, measured: list[Faithfulness]) -> dict[str, Any]:
    """What the report says of one picture; its numbers also go to `measured`."""
    from convnets_torch.explain.faithfulness import measure_faithfulness

    if entry.error is not None:
        return {"error": one_line(entry.error)}
    maps = []
    for found in entry.maps:
        measured.append(measure_faithfulness(network, found))
        maps.append({**found.described(), **measured[-1].to_dict()})
    return {"maps": maps}
