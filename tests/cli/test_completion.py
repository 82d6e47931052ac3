"""Shell completion: typer's scripts, and values without anything heavy."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from steerlab.cli import _completion
from steerlab.registry import names_in_source, registry_of


def completed(words: str, shell: str = "fish") -> list[str]:
    """What a shell offers behind these words."""
    asked = {"_TYPER_COMPLETE_FISH_ACTION": "get-args", "_TYPER_COMPLETE_ARGS": words}
    code = "import sys\nsys.argv = ['steerlab']\nfrom steerlab.cli import main\nmain()"
    ran = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **asked, "_STEERLAB_COMPLETE": f"complete_{shell}"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert ran.stderr == ""
    return [line.partition("\t")[0] for line in ran.stdout.splitlines()]


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("steerlab ex", ["extract", "export"]),
        ("steerlab extract zoo:small-p", ["zoo:small-post"]),
        ("steerlab extract zoo:small-post --estimator l", ["lda", "leace", "logistic"]),
        ("steerlab compare a b --studies refusal,tr", ["refusal,truthfulness"]),
        ("steerlab export g", ["gguf"]),
        ("steerlab trace a b --dtype b", ["bfloat16"]),
    ],
)
def test_a_shell_is_offered(words: str, offered: list[str]) -> None:
    assert sorted(completed(words)) == sorted(offered)


def test_the_script_of_a_shell_is_shown() -> None:
    code = "import sys\nsys.argv = ['steerlab', '--show-completion', 'bash']\nfrom steerlab.cli import main\nmain()"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "_STEERLAB_COMPLETE=complete_bash" in shown.stdout


@pytest.mark.parametrize("things", ["estimators", "exports"])
def test_names_read_off_the_source_are_those_that_register(things: str) -> None:
    registry = registry_of(things)
    own = {
        name for name in registry if registry[name].__module__.startswith("steerlab.")
    }  # not a page's example
    assert set(names_in_source(things)) == own


def test_contrasts_and_studies_are_those_that_there_are() -> None:
    from steerlab import datasets
    from steerlab.registry import ordered_studies

    assert _completion.contrasts("") == ["truth", "refusal", *datasets.contrasts()]
    assert _completion.studies("") == [study.name for study in ordered_studies(in_compare=True)]
    assert "refusal" not in "".join(_completion.studies("refusal,")).replace("refusal,", "")


def test_nothing_heavy_is_imported_for_it() -> None:
    code = (
        "import sys\nfrom steerlab.cli import _completion as c\n"
        "for offer in (c.models, c.estimators, c.exports, c.contrasts, c.studies, c.devices): assert offer('')\n"
        "assert not {'torch', 'transformers', 'sklearn', 'plotly'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
