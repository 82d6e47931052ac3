"""What holds in the whole house: one base of stored records, no file or function too long, nothing kept twice."""

from __future__ import annotations

import ast
import importlib
import pkgutil
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import grimp
from private_modules import PrivateModules, room_of
from pydantic import BaseModel

import steerlab
from steerlab import studies
from steerlab.record import Record
from steerlab.registry import ordered_studies

PACKAGE = Path(steerlab.__file__).parent
LONGEST_FILE, LONGEST_FUNCTION = 400, 60


def modules() -> list[str]:
    found = pkgutil.walk_packages(steerlab.__path__, "steerlab.")
    return [module.name for module in found if not module.name.endswith("__main__")]


def subclasses(kind: type) -> set[type]:
    direct = set(kind.__subclasses__())
    return direct.union(*(subclasses(child) for child in direct))


def test_every_frozen_model_is_a_record() -> None:
    for name in modules():
        importlib.import_module(name)
    ours = [model for model in subclasses(BaseModel) if model.__module__.startswith("steerlab.")]
    assert len(ours) > 60
    frozen = [model for model in ours if model.model_config.get("frozen")]  # type: ignore[attr-defined]
    assert [model for model in frozen if not issubclass(model, Record)] == []
    assert all(model.model_config["extra"] == "forbid" for model in frozen)  # type: ignore[attr-defined]


def test_files_and_functions_are_short_or_say_why() -> None:
    long: list[str] = []
    for path in sorted(PACKAGE.rglob("*.py")):
        lines = path.read_text(encoding="utf-8").splitlines()
        if len(lines) > LONGEST_FILE:
            long.append(f"{path}: {len(lines)} lines")
        for node in ast.walk(ast.parse("\n".join(lines))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
                reason = lines[first - 2].strip().startswith("# Long: ")
                if (node.end_lineno or 0) - node.lineno >= LONGEST_FUNCTION and not reason:
                    long.append(f"{path}:{node.lineno}: {node.name}")
    assert long == []


def test_studies_are_packages() -> None:
    assert {path.name for path in (PACKAGE / "studies").glob("*.py")} == {"__init__.py", "_pair.py"}
    for package in (PACKAGE / "studies").glob("_*/"):
        if package.name != "__pycache__":
            files = {path.name for path in package.glob("*.py")}
            assert {"__init__.py", "study.py", "result.py", "sentences.py"} <= files, package


def test_what_lists_studies_without_running_agrees_with_the_registry() -> None:
    ours = {study.name for study in ordered_studies() if study.function.startswith("steerlab.studies.")}
    assert ours <= set(studies.__all__)
    project = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text(encoding="utf-8"))
    contracts = project["tool"]["importlinter"]["contracts"]
    (apart,) = (contract for contract in contracts if contract["type"] == "independence")
    assert {module.rpartition("._")[2] for module in apart["modules"]} == ours


def test_no_table_pairs_columns_and_rows_by_hand() -> None:
    by_hand = re.compile(r"\bTable\(\s*(key|columns|title|rows)=")
    paths = [
        path for path in PACKAGE.rglob("*.py") if path.name != "results.py" and path.parent.name != "report"
    ]
    assert [path for path in paths if by_hand.search(path.read_text(encoding="utf-8"))] == []


def test_the_contract_of_private_modules_breaks_where_it_should() -> None:
    assert room_of("steerlab.studies._refusal.price") == "steerlab.studies"
    assert room_of("steerlab.steering._writers") == "steerlab.steering"
    assert room_of("steerlab.steering.add") is None
    graph = grimp.ImportGraph()
    for name in ("steerlab", "steerlab.steering", "steerlab.steering._writers", "steerlab.steering.bake"):
        graph.add_module(name)
    graph.add_module("steerlab.cli")
    graph.add_import(importer="steerlab.steering.bake", imported="steerlab.steering._writers")
    contract = PrivateModules("private", session_options={}, contract_options={})
    assert contract.check(graph, verbose=False).kept
    graph.add_import(importer="steerlab.cli", imported="steerlab.steering._writers")
    assert not contract.check(graph, verbose=False).kept


def test_help_of_every_command_imports_nothing_heavy() -> None:
    code = (
        "import sys\nfrom typer.testing import CliRunner\nfrom steerlab.cli import app\n"
        "for command in ('compare', 'trace', 'branching', 'transfer', 'diff', 'neurons', 'extract', 'report',\n"
        "                'audit'):\n"
        "    shown = CliRunner().invoke(app, [command, '--help'])\n"
        "    assert shown.exit_code == 0, shown.output\n"
        "assert not {'torch', 'transformers', 'sklearn', 'scipy', 'plotly'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
