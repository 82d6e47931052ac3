"""One process at a time writes a folder: a lock file in it says who does, and a dead owner frees it.

The file is made with O_EXCL and holds the process's number, its start and the host. A number alone would name whoever
gets it next; number and start together name one process.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import stat
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypedDict

from steerlab.errors import RunError
from steerlab.files import system_reason

if sys.platform != "win32":
    import fcntl

LOCK = ".steerlab-lock"
_NO_LINK = getattr(os, "O_NOFOLLOW", 0)  # Windows has neither
_NO_WAIT = getattr(os, "O_NONBLOCK", 0)
_BEING_WRITTEN = 5.0  # seconds in which an owner that made the file has written itself into it


class Owner(TypedDict):
    """The process that holds a lock."""

    pid: int
    host: str
    started: str


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold `folder` for this process; folders that had to be made for that go again if they stay empty.

    Raises:
        RunError: another process, or this one already, holds it, or nothing can be written there.
    """
    missing = [parent for parent in (folder, *folder.parents) if not parent.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _take(folder / LOCK)
    except OSError as error:
        _remove_empty(missing)
        raise RunError(
            f"Nothing can be written to {folder}: {system_reason(error)}; choose another --out or free some space."
        ) from error
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            (folder / LOCK).unlink()
        _remove_empty(missing)


# -- private, in the order they are called --


def _take(lock: Path) -> None:
    try:
        handle = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
    except FileExistsError:
        try:
            _take_over(lock)
        except FileNotFoundError:  # its owner was just done
            _take(lock)
        return
    try:
        _write(handle)
    except OSError:
        lock.unlink(missing_ok=True)
        raise
    finally:
        os.close(handle)


def _take_over(lock: Path) -> None:
    """Put this process in the place of a dead one; of several that try at once one does."""
    handle = os.open(lock, os.O_RDWR | _NO_LINK)
    try:
        if sys.platform != "win32":
            fcntl.flock(handle, fcntl.LOCK_EX)
        _require_dead(lock)
        if not os.path.samestat(os.fstat(handle), lock.stat()):
            raise RunError(f"{lock.parent} was just taken by another process; choose another --out or wait.")
        os.ftruncate(handle, 0)
        _write(handle)
    finally:
        os.close(handle)


def _require_dead(lock: Path) -> None:
    owner = _owner(lock)
    if owner is None:
        if time.time() - lock.stat().st_mtime > _BEING_WRITTEN:
            return
        raise RunError(f"{lock.parent} was just taken by another process; choose another --out or wait.")
    if owner["host"] != socket.gethostname():
        raise RunError(
            f"{lock.parent} is held by process {owner['pid']} on {owner['host']}; choose another --out, or remove "
            f"{lock} if that process is gone."
        )
    if _started(owner["pid"]) in ("", owner["started"]):
        raise RunError(
            f"{lock.parent} is being written by process {owner['pid']}; wait for it or choose another --out."
        )


def _write(handle: int) -> None:
    pid = os.getpid()
    owner = Owner(pid=pid, host=socket.gethostname(), started=_started(pid) or "")
    os.write(handle, json.dumps(owner).encode())
    os.fsync(handle)


def _owner(lock: Path) -> Owner | None:
    """Who holds a lock; None where the file does not say it."""
    handle = os.open(lock, os.O_RDONLY | _NO_LINK | _NO_WAIT)
    try:
        said = json.loads(os.read(handle, 4096)) if stat.S_ISREG(os.fstat(handle).st_mode) else {}
        return Owner(pid=int(said["pid"]), host=str(said["host"]), started=str(said["started"]))
    except (ValueError, KeyError, TypeError):
        return None
    finally:
        os.close(handle)


def _started(pid: int) -> str | None:
    """When a process of this machine began, in the system's own words; None where there is none, "" where not known."""
    if sys.platform == "win32":
        return ""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return _answers(pid)
    return None if fields[0] in "ZX" else f"{fields[19]} {boot}"


def _answers(pid: int) -> str | None:
    """ "" where a process answers, on a system without /proc; None where none does."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return None
    except PermissionError:
        return ""
    return ""


def _remove_empty(folders: list[Path]) -> None:
    """Remove folders, the deepest first, as long as they are empty."""
    for folder in folders:
        try:
            folder.rmdir()
        except OSError:
            return
