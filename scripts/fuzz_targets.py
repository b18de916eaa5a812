"""Targets of `fuzz.py` beside Keras files: pictures, cards, vectors, maps, checkpoints, indexes and resumable runs.

A `Target` makes small valid files or folders, damages one file of a copy, and reads it as the library does. Reading
returns a digest of the result, so that silent changes are counted.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import random
import shutil
import warnings
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from converters.readers.process import reading_process
from convnets_torch import Card, Index, embed_each, find_dataset, index_pictures, load, make_map, save
from convnets_torch.embeddings.files import read_vectors, save_vectors
from convnets_torch.embeddings.image_map import MapEntry, load_map, save_map
from convnets_torch.evaluation.evaluate import OutputFile
from convnets_torch.heatmaps.running import CellQuery, FolderStore
from convnets_torch.images.decoding import Reading, decode
from convnets_torch.images.preprocessing import preset
from convnets_torch.networks import AlexNet, Network
from convnets_torch.training.finetuning import finetune, outputs_of
from convnets_torch.training.running import Callbacks, TrainingStopped
from convnets_torch.training.settings import Settings
from convnets_torch.wordnet.targets import Target as Classes
from scripts.mutations import Source, edited_json, flip_bits, move_bytes, truncate, write_fields

CLASSES = tuple("abcdefgh")
BYTES = (flip_bits, flip_bits, flip_bits, write_fields, write_fields, move_bytes, truncate)


class Plain(Source):
    """A file with its structure, such as headers and directories, at the beginning and the end."""

    @property
    def structure(self) -> NDArray[np.int64]:
        places = np.arange(len(self.data))
        return np.unique(np.concatenate([places[:2048], places[-1024:]]))


class Target(NamedTuple):
    """One kind of file or folder.

    Attributes:
        make: writes valid ones into a folder, and returns their names.
        read: returns digests of what the library reads from one (a resumable run may find only the first);
            raises OSError or ValueError if it refuses.
    """

    make: Callable[[Path], list[Path]]
    read: Callable[[Path], list[str]]


def damage(path: Path, rng: random.Random) -> str:
    """Damage the file at `path`, or one in that folder; return a word for the damage."""
    files = sorted(each for each in path.rglob("*") if each.is_file()) if path.is_dir() else [path]
    files = [each for each in files if each.stat().st_size]
    chosen = rng.choice(files)
    if len(files) > 1 and rng.random() < 0.1:
        form = rng.choice(("removed", "emptied", "another's"))
        if form == "removed":
            chosen.unlink()
        else:
            chosen.write_bytes(b"" if form == "emptied" else rng.choice(files).read_bytes())
        return form
    source = Plain(chosen)
    kind = rng.choice([*BYTES, *((json_of,) * 4 if _json_at(source.data) else ())])
    try:
        chosen.write_bytes(kind(source, rng))
    except (
        ValueError,
        OverflowError,
        IndexError,
        AttributeError,
    ):  # values that JSON cannot hold, or nothing to change
        kind = flip_bits
        chosen.write_bytes(kind(source, rng))
    return kind.__name__


def json_of(source: Source, rng: random.Random) -> bytes:
    """Change values in the JSON of a file, of one of its lines, or of a safetensors header or card."""
    data = source.data
    if data[:1] == b"{":
        lines = data.splitlines(keepends=True) if data.count(b"\n{") else [data]
        place = rng.randrange(len(lines))
        lines[place] = edited_json(lines[place].decode(), rng) + b"\n"
        return b"".join(lines)
    size = int.from_bytes(data[:8], "little")
    text = data[8 : 8 + size].decode()
    header = json.loads(text)
    metadata = header.get("__metadata__", {})
    inner = [key for key, value in metadata.items() if value[:1] in "{["]
    if inner and rng.random() < 0.8:
        key = rng.choice(inner)
        metadata[key] = edited_json(metadata[key], rng).decode(errors="replace")
        changed = json.dumps(header).encode("utf-8", "surrogatepass")
    else:
        changed = edited_json(text, rng)
    changed += b" " * (-len(changed) % 8)
    return len(changed).to_bytes(8, "little") + changed + data[8 + size :]


def _json_at(data: bytes) -> bool:
    return data[:1] == b"{" or data[8:9] == b"{"


def _digest(*parts: object) -> str:
    whole = hashlib.sha256()
    for part in parts:
        whole.update(np.ascontiguousarray(part).data if isinstance(part, np.ndarray) else repr(part).encode())
    return whole.hexdigest()


# Pictures


def _pictures(folder: Path, ending: str, forms: Iterable[dict[str, Any]]) -> list[Path]:
    made = []
    noise = np.random.default_rng(0).integers(0, 256, (40, 56, 4), np.uint8)
    noise = np.asarray(Image.fromarray(noise).resize((112, 80)))
    for number, form in enumerate(map(dict, forms)):
        mode = form.pop("mode", "RGB")
        image = Image.fromarray(noise[..., 0].astype(np.uint16) * 257) if mode == "I;16" else Image.fromarray(noise)
        image = image if mode in ("I;16", "RGBA") else image.convert("RGB").convert(mode)
        if form.pop("frames", False):
            form |= {"save_all": True, "append_images": [image.rotate(90), image.rotate(180)]}
        if form.pop("turned", False):
            exif = image.getexif()
            exif[0x0112] = 6
            form["exif"] = exif
        made.append(folder / f"{number}.{ending}")
        image.save(made[-1], **form)
    return made


def _read_picture(path: Path) -> list[str]:
    found = decode(path)
    with_less = decode(path, Reading(allow_truncated=True))
    return [_digest(found.pixels, with_less.pixels.shape, found.notes)]


Forms: TypeAlias = "tuple[dict[str, Any], ...]"
JPEG: Forms = ({}, {"progressive": True}, {"mode": "L"}, {"mode": "CMYK"}, {"turned": True})
PNG: Forms = ({}, {"mode": "RGBA"}, {"mode": "P"}, {"mode": "I;16"}, {"mode": "1"}, {"frames": True})
TIFF: Forms = (
    {}, {"compression": "tiff_lzw"}, {"compression": "tiff_deflate"}, {"compression": "jpeg"}, {"frames": True},
    {"mode": "I;16"}, {"mode": "1", "compression": "group4"}, {"compression": "packbits", "mode": "L"},
)  # fmt: skip
WEBP: Forms = ({}, {"lossless": True}, {"mode": "RGBA"}, {"frames": True})
GIF: Forms = ({}, {"mode": "L"}, {"frames": True})


# Weights, vectors, maps and checkpoints


def _network() -> Network:
    torch.manual_seed(0)
    network = AlexNet(len(CLASSES), widths=(4, 4, 4, 4, 4), hidden=(6, 5)).eval()
    arguments = {"classes": len(CLASSES), "widths": (4, 4, 4, 4, 4), "hidden": (6, 5)}
    network.card = Card("alexnet", arguments, preset("alexnet"), CLASSES)
    return network


def _weights(folder: Path) -> list[Path]:
    save(_network(), folder / "x.safetensors")
    return [folder / "x.safetensors"]


def _read_weights(path: Path) -> list[str]:
    network = load(path)
    assert network.card is not None
    with torch.inference_mode():
        logits = network(torch.full((1, 3, *network.size), 0.5))
    return [_digest(logits.numpy(), network.card.to_json())]


def _photographs(folder: Path) -> list[Path]:
    (folder / "photographs").mkdir(exist_ok=True)
    return _pictures(folder / "photographs", "jpg", [{"quality": quality} for quality in (20, 50, 80, 95)])


def _vectors(folder: Path) -> list[Path]:
    names = ("x.npz", "x.safetensors")
    for name in names:
        save_vectors(embed_each(_network(), [*_photographs(folder), "none.jpg"], logits=True), folder / name)
    return [folder / name for name in names]


def _read_vectors(path: Path) -> list[str]:
    found = read_vectors(path)
    return [_digest(found.vectors, found.logits, found.paths, found.failed, found.about)]


def _image_maps(folder: Path) -> list[Path]:
    vectors = np.random.default_rng(0).random((20, 6), np.float32)
    entries = [MapEntry(f"{number}.jpg", "tabby", 0.5) for number in range(20)]
    save_map(make_map(vectors, perplexity=3), entries, folder / "x.safetensors", {"network": "alexnet"})
    return [folder / "x.safetensors"]


def _read_image_map(path: Path) -> list[str]:
    found = load_map(path)
    return [_digest(found.image_map.positions, found.image_map.axes, found.entries, found.about)]


def _checkpoints(folder: Path) -> list[Path]:
    """Make a checkpoint of stage one, after two of four epochs."""
    for number, name in enumerate(CLASSES[:2]):
        (folder / "classes" / name).mkdir(parents=True)
        for picture in range(5):
            color = (200 * number, 10 * picture, 90)
            Image.new("RGB", (32, 32), color).save(folder / "classes" / name / f"{picture}.png")
    epochs: list[object] = []
    callbacks = Callbacks(epoch=lambda row, _: epochs.append(row), stop=lambda: len(epochs) == 2)
    with contextlib.suppress(TrainingStopped):
        _finetune(folder, folder / "x.safetensors", callbacks)
    return [folder / "x.checkpoint.safetensors"]


def _finetune(folder: Path, output: Path, callbacks: Callbacks | None = None) -> None:
    settings = Settings(head_epochs=4, epochs=0, batch=4, patience=0)
    dataset = find_dataset(folder / "classes")
    cache = folder / "features"
    finetune(_network(), dataset, output, settings, resume=True, allow_leaks=True, cache=cache, callbacks=callbacks)


def _read_checkpoint(path: Path) -> list[str]:
    output = path.with_name(path.name.replace(".checkpoint.", "."))
    try:
        _finetune(path.parent / "sound-checkpoint", output)
        return [_digest(output.read_bytes())]
    finally:
        for each in (output, *outputs_of(output)):
            each.unlink(missing_ok=True)


def _state_dicts(folder: Path) -> list[Path]:
    """PyTorch's two formats."""
    torch.manual_seed(0)
    shapes = {"features.0.weight": (4, 3, 3, 3), "features.0.bias": (4,), "classifier.weight": (6, 8)}
    state: dict[str, torch.Tensor] = {name: torch.randn(shape) for name, shape in shapes.items()}
    state |= {"half": torch.randn(2, 3).half(), "steps": torch.tensor(3), "turned": torch.randn(4, 5).t()}
    for name, zipped in (("zip.pth", True), ("bare.pth", False)):
        torch.save(state, folder / name, _use_new_zipfile_serialization=zipped)
    return [folder / "zip.pth", folder / "bare.pth"]


def _read_state_dict(path: Path) -> list[str]:
    """Read all values in the reading process, as a conversion would."""
    scratch = path.parent / "scratch"
    with reading_process() as call:
        described = call("describe state dict", path=str(path))
        jobs, size = [], 0
        for name, told in described.items():
            jobs.append({"source": name, "place": size, "shape": told["shape"], "dtype": "float32"})
            size += 4 * math.prod(told["shape"])
        scratch.write_bytes(bytes(size))
        not_finite = call("fill tensors", path=str(path), output=str(scratch), jobs=jobs) if size else []
    return [_digest(described, not_finite, scratch.read_bytes())]


# Folders


def _index(folder: Path) -> list[Path]:
    index_pictures(_network(), _photographs(folder), folder / "x.lance")
    return [folder / "x.lance"]


def _read_index(path: Path) -> list[str]:
    index = Index.open(path)
    rows = index.vectors
    if not len(rows):
        raise ValueError(f"{path} holds nothing")
    found = index.search(rows.path(0), k=3)
    groups = index.duplicates(0.99)
    small = index.thumbnails([match.path for match in found[0].found])
    return [_digest(rows.paths(), np.asarray(rows.vectors), found, groups, small, list(index.errors()))]


RUN = {"network": "alexnet", "pictures": "abc"}


def _evaluation(folder: Path) -> list[Path]:
    out = OutputFile(folder / "x", RUN, 12, len(CLASSES))
    rng = np.random.default_rng(0)
    for done in range(1, 5):
        out.add(rng.random((2, len(CLASSES)), np.float32), {3 * done - 1: "broken"}, ["turned"], 3 * done)
    out.close()
    return [folder / "x"]


def _read_evaluation(path: Path) -> list[str]:
    out = OutputFile(path, RUN, 12, len(CLASSES))
    try:
        outputs = iter(np.array(out.mapped()))
        pictures = [_digest(out.failed.get(number) or next(outputs, None)) for number in range(out.done)]
        return [*pictures, _digest(out.notes)] if out.done == 12 else pictures
    finally:
        out.close()


QUERY = CellQuery((Classes("a or b", "a or b", (0, 1)),))


def _rows(folder: Path) -> list[Path]:
    store = FolderStore(folder / "x", "run", QUERY, len(CLASSES))
    torch.manual_seed(0)
    for _ in range(4):
        store.add(QUERY.select(torch.rand(len(CLASSES), 1, 5).softmax(0)))
        store.flush()
    store.close()
    return [folder / "x"]


def _read_rows(path: Path) -> list[str]:
    store = FolderStore(path, "run", QUERY, len(CLASSES))
    try:
        return [_digest(*(piece[name] for name in sorted(piece))) for piece in store.load((4, 5))]
    finally:
        store.close()


TARGETS: dict[str, Target] = {
    **{
        name: Target(partial(_pictures, ending=ending, forms=forms), _read_picture)
        for name, ending, forms in (
            ("jpeg", "jpg", JPEG),
            ("png", "png", PNG),
            ("tiff", "tif", TIFF),
            ("webp", "webp", WEBP),
            ("gif", "gif", GIF),
        )
    },
    "card": Target(_weights, _read_weights),
    "vectors": Target(_vectors, _read_vectors),
    "map": Target(_image_maps, _read_image_map),
    "pth": Target(_state_dicts, _read_state_dict),
    "checkpoint": Target(_checkpoints, _read_checkpoint),
    "index": Target(_index, _read_index),
    "evaluate-resume": Target(_evaluation, _read_evaluation),
    "heatmap-resume": Target(_rows, _read_rows),
}


def remove(path: Path) -> None:
    """Remove a file or folder if it exists."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


class TargetLevel:
    """Reads damaged copies of a target's files."""

    def __init__(self, name: str, folder: Path) -> None:
        self.target = TARGETS[name]
        self.folder = folder
        folder.mkdir()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.sound = self.target.make(folder)
            self.answers = {path.name: self._sound_answer(path) for path in self.sound}

    def damaged(self, stem: Path, rng: random.Random) -> tuple[Path, str, str]:
        """Make a damaged copy whose path begins with `stem`; return the original's name and the damage."""
        sound = rng.choice(self.sound)
        place = self._copied(sound, stem)
        return place, sound.name, damage(place, rng)

    def _sound_answer(self, sound: Path) -> list[str]:
        copy = self._copied(sound, self.folder)
        try:
            return self.target.read(copy)
        finally:
            remove(copy)

    @staticmethod
    def _copied(sound: Path, stem: Path) -> Path:
        place = stem.with_name(f"{stem.name}-{sound.name}")
        if sound.is_dir():
            shutil.copytree(sound, place)
        else:
            shutil.copy(sound, place)
        return place

    def run(self, path: Path, sound: str) -> tuple[str, str]:
        """Return the outcome of reading a damaged copy of the named original."""
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            answer = self.target.read(path)
        if answer == self.answers[sound]:
            return "read, as before", ""
        if self.answers[sound][: len(answer)] == answer:
            return "read, less of it", ""
        return ("read, with a remark", str(said[0].message)) if said else ("read, another answer", "")
