"""What is installed: every data file, one version, types, no heavy import at the start; and a wheel that is whole."""

from __future__ import annotations

import json
import re
import runpy
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

import steerlab as sl

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "steerlab"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
GLOBS = PROJECT["tool"]["setuptools"]["package-data"]["steerlab"]
HEAVY = {
    "torch",
    "transformers",
    "nnsight",
    "transformer_lens",
    "sklearn",
    "scipy",
    "numpy",
    "plotly",
    "pandas",
}


def data_files() -> set[str]:
    """Every file of the package that is no Python, as it lies in the tree."""
    return {
        file.relative_to(PACKAGE).as_posix()
        for file in PACKAGE.rglob("*")
        if file.is_file() and file.suffix not in {".py", ".pyc"} and not file.name.startswith(".")
    }


def test_package_data_names_every_file_and_no_other() -> None:
    matched = {
        glob: {file.relative_to(PACKAGE).as_posix() for file in PACKAGE.glob(glob) if file.is_file()}
        for glob in GLOBS
    }
    assert [glob for glob, files in matched.items() if not files] == []
    assert data_files() == set().union(*matched.values())
    assert {"py.typed", "costs.json", "report/templates/report.html.jinja"} <= data_files()
    assert len([file for file in data_files() if file.startswith("datasets/data/contrasts/")]) == 15


def test_every_folder_of_python_is_a_package() -> None:
    folders = {file.parent for file in PACKAGE.rglob("*.py")}
    assert [folder for folder in folders if not (folder / "__init__.py").exists()] == []


def test_the_version_stands_in_one_place() -> None:
    assert PROJECT["project"]["dynamic"] == ["version"]
    assert "version" not in PROJECT["project"]
    assert PROJECT["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "steerlab.__version__"}
    assert re.fullmatch(r"\d+\.\d+\.\d+(\.dev\d+|rc\d+)?", sl.__version__)
    assert sl.environment.library_versions()["steerlab"] in {sl.__version__, "not installed"}
    cited = re.search(r"^version: (.+)$", (ROOT / "CITATION.cff").read_text("utf-8"), re.M)
    assert cited is not None
    assert cited[1] == sl.__version__  # a file that is read by others and repeats it


def test_the_changelog_names_this_version_or_what_is_not_released() -> None:
    headings = re.findall(r"^## (.+)$", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.M)
    assert headings[0] == "Unreleased" or headings[0].startswith(sl.__version__)


def test_the_citation_has_what_the_format_demands() -> None:
    lines = (ROOT / "CITATION.cff").read_text("utf-8").splitlines()
    keys = {line.partition(":")[0] for line in lines if line and line[0].isalpha()}
    assert {"cff-version", "message", "title", "authors", "version", "license"} <= keys
    assert f"license: {PROJECT['project']['license']}" in lines


@pytest.mark.parametrize("start", ["import steerlab", "main(['--help'])", "main(['--version'])"])
def test_the_start_imports_nothing_heavy(start: str) -> None:
    code = start
    if start != "import steerlab":
        code = (
            f"import sys\nsys.argv = ['steerlab', *{start[5:-1]}]\nfrom steerlab.cli import main\n"
            "try:\n    main()\nexcept SystemExit as stopped:\n    assert not stopped.code\n"
        )
    code += f"\nimport sys\nassert not {HEAVY!r} & set(sys.modules), {HEAVY!r} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_a_model_of_transformers_does_not_wait_for_nnsight() -> None:
    code = (
        "import sys, steerlab as sl\nmodel = sl.load('zoo:small-base')\n"
        "model.generate('A', max_new_tokens=1)\nassert 'nnsight' not in sys.modules\n"
    )
    ran = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert ran.stderr == ""  # no library tells of kernels that it does not need here


def test_installed_and_pinned_versions_lie_in_the_ranges() -> None:
    requirements = pytest.importorskip("packaging.requirements")
    pins = dict(re.findall(r"^([\w.-]+)==(.+)$", (ROOT / "constraints.txt").read_text("utf-8"), re.M))
    pinned = {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in pins.items()}
    for line in PROJECT["project"]["dependencies"]:
        one = requirements.Requirement(line)
        assert any(part.operator == ">=" for part in one.specifier), line
        assert one.specifier.contains(metadata.version(one.name).partition("+")[0]), line
        assert one.specifier.contains(pinned[one.name.lower()]), line


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[set[str], set[str]]:
    """The names of the files in a wheel and in a source distribution, made as an installer makes them."""
    pytest.importorskip("setuptools", minversion="77")
    place = tmp_path_factory.mktemp("built")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("needs a git checkout, to know which files are tracked")
    for name in listed.stdout.split("\0"):
        if (ROOT / name).is_file() and not name.startswith(("figures/", "notebooks/", "tests/goldens/")):
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            (place / name).symlink_to(ROOT / name)
    code = (
        "from setuptools import build_meta as backend\nprint(backend.build_wheel('dist'))\n"
        "print(backend.build_sdist('dist'))"
    )
    subprocess.run([sys.executable, "-c", code], cwd=place, check=True, capture_output=True)
    (wheel,), (source,) = (place / "dist").glob("*.whl"), (place / "dist").glob("*.tar.gz")
    with zipfile.ZipFile(wheel) as zipped, tarfile.open(source) as packed:
        return set(zipped.namelist()), {name.partition("/")[2] for name in packed.getnames()}


def test_the_wheel_holds_the_package_and_nothing_else(built: tuple[set[str], set[str]]) -> None:
    wheel, _ = built
    info = f"steerlab-{sl.__version__}.dist-info/"
    python = {file.relative_to(ROOT).as_posix() for file in PACKAGE.rglob("*.py")}
    assert {name for name in wheel if not name.startswith(info)} == python | {
        f"steerlab/{f}" for f in data_files()
    }
    assert {f"{info}METADATA", f"{info}entry_points.txt", f"{info}licenses/LICENSE"} <= wheel


def test_the_source_distribution_builds_the_same(built: tuple[set[str], set[str]]) -> None:
    wheel, source = built
    assert {name for name in wheel if name.startswith("steerlab/")} <= source
    assert {
        "pyproject.toml",
        "README.md",
        "LICENSE",
        "CHANGELOG.md",
        "CITATION.cff",
        "constraints.txt",
    } <= source
    assert [name for name in source if name.startswith(("tests", "notebooks", "figures", "analyses"))] == []


def test_the_measured_starts_and_sizes_are_those_of_the_script() -> None:
    script = runpy.run_path(str(ROOT / "benchmarks" / "start.py"))
    rows = json.loads((ROOT / "benchmarks" / "results" / "start.json").read_text("utf-8"))["rows"]
    taken = {row["what"]: row["processor seconds beyond Python"] for row in rows if "megabytes" not in row}
    assert taken.keys() == script["STARTS"].keys()
    assert taken["import steerlab"] < taken["steerlab --help"] < taken["import torch"]
    sizes = {row["what"]: row["megabytes"] for row in rows if "megabytes" in row}
    assert sizes["trained models in the wheel"] < sizes["wheel"] < sizes["wheel, unpacked"]
