"""A file is there whole or not at all, and what was there before stays until then."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

import steerlab as sl
from steerlab.files import is_partial, read_tensors, system_reason, whole, write_tensors, write_text


def test_a_failed_write_leaves_what_was_there(tmp_path: Path) -> None:
    place = tmp_path / "new" / "text.txt"
    with whole(place) as partial:
        assert partial.suffix == ".txt"  # writers read the format from it
        assert is_partial(partial)
        assert not is_partial(place)
        write_text(partial, "before")

    def broken() -> None:
        with whole(place) as partial:
            write_text(partial, "half of what")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        broken()
    assert place.read_text() == "before"
    assert [file.name for file in place.parent.iterdir()] == ["text.txt"]


def test_tensors_come_back_with_their_metadata(tmp_path: Path) -> None:
    rows = torch.arange(6.0).reshape(2, 3).T  # not contiguous
    write_tensors(tmp_path / "t.safetensors", {"rows": rows}, {"format": "mine"})
    metadata, tensors = read_tensors(tmp_path / "t.safetensors")
    assert metadata == {"format": "mine"}
    assert torch.equal(tensors["rows"], rows)


def test_the_system_is_quoted_without_its_codes() -> None:
    assert system_reason(OSError(28, "No space left on device")) == "No space left on device"
    assert system_reason(ValueError("first line.\nsecond")) == "first line"


def test_a_link_that_somebody_put_there_is_never_written_through(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = tmp_path / "secret"
    secret.write_text("keep me")
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / f".{os.getpid()}.page.html").symlink_to(secret)  # a name that can be guessed
    (folder / "page.html").symlink_to(secret)
    with whole(folder / "page.html") as partial:
        write_text(partial, "page")
    assert secret.read_text() == "keep me"
    assert (folder / "page.html").read_text() == "page"
    assert not (folder / "page.html").is_symlink()

    monkeypatch.setattr("secrets.token_hex", lambda size: "0" * 2 * size)  # even one that was guessed
    (folder / f".steerlab-{'0' * 16}.page.html").symlink_to(secret)
    with pytest.raises(FileExistsError), whole(folder / "page.html") as partial:
        write_text(partial, "page")
    assert secret.read_text() == "keep me"


def test_a_temporary_file_is_known_as_one_whatever_version_left_it() -> None:
    names = (".12.run.json", f".steerlab-{'a1' * 8}.run.json")
    assert all(is_partial(Path(name)) for name in names)
    assert not any(is_partial(Path(name)) for name in (".notes.json", ".steerlab-1.run.json", "12.run.json"))


def test_devices_and_pipes_are_no_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(OSError, match="it is a device or a pipe and no file"):
            read_tensors(path)
        for load in (
            sl.Direction.load,
            sl.Moments.load,
            sl.alignment.Aligner.load,
            sl.alignment.Alignment.load,
        ):
            with pytest.raises(
                sl.SteerlabError, match=rf"{path} cannot be .*it is a device or a pipe and no file\)?; "
            ):
                load(path)
