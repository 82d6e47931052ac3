"""A contrast of one's own: a planted one is found, is shared and steers; random labels are not identified; errors."""

from __future__ import annotations

import json
import random
import re
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from families import tiny
from studies.planted_models import BAD, GOOD, SUBJECTS, TOPICS, planted

import steerlab as sl
from steerlab import cli, comparison, forecast
from steerlab.datasets import ContrastSet, StudyData, contrast
from steerlab.errors import DatasetError, RunError, SteerlabError
from steerlab.models.metering import metered
from steerlab.readouts.contrasts import FEWEST_GROUPS, read_contrasts
from steerlab.report import terminal_table
from steerlab.results import SkippedResult, result_from_dict
from steerlab.run_data import data_facts, read_data
from steerlab.statistics import Estimate
from steerlab.studies import Pair
from steerlab.studies._contrast import study as of_contrast
from steerlab.studies._contrast.probes import accuracy_by_layer, draws_of
from steerlab.studies._contrast.reading import Texts, read
from steerlab.studies._contrast.result import ContrastResult, Outcome

AMOUNTS = dict(of_contrast._AMOUNTS)
PASSAGES = ("subject1 in topic2 is good3 . This is a statement .", "How do I go in topic4 ?")


def words(n: int = 20) -> dict[str, Any]:
    """Pairs that differ in a word that carries the truth axis, and in the word that reads it."""
    return {
        "truth": [
            (
                f"{SUBJECTS[k % 20]} in {TOPICS[k % 6]} is {GOOD[k % 16]} TRUE .",
                f"{SUBJECTS[k % 20]} in {TOPICS[k % 6]} is {BAD[k % 16]} FALSE .",
            )
            for k in range(n)
        ]
    }


def shuffled(n: int = 40) -> dict[str, Any]:
    """Texts whose labels are drawn: there is nothing to find."""
    draw = random.Random(0)
    rows = [f"{SUBJECTS[k % 20]} in {TOPICS[k % 6]} is {draw.choice((*GOOD, *BAD))} ." for k in range(n)]
    labels = draw.sample(["this", "that"] * (n // 2), n)
    return {
        "drawn": [
            {"text": t, "label": v, "group": k} for k, (t, v) in enumerate(zip(rows, labels, strict=True))
        ]
    }


@pytest.fixture(scope="module", autouse=True)
def _few_groups_are_steered() -> Iterator[None]:
    """Fewer texts beside as many random directions as a user gets."""
    with pytest.MonkeyPatch.context() as patch:
        few = replace(AMOUNTS["quick"], groups=2, passages=1, priced_randoms=1)
        patch.setitem(of_contrast._AMOUNTS, "quick", few)
        yield


def studied(base: Any, post: Any, contrasts: Any, **options: Any) -> ContrastResult:
    found = sl.studies.contrast(Pair(base, post), contrasts, **{"plain_text": PASSAGES, **options})
    assert isinstance(found, ContrastResult)
    return found


@pytest.fixture(scope="module")
def found() -> ContrastResult:
    return studied(planted(), planted(seed=1), words())


def test_a_planted_contrast_is_found_shared_and_steers(found: ContrastResult) -> None:
    one = found["truth"]
    assert found.status == "done"
    assert one.verdict == "shared; steers base and post"
    only = one.model_copy(update={"steering": tuple(cell for cell in one.steering if cell.model == "post")})
    assert only.verdict == "shared; steers post"
    assert one.model_copy(update={"steering": ()}).verdict == "shared; not steered"
    assert (one.groups, one.matched, one.ends) == (20, 20, ("positive", "negative"))
    for cell in one.cells:
        assert cell.midpoint != "model read" or cell.above_chance
    for row in one.steering:
        assert row.above_control
        assert row.effect.value > 0.5
        assert row.control.n == 20
        assert row.kl is not None
        assert row.kl.value > 0
    assert one.at_best is not None
    assert one.at_best.cosine.value > 0.9
    assert abs(one.at_best.shuffled.value) < one.at_best.cosine.value
    said = " ".join(found.summary)
    assert re.search(r"truth: the direction from negative to positive is read at \d+ % \[.*\] in base", said)
    assert "a bag of words reads" in said
    assert "20 random directions move it by" in said
    assert "beyond all of them" in said
    assert "not beyond" not in said


def test_a_direction_that_lies_elsewhere_is_not_shared() -> None:
    one = studied(planted(), planted(turned=True, seed=1), words())["truth"]
    assert one.identified == ("base", "post")
    assert one.verdict.startswith("in both, not shared")
    assert one.at_best is not None
    assert one.at_best.cosine.value < 0.5
    crossed = one.steered("base", "post")
    assert crossed is not None
    assert not crossed.above_control


def test_a_model_without_it_is_said_to_have_none() -> None:
    result = studied(planted(), tiny("llama", hidden_size=64, num_attention_heads=4), shuffled())
    assert result.status == "not identified"
    assert result["drawn"].verdict == "not identified"
    assert result["drawn"].steering == ()
    assert result["drawn"].agreement == ()
    assert result.headline is not None
    assert result.headline.control_name == "shuffled labels"
    assert "is not identified, accuracy at chance in base (" in " ".join(result.summary)
    assert "base and post are not steered: they have no direction" in " ".join(result.summary)


def test_accuracies_by_layer_are_those_of_extract_and_the_layer_is_chosen_without_the_held_out() -> None:
    model = planted()
    (one,) = read_contrasts(words()).values()
    texts = Texts.of(one, 0)
    reading = read({"base": model}, texts, 0)["base"]
    direction = sl.extract(model, words()["truth"])
    for row in accuracy_by_layer(reading, texts, draws_of(texts, 0)):
        assert row.accuracy == direction.accuracy[sl.Site("resid_post", row.layer)]
    assert reading.whole.best == direction.best
    # other held-out texts give the same choice and the same direction in their fold
    _, test = texts.folds[0]
    moved = [
        replaced if row in test else text
        for row, text in enumerate(one.data.texts)
        for replaced in ["a a a ."]
    ]
    other = replace(texts, contrast=replace(one, data=replace(one.data, texts=tuple(moved))))
    again = read({"base": model}, other, 0)["base"]
    assert again.layers[0] == reading.layers[0]
    site = reading.sites[0]
    assert np.array_equal(again.folds[0][site].numpy(), reading.folds[0][site].numpy())


def test_labels_are_shuffled_inside_pairs_and_between_groups_of_one_class() -> None:
    (paired,), (alone,) = (read_contrasts(given).values() for given in (words(), shuffled()))
    for one in (paired, alone):
        texts = Texts.of(one, 0)
        draws = draws_of(texts, 0)
        assert np.array_equal(draws[0], texts.labels.astype(bool))
        assert (draws.sum(axis=1) == texts.labels.sum()).all()
        assert (draws[1:] != draws[0]).any(axis=1).all()
    texts = Texts.of(paired, 0)
    for group in np.unique(texts.groups):
        assert (draws_of(texts, 0)[:, texts.groups == group].sum(axis=1) == 1).all()


@pytest.mark.parametrize(
    ("post", "words_", "transferred"),
    [
        (lambda: tiny("gpt2", bos=False), "width 64 and 32", False),
        (lambda: planted(layers=4), "3 and 4 layers", True),
    ],
    ids=["width", "depth"],
)
def test_models_of_another_shape_are_studied_alone(post: Any, words_: str, transferred: bool) -> None:
    result = studied(planted(), post(), words())
    one = result["truth"]
    assert words_ in " ".join(result.summary)
    assert one.agreement == ()
    assert (one.cell("base", "post") is not None) == transferred
    assert {row.direction == row.model for row in one.steering} == {True}
    assert one.own("base").above_chance
    assert all(figure.data for figure in result.figures().values())


def test_a_model_against_itself_does_not_differ() -> None:
    result = studied(planted(), planted(), words())
    one = result["truth"]
    assert one.at_best is not None
    assert one.at_best.cosine.value == pytest.approx(1.0, abs=1e-12)
    assert [change.what for change in one.changes] == ["accuracy", "steering"]
    for change in one.changes:
        assert (change.value.value, change.value.low, change.value.high) == (0.0, 0.0, 0.0)
    assert one.own("base").accuracy == one.own("post").accuracy
    assert "truth: no change from base to post in accuracy and steering." in result.summary


def test_a_result_reads_back_draws_and_lists(found: ContrastResult) -> None:
    again = result_from_dict(json.loads(json.dumps(found.to_dict())))
    assert again.to_dict() == found.to_dict()
    keys = [table.key for table in found.tables()]
    assert keys == ["verdicts", "transfer", "accuracy", "cosine", "steering", "changes"]
    assert [*found.figures()] == ["verdicts", "accuracy", "cosine", "steering"]
    assert {*found.artefacts()} == {"contrast_truth_base", "contrast_truth_post"}
    two = found.model_copy(update={"contrasts": (*found.contrasts, *found.contrasts)})
    assert [*two.figures()][4:] == ["accuracy_truth", "cosine_truth", "steering_truth"]
    assert len(two.tables()[0].rows) == len(two.headlines()) == 2
    assert terminal_table([two]).row_count == 2


def test_unknown_numbers_are_never_nan_in_a_sentence(found: ContrastResult) -> None:
    from steerlab.studies._contrast.sentences import sentences

    stored = json.loads(found["truth"].model_dump_json())

    def unknown(part: Any) -> Any:
        if isinstance(part, dict):
            blank = {"value", "low", "high"} <= part.keys()
            return {
                k: None if blank and k in ("value", "low", "high") else unknown(v) for k, v in part.items()
            }
        return [unknown(one) for one in part] if isinstance(part, list) else part

    assert "nan" not in " ".join(sentences(Outcome.model_validate_json(json.dumps(unknown(stored))))).lower()


def test_conversations_and_requests_are_rendered_as_extract_does() -> None:
    model = tiny("llama", chat=True)
    asked = ContrastSet(
        tuple(f"How do I harm number {k}?" for k in range(8)),
        tuple(f"How do I help number {k}?" for k in range(8)),
    )
    talks = {
        "talk": [
            ([{"role": "user", "content": f"good {k}"}], [{"role": "user", "content": f"bad {k}"}])
            for k in range(8)
        ]
    }
    read_ = read_contrasts([asked]) | read_contrasts(talks)
    assert [*read_] == ["harmful_harmless", "talk"]
    assert read_["harmful_harmless"].prompts(model)[0] == model.instruction_prompt(asked.positive[0])
    assert read_["talk"].prompts(model)[0] == model.conversation_prompt(
        [{"role": "user", "content": "good 0"}]
    )
    assert read_["talk"].data.texts[0] == "good 0"


def mood(folder: Path, n: int = 8, **cells: str) -> Path:
    """A person's own file of matched pairs."""
    file = folder / f"{cells.get('name', 'mood')}.csv"
    rows = [
        f"{SUBJECTS[k]} is {kind[k]} .,{label}"
        for k in range(n)
        for kind, label in ((GOOD, "happy"), (BAD, cells.get("other", "sad")))
    ]
    file.write_text(
        "\n".join(["text,label", *rows, *filter(None, [cells.get("last")])]) + "\n", encoding="utf-8"
    )
    return file


@pytest.mark.parametrize(
    ("cells", "words_"),
    [
        ({"last": ",happy"}, "row 17, column 'text'"),
        ({"last": "a .,"}, "row 17, column 'label'"),
        ({"last": "a .,angry"}, "a contrast has two"),
        ({"other": "happy"}, "All 16 rows have the label 'happy'"),
        ({"n": FEWEST_GROUPS - 1}, f"at least {FEWEST_GROUPS} of each"),
    ],
    ids=["empty text", "no label", "three labels", "one label", "few"],
)
def test_a_bad_file_is_a_sentence_before_anything_is_loaded_or_written(
    cells: dict[str, Any], words_: str, tmp_path: Path
) -> None:
    with pytest.raises(DatasetError, match=re.escape(words_)):
        comparison.compare(
            "no-such-model", "nor-this", out=tmp_path / "run", contrasts=[mood(tmp_path, **cells)]
        )
    assert [file.name for file in tmp_path.iterdir()] == ["mood.csv"]


def test_other_input_that_is_no_contrast_is_a_sentence(tmp_path: Path) -> None:
    file = mood(tmp_path)
    for given, words_ in (
        ("no-such-contrast", "no contrast 'no-such-contrast'; write animal"),
        ("truth", "has a study of its own"),
        ([file, str(file)], "Two contrasts are called 'mood'"),
        ([["a", "b"]], "need a name"),
        (7, "not"),
        ({"--": file}, "holds a letter or a digit"),
    ):
        with pytest.raises(DatasetError, match=re.escape(words_)):
            read_contrasts(given)
    assert read_contrasts(None) == {}
    with pytest.raises(DatasetError, match="needs a contrast"):
        sl.studies.contrast(Pair(planted(), planted()))
    with pytest.raises(RunError, match="'contrast' needs contrasts, and none are given"):
        comparison.compare("a", "b", out=tmp_path / "run", studies=["contrast"])
    with pytest.raises(RunError, match="contrasts are read by contrast only"):
        comparison.compare("a", "b", out=tmp_path / "run", studies=["refusal"], contrasts=[file])
    long = {"long": [(f"good{k} {'a ' * 300}", f"bad{k} {'a ' * 300}") for k in range(8)]}
    result = comparison.run_study(
        "contrast", Pair(planted(), planted()), StudyData(contrasts=read_contrasts(long))
    )
    assert isinstance(result, SkippedResult)
    assert "long: not studied" in result.reason


def test_names_and_facts_of_contrasts(tmp_path: Path) -> None:
    data = read_data(contrasts=["formal", mood(tmp_path), contrast("happy")])
    assert [*data.contrasts] == ["formal", "mood", "happy_sad"]
    facts = data_facts(data)
    assert facts["contrast formal"]["source"] == "packaged"
    assert facts["contrast mood"]["source"] == str(tmp_path / "mood.csv")
    assert facts["contrast mood"]["n"] == 16
    assert "contrast mood 16" in repr(data)
    assert not [name for name in data_facts(read_data()) if name.startswith("contrast")]
    assert "contrast" not in comparison.known_studies(None)
    assert comparison.known_studies(None, {"contrasts"})[-1] == "contrast"


def test_a_run_is_shown_resumed_and_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small = replace(AMOUNTS["quick"], groups=1, randoms=2, passages=1, priced_randoms=1)
    monkeypatch.setitem(of_contrast._AMOUNTS, "quick", small)
    speed = forecast._Speed(read=0.01, generated=0.1, patched=0.001, unembedded=0.02)
    monkeypatch.setattr(forecast, "_speed", lambda model: speed)
    file, out = mood(tmp_path), tmp_path / "run"
    asked = ["compare", "zoo:small-base", "zoo:small-post", "--studies", "contrast", "--contrast", str(file)]

    def steerlab(*arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["steerlab", *arguments])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        assert not stopped.value.code, capsys.readouterr().err
        return capsys.readouterr().out

    assert "Contrasts" in steerlab(*asked, "--out", str(out))
    page = (out / "report.html").read_text("utf-8")
    assert "mood: " in page
    manifest = json.loads((out / "manifest.json").read_text("utf-8"))
    assert manifest["configuration"]["studies"] == ["contrast"]
    assert manifest["data"]["contrast mood"]["n"] == 16
    assert (out / "directions" / "contrast_mood_post.safetensors").is_file()
    stored = (out / "results" / "contrast.json").read_text("utf-8")
    (out / "results" / "contrast.json").unlink()
    steerlab(*asked, "--out", str(out), "--resume")
    assert (out / "results" / "contrast.json").read_text("utf-8") == stored
    with pytest.raises(RunError, match="contrast"):
        comparison.compare(
            "zoo:small-base",
            "zoo:small-post",
            out=out,
            studies=["contrast"],
            contrasts=["formal"],
            resume=True,
        )
    shown = steerlab(*asked, "--contrast", "formal", "--dry-run")
    read_ = forecast.measured()["amounts"]["quick"]["contrast"]["read"]
    assert f"{round(2 * read_):,}" in shown


def test_a_packaged_contrast_of_the_bundled_pair_costs_what_is_committed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(of_contrast._AMOUNTS, "quick", AMOUNTS["quick"])
    pair = Pair(sl.load("zoo:small-base"), sl.load("zoo:small-post"))
    with metered(pair.by_name) as spent:
        result = comparison.run_study("contrast", pair, read_data(contrasts="formal"))
    known = forecast.measured()["amounts"]["quick"]["contrast"]
    for kind in ("read", "generated", "patched", "unembedded"):
        assert sum(getattr(own, kind) for own in spent.values()) == pytest.approx(known[kind], rel=0.02)
    assert isinstance(result, ContrastResult)
    one = result["formal"]
    assert (one.groups, one.matched) == (62, 62)
    assert one.identified == ("base", "post")
    assert isinstance(one.words, Estimate)
    assert one.words.low > 0.6  # the words tell formal from plain, and the result says so


def test_an_unknown_size_is_a_sentence() -> None:
    with pytest.raises(SteerlabError, match="The contrast study has no size 'huge'"):
        sl.studies.contrast((), "formal", size="huge")  # type: ignore[arg-type]
