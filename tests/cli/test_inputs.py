"""Wrong input is refused before a model is loaded: exit code 2, one sentence that names the fix, nothing written."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from test_cli import run

import steerlab as sl

PAIR = ("zoo:small-base", "zoo:small-post")
MODEL = "zoo:small-post"
DIRECTION = "{folder}/d.safetensors"
#: Arguments, and words of the sentence. In `folder` are a direction, a damaged one, a file that is taken, and texts.
WRONG: list[tuple[list[str], str]] = [
    (["compare", "zoo:giraffe", "zoo:small-post", "--out", "{out}"], "no bundled model 'giraffe'; the bundled"),
    (["compare", "zoo:small-base", "./absent", "--out", "{out}"], "There is no folder './absent'; check the path"),
    (["compare", "zoo:small-base", "{folder}", "--out", "{out}"], "has no config.json, so it is not a model folder"),
    (["compare", *PAIR, "--out", "{out}", "--studies", "alchemy"], "no study 'alchemy'; choose from"),
    (["compare", *PAIR, "--out", "{out}", "--statements", "{folder}/none.csv"], "none.csv cannot be read"),
    (["compare", *PAIR, "--out", "{out}", "--requests", "{folder}/none.csv"], "none.csv cannot be read"),
    (["compare", *PAIR, "--out", "{out}", "--questions", "{folder}/none.csv"], "none.csv cannot be read"),
    (["compare", *PAIR, "--out", "{out}", "--contrast", "nonsense"], "no contrast 'nonsense'"),
    (["compare", *PAIR, "--out", "{out}", "--studies", "branching", "--answers", "A", "B"], "leave answers out"),
    (["compare", *PAIR, "--out", "{folder}"], "is not empty and is not a run folder; choose another --out"),
    (["compare", *PAIR], "name the run folder"),
    (["branching", "zoo:giraffe", MODEL, "--out", "{out}"], "no bundled model"),
    (["branching", *PAIR, "--out", "{out}", "--prompts", "{folder}/none.txt"], "none.txt cannot be read"),
    (["branching", *PAIR, "--out", "{out}", "--value", "2"], "needs a value above 0"),
    (["branching", *PAIR, "--out", "{folder}"], "choose another --out"),
    (["trace", "zoo:small-base", "./absent", "--out", "{out}"], "no folder './absent'"),
    (["trace", *PAIR, "--out", "{out}", "--site", "mlp_uot"], "No site 'mlp_uot' can be mapped; --site takes"),
    (["trace", *PAIR, "--out", "{out}", "--pairs", "{folder}/none.jsonl"], "none.jsonl cannot be read"),
    (["trace", *PAIR, "--out", "{out}", "--template", "In {{object}}."], "no {subject}"),
    (["transfer", *PAIR, "zoo:giraffe", "--out", "{out}"], "no bundled model"),
    (["transfer", *PAIR, MODEL, "--out", "{out}", "--task", "sums:9"], "with N from 2 to 6"),
    (["transfer", *PAIR, MODEL, "--out", "{out}", "--task", "{folder}/none.jsonl"], "none.jsonl cannot be read"),
    (["transfer", *PAIR, MODEL, "--out", "{out}", "--task", "{folder}/task.jsonl", "--behaviour", "("], "expression"),
    (["diff", "zoo:giraffe", MODEL, "--out", "{out}"], "no bundled model"),
    (["diff", *PAIR, "--out", "{out}", "--texts", "{folder}/none.txt"], "none.txt cannot be read"),
    (["neurons", "./absent"], "no folder './absent'"),
    (["neurons", MODEL, "--texts", "{folder}/none.txt"], "none.txt cannot be read"),
    (["neurons", MODEL, "--out", "{folder}/taken.csv"], "taken.csv exists already; replace it with --overwrite"),
    (["extract", "zoo:giraffe", "--out", "{out}.safetensors"], "no bundled model"),
    (["extract", MODEL, "--out", "{out}.pt"], "let it end in .safetensors"),
    (["extract", MODEL, "--out", DIRECTION], "exists already; replace it with --overwrite, or choose another --out"),
    (["extract", MODEL, "--out", "{out}.safetensors", "--estimator", "ldaa"], "no estimator 'ldaa'; choose from"),
    (["extract", MODEL, "--out", "{out}.safetensors", "--layers", "4 to 8"], "write all, 4, 4-8 or 2,5,7"),
    (["extract", MODEL, "--out", "{out}.safetensors", "--contrast", "nonsense"], "no contrast 'nonsense'"),
    (["extract", MODEL, "--out", "{out}.safetensors", "--contrast", "{folder}/few.csv"], "at least 5 each"),
    (["extract", MODEL, "--out", "{out}.safetensors", "--contrast", "formal", "--label", "x"], "No text has the label"),
    (["extract", MODEL, "--out", "{out}.safetensors", "--contrast", "refusal", "--estimator", "ccs"], "reads pairs"),
    (["extract", MODEL, "--out", "{out}.safetensors", "--positive", "{folder}/none.txt"], "give both --positive and"),
    (["extract", MODEL, "--out", "{out}.safetensors", "--positive", "no.txt", "--negative", "x"], "no.txt cannot be"),
    (["generate", "zoo:giraffe", "Hello"], "no bundled model"),
    (["generate", MODEL, "Hello", "--steer", "{folder}/none.safetensors:1"], "none.safetensors"),
    (["generate", MODEL, "Hello", "--steer", "{folder}/damaged.safetensors:1"], "damaged.safetensors"),
    (["generate", MODEL, "Hello", "--steer", "mood"], "write FILE.safetensors, then :STRENGTH"),
    (["generate", MODEL, "Hello", "--steer", DIRECTION + ":much"], "write a number such as 1.5"),
    (["generate", MODEL, "Hello", "--ablate", DIRECTION + "@one"], "write all, 4, 4-8 or 2,5,7"),
    (["chat", MODEL, "--steer", "{folder}/none.safetensors"], "none.safetensors"),
    (["bake", MODEL, "--out", "{out}"], "give at least one intervention"),
    (["bake", MODEL, "--out", "{folder}", "--ablate", DIRECTION], "holds something; choose another --out"),
    (["export", "papyrus", MODEL, "--out", "{out}", "--steer", DIRECTION], "no export 'papyrus'; choose from"),
    (["export", "gguf", MODEL, "--out", "{folder}/taken.csv", "--steer", DIRECTION], "replace it with --overwrite"),
    (["doctor", "./absent"], "no folder './absent'"),
    (["doctor", MODEL, "--base", "./absent"], "no folder './absent'"),
    (["audit", MODEL, "zoo:giraffe"], "no bundled model"),
    (["audit", *PAIR, "--against", "nonsense"], "nothing called 'nonsense'"),
    (["audit", *PAIR, "--against", "{folder}/none.safetensors"], "none.safetensors cannot be read"),
    (["report", "{folder}"], "is not a run folder"),
    (["report", "{folder}", "--diff"], "two run folders and --diff go together"),
    (["zoo", "measure", "{folder}/none"], "none cannot be read"),
    (["zoo", "train", "--scale", "small", "--out", "{folder}/zoo"], "small-base is a folder that holds something"),
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("inputs")
    sites = {sl.Site("resid_post", layer): torch.ones(8) for layer in (0, 1)}
    sl.Direction(sites, "made", "0" * 16).save(place / "d.safetensors")
    (place / "damaged.safetensors").write_bytes(b"not one")
    (place / "taken.csv").write_text("mine")
    (place / "few.csv").write_text("text,label\nhot,yes\ncold,no\n")
    (place / "task.jsonl").write_text('{"question": "1 + 1?", "answer": "2"}\n' * 20)
    (place / "zoo" / "small-base").mkdir(parents=True)
    (place / "zoo" / "small-base" / "config.json").write_text("{}")
    return place


@pytest.fixture(autouse=True)
def nothing_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    import steerlab.models
    import steerlab.models.loading

    def load(*_: Any, **__: Any) -> None:
        raise AssertionError("a model was loaded first")

    monkeypatch.setattr(steerlab.models, "load_model", load)
    monkeypatch.setattr("steerlab.models.read_output_weights", load)


@pytest.mark.parametrize(
    ("arguments", "words"), WRONG, ids=lambda part: " ".join(part)[:60] if isinstance(part, list) else ""
)
def test_it_is_refused(
    arguments: list[str],
    words: str,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    before = sorted(folder.rglob("*"))
    filled = [argument.format(folder=folder, out=tmp_path / "out") for argument in arguments]
    assert run(*filled, monkeypatch=monkeypatch) == 2
    shown = capfd.readouterr()
    said = " ".join(shown.err.replace("│", " ").split())
    assert words in said
    assert "Traceback" not in said
    assert shown.out == ""
    if "steerlab: " in said:
        assert said.endswith(".")
    assert list(tmp_path.iterdir()) == []
    assert sorted(folder.rglob("*")) == before


@pytest.mark.parametrize("command", ["compare", "generate", "doctor", "audit"])
def test_a_name_that_nothing_has_is_refused_before_torch_is_imported(command: str) -> None:
    others = {"compare": ["zoo:small-post", "--out", "x"], "generate": ["Hello"], "audit": ["zoo:small-post"]}
    arguments = ["steerlab", command, "zoo:giraffe", *others.get(command, [])]
    code = (
        f"import sys\nsys.argv = {arguments!r}\nfrom steerlab.cli import main\n"
        "try:\n    main()\nexcept SystemExit as stopped:\n    assert stopped.code == 2\n"
        "assert 'torch' not in sys.modules\n"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert "giraffe" in ran.stderr
