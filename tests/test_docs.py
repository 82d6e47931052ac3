"""The documentation builds strictly, and what README and guide print runs as printed."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

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


def test_the_readme_runs_as_printed(tmp_path: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text("utf-8"), flags=re.DOTALL)
    assert blocks, "the README shows no Python"
    script = tmp_path / "readme.py"
    script.write_text("\n".join(blocks), encoding="utf-8")
    ran = subprocess.run(
        [sys.executable, str(script)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
    )
    assert ran.returncode == 0, ran.stderr


@pytest.mark.parametrize("page", GUIDE, ids=lambda page: page.stem)
def test_the_guide_runs_as_printed(page: Path, tmp_path: Path) -> None:
    """Its Python first, then its commands on bundled models, all of a page in one empty folder."""
    text = page.read_text("utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    assert blocks, f"{page.name} shows no Python"
    (tmp_path / "page.py").write_text("\n".join(blocks), encoding="utf-8")
    commands = [
        ["python", "page.py"],
        *map(shlex.split, re.findall(r"^\$ (steerlab .*zoo:.*)$", text, flags=re.M)),
    ]
    for program, *arguments in commands:
        start = ["-m", "steerlab.cli"] if program == "steerlab" else []
        ran = subprocess.run(
            [sys.executable, *start, *arguments],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        )
        assert ran.returncode == 0, ran.stderr


@pytest.mark.parametrize("command", ["make compare", "make test"])
def test_the_readme_shows_both_commands(command: str) -> None:
    assert command in (ROOT / "README.md").read_text("utf-8")
