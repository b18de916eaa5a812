"""Damaged files that `scripts/fuzz.py` found to crash libhdf5 or to keep it busy without end: each is refused."""

from __future__ import annotations

import contextlib
import json
import re
import time
from pathlib import Path

import h5py
import pytest

from converters import convert
from converters.readers import process
from converters.readers.process import reading_process
from tests.conftest import DATA

FOUND = json.loads((DATA / "fuzz.json").read_text())
FOUND_WITH = "2.0.0"  # of libhdf5; others may see the damage, or not stumble over it
SENTENCES = {
    "crash": r"crashes the HDF5 library \(SIG[A-Z]+\); it is damaged, download it again",
    "busy": r"keeps the HDF5 library busy for more than \d+ s; it is damaged, download it again",
}


@pytest.fixture(params=FOUND, ids=[f"{entry['found']}-{entry['source']}" for entry in FOUND])
def entry(request):
    return request.param


@pytest.fixture
def damaged(entry, tmp_path) -> Path:
    """The sound file of the test data, with its recorded edits: place, bytes that go, bytes that come."""
    data = bytearray((DATA / entry["source"]).read_bytes())
    for place, removed, added in entry["edits"]:
        data[place : place + removed] = bytes.fromhex(added)
    path = tmp_path / f"x{Path(entry['source']).suffix}"
    path.write_bytes(data)
    return path


@pytest.mark.slow
def test_files_that_break_the_library_are_refused_in_a_sentence(entry, damaged, tmp_path, monkeypatch):
    monkeypatch.setattr(process, "SECONDS", 0)  # so that one for the size is left
    expected = SENTENCES[entry["found"]] if h5py.version.hdf5_version == FOUND_WITH else ""
    options: dict = {key: tuple(value) if isinstance(value, list) else value for key, value in entry["options"].items()}
    began = time.monotonic()
    try:
        convert(damaged, tmp_path / "out.safetensors", **options)
    except (OSError, ValueError) as refused:
        sentence = str(refused)
        assert sentence.startswith(str(damaged))
        assert sentence.isprintable()
        assert re.search(expected, sentence)
        assert list(tmp_path.iterdir()) == [damaged]
    else:
        assert not expected
    assert time.monotonic() - began < 30  # two seconds, on a machine of its own


@pytest.mark.slow
def test_the_process_that_audits_survives_them_too(entry, damaged, monkeypatch):
    monkeypatch.setattr(process, "SECONDS", 0)  # so that one for the size is left
    with reading_process() as call, contextlib.suppress(ValueError):
        assert call("audit", path=str(damaged))["path"] == str(damaged)
    with reading_process() as call:  # the next file is read
        assert call("read", path=str(DATA / entry["source"]))["layers"]
