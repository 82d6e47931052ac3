"""How many small faults in a room of the package its tests notice.

    pip install --target FOLDER cosmic-ray coverage
    PYTHONPATH=FOLDER python tests/mutants.py ROOM --n 60 --seed 0 [--tests PATH ...] [--out FILE] [--among FILE]

ROOM is a folder below `steerlab` ("steering", "studies/_refusal"). One run of its tests notes which of them pass each
line, and how long they take. Then `n` mutants of the room (cosmic-ray's operators; not those that change annotations
or docstrings alone) are drawn with a seed, and for each the tests that pass the mutated line run, cheapest first,
until one fails. A mutant that runs into the limit of CPU time or memory counts as noticed. An interrupted run goes on
where its record `--out` ends. `--root` is another checkout whose tests are to
be measured on this package; `--among` runs only the mutants that another run's record says survived.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import importlib.machinery
import json
import os
import random
import resource
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import CodeType
from typing import Any

PACKAGE = Path(__file__).parents[1]
SLACK, LEAST = 10, 60  # CPU seconds of a mutant: times those that the tests took, and at least
MEMORY = 8 * 2**30


@dataclass(frozen=True)
class Mutant:
    """One change: the file below the package, cosmic-ray's operator and which place of it, and the line."""

    file: str
    operator: str
    occurrence: int
    line: int


@dataclass(frozen=True)
class Outcome:
    """What became of a mutant, and the first test that failed."""

    mutant: Mutant
    killed: bool
    by: str
    seconds: float


class Watch:
    """A plugin that notes for each test what it costs, whether it passes, and which shared fixtures it stands on.

    Lines of a fixture that several tests share are noted for the fixture, and so for all of them.
    """

    def __init__(self, coverage: Any) -> None:
        self.coverage = coverage
        self.seconds: dict[str, float] = {}
        self.fixtures: dict[str, list[str]] = {}
        self.failed: set[str] = set()
        self._running = ""

    def pytest_runtest_protocol(self, item: Any) -> None:
        self._running = item.nodeid
        self.coverage.switch_context(item.nodeid)
        defined = item._fixtureinfo.name2fixturedefs
        self.fixtures[item.nodeid] = [_name(each) for every in defined.values() for each in every]

    def pytest_fixture_setup(self, fixturedef: Any) -> None:
        if fixturedef.scope != "function":
            self.coverage.switch_context(_name(fixturedef))

    def pytest_fixture_post_finalizer(self) -> None:
        self.coverage.switch_context(self._running)

    def pytest_runtest_call(self) -> None:
        self.coverage.switch_context(self._running)

    def pytest_runtest_logreport(self, report: Any) -> None:
        self.seconds[report.nodeid] = self.seconds.get(report.nodeid, 0.0) + report.duration
        if report.outcome != "passed":
            self.failed.add(report.nodeid)


class FirstFailure:
    """A plugin that writes down the first test that fails."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.failed:
            self.file.write_text(report.nodeid)


def main() -> None:
    """Measure one room and print the share of its mutants that are noticed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("room")
    parser.add_argument("--n", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--tests", nargs="*", help="folders or files, from the root; by default the room's own"
    )
    parser.add_argument("--root", type=Path, default=PACKAGE, help="the checkout whose tests run")
    parser.add_argument("--out", type=Path, help="where the record goes, as JSON")
    parser.add_argument("--among", type=Path, help="a record: only the mutants that survived there")
    asked = parser.parse_args()
    chosen = drawn(asked.room, asked.n, asked.seed)
    if asked.among is not None:
        chosen = [outcome.mutant for outcome in recorded(asked.among) if not outcome.killed]
    os.chdir(asked.root)
    warm_up(asked.root)
    tests = asked.tests or [f"tests/{asked.room.split('/')[0]}"]
    passing, seconds = covered(asked.room, tests)
    outcomes = recorded(asked.out)
    for number, mutant in enumerate(chosen[len(outcomes) :], len(outcomes) + 1):
        some = sorted(passing.get((mutant.file, mutant.line), ()), key=lambda test: seconds[test])
        outcomes.append(tried(mutant, some, sum(seconds[test] for test in some)))
        print(f"{number:3d} {outcomes[-1]}", flush=True)
        if asked.out is not None:
            asked.out.write_text(json.dumps({"outcomes": [asdict(each) for each in outcomes]}, indent=1))
    noticed = sum(each.killed for each in outcomes)
    print(f"{asked.room}: {noticed} of {len(outcomes)} noticed")


def recorded(file: Path | None) -> list[Outcome]:
    """The outcomes in a record; none where there is none yet."""
    if file is None or not file.exists():
        return []
    rows = json.loads(file.read_text())["outcomes"]
    return [Outcome(**{**row, "mutant": Mutant(**row["mutant"])}) for row in rows]


def drawn(room: str, n: int, seed: int) -> list[Mutant]:
    """A sample of the mutants of a room."""
    from cosmic_ray.ast import ast_nodes, get_ast
    from cosmic_ray.plugins import get_operator, operator_names

    every = []
    operators = sorted(name for name in operator_names() if not get_operator(name).arguments())
    for path in sorted((PACKAGE / "steerlab" / room).rglob("*.py")):
        nodes = list(ast_nodes(get_ast(path.read_text("utf-8"))))
        for name in operators:
            places = [
                start for node in nodes for (start, _), *_ in get_operator(name)().mutation_positions(node)
            ]
            every += [
                Mutant(str(path.relative_to(PACKAGE)), name, number, line)
                for number, line in enumerate(places)
            ]
    random.Random(seed).shuffle(every)
    return [mutant for mutant, _ in zip(_effective(every), range(n), strict=False)]


def source_of(mutant: Mutant) -> str:
    """The file with the change in it."""
    from cosmic_ray.mutating import mutate_code
    from cosmic_ray.plugins import get_operator

    text = (PACKAGE / mutant.file).read_text("utf-8")
    changed = mutate_code(text, get_operator(mutant.operator)(), mutant.occurrence)
    return text if changed is None else str(changed)


def warm_up(root: Path) -> None:
    """Import what every mutant's process needs, and find `steerlab` of this checkout beside the tests of `root`."""
    sys.path[:0] = [str(PACKAGE), str(root / "tests")]
    for library in ("OMP", "OPENBLAS", "MKL"):
        os.environ[f"{library}_NUM_THREADS"] = "1"
    import hypothesis  # noqa: F401
    import plotly.graph_objects  # noqa: F401
    import pytest  # noqa: F401
    import scipy.stats  # noqa: F401
    import sklearn.linear_model  # noqa: F401
    import torch
    import transformers.models.llama  # noqa: F401

    torch.set_num_threads(1)


def covered(room: str, tests: Sequence[str]) -> tuple[dict[tuple[str, int], set[str]], dict[str, float]]:
    """The passing tests of each line, and what each costs, in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "covered.json"
        process = os.fork()
        if process == 0:
            file.write_text(json.dumps(_watched(room, tests)))
            os._exit(0)
        os.waitpid(process, 0)
        found = json.loads(file.read_text())
    lines: dict[tuple[str, int], set[str]] = {}
    for name, line, test in found["lines"]:
        lines.setdefault((name, line), set()).add(test)
    return lines, found["seconds"]


def tried(mutant: Mutant, tests: Sequence[str], seconds: float) -> Outcome:
    """Run the tests on the mutant in a process of its own."""
    if not tests:
        return Outcome(mutant, killed=False, by="", seconds=0.0)
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "failed"
        process = os.fork()
        if process == 0:
            _run_mutant(mutant, tests, file, int(SLACK * seconds + LEAST))
        code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
        by = file.read_text() if file.exists() else "" if code == 0 else f"exit {code}"
    return Outcome(mutant, code != 0, by, round(time.monotonic() - start, 1))


# -- private --


def _effective(mutants: Sequence[Mutant]) -> Iterator[Mutant]:
    """Those that are Python and change more than annotations and docstrings."""
    for mutant in mutants:
        with contextlib.suppress(SyntaxError):
            if _bare(source_of(mutant)) != _bare((PACKAGE / mutant.file).read_text("utf-8")):
                yield mutant


def _bare(text: str) -> str:
    """A module's syntax without annotations and docstrings."""
    tree = ast.parse(text)
    for node in ast.walk(tree):
        for field in ("annotation", "returns"):
            if hasattr(node, field):
                setattr(node, field, ast.Constant(None))
        body = getattr(node, "body", None)
        if (
            isinstance(body, list)
            and body
            and isinstance(body[0], ast.Expr)
            and isinstance(body[0].value, ast.Constant)
        ):
            body[0] = ast.Pass()  # fmt: skip
    return ast.dump(tree)


def _watched(room: str, tests: Sequence[str]) -> dict[str, Any]:
    import coverage
    import pytest

    measured = coverage.Coverage(data_file=None, include=[f"{PACKAGE}/steerlab/{room}/*"], messages=False)
    watch = Watch(measured)
    measured.start()
    measured.switch_context("imports")
    _silent()
    pytest.main([*tests, "-q", "-p", "no:cacheprovider", "-p", "no:timeout"], plugins=[watch])
    measured.stop()
    passed = [test for test in watch.seconds if test not in watch.failed]
    standing: dict[str, list[str]] = {"imports": passed}
    for test in passed:
        for context in (test, *watch.fixtures[test]):
            standing.setdefault(context, []).append(test)
    data = measured.get_data()
    lines = {
        (str(Path(name).relative_to(PACKAGE)), line, test)
        for name in data.measured_files()
        for line, contexts in data.contexts_by_lineno(name).items()
        for context in contexts
        for test in standing.get(context, ())
    }
    return {"lines": sorted(lines), "seconds": watch.seconds}


def _name(fixturedef: Any) -> str:
    return f"fixture {fixturedef.baseid} {fixturedef.argname}"


def _run_mutant(mutant: Mutant, tests: Sequence[str], file: Path, limit: int) -> None:
    """Import the mutant in place of its file, run the tests and leave with pytest's code."""
    import pytest

    resource.setrlimit(resource.RLIMIT_CPU, (limit, limit))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    path, text = str(PACKAGE / mutant.file), source_of(mutant)
    plain = importlib.machinery.SourceFileLoader.get_code

    def changed(loader: importlib.machinery.SourceFileLoader, name: str) -> CodeType | None:
        return compile(text, path, "exec") if loader.path == path else plain(loader, name)

    importlib.machinery.SourceFileLoader.get_code = changed  # type: ignore[method-assign]
    _silent()
    options = ["-x", "-q", "-p", "no:cacheprovider", "-p", "no:timeout"]
    os._exit(int(pytest.main([*tests, *options], plugins=[FirstFailure(file)])))


def _silent() -> None:
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)


if __name__ == "__main__":
    main()
