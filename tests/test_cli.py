"""The command line as a user meets it: exit codes, one sentence for wrong input, nothing half-written."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from steerlab import cli


def run(*arguments: object, monkeypatch: pytest.MonkeyPatch) -> int:
    """The exit code of `steerlab ARGUMENTS`, in this process."""
    monkeypatch.setattr(sys, "argv", ["steerlab", *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    return int(stopped.value.code or 0)


def test_help_does_not_wait_for_torch() -> None:
    heavy = "[name for name in ('torch', 'transformers', 'plotly') if name in sys.modules]"
    script = f"import sys, steerlab, steerlab.cli; print({heavy})"
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"
    helped = subprocess.run([sys.executable, "-m", "steerlab.cli", "--help"], capture_output=True, text=True)
    assert helped.returncode == 0
    for command in ("compare", "extract", "generate", "report", "zoo", "doctor"):
        assert command in helped.stdout


def bad_models(tmp_path: Path) -> dict[str, Path | str]:
    """Model arguments nobody can compare, by what is wrong with them."""
    from transformers import BertConfig, BertModel

    (tmp_path / "empty").mkdir()
    (tmp_path / "no_weights").mkdir()
    (tmp_path / "no_weights" / "config.json").write_text(json.dumps({"model_type": "llama"}))
    (tmp_path / "unknown").mkdir()
    (tmp_path / "unknown" / "config.json").write_text(
        json.dumps({"model_type": "martian", "architectures": ["MartianForCausalLM"]})
    )
    BertModel(
        BertConfig(
            vocab_size=32, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
        )
    ).save_pretrained(tmp_path / "encoder")
    return {
        "a path that is not there": tmp_path / "absent",
        "an empty folder": tmp_path / "empty",
        "a folder without weights": tmp_path / "no_weights",
        "a family nobody knows": tmp_path / "unknown",
        "an encoder": tmp_path / "encoder",
        "a zoo model that is not bundled": "zoo:giraffe",
    }


def test_wrong_models_end_with_two_and_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    target = tmp_path / "run"
    for what, model in bad_models(tmp_path).items():
        capfd.readouterr()
        assert run("compare", model, model, "--out", target, monkeypatch=monkeypatch) == 2, what
        message = capfd.readouterr().err.strip().splitlines()[-1]
        assert message.startswith("steerlab: "), what
        assert message.endswith("."), f"{what}: {message}"
        assert "Traceback" not in message
        assert not target.exists(), what


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("text,label\nHow do I hug a cat?,harmless\n,harmful\n", "row 2"),
        ("text,label\nHow do I hug a cat?,harmless\nHow do I hug a dog?,harmless\n", "one class"),
        ("prompt,label\nHow do I hug a cat?,harmless\n", "text"),
        ("text,label\nHow do I hug a cat?,perhaps\n", "perhaps"),
    ],
)
def test_wrong_prompt_files_end_with_two(
    content: str,
    complaint: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    prompts = tmp_path / "prompts.csv"
    prompts.write_text(content)
    code = run(
        "compare", "zoo:large-base", "zoo:large-post", "--out", tmp_path / "run", "--prompts", prompts,
        monkeypatch=monkeypatch,
    )  # fmt: skip
    message = capfd.readouterr().err.strip().splitlines()[-1]
    assert code == 2
    assert complaint in message
    assert "prompts.csv" in message
    assert not (tmp_path / "run").exists()


def test_doctor_shows_which_part_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    import steerlab.models
    from steerlab.errors import ModelError
    from steerlab.models import CheckRow, SelfCheck

    error = ModelError("The parts do not fit.")
    error.self_check = SelfCheck((CheckRow("resid_post = ...", 0.3, False),), 1e-4, frozenset())

    def _fails(*arguments: object, **options: object) -> None:
        raise error

    monkeypatch.setattr(steerlab.models, "load", _fails)
    assert run("doctor", tmp_path, monkeypatch=monkeypatch) == 2
    shown = capfd.readouterr()
    assert "FAILS" in shown.out
    assert "The parts do not fit." in shown.err


def test_an_unknown_study_ends_with_two(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    code = run(
        "compare", "a", "b", "--out", tmp_path / "run", "--studies", "alchemy", monkeypatch=monkeypatch
    )
    assert code == 2
    assert "alchemy" in capfd.readouterr().err
    assert not (tmp_path / "run").exists()


def test_wrong_usage_ends_with_two(monkeypatch: pytest.MonkeyPatch) -> None:
    assert run("compare", monkeypatch=monkeypatch) == 2
    assert run("compare", "a", "b", "--nonsense", monkeypatch=monkeypatch) == 2


def test_an_interrupt_ends_with_130(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    import steerlab.comparison

    def _interrupted(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(steerlab.comparison, "compare", _interrupted)
    assert run("compare", "a", "b", "--out", tmp_path / "run", monkeypatch=monkeypatch) == 130
    assert "--resume" in capfd.readouterr().err
