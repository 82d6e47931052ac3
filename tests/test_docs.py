"""The documentation builds strictly, and what README and guide print runs as printed."""

from __future__ import annotations

import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from scripts import run_command, run_script

import steerlab as sl

ROOT = Path(__file__).parents[1]
GUIDE = sorted((ROOT / "docs" / "guide").glob("*.md"))


def test_the_documentation_builds_strictly(tmp_path: Path) -> None:
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert built.returncode == 0, built.stdout + built.stderr
    assert (tmp_path / "index.html").stat().st_size > 1000


def test_the_reference_lists_every_room_and_its_whole_list(tmp_path: Path) -> None:
    marks = set(
        re.findall(r"^<!-- public: (\w+) -->$", (ROOT / "docs" / "reference.md").read_text("utf-8"), re.M)
    )
    assert marks == set(sl._ROOMS) - {"cli"}  # commands have --help
    hooks = runpy.run_path(str(ROOT / "docs" / "_hooks.py"))
    page = hooks["on_page_markdown"]("\n".join(f"<!-- public: {room} -->" for room in marks))
    for room in marks:
        for name in getattr(getattr(sl, room), "__all__", ()):
            home = getattr(getattr(getattr(sl, room), name), "__module__", "").split(".")
            elsewhere = home[0] != "steerlab" or (
                home[1] != room and home[1] in marks
            )  # listed where it is defined
            assert elsewhere or re.search(rf"^::: steerlab\.{room}\.{name}$", page, re.M), f"{room}.{name}"


def printed(page: Path, folder: Path) -> Path:
    """The Python that a page shows, as one script in `folder`."""
    blocks = re.findall(r"```python\n(.*?)```", page.read_text("utf-8"), flags=re.DOTALL)
    assert blocks, f"{page.name} shows no Python"
    script = folder / "page.py"
    script.write_text("\n".join(blocks), encoding="utf-8")
    return script


@pytest.mark.usefixtures("smaller_studies")
@pytest.mark.parametrize("page", [ROOT / "README.md", *GUIDE], ids=lambda page: page.stem)
def test_a_page_runs_as_printed(page: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its Python first, then a guide's commands on bundled models, all of a page in one empty folder.

    Each ``print(…)  # words`` prints these words, in this order.
    """
    script = printed(page, tmp_path)
    assert run_script(script, [], tmp_path) is None
    out = capsys.readouterr().out
    for words in re.findall(r"^ *print\(.*\)  # (?:\.\.\. )?(.+)$", script.read_text("utf-8"), flags=re.M):
        assert words in out, words
        out = out.partition(words)[2]
    commands = re.findall(r"^\$ steerlab (.*zoo:.*)$", page.read_text("utf-8"), flags=re.M)
    for command in commands:
        assert run_command(shlex.split(command), tmp_path) == 0, command


def test_the_readme_says_what_its_first_steps_print() -> None:
    assert len(re.findall(r"^ *print\(.*\)  # ", (ROOT / "README.md").read_text("utf-8"), flags=re.M)) >= 4


@pytest.mark.parametrize("command", ["make compare", "make test"])
def test_the_readme_shows_both_commands(command: str) -> None:
    assert command in (ROOT / "README.md").read_text("utf-8")
