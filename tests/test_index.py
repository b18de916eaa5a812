"""An index of pictures: what becomes of new, changed, moved, vanished and bad files, and of other networks."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from convnets_torch import weights
from convnets_torch.embeddings.extraction import embed
from convnets_torch.embeddings.index import index_pictures
from convnets_torch.embeddings.index_table import PictureTable
from convnets_torch.embeddings.search import Index
from convnets_torch.files import sha256
from convnets_torch.images.finding import find_pictures
from convnets_torch.inference.classification import classify
from tests.reference.pictures import picture

pytest.importorskip("lancedb", reason="needs LanceDB, the extra search")

COLUMNS = ("path", "sha256", "size", "modified", "vector", "class_id", "probability", "thumbnail", "error", "vanished")


@pytest.fixture
def photos(tmp_path):
    """Five photographs in two folders, and one file that is none."""
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    for number, name in enumerate(("a.png", "b.jpg", "c.png", "more/d.jpg", "more/e.png")):
        Image.fromarray(picture(number, 120 + 31 * number, 250 - 23 * number)).save(folder / name)
    (folder / "bad.jpg").write_text("no picture")
    return folder


def rows_of(address):
    """Name of the file -> its row, read from the table itself."""
    table = PictureTable.open(str(address))
    rows = [row for batch in table.read(COLUMNS) for row in batch.to_pylist()]
    found = {row["path"].rpartition("/")[2]: row for row in rows}
    assert len(found) == len(rows)
    return found


def counts(done):
    return done.embedded, done.moved, done.copied, done.unchanged, done.failed, done.vanished


@pytest.fixture
def seen(vgg):
    """How many pictures the network ran on, as a list of batches."""
    batches: list[int] = []
    handle = vgg.features.register_forward_hook(lambda module, inputs, output: batches.append(len(output)))
    yield batches
    handle.remove()


def test_a_row_says_what_a_file_is_and_what_it_shows(vgg, photos, tmp_path):
    done = index_pictures(vgg, photos, tmp_path / "x.lance", exact=True)
    assert counts(done) == (5, 0, 0, 0, 1, 0)
    rows = rows_of(tmp_path / "x.lance")
    bad = rows.pop("bad.jpg")
    for path in (path for path in find_pictures(photos) if path.name != "bad.jpg"):
        row = rows.pop(path.name)
        state = path.stat()
        assert (row["path"], row["sha256"]) == (str(path), sha256(path))
        assert (row["size"], row["modified"]) == (state.st_size, state.st_mtime_ns)
        np.testing.assert_allclose(row["vector"], embed(vgg, path)[0], rtol=1e-4, atol=1e-5)
        [[best]] = classify(vgg, path, 1)
        assert row["class_id"] == best.class_id
        assert row["probability"] == pytest.approx(best.probability, rel=1e-4)
        (tmp_path / "small.jpg").write_bytes(row["thumbnail"])
        small, whole = Image.open(tmp_path / "small.jpg"), Image.open(path)
        assert small.format == "JPEG"
        assert max(small.size) == 128
        wanted = np.asarray(whole.convert("RGB").resize(small.size, Image.Resampling.BOX), np.float32)
        assert np.abs(np.asarray(small, np.float32) - wanted).mean() < 16  # of 255: JPEG, and another filter
        assert (row["error"], row["vanished"]) == (None, False)
    assert not rows
    assert bad["error"] == f"{photos / 'bad.jpg'} is not a picture that Pillow can read; convert it to JPEG or PNG"
    assert bad["sha256"] == sha256(photos / "bad.jpg")
    assert bad["vector"] is bad["class_id"] is bad["probability"] is bad["thumbnail"] is None


def test_only_new_content_goes_through_the_network(vgg, photos, tmp_path, seen):
    index_pictures(vgg, photos, tmp_path / "x.lance")
    before, version = rows_of(tmp_path / "x.lance"), PictureTable.open(str(tmp_path / "x.lance")).version
    seen.clear()
    assert counts(index_pictures(vgg, photos, tmp_path / "x.lance")) == (0, 0, 0, 5, 1, 0)
    assert PictureTable.open(str(tmp_path / "x.lance")).version == version  # nothing was written
    (photos / "b.jpg").rename(photos / "renamed.jpg")  # moved
    shutil.copy(photos / "c.png", photos / "more" / "copy.png")  # copied
    os.utime(photos / "a.png", ns=(1, 1))  # touched
    Image.fromarray(picture(9, 100, 100)).save(photos / "c.png")  # changed
    assert sum(seen) == 0
    assert counts(index_pictures(vgg, photos, tmp_path / "x.lance")) == (1, 1, 1, 3, 1, 0)
    assert sum(seen) == 1
    rows = rows_of(tmp_path / "x.lance")
    assert rows["a.png"] == before["a.png"] | {"modified": 1}
    assert "b.jpg" not in rows
    assert rows["renamed.jpg"] == before["b.jpg"] | {"path": str(photos / "renamed.jpg")}
    assert rows["copy.png"]["vector"] == before["c.png"]["vector"] != rows["c.png"]["vector"]
    (photos / "renamed.jpg").rename(photos / "b.jpg")  # back again
    assert counts(index_pictures(vgg, photos, tmp_path / "x.lance")) == (0, 1, 0, 5, 1, 0)
    assert rows_of(tmp_path / "x.lance")["b.jpg"] == before["b.jpg"]
    assert sum(seen) == 1


def test_copies_in_one_run_are_embedded_once(vgg, photos, tmp_path, seen):
    for number in range(5):
        shutil.copy(photos / "a.png", photos / f"copy{number}.png")
    shutil.copy(photos / "bad.jpg", photos / "worse.jpg")
    assert counts(index_pictures(vgg, photos, tmp_path / "x.lance")) == (5, 0, 5, 0, 2, 0)
    rows = rows_of(tmp_path / "x.lance")
    assert all(rows[f"copy{number}.png"]["vector"] == rows["a.png"]["vector"] for number in range(5))
    assert rows["worse.jpg"]["error"].startswith(str(photos / "worse.jpg"))


def test_equal_size_and_time_are_taken_as_unchanged_unless_all_is_read(vgg, photos, tmp_path):
    index_pictures(vgg, photos, tmp_path / "x.lance")
    state, data = (photos / "a.png").stat(), bytearray((photos / "a.png").read_bytes())
    Image.fromarray(picture(8, 120, 250)).save(photos / "a.png")
    other = (photos / "a.png").read_bytes()
    data[:] = other[: len(data)].ljust(len(data), b"\0")
    (photos / "a.png").write_bytes(data)
    os.utime(photos / "a.png", ns=(state.st_atime_ns, state.st_mtime_ns))
    assert counts(index_pictures(vgg, photos, tmp_path / "x.lance"))[3] == 5
    assert counts(index_pictures(vgg, photos, tmp_path / "x.lance", hash_all=True))[3] == 4


def test_a_file_that_went_bad_and_one_that_was_mended(vgg, photos, tmp_path):
    index_pictures(vgg, photos, tmp_path / "x.lance")
    (photos / "a.png").write_bytes((photos / "a.png").read_bytes()[:300])
    Image.fromarray(picture(7, 100, 100)).save(photos / "bad.jpg")
    assert counts(index_pictures(vgg, photos, tmp_path / "x.lance")) == (1, 0, 0, 4, 1, 0)
    rows = rows_of(tmp_path / "x.lance")
    assert rows["bad.jpg"]["error"] is None
    assert rows["a.png"]["vector"] is None
    assert "a.png" in rows["a.png"]["error"]


def test_links_in_circles_and_missing_files_are_rows_and_keep_what_was_there(vgg, photos, tmp_path):
    (photos / "loop.jpg").symlink_to("loop.jpg")
    (photos / "nothing.jpg").symlink_to("gone.jpg")
    (photos / "round").symlink_to(photos)  # a folder in itself: not followed
    (photos / "link.png").symlink_to(photos / "a.png")
    done = index_pictures(vgg, [photos, photos / "never.jpg"], tmp_path / "x.lance")
    assert counts(done) == (5, 0, 1, 0, 4, 0)
    rows = rows_of(tmp_path / "x.lance")
    assert rows["loop.jpg"]["error"] == f"{photos / 'loop.jpg'} is a link that leads in a circle"
    assert "nothing.jpg does not exist" in rows["nothing.jpg"]["error"]
    assert "never.jpg does not exist" in rows["never.jpg"]["error"]
    assert rows["link.png"]["vector"] == rows["a.png"]["vector"]
    (photos / "link.png").unlink()
    (photos / "link.png").symlink_to("gone.png")  # as when a drive is not there
    index_pictures(vgg, photos, tmp_path / "x.lance")
    kept = rows_of(tmp_path / "x.lance")["link.png"]
    assert kept == rows["link.png"] | {"vanished": True}


def test_names_that_are_no_utf_8_are_written_as_escapes(vgg, photos, tmp_path):
    odd = os.fsdecode(os.fsencode(photos) + b"/\xff'.png")
    try:
        shutil.copy(photos / "a.png", odd)
    except OSError:
        pytest.skip("the file system takes no such names")
    for _ in range(2):
        done = index_pictures(vgg, photos, tmp_path / "x.lance")
        assert rows_of(tmp_path / "x.lance")["\\xff'.png"]["error"] is None
    assert (done.unchanged, done.vanished) == (6, 0)
    assert index_pictures(vgg, photos / "more", tmp_path / "x.lance").vanished == 0
    os.unlink(odd)  # noqa: PTH108
    assert index_pictures(vgg, photos / "more", tmp_path / "x.lance").vanished == 1


def test_another_network_layer_or_pool_is_refused_and_nothing_lost(vgg, photos, tmp_path):
    index_pictures(vgg, photos, tmp_path / "x.lance")
    before = rows_of(tmp_path / "x.lance")
    vgg.card, mine = replace(vgg.card, class_names=tuple("klmnopqrst")), vgg.card
    with pytest.raises(ValueError, match="has vectors of another kind"):
        index_pictures(vgg, photos, tmp_path / "x.lance")
    vgg.card = mine
    for layer, pool in (("fc1", "avg"), (None, "gem"), ("block5_pool", "max")):
        with pytest.raises(ValueError, match=r"has vectors of another kind \(vgg16, last dense layer, avg\)"):
            index_pictures(vgg, photos, tmp_path / "x.lance", layer, pool)  # type: ignore[arg-type]
    assert rows_of(tmp_path / "x.lance") == before
    assert index_pictures(vgg, photos, tmp_path / "y.lance", "block5_pool", "max").index.about.width == 64


def test_what_is_no_place_for_an_index_is_refused(vgg, photos, tmp_path):
    refused = [(photos, "holds no index"), (photos / "a.png", "is a file"), (tmp_path / "no" / "x", "create it first")]
    for address, message in refused:
        with pytest.raises(OSError, match=message):
            index_pictures(vgg, photos, address)
    (tmp_path / "empty").mkdir()
    with pytest.raises(OSError, match="holds no pictures"):
        index_pictures(vgg, tmp_path / "empty", tmp_path / "x.lance")
    assert not (tmp_path / "x.lance").exists()
    assert counts(index_pictures(vgg, photos / "a.png", tmp_path / "empty")) == (1, 0, 0, 0, 0, 0)


def test_a_damaged_table_is_one_sentence(vgg, photos, tmp_path):
    index_pictures(vgg, photos, tmp_path / "x.lance")
    for file in (tmp_path / "x.lance").rglob("*.manifest"):
        file.write_bytes(b"damaged")
    for call in (lambda: Index.open(tmp_path / "x.lance"), lambda: index_pictures(vgg, photos, tmp_path / "x.lance")):
        with pytest.raises(OSError, match=r"x\.lance cannot be used \(.*\); repair it") as caught:
            call()
        assert "\n" not in str(caught.value)


def test_activations_that_are_broken_lose_nothing_that_was_there(vgg, photos, tmp_path):
    index_pictures(vgg, photos / "a.png", tmp_path / "x.lance")
    before = rows_of(tmp_path / "x.lance")
    with torch.no_grad():
        kept = vgg.head[1].weight.clone()
        vgg.head[1].weight.fill_(float("nan"))
        with pytest.raises(ValueError, match="NaN"):
            index_pictures(vgg, photos, tmp_path / "x.lance")
        vgg.head[1].weight.copy_(kept)
    assert {name: rows_of(tmp_path / "x.lance")[name] for name in before} == before


def test_an_index_in_memory_goes_with_the_process(vgg, photos):
    done = index_pictures(vgg, photos, "memory://")
    [matches] = done.index.search(photos / "a.png", 2)
    assert len(matches.found) == 2
    assert not os.path.exists("memory:")  # noqa: PTH110


def test_a_network_without_a_head_has_no_classes(vgg, photos, tmp_path):
    from convnets_torch.networks import vgg16

    torch.manual_seed(0)
    headless = vgg16(None, widths=(8, 16, 32, 64, 64)).eval()
    headless.card = replace(vgg.card, arguments={"classes": None, "widths": (8, 16, 32, 64, 64)}, class_names=None)
    done = index_pictures(headless, photos, tmp_path / "x.lance")
    [matches] = done.index.search(photos / "a.png", 1)
    assert (matches.found[0].class_id, matches.found[0].words, matches.found[0].probability) == (None, None, None)


@pytest.mark.slow
def test_without_lancedb_the_extra_is_named(photos, tmp_path, vgg):
    weights.save(vgg, tmp_path / "vgg.safetensors")
    code = f"""
import sys
sys.modules["lancedb"] = None
from convnets_torch.cli.app import main
sys.argv = ["convnets-torch", "index", {str(tmp_path / "vgg.safetensors")!r}, {str(photos)!r}, "-o", "x.lance"]
main()
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    wanted = "convnets-torch: an index of pictures needs LanceDB: pip install 'convnets-torch[search]'"
    assert (done.returncode, done.stderr.splitlines()[-1]) == (1, wanted)
    assert not (tmp_path / "x.lance").exists()


def test_an_index_keeps_its_depth_and_its_background(vgg, tmp_path):
    """Vectors of pictures read in two ways cannot be compared; queries are read as the rows were."""
    (tmp_path / "photos").mkdir()
    logo = np.dstack([picture(3, 90, 120), np.full((90, 120), 255, np.uint8)])
    logo[:45, :, 3] = 0
    for number in (1, 2):
        Image.fromarray(np.roll(logo, number * 9, axis=1)).save(tmp_path / "photos" / f"{number}.png")
    address = tmp_path / "index.lance"
    done = index_pictures(vgg, tmp_path / "photos", address, background="black", depth="auto")
    assert counts(done)[:2] == (2, 0)
    assert counts(index_pictures(vgg, tmp_path / "photos", address, background="black", depth="auto"))[3] == 2
    others: list[dict[str, Any]] = [{}, {"background": "white", "depth": "auto"}, {"background": "black"}]
    for other in others:
        with pytest.raises(
            ValueError, match=r"vectors of another kind \(vgg16, .*, avg, depth auto, background black\)"
        ):
            index_pictures(vgg, tmp_path / "photos", address, **other)
    query = tmp_path / "query.png"
    Image.fromarray(logo).save(query)
    [found] = Index.open(address).search([query], network=vgg)
    black = Image.fromarray(logo[:, :, :3] * (logo[:, :, 3:] > 0))
    [expected] = Index.open(address).search([embed(vgg, black)[0].numpy()])
    assert [match.path for match in found.found] == [match.path for match in expected.found]
    np.testing.assert_allclose(
        [match.score for match in found.found], [match.score for match in expected.found], atol=1e-5
    )
