"""The scripts run from their TOML files on a small trained pair, and say in a sentence what is wrong with a file."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import transformers
from scripts import run_script

from steerlab import zoo
from steerlab.alignment import LayerMap
from steerlab.run_folder import RunFolder

ANALYSES = Path(__file__).parents[1] / "analyses"
PAIR = 'name = "tried"\nbase = "zoo:small-base"\npost = "zoo:small-post"\n'


def refused(script: str, configuration: Path, folder: Path) -> str:
    """What the script says as it stops."""
    said = run_script(ANALYSES / script, [configuration], folder)
    assert isinstance(said, str)
    return said


def run(script: str, configuration: Path, folder: Path, *options: str) -> None:
    """The script from its first to its last line, writing below `folder`."""
    folders = ["--runs", str(folder / "runs"), "--figures", str(folder / "figures")]
    assert run_script(ANALYSES / script, [configuration, *options, *folders], folder) is None


@pytest.mark.parametrize("study", ["truthfulness", "refusal"])
@pytest.mark.usefixtures("smaller_studies")
def test_a_study_of_a_small_trained_pair(study: str, shared: Path, tmp_path: Path) -> None:
    models = shared / "models"
    configuration = tmp_path / "pair.toml"
    configuration.write_text(
        f'name = "tried"\nbase = "{models}/stories260K"\npost = "{models}/stories260K-chat-local"\nseed = 1\n'
    )
    run(f"{study}.py", configuration, tmp_path)
    kept = tmp_path / "runs" / f"tried_{study}"
    assert (kept / "results" / f"{study}.json").exists()
    assert list((tmp_path / "figures" / "tried").glob(f"{study}_*.csv"))


@pytest.mark.usefixtures("smaller_studies")
def test_the_branching_script_records_the_prompts_of_the_file(tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("Tell me about cats.\nWhat is a river?\nWrite about a tree.\n")
    configuration = tmp_path / "pair.toml"
    configuration.write_text(PAIR + f'prompts = "{prompts}"\nwith_parts = false\n')
    run("branching_factor.py", configuration, tmp_path)
    read = RunFolder.open(tmp_path / "runs" / "tried_branching").manifest().data
    assert read.keys() == {"open_prompts"}
    assert (read["open_prompts"]["source"], read["open_prompts"]["n"]) == (str(prompts), 3)


@pytest.mark.parametrize("script", ["base_vs_post.py", "truthfulness.py", "refusal.py", "knowledge.py"])
@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (PAIR + "colour = 1\n", "Unknown key colour"),
        ('name = "a"\n', "does not say base, post"),
        ("name = [", "cannot be read"),
        (PAIR.replace("small-base", "nothing"), "nothing"),
        (PAIR + 'size = "huge"\n', "huge"),
    ],
)
def test_wrong_files_end_in_one_sentence(script: str, text: str, sentence: str, tmp_path: Path) -> None:
    configuration = tmp_path / "wrong.toml"
    configuration.write_text(text)
    assert sentence in refused(script, configuration, tmp_path)


@pytest.mark.parametrize(
    ("script", "text", "sentence"),
    [
        (
            "base_vs_post.py",
            PAIR + 'studies = "truthfulness"\n',
            "studies = 'truthfulness' is of another kind",
        ),
        ("base_vs_post.py", PAIR + 'seed = "1"\n', "seed = '1' is of another kind"),
        ("base_vs_post.py", PAIR + "seed = 1979-05-27\n", "is of another kind"),
        ("base_vs_post.py", PAIR + 'out = "here"\n', "out is not for a file to say"),
        ("base_vs_post.py", PAIR.replace('"tried"', "3"), 'name is a text, as in name = "...", and not 3'),
        ("base_vs_post.py", PAIR.replace('"zoo:small-post"', '["a"]'), "post is a text"),
        ("base_vs_post.py", PAIR + "dtype = 32\n", "dtype is a text"),
        ("knowledge.py", PAIR + 'sites = "mlp_out"\n', "sites = 'mlp_out' is of another kind"),
        ("knowledge.py", PAIR + 'answers = " TRUE"\n', "answers = ' TRUE' is of another kind"),
        ("truthfulness.py", PAIR + 'answers = ["a", "b", "c"]\n', "is of another kind"),
    ],
)
def test_values_of_another_kind_end_in_one_sentence(
    script: str, text: str, sentence: str, tmp_path: Path
) -> None:
    configuration = tmp_path / "wrong.toml"
    configuration.write_text(text)
    assert sentence in refused(script, configuration, tmp_path)


def test_the_dry_run_of_unlock_loads_nothing_and_lists_what_it_cannot_know(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Configuration folders of two sizes stand in for the hub; the third model is unknown."""
    for name, layers, width in (("Qwen3-4B", 6, 64), ("Qwen3-14B-Base", 9, 96)):
        config = transformers.Qwen3Config(
            num_hidden_layers=layers,
            hidden_size=width,
            num_attention_heads=4,
            num_key_value_heads=2,
            vocab_size=500,
        )
        config.save_pretrained(tmp_path / name)
    plan, options = ANALYSES / "unlock_qwen3_14b.toml", ("--dry-run", "--models", str(tmp_path))
    run("unlock.py", plan, tmp_path, *options)
    said = capsys.readouterr().out
    assert "unresolved: the configuration of Qwen/Qwen3-4B-Base" in said
    assert "the task" in said
    assert "Qwen/Qwen3-14B-Base: 9 layers of width 96" in said
    (tmp_path / "Qwen3-4B-Base").mkdir()
    (tmp_path / "Qwen3-4B" / "config.json").rename(tmp_path / "Qwen3-4B-Base" / "config.json")
    run("unlock.py", plan, tmp_path, *options)
    said = capsys.readouterr().out
    assert f"layer map (target: source): {dict(LayerMap.proportional(6, 9).layers)}" in said


@pytest.mark.usefixtures("smaller_studies")
def test_the_knowledge_script_maps_topics_and_pairs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    statements = tmp_path / "statements.csv"
    with statements.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label", "topic", "subject", "object"])
        for item in (one for topic in ("cities", "plants") for one in zoo.known_statements().topic(topic)):
            spans = (item.text[slice(*item.spans[part])] for part in ("subject", "object"))
            writer.writerow([item.text, str(item.label).lower(), item.topic, *spans])
    configuration = tmp_path / "pair.toml"
    configuration.write_text(
        PAIR
        + f'statements = "{statements}"\nnoise = false\nshots = 0\nby_topic = true\nsites = ["mlp_out"]\n'
    )
    run("knowledge.py", configuration, tmp_path)
    said = capsys.readouterr().out
    assert "cities:" in said
    assert "plants:" in said
    kept = RunFolder.open(tmp_path / "runs" / "tried_knowledge")
    assert kept.has_result("knowledge")
    read = kept.manifest().data
    assert read.keys() == {"statements"}
    assert read["statements"]["source"] == str(statements)
    assert read["statements"]["n"] == len(statements.read_text().splitlines()) - 1
    drawn = list(
        (tmp_path / "figures" / "tried").glob("knowledge_maps_mlp_out.*")
    )  # HTML where no browser is
    assert {path.suffix for path in drawn} & {".svg", ".html"}


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ('name = "a"\n', "does not say source, target, task"),
        ('name = "a"\nsource = ["x"]\ntarget = "y"\ntask = "sums"\n', "a locked and an unlocked model"),
        ('name = "a"\nsource = ["x", "x"]\ntarget = "y"\ntask = "sums"\ncolour = 1\n', "Unknown key colour"),
        ("name = [", "cannot be read"),
    ],
)
def test_wrong_plans_of_unlock_end_in_one_sentence(text: str, sentence: str, tmp_path: Path) -> None:
    configuration = tmp_path / "wrong.toml"
    configuration.write_text(text)
    assert sentence in refused("unlock.py", configuration, tmp_path)


def test_contrasts_are_measured_beside_random_directions(tmp_path: Path) -> None:
    options = ["--only", "happy", "refusal", "--random", "3", "--new-tokens", "4", "--figures", tmp_path]
    assert run_script(ANALYSES / "contrasts.py", ["zoo:small-post", *options], tmp_path) is None
    with (tmp_path / "contrasts_zoo_small-post" / "contrasts.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["contrast"] for row in rows] == ["happy", "refusal"]
    for row in rows:
        assert float(row["random_least"]) <= float(row["random_greatest"])
        assert float(row["effect_low"]) <= float(row["effect"]) <= float(row["effect_high"])
        assert 0 <= float(row["greedy_loops"]) <= 1
    said = run_script(ANALYSES / "contrasts.py", [tmp_path / "nothing", "--only", "happy"], tmp_path)
    assert isinstance(said, str)
