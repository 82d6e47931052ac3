"""One process writes a folder at a time: a living owner is refused, a dead one is followed."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from steerlab.errors import RunError
from steerlab.lock import LOCK, locked

HOLD = """
import sys, time
from pathlib import Path
from steerlab.lock import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_living_process_is_refused_and_a_killed_one_is_followed(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "run"
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(RunError, match=f"is being written by process {other.pid}; wait"), locked(folder):
            pass
        other.kill()
    assert (folder / LOCK).exists()
    with locked(folder):
        assert json.loads((folder / LOCK).read_text())["pid"] == os.getpid()
    assert not (folder / LOCK).exists()


def test_this_process_holds_a_folder_once(tmp_path: Path) -> None:
    with locked(tmp_path), pytest.raises(RunError, match="is being written"), locked(tmp_path):
        pass


def test_folders_made_for_the_lock_go_unless_something_was_written(tmp_path: Path) -> None:
    with locked(tmp_path / "a" / "b"):
        pass
    assert list(tmp_path.iterdir()) == []
    with locked(tmp_path / "a" / "b"):
        (tmp_path / "a" / "b" / "file").touch()
    assert [path.name for path in (tmp_path / "a" / "b").iterdir()] == ["file"]


@pytest.mark.parametrize(
    ("owner", "sentence"),
    [
        ({"pid": os.getpid(), "host": "elsewhere", "started": "1"}, "on elsewhere; .* remove"),
        ({"pid": os.getpid(), "host": socket.gethostname(), "started": "another start"}, None),
        ({"pid": 2**22 + 1, "host": socket.gethostname(), "started": "1"}, None),
    ],
)
def test_a_number_that_another_process_got_is_no_owner(
    owner: dict[str, object], sentence: str | None, tmp_path: Path
) -> None:
    (tmp_path / LOCK).write_text(json.dumps(owner))
    if sentence is None:
        with locked(tmp_path):
            pass
        return
    with pytest.raises(RunError, match=sentence), locked(tmp_path):
        pass
    assert (tmp_path / LOCK).exists()


def test_an_owner_that_never_wrote_itself_in_is_given_time_and_then_followed(tmp_path: Path) -> None:
    (tmp_path / LOCK).touch()
    with pytest.raises(RunError, match="was just taken"), locked(tmp_path):
        pass
    os.utime(tmp_path / LOCK, (0, 0))
    with locked(tmp_path):
        pass


def test_no_link_is_followed_and_no_pipe_waited_for(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("{}")
    os.utime(tmp_path / "mine", (0, 0))
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / LOCK).symlink_to(tmp_path / "mine")
    with pytest.raises(RunError, match="Nothing can be written"), locked(tmp_path / "run"):
        pass
    assert (tmp_path / "mine").read_text() == "{}"
    (tmp_path / "pipe").mkdir()
    os.mkfifo(tmp_path / "pipe" / LOCK)
    os.utime(tmp_path / "pipe" / LOCK, (0, 0))
    with pytest.raises(RunError, match="Nothing can be written"), locked(tmp_path / "pipe"):
        pass
