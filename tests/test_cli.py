"""The command line as a user meets it: exit codes, one sentence for wrong input, nothing half-written."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
from families import build, tiny_tokenizer

from steerlab import cli
from steerlab.errors import RunError


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
    for command in (
        "compare",
        "extract",
        "generate",
        "chat",
        "bake",
        "export",
        "report",
        "zoo",
        "doctor",
        "transfer",
        "diff",
        "branching",
        "trace",
        "neurons",
        "audit",
        "calibrate",
        "watch",
    ):
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
        "compare", "zoo:large-base", "zoo:large-post", "--out", tmp_path / "run", "--requests", prompts,
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

    monkeypatch.setattr(steerlab.models, "load_model", _fails)
    (tmp_path / "config.json").write_text("{}")
    assert run("doctor", tmp_path, monkeypatch=monkeypatch) == 2
    shown = capfd.readouterr()
    assert "FAILS" in shown.out
    assert "The parts do not fit." in shown.err


@pytest.mark.parametrize(
    ("family", "said"),
    [
        ("llama", ["safetensors", "baking yes"]),
        ("gemma2", ["a post-norm family"]),
        ("mamba", ["3 with a mixer besides attention", "neurons no"]),
    ],
)
def test_doctor_says_what_works(
    family: str,
    said: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    build(family).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    assert run("doctor", tmp_path, monkeypatch=monkeypatch) == 0
    shown = " ".join(capfd.readouterr().out.replace("│", " ").split())
    assert all(words in shown for words in said), shown


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


@pytest.fixture(scope="module")
def direction(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A direction of zoo:small-post at two layers, with known class means."""
    import torch

    from steerlab import zoo
    from steerlab.directions import Direction, SiteStatistics

    model = zoo.load_bundled("small-post")
    sites = model.sites("resid_post", [0, 1])
    rows = torch.randn(len(sites), model.d_model, generator=torch.Generator().manual_seed(0))
    means = SiteStatistics(class_means={"1": (2.0,), "0": (0.0,)}, positive="1", negative="0")
    path = tmp_path_factory.mktemp("direction") / "made.safetensors"
    Direction(
        dict(zip(sites, rows, strict=True)),
        model.name,
        model.fingerprint,
        statistics=dict.fromkeys(sites, means),
    ).save(path)
    return path


def test_baked_weights_say_what_steering_says(
    direction: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    steer, ask = f"{direction}:30@1", ("How do I feed a horse?", "--max-new-tokens", "8")
    assert (
        run("bake", "zoo:small-post", "--steer", steer, "--out", tmp_path / "m", monkeypatch=monkeypatch) == 0
    )
    capfd.readouterr()
    assert run("generate", tmp_path / "m", *ask, monkeypatch=monkeypatch) == 0
    baked = capfd.readouterr().out
    assert run("generate", "zoo:small-post", *ask, "--steer", steer, monkeypatch=monkeypatch) == 0
    unsteered, steered = capfd.readouterr().out.split(" steered ")
    assert baked.strip() in steered
    assert baked.strip() not in unsteered


@pytest.mark.parametrize(
    ("form", "options", "complaint"),
    [
        ("gguf", ["--steer", "{direction}:1@1"], None),
        ("vllm-lens", ["--steer", "{direction}:1@all"], None),
        ("easysteer", ["--steer", "{direction}:1@all"], None),
        ("gguf", ["--steer", "{direction}:1@all"], "block 0"),
        ("gguf", ["--steer", "{direction}:2"], "for example {direction}:2@1."),
        ("vllm-lens", ["--ablate", "{direction}@1"], "an Ablate cannot be written"),
        ("transformers", [], "at least one intervention"),
        ("transformers", ["--steer", "{direction}:1@9"], "layers 0 to"),
        ("papyrus", ["--steer", "{direction}:1"], "papyrus"),
    ],
)
def test_exports_are_written_whole_or_refused_with_two(
    form: str,
    options: list[str],
    complaint: str | None,
    direction: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    if form in ("gguf", "easysteer"):
        pytest.importorskip("gguf", reason="needs the extra gguf")
    filled = [option.format(direction=direction) for option in options]
    target = tmp_path / "exported"
    code = run("export", form, "zoo:small-post", "--out", target, *filled, monkeypatch=monkeypatch)
    message = capfd.readouterr().err
    if complaint is None:
        assert code == 0, message
        assert target.exists()
        return
    assert code == 2
    assert complaint.format(direction=direction) in message.replace("\n", "")
    assert "Traceback" not in message
    assert list(tmp_path.iterdir()) == []


def test_a_conversation_can_be_piped_in(
    direction: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    lines = io.StringIO("How do I feed a horse?\n/strength 0.5\n/nonsense\nHow do I feed a cow?\n")
    monkeypatch.setattr(sys, "stdin", lines)
    code = run(
        "chat",
        "zoo:small-post",
        "--steer",
        f"{direction}:3@all",
        "--max-new-tokens",
        "6",
        monkeypatch=monkeypatch,
    )
    said = capfd.readouterr().out
    assert code == 0
    assert said.count("\nsteered: ") == said.count("\nunsteered: ") == 2
    assert "0.5" in said
    assert "'/nonsense' is not understood" in said.replace("\n", " ")


def test_branching_writes_a_run_that_report_writes_again(
    tmp_path: Path, shared: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    models, prompts = shared / "models", tmp_path / "prompts.txt"
    prompts.write_text("Once upon a time\nA dog\n")
    place = tmp_path / "run"
    pair = (models / "stories260K", models / "stories260K-chat-local")
    given = ("branching", *pair, "--out", place, "--prompts", prompts, "--no-parts")
    assert run(*given, monkeypatch=monkeypatch) == 0
    assert "The branching factor is" in capfd.readouterr().out
    assert (place / "results" / "branching.json").exists()
    before = (place / "report.html").read_text("utf-8")
    assert run("report", place, monkeypatch=monkeypatch) == 0
    assert "Branching factor" in before
    assert len((place / "report.html").read_text("utf-8")) == len(before)
    assert run(*given, monkeypatch=monkeypatch) == 2  # the folder is taken


@pytest.mark.usefixtures("smaller_studies")
def test_trace_writes_a_report_with_memory_and_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / "trace"
    given = ("trace", "zoo:small-base", "zoo:small-post", "--out", place, "--no-noise", "--site", "mlp_out")
    assert run(*given, monkeypatch=monkeypatch) == 0
    assert "holds half of the effect" in capfd.readouterr().out
    manifest = json.loads((place / "manifest.json").read_text())
    assert manifest["peak_memory"]["knowledge"]["process"] > 100
    assert manifest["timings"]["knowledge"] > 0
    assert manifest["configuration"]["sites"] == ["mlp_out"]
    assert "Where knowledge is stored" in (place / "report.html").read_text("utf-8")
    assert not place.with_name("trace.partial").exists()


def test_compare_runs_every_study_unless_some_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from steerlab import comparison

    asked: list[Sequence[str] | None] = []

    def stop(*_: object, studies: Sequence[str] | None, **__: object) -> None:
        asked.append(studies)
        raise RunError("enough")

    monkeypatch.setattr(comparison, "compare", stop)
    zoo = ("compare", "zoo:small-base", "zoo:small-post", "--out", tmp_path / "run")
    assert run(*zoo, monkeypatch=monkeypatch) == 2
    assert run(*zoo, "--studies", "refusal, knowledge", monkeypatch=monkeypatch) == 2
    assert asked == [None, ["refusal", "knowledge"]]


def test_wrong_tasks_laws_and_prompts_end_with_two_and_nothing_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / "run"
    zoo = ("zoo:small-base", "zoo:small-post")
    for arguments, sentence in (
        (("transfer", *zoo, "zoo:small-base", "--task", tmp_path / "none.jsonl"), "cannot be read"),
        (("transfer", *zoo, "zoo:small-base", "--task", "sums:9"), "with N from 2 to 6"),
        (("branching", *zoo, "--prompts", tmp_path / "none.txt"), "cannot be read"),
        (("trace", *zoo, "--pairs", tmp_path / "none.jsonl"), "cannot be read"),
        (("trace", *zoo, "--template", "The city is in {object}."), "no {subject}"),
        (("trace", *zoo, "--answers", " TRUE", " TRUE"), "are one token"),
        (("branching", *zoo, "--value", "2"), "needs a value above 0"),
    ):
        assert run(*arguments, "--out", place, monkeypatch=monkeypatch) == 2
        assert sentence in capfd.readouterr().err
        assert not place.exists()


def test_escape_sequences_of_runs_models_and_files_do_not_reach_the_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from steerlab.models import LanguageModel
    from steerlab.results import SkippedResult
    from steerlab.run_folder import Manifest, RunFolder

    evil = "\x1b]0;owned\x07\x1b[2J\x9b1A"
    manifest = Manifest(
        created="", models={}, data={}, configuration={}, versions={}, hardware={"processor": evil}
    )
    folder = RunFolder.prepare(tmp_path / "run", manifest)
    folder.write_result("refusal", SkippedResult(study="refusal", reason=evil).to_dict())
    assert run("report", tmp_path / "run", monkeypatch=monkeypatch) == 0
    assert run("report", tmp_path / evil, monkeypatch=monkeypatch) == 2
    monkeypatch.setattr(LanguageModel, "generate", lambda *arguments, **options: SimpleNamespace(text=evil))
    assert run("generate", "zoo:small-base", "Rome?", monkeypatch=monkeypatch) == 0
    shown = capfd.readouterr()
    assert "␛]0;owned␇␛[2J" in shown.out  # the table of the run
    assert "␛]0;owned" in shown.err
    for sent in ("\x1b]", "\x1b[2J", "\x07", "\x9b"):
        assert sent not in shown.out + shown.err
