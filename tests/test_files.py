"""Outputs appear whole or not at all."""

from __future__ import annotations

import os
import stat

import pytest

from convnets_torch.files import replacing


def test_a_finished_block_replaces_the_old_file(tmp_path):
    (tmp_path / "out").write_text("old")
    with replacing(tmp_path / "out") as temporary:
        temporary.write_text("new")
        assert (tmp_path / "out").read_text() == "old"
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"out": "new"}


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_broken_block_leaves_the_old_file_and_nothing_else(error, tmp_path):
    (tmp_path / "out").write_text("old")

    def break_off():
        with replacing(tmp_path / "out") as temporary:
            temporary.write_text("half")
            raise error

    with pytest.raises(error):
        break_off()
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"out": "old"}


def test_a_link_is_followed_and_stays_a_link(tmp_path):
    (tmp_path / "far").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "far" / "real")
    with replacing(tmp_path / "out") as temporary:
        temporary.write_text("new")
    assert (tmp_path / "out").is_symlink()
    assert (tmp_path / "far" / "real").read_text() == "new"


def test_the_file_has_the_rights_that_any_new_file_has(tmp_path):
    (tmp_path / "plain").write_text("")
    with replacing(tmp_path / "out") as temporary:
        temporary.write_text("new")
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == stat.S_IMODE((tmp_path / "plain").stat().st_mode)


def test_the_rights_of_an_old_file_are_kept_even_where_a_library_writes_its_own(tmp_path):
    (tmp_path / "out").write_text("old")
    (tmp_path / "out").chmod(0o640)
    with replacing(tmp_path / "out") as temporary:
        temporary.unlink()
        temporary.write_text("new")
        temporary.chmod(0o600)
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == 0o640


def test_a_name_of_the_greatest_length_is_written(tmp_path):
    with replacing(tmp_path / ("x" * 255)) as temporary:
        temporary.write_text("new")
    assert (tmp_path / ("x" * 255)).read_text() == "new"


def test_links_that_lead_in_a_circle_are_refused(tmp_path):
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(OSError, match=r"loop.*(circle|Too many levels)"), replacing(tmp_path / "loop") as temporary:
        temporary.write_text("new")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_what_is_no_file_is_not_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="is not a regular file"), replacing(tmp_path / "pipe"):
        pass
    assert (tmp_path / "pipe").is_fifo()
