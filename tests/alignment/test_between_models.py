"""Paired rows, alignments and their verdicts between models whose relation is known."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from alignment import shared_latent
from families import tiny

from steerlab import alignment as al
from steerlab.alignment import LayerMap, PairedActivations
from steerlab.alignment.diagnostics import LayerReport
from steerlab.alignment.paired import split
from steerlab.directions import Direction
from steerlab.errors import AlignmentError, SiteError
from steerlab.files import read_tensors, write_tensors
from steerlab.models import LanguageModel, Site

WORDS = ("the", "cat", "a", "dog", "sat", "on", "mat", "is", "not", "true", "red", "run", "and", "of")


def texts(n: int = 240, seed: int = 0) -> list[str]:
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, size=rng.integers(4, 12))) for _ in range(n)]


@pytest.fixture(scope="module")
def pair() -> tuple[LanguageModel, LanguageModel]:
    return shared_latent.pair()


@pytest.fixture(scope="module")
def pairs(pair: tuple[LanguageModel, LanguageModel]) -> PairedActivations:
    return PairedActivations.read(*pair, texts())


def random_direction(model: LanguageModel, seed: int = 3) -> Direction:
    generator = torch.Generator().manual_seed(seed)
    vectors = {site: torch.randn(model.d_model, generator=generator) for site in model.sites("resid_post")}
    return Direction(vectors=vectors, model_name=model.name, fingerprint=model.fingerprint)


def test_the_wider_model_computes_the_same(pair: tuple[LanguageModel, LanguageModel]) -> None:
    narrow, wide = (model.logits(texts(5)) for model in pair)
    torch.testing.assert_close(narrow, wide, atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize(
    "aligner",
    [
        al.Ridge(1e-9),
        al.Ridge(),
        al.SvdRegression(24),
        al.ReducedRank(24, 1e-9),
        al.Procrustes(24),
        al.Cca(24, reg=0.0),
        al.Anchor(rcond=1e-6),
    ],
    ids=repr,
)
def test_a_direction_comes_back_where_the_streams_are_one(
    aligner: al.Aligner, pair: tuple[LanguageModel, LanguageModel], pairs: PairedActivations
) -> None:
    """Noise-free, with more than five rows a dimension: cosine above 0.99 with the rotated direction (float32
    states)."""
    narrow, _ = pair
    direction = random_direction(narrow)
    moved = al.align(pairs, aligner=aligner).transfer(direction)
    for site in moved.sites:
        truth = direction[site] @ shared_latent.turn()
        assert torch.cosine_similarity(moved[site], truth, dim=0) > 0.99, site
    assert moved.origin[0].fingerprint == narrow.fingerprint


def test_the_verdict_is_reliable_there_and_not_for_what_cannot_be(
    pair: tuple[LanguageModel, LanguageModel], pairs: PairedActivations
) -> None:
    direction = random_direction(pair[0])
    native = Direction(
        vectors={site: direction[site] @ shared_latent.turn() for site in direction.sites},
        model_name=pair[1].name,
        fingerprint=pair[1].fingerprint,
    )
    good = al.align(pairs).diagnose(pairs, direction, native=native)
    assert good.verdict == "reliable"
    assert good.reliable == (0, 1, 2)
    assert all(one.cos_native > 0.99 and one.r2_diff > 0.99 and one.split_half > 0.99 for one in good.layers)
    assert all(one.r2_shuffled < 0.1 for one in good.layers)
    assert "reliable" in good.sentence
    for aligner in (al.SvdRegression(1), al.ShuffledPairs(al.Ridge()), al.MeanOnly()):
        bad = al.align(pairs, aligner=aligner).diagnose(pairs, direction)
        assert bad.verdict == "not identified", aligner
    # without a direction nothing is called reliable, however good the map
    assert al.align(pairs).diagnose(pairs).verdict == "weak"


def test_unrelated_models_are_not_identified() -> None:
    models = tiny("llama"), tiny("gpt2")
    rng = np.random.default_rng(0)
    pairs = PairedActivations.read(*models, texts(120))
    order = torch.from_numpy(rng.permutation(120))
    mixed = replace(
        pairs,
        target=replace(
            pairs.target, states={site: rows[order] for site, rows in pairs.target.states.items()}
        ),
    )
    report = al.align(mixed).diagnose(mixed, random_direction(models[0]))
    assert report.verdict == "not identified"


def test_a_high_r2_alone_is_never_reliable() -> None:
    """The map predicts points well, but the direction lies outside of what it reads."""
    given = dict(
        source=0, target=0, rows=100, rank=16, r2_point=0.9, cos_point=0.9, r2_diff=0.9, r2_shuffled=-0.1, cka=0.9,
        cka_p=0.005, gain=1.0, specificity=0.3, split_half=0.9, cos_mean=0.0,
    )  # fmt: skip
    assert LayerReport(**given, energy_in=0.8).verdict == "reliable"
    assert LayerReport(**given, energy_in=0.1).verdict == "weak"
    assert LayerReport(**{**given, "rank": 1}, energy_in=0.8).verdict == "not identified"
    assert LayerReport(**{**given, "split_half": 0.4}, energy_in=0.8).verdict == "weak"
    assert LayerReport(**{**given, "cka_p": 0.5}, energy_in=0.8).verdict == "weak"
    assert LayerReport(**{**given, "r2_diff": -0.2}, energy_in=0.8).verdict == "not identified"


def test_ends_of_words_match_between_tokenizers(shared: Path) -> None:
    from steerlab.models import load_model

    first = load_model(shared / "models" / "stories260K")
    second = tiny("gpt2")
    prompts = ["the cat sat on the mat .", "a dog is not red"]
    pairs = PairedActivations.read(first, second, prompts * 6, rule="end_of_word")
    for side, model in ((pairs.source, first), (pairs.target, second)):
        tokens = model.tokenize(prompts)
        assert tokens.offsets is not None
        for example in (0, 1):
            ends = [
                tokens.offsets[example][index][1] for index in side.position[side.example == example].tolist()
            ]
            words = prompts[example].split()
            expected = [prompts[example].find(word, 0) for word in words]
            assert len(ends) == len(set(ends)) >= len(expected) - 1
            assert all(prompts[example][end : end + 1] in ("", " ") for end in ends)
    assert len(pairs.source) == len(pairs.target)


def test_all_tokens_need_equal_tokens(pair: tuple[LanguageModel, LanguageModel], shared: Path) -> None:
    from steerlab.models import load_model

    same = PairedActivations.read(*pair, texts(8), rule="all_tokens")
    assert len(same.source) == sum(pair[0].tokenize(texts(8)).lengths)
    with pytest.raises(AlignmentError, match="use rule='end_of_word'"):
        PairedActivations.read(
            pair[0], load_model(shared / "models" / "stories260K"), texts(8), rule="all_tokens"
        )


def test_parts_are_disjoint_and_hashed(
    pair: tuple[LanguageModel, LanguageModel], pairs: PairedActivations
) -> None:
    seen = np.concatenate(list(pairs.splits.values()))
    assert len(seen) == len(set(seen.tolist())) == 240
    again = PairedActivations.read(*pair, texts(), seed=1)
    assert again.hash != pairs.hash
    with pytest.raises(AlignmentError, match="not the rows that the alignment was fitted on"):
        al.align(pairs).diagnose(again)
    with pytest.raises(AlignmentError, match="never saw"):
        al.align(pairs).diagnose(pairs, part="fit")
    with pytest.raises(AlignmentError, match="in two parts"):
        replace(pairs, splits={"fit": np.arange(5), "dev": np.arange(4, 9)})


def test_files_give_the_alignment_back(
    pair: tuple[LanguageModel, LanguageModel], pairs: PairedActivations, tmp_path: Path
) -> None:
    fitted = al.align(pairs)
    fitted.save(tmp_path / "map.safetensors")
    again = al.Alignment.load(tmp_path / "map.safetensors")
    direction = random_direction(pair[0])
    for site in fitted.sites:
        torch.testing.assert_close(
            again.transfer(direction)[site], fitted.transfer(direction)[site], rtol=1e-4, atol=1e-4
        )
    assert (again.data_hash, again.rule, again.sources) == (
        fitted.data_hash,
        fitted.rule,
        dict(fitted.sources),
    )
    assert repr(again.aligners[fitted.sites[0]]) == repr(fitted.aligners[fitted.sites[0]])


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda header: header.pop("rule"), "'rule'"),
        (lambda header: header["sources"].popitem(), "at different sites"),
        (lambda header: header["aligners"].popitem(), "of no aligner"),
        (lambda header: header.update(stream_norm=[1.0]), "list"),
        (lambda header: header.update(source={"name": "x"}), "ModelRef"),
        (lambda header: header.update(rows=None), "NoneType"),
        (lambda header: header["sources"].update({"nowhere": "resid_post.0"}), "nowhere"),
    ],
)
def test_an_alignment_that_does_not_hold_together_is_a_sentence(
    change: Any, sentence: str, pairs: PairedActivations, tmp_path: Path
) -> None:
    path = tmp_path / "a.safetensors"
    al.align(pairs).save(path)
    metadata, stored = read_tensors(path)
    header = json.loads(metadata["header"])
    change(header)
    write_tensors(path, stored, {**metadata, "header": json.dumps(header)})
    with pytest.raises(AlignmentError, match=rf"a\.safetensors is damaged: .*{sentence}.*; fit it again\.$"):
        al.Alignment.load(path)


def test_layers_by_score_find_the_matching_ones(pairs: PairedActivations) -> None:
    scores = al.layer_scores(pairs)
    assert scores.shape == (3, 3)
    assert LayerMap.by_score(scores).layers == {0: 0, 1: 1, 2: 2}
    np.testing.assert_allclose(np.diag(scores), 1, atol=1e-3)


def test_wrong_inputs_are_sentences(
    pair: tuple[LanguageModel, LanguageModel], pairs: PairedActivations
) -> None:
    with pytest.raises(AlignmentError, match="came with 3 target prompts"):
        PairedActivations.read(*pair, texts(8), target_prompts=texts(3))
    with pytest.raises(AlignmentError, match="fewer than four"):
        PairedActivations.read(*pair, texts(5))
    with pytest.raises(AlignmentError, match="no rule"):
        PairedActivations.read(*pair, texts(8), rule="first")  # type: ignore[arg-type]
    with pytest.raises(SiteError):
        PairedActivations.read(*pair, texts(8), target_layers=[9])
    with pytest.raises(AlignmentError, match="one of them was not read"):
        al.align(pairs, layers=LayerMap.explicit({0: 5}))
    with pytest.raises(AlignmentError, match="belongs to"):
        al.align(pairs).transfer(random_direction(tiny("llama")))
    elsewhere = Direction(
        vectors={Site("resid_pre", 0): torch.ones(24)},
        model_name=pair[0].name,
        fingerprint=pair[0].fingerprint,
    )
    with pytest.raises(AlignmentError, match="no site that this alignment reads"):
        al.align(pairs).transfer(elsewhere)
    with pytest.raises(AlignmentError, match="sends the direction to zero"):
        al.align(pairs, aligner=al.MeanOnly()).transfer(random_direction(pair[0]))


def test_a_group_of_prompts_goes_whole_to_one_part() -> None:
    names = [number // 2 for number in range(40)]
    parts = split(40, (0.6, 0.2, 0.2), 0, names)
    assert sorted(prompt for rows in parts.values() for prompt in rows) == list(range(40))
    owners = [{names[prompt] for prompt in rows} for rows in parts.values()]
    assert sum(map(len, owners)) == len(set(names))
    alone = split(40, (0.6, 0.2, 0.2), 0)
    assert [len(rows) for rows in alone.values()] == [24, 8, 8]
    with pytest.raises(AlignmentError, match="came with 3 groups"):
        split(40, (0.6, 0.2, 0.2), 0, [1, 2, 3])
