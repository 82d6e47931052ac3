"""The documentation builds strictly, and what its pages show runs as printed.

Of every page the ```python blocks run, as one script in an empty folder, and each states what it prints:

    print(refusal.best)  # resid_post.4          these words are in the output, in this order
    print(text)  # ... So the answer is 154.     … behind others

Each such print is one line, or its words would not be found.

Of ```console blocks the `steerlab` commands on bundled models run; lines below a command are lines of its output.
```py blocks need what is not here: a server, or a package that is not installed. Where they begin with
"# needs: PACKAGE" they run where that can be imported, behind the page's Python, and are skipped elsewhere.
"""

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


def blocks(page: Path, kind: str = "python") -> list[str]:
    """What a page shows of one kind, in its order."""
    return re.findall(rf"^```{kind}\n(.*?)^```", page.read_text("utf-8"), flags=re.M | re.S)


PAGES = [page for page in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))) if blocks(page)]
OUTCOME = re.compile(r"^ *print\(.*\)  # (?:\.\.\. )?(.+)$", re.M)


def of_peers(page: Path) -> list[tuple[str, str]]:
    """The blocks that another package's users write, each with the package."""
    marked = ((re.match(r"# needs: (\w+)", block), block) for block in blocks(page, "py"))
    return [(package[1], block) for package, block in marked if package]


PEERS = [page for page in PAGES if of_peers(page)]


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).with_suffix("").as_posix().removeprefix("docs/")


def assert_printed(out: str, expected: list[str], page: Path) -> None:
    """`expected` stands in `out`, in this order."""
    for words in expected:
        assert words in out, f"{page.name} says {words!r}; what is left of the output is\n{out}"
        out = out.partition(words)[2]


def shown_commands(page: Path) -> list[tuple[str, list[str]]]:
    """The commands on bundled models that a page shows, each with the lines of output below it."""
    found: list[tuple[str, list[str]]] = []
    for block in blocks(page, "console"):
        for part in re.split(r"^\$ ", block, flags=re.M)[1:]:
            command, *output = part.splitlines()
            if command.startswith("steerlab ") and "zoo" in command:
                found.append((command.removeprefix("steerlab "), [line for line in output if line.strip()]))
    return found


def test_every_page_with_python_is_found() -> None:
    marked = [
        page for page in (ROOT / "docs").rglob("*.md") if re.search(r"``` ?python", page.read_text("utf-8"))
    ]
    assert set(marked) | {ROOT / "README.md"} == set(PAGES)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_block_states_an_outcome(page: Path) -> None:
    silent = [
        block for block in blocks(page) if not OUTCOME.search(block) or re.search(r"^ *\)  # ", block, re.M)
    ]
    assert not silent, f"{page.name} does not say what this prints:\n{silent[0]}"


@pytest.mark.usefixtures("smaller_studies")
@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_a_page_runs_as_printed(page: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its Python first, then its commands on bundled models, all of a page in one empty folder."""
    text = "\n".join(blocks(page))
    (tmp_path / "page.py").write_text(text, encoding="utf-8")
    assert run_script(tmp_path / "page.py", [], tmp_path) is None
    assert_printed(capsys.readouterr().out, OUTCOME.findall(text), page)
    for command, output in shown_commands(page):
        assert run_command(shlex.split(command), tmp_path) == 0, command
        assert_printed(capsys.readouterr().out, output, page)


@pytest.mark.parametrize("page", PEERS, ids=name_of)
def test_what_a_page_shows_of_a_peer_runs(
    page: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where the peer is installed; most of them pin libraries to versions that exclude ours."""
    for package, _ in of_peers(page):
        pytest.importorskip(package, reason=f"{page.name} shows {package}, which is not installed")
    text = "\n".join([*blocks(page), *(block for _, block in of_peers(page))])
    (tmp_path / "page.py").write_text(text, encoding="utf-8")
    assert run_script(tmp_path / "page.py", [], tmp_path) is None
    assert_printed(capsys.readouterr().out, OUTCOME.findall(text), page)


def test_no_page_has_a_spelling_that_voice_and_words_rejects() -> None:
    """Names of other tools' code (`steering-vectors`, `SteeringVector`) are code, and do not count."""
    table = (ROOT / "docs" / "voice.md").read_text("utf-8").split("## Spellings")[1].split("\n## ")[0]
    rows = re.findall(r"^\| ([^|]+) \| [^|]+ \|$", table, re.M)[1:]
    rejected = [word for row in rows for word in row.split(", ")]
    assert len(rejected) >= 10
    for page in (ROOT / "README.md", *(ROOT / "docs").rglob("*.md")):
        text = re.sub(r"```.*?```|`[^`\n]+`|\([^)\s]+\)", "", page.read_text("utf-8"), flags=re.S)
        found = [word for word in rejected if re.search(rf"\b{word}s?\b", text, re.I)]
        assert not found or page.name == "voice.md", f"{page.name} has {found}; voice.md says what to write"


def test_the_readme_says_what_its_first_steps_print() -> None:
    assert len(re.findall(r"^ *print\(.*\)  # ", (ROOT / "README.md").read_text("utf-8"), flags=re.M)) >= 4


@pytest.mark.parametrize("command", ["make compare", "make test"])
def test_the_readme_shows_both_commands(command: str) -> None:
    assert command in (ROOT / "README.md").read_text("utf-8")
