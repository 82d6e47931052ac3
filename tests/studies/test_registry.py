"""A study is one registration: one of somebody else's, in one file, runs with ours and stands in every list."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from steerlab import studies
from steerlab.comparison import known_studies
from steerlab.errors import RunError, SteerlabError
from steerlab.registry import STUDIES, Study, ordered_studies, register_study
from steerlab.results import StudyResult

TOY = '''
"""Which of two models has more parameters?"""
from steerlab.registry import Study, register_study
from steerlab.results import Headline, StudyResult, Table
from steerlab.statistics import Estimate

register_study(
    Study("toy", "Size of the models", "Which is larger?", ("statements",), "toy_study:toy", "toy_study:ToyResult")
)


class ToyResult(StudyResult):
    study: str = "toy"
    sizes: dict[str, int]

    def tables(self):
        columns = {"model": lambda row: row[0], "n": lambda row: row[1]}
        return [Table.of("sizes", "Parameters", self.sizes.items(), columns)]


def toy(pair, data=None, *, size="quick", preset="corrected", seed=0):
    sizes = {name: sum(p.numel() for p in model.model.parameters()) for name, model in pair.by_name.items()}
    return ToyResult(
        summary=[f"{len(data.statements)} statements stay unread."],
        headline=Headline(what="parameters", value=Estimate(value=sizes["base"])),
        sizes=sizes,
    )
'''

# Three commands and the Python interface, one after the other in one process, apart from this one's registry.
COMMANDS = """
import contextlib, sys
from steerlab import cli

def steerlab(*arguments):
    sys.argv = ["steerlab", *arguments]
    with contextlib.suppress(SystemExit):
        cli.main()
    print("=====")

steerlab("compare", "--help")
steerlab(*{given})
steerlab("report", {out!r})
from steerlab import studies
assert "toy" in dir(studies)
print(studies.toy.__module__)
"""


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    """A folder of packages with one that brings a study, as `pip install` leaves it."""
    place = tmp_path / "packages"
    info = place / "toy_study-1.0.dist-info"
    info.mkdir(parents=True)
    (place / "toy_study.py").write_text(TOY)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: toy-study\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[steerlab.studies]\ntoy = toy_study\n")
    return place


def test_a_study_of_somebody_else_runs_with_ours(elsewhere: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(elsewhere), "COLUMNS": "200"}

    def python(code: str) -> str:
        ran = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
        assert ran.returncode == 0, ran.stderr
        return ran.stdout

    out = tmp_path / "run"
    given = ["compare", "zoo:small-base", "zoo:small-post", "--studies", "toy", "--out", str(out)]
    listed, compared, reported, module = python(COMMANDS.format(given=given, out=str(out))).split("=====")
    assert "toy" in listed
    assert "Size of the models" in compared
    assert "Size of the models" in reported
    assert module.strip() == "toy_study"
    page = (out / "report.html").read_text("utf-8")
    assert "Size of the models" in page
    assert "statements stay unread" in page


def test_a_study_that_cannot_be_imported_leaves_the_others_and_the_help(elsewhere: Path) -> None:
    (elsewhere / "toy_study.py").write_text("import nothing_of_this_name\n")
    code = "import sys\nfrom steerlab import cli\nsys.argv = ['steerlab', *{arguments}]\ncli.main()\n"
    for arguments in (["--help"], ["compare", "--help"], ["doctor"]):
        ran = subprocess.run(
            [sys.executable, "-c", code.format(arguments=arguments)],
            env={**os.environ, "PYTHONPATH": str(elsewhere), "COLUMNS": "200"},
            capture_output=True,
            text=True,
        )
        assert ran.returncode == 0, ran.stderr
        assert "toy" not in ran.stdout
        if arguments != ["--help"]:
            assert "truthfulness" in ran.stdout
            assert "'toy' (toy_study) is left out" in ran.stderr


def test_unknown_studies_and_studies_of_other_arguments_are_refused_with_the_names() -> None:
    with pytest.raises(RunError, match=r"no study 'nothing'; choose from .*truthfulness"):
        known_studies(["nothing"])
    with pytest.raises(RunError, match="'transfer' does not take a base and a post-trained model"):
        known_studies(["transfer"])
    with pytest.raises(RunError, match="No study is named"):
        known_studies([])
    able = ordered_studies(in_compare=True)
    assert known_studies(None) == [study.name for study in able if not study.needs]
    assert known_studies(None, {"contrasts"}) == [study.name for study in able]


def test_a_name_is_taken_once() -> None:
    taken = STUDIES["refusal"]
    register_study(taken)  # the same one again is no second one
    with pytest.raises(ValueError, match="two of the study 'refusal'"):
        register_study(Study("refusal", "Another", "What?", (), "a:b", "a:C"))
    with pytest.raises(ValueError, match="small letters"):
        Study("Not a name", "t", "q", (), "a:b", "a:C")


@pytest.mark.parametrize("study", ordered_studies(), ids=lambda study: study.name)
def test_what_a_study_registers_is_there(study: Study) -> None:
    function, result = study.load(), study.result_class()
    assert issubclass(result, StudyResult)
    assert result.model_fields["study"].default == study.name
    assert getattr(studies, study.name) is function
    assert study.question.endswith("?")


@pytest.mark.parametrize("name", known_studies(None, {"contrasts"}))
def test_an_unknown_size_preset_or_pair_is_a_sentence_in_every_study(name: str) -> None:
    study = STUDIES[name].load()
    with pytest.raises(SteerlabError, match=rf"The {name} study has no size 'huge'; choose from quick, full"):
        study((), size="huge")
    with pytest.raises(SteerlabError, match=rf"The {name} study has no preset 'none'; choose from corrected"):
        study((), preset="none")
    with pytest.raises(SteerlabError, match=r"takes a pair \(base, post\) of loaded models"):
        study(("zoo:small-base", "zoo:small-post"))
