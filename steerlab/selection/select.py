"""At which layer and token does a contrast have its direction? Candidates scored on validation prompts, one chosen.

Candidate (layer l, position i): r = mean state of positive minus mean state of negative training prompts at the i-th
token from the end of the prompt, for every token after the instruction; all of them in one pass. Three scores, with s
the log-odds of the target tokens (a refusal's first ones) at the prompt's last token:

    bypass   mean s on positive prompts, r ablated wherever something enters the stream    low is good
    induce   mean s on negative prompts, r added once at its layer, at every token         at least 0
    KL       mean KL of the negative prompts' next-token law under ablation                at most 0.1

Rule "published" (Arditi et al., 2024, section 2.3): layers from 80 % of the depth on, NaN, KL above 0.1 and induce
below 0 are dropped; the smallest bypass wins, the first in the order of positions, then layers, between equals.

Rule "corrected": where every token shares a large mean, removing any direction everywhere breaks the model, and no
candidate meets the published conditions. So candidates with induce at least 0 are also removed toward the mean of the
negative class, and toward 0, in a window of layers (`trials`). Of those with KL at most 0.1 (at most 0.5 where they
leave more than half unanswered), the six smallest bypasses of the published way and the smallest of every other one,
the one wins under which fewest validation answers are refused or gibberish, and between equals the one with the least
KL. In a model that does not separate the two kinds there is nothing to bypass: of the six candidates that separate the
states best the largest induce with KL <= 0.1 wins, and where none has such a KL, the largest induce, removed toward the
negative mean in its own block. `rule` of the result says which decided, `ablated()` how the chosen direction is
removed.

Candidates lie in `resid_post` (the block's output), as all directions of these studies; the published ones in
`resid_pre`, so that a published layer l is `resid_post` l - 1. Training prompts make the vectors, validation prompts
the scores; test prompts are not given to this module.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

import numpy as np

from steerlab.datasets import ContrastSet
from steerlab.errors import DatasetError, SteerlabError
from steerlab.judging import RefusalJudge, agreement_of, judge_name
from steerlab.models import LanguageModel, Prompt
from steerlab.models.prompts import Template
from steerlab.readouts.refusals import NEW_TOKENS, Judge, Verdicts, difference, refusal_tokens
from steerlab.readouts.requests import Reading, Split, class_means, contrast_direction, read
from steerlab.selection.candidates import (
    INDUCE_BOUND,
    KL_BOUND,
    Candidate,
    Selection,
    read_scores,
    survivors,
)
from steerlab.selection.race import Places, Race, expected
from steerlab.selection.scores import Odds, Scorer, plain_odds
from steerlab.selection.trials import KL_BUDGET, Trials
from steerlab.statistics import proportion

Rule = Literal["corrected", "published"]

__all__ = ["Candidate", "Selection", "choose", "read_scores", "select_direction", "survivors"]

_FINALISTS, _LIKELY, _SHORT = 6, 18, 3
_ENOUGH = 0.5  # share left refused or gibberish from which on more KL is not spent
_PUBLISHED_FLOORS = (1e-8, 1e-6)  # inside the logarithms of the log-odds and of the KL


# Long: most of it documents its options.
def select_direction(
    model: LanguageModel,
    train: ContrastSet,
    val: ContrastSet | None = None,
    *,
    tokens: Sequence[str] | None = None,
    rule: Rule = "corrected",
    scores: Literal["needed", "all"] = "needed",
    template: Template = "auto",
    judge: RefusalJudge | None = None,
    max_new_tokens: int = NEW_TOKENS,
    seed: int = 0,
) -> Selection:
    """Choose the direction of a contrast between two kinds of prompts; see the module for candidates and rules.

    Args:
        train: makes the vectors. Positive prompts (harmful ones) are those that the tokens answer.
        val: scores them; none of its prompts may be in `train`. Without it `train` has splits, and its parts "train"
            and "val" are used.
        tokens: first words of the answer that positive prompts get, each one token; by default a refusal's. With
            words of your own an answer counts as expected when they are likelier than not to begin it, and no
            phrases are looked for.
        rule: "corrected" or "published"; the latter also reads `resid_pre`, drops prompts whose log-odds are on the
            wrong side, and keeps its small numbers inside the logarithms.
        scores: "needed" computes what the choice needs, with the same choice; "all" fills the maps.
        template: how prompts are rendered; a thinking block that the template opens is closed.
        judge: says of (request, answer) whether it is the expected answer (a refusal), in place of phrases and
            `tokens`; the selection has its name and its agreement with the phrases.
        max_new_tokens: of the answers that phrases or a judge look at.
        seed: of the answers sampled to learn what the model's own language looks like.

    Raises:
        DatasetError: train and val share a prompt, are not one split each, or lack a kind.
        PromptError: one of `tokens` is not one token.
        SteerlabError: no candidate meets the published rule, it has no tokens to go by, or it was given a judge,
            since it looks at no answer; a judge that fails.
    """
    parts = _parts(train, val)
    rendered = [
        Split(*(_rendered(model, texts, template) for texts in kinds))
        for kinds in ((part.positive, part.negative) for part in parts)
    ]
    if tokens is None:
        known = refusal_tokens(model, rendered[1].harmful[0])
    else:
        known = {model.token_id(word): word for word in tokens}
    by_tokens, refuses, unsteered = tokens is not None and judge is None, True, []
    if rule == "published":  # which looks at no answer
        if judge is not None:
            raise SteerlabError(
                "The published rule looks at no answer; leave the judge out, or use rule='corrected'."
            )
        scored = Judge(model, tuple(known), float("inf"))
    else:
        scored = Judge.of(
            model, rendered[1].prompts, list(known), seed, judge=judge, new_tokens=max_new_tokens
        )
        unsteered = [scored.verdicts(part) for part in rendered[1].kinds]
        positive, negative = (proportion(expected(verdicts, by_tokens)) for verdicts in unsteered)
        refuses = difference(positive, negative).low > 0
    selection = choose(
        scored, *rendered, refuses=refuses, words=tuple(known.values()), rule=rule, scores=scores,
        by_tokens=by_tokens, kinds=(parts[0].positive_name, parts[0].negative_name),
    )  # fmt: skip
    said = selection.model_copy(update=_said_by(judge, unsteered))
    return said.of(selection.direction)


# Long: a third of it documents its options.
def choose(
    judge: Judge,
    train: Split,
    val: Split,
    *,
    refuses: bool,
    words: Sequence[str] = (),
    rule: Rule = "corrected",
    scores: Literal["needed", "all"] = "needed",
    site: str | None = None,
    reading: Reading | None = None,
    by_tokens: bool = False,
    kinds: tuple[str, str] = ("harmful", "harmless"),
) -> Selection:
    """`select_direction` on rendered prompts, with a judge of the model's answers.

    Args:
        refuses: whether the model answers positive prompts with the tokens more than negative ones.
        site: "resid_post", or "resid_pre" as published; by default the rule's own.
        reading: states of the training prompts at `site` where they were read already.
        by_tokens: whether the tokens alone, and no phrases, say that an answer is the expected one.
        kinds: names of positive and negative prompts.
    """
    _require_rule(judge, rule)
    model, published = judge.model, rule == "published"
    site = site or ("resid_pre" if published else "resid_post")
    odds = Odds(judge.tokens, _PUBLISHED_FLOORS[0] if published else 0.0)
    if published:
        train, val = (_on_their_side(model, split, odds) for split in (train, val))
    if reading is not None and len(reading.labels) == len(train.prompts):  # the filter left none out
        means = reading.means()
    else:
        means = class_means(model, train, site=site, progress=f"reading prompts in {model.name}")
    places = Places(model, means, read(model, val, site=site), published)
    scorer = Scorer(
        model, val.harmful, val.harmless, site=site, layers=places.layers, odds=odds,
        kl_floor=_PUBLISHED_FLOORS[1] if published else 0.0, windows=not published,
    )  # fmt: skip
    race = Race(places, scorer, complete=scores == "all")
    trials = Trials(race, site)
    place, why = (
        _published(race, model.n_layers)
        if published
        else _corrected(race, trials, judge, val, refuses, by_tokens)
    )
    last = model.tokenize([val.prompts[0]])
    selection = Selection(
        model=model.name,
        n_layers=model.n_layers,
        site=site,
        template=val.harmful[0].template,
        tokens=tuple(dict.fromkeys(words)),
        token_ids=judge.tokens,
        candidates=tuple(race.candidates),
        chosen=place,
        token=model.tokenizer.decode([int(last.input_ids[0, place.position])]),
        rule=why,
        tried=trials.found,
        kinds=kinds,
        kept=(len(train.harmful), len(train.harmless), len(val.harmful), len(val.harmless)),
    )
    return selection.of(contrast_direction(model, places.means, place.layer, place.position, site, kinds))


# -- private, in the order they are called --


def _require_rule(judge: Judge, rule: str) -> None:
    """Raise SteerlabError for an unknown rule, and for one that the model's tokens do not allow."""
    if rule not in get_args(Rule):
        raise SteerlabError(f"There is no rule {rule!r}; choose from {', '.join(get_args(Rule))}.")
    if rule == "published" and not judge.tokens:
        raise SteerlabError(
            f"No token of {judge.model.name} begins a refusal as a whole word, and the published rule goes by nothing "
            "else; name tokens, or use rule='corrected'."
        )


def _parts(train: ContrastSet, val: ContrastSet | None) -> tuple[ContrastSet, ContrastSet]:
    """Training and validation prompts, one split each and disjoint; a test split is never among them."""
    if val is None:
        if not any(train.splits):
            raise DatasetError(
                "The prompts have no splits; give validation prompts of their own, or make splits with "
                "ContrastSet.from_texts."
            )
        train, val = train.split("train"), train.split("val")
    for name, part in (("training", train), ("validation", val)):
        if any(part.splits):
            raise DatasetError(
                f"The {name} prompts hold several splits, the test prompts among them; give one, such as "
                "requests.split('train')."
            )
        if not part.positive or not part.negative:
            raise DatasetError(
                f"The {name} prompts are {len(part.positive)} {part.positive_name} and {len(part.negative)} "
                f"{part.negative_name} ones; give some of each."
            )
    texts = [{" ".join(text.split()) for text in (*part.positive, *part.negative)} for part in (train, val)]
    if shared := texts[0] & texts[1]:
        raise DatasetError(f"Training and validation share {len(shared)} prompts; give disjoint splits.")
    return train, val


def _rendered(model: LanguageModel, texts: Sequence[str], template: Template) -> list[Prompt]:
    return [model.instruction_prompt(text, template=template, think=False) for text in texts]


def _said_by(judge: RefusalJudge | None, unsteered: Sequence[Verdicts]) -> dict[str, Any]:
    """A judge's name and its agreement with the phrases, for the selection; nothing without one."""
    if judge is None:
        return {}
    both = (np.concatenate([getattr(part, name) for part in unsteered]) for name in ("refused", "phrases"))
    return {"judge": judge_name(judge), "agreement": agreement_of(*both)}


def _on_their_side(model: LanguageModel, split: Split, odds: Odds) -> Split:
    """Positive prompts with log-odds above zero and negative ones below (the published filter)."""
    if not odds.tokens:
        return split
    kept = []
    for prompts, sign in ((split.harmful, 1), (split.harmless, -1)):
        side = sign * plain_odds(model, prompts, odds) > 0
        kept.append([prompt for prompt, right in zip(prompts, side, strict=True) if right])
        if not kept[-1]:
            raise DatasetError(
                f"No {'positive' if sign > 0 else 'negative'} prompt is answered as expected by {model.name}, so the "
                "published filter leaves none; use rule='corrected'."
            )
    return Split(*kept)


def _published(race: Race, n_layers: int) -> tuple[Candidate, str]:
    race.induce(race.usable)
    race.kl([n for n in race.usable if race.candidates[n].induce >= INDUCE_BOUND])
    race.bypass([n for n in race.usable if _meets(race.candidates[n])])
    kept = survivors(race.candidates, n_layers)
    if not kept:
        raise SteerlabError(
            f"No candidate direction has KL <= {KL_BOUND} and induce >= {INDUCE_BOUND:g}, which the published rule "
            "needs; use rule='corrected'."
        )
    return kept[0], f"smallest bypass with KL <= {KL_BOUND} and induce >= 0 (published)"


def _corrected(
    race: Race, trials: Trials, judge: Judge, val: Split, refuses: bool, by_tokens: bool
) -> tuple[Candidate, str]:
    by_separation = sorted(race.usable, key=lambda n: -np.nan_to_num(race.candidates[n].separation))
    if not by_separation:
        raise SteerlabError(
            "The mean states of the two kinds are equal everywhere; give prompts that differ."
        )
    if not judge.tokens:
        why = "best separation of the validation prompts (no token begins the answer)"
        return race.candidates[by_separation[0]], why
    if not refuses:
        why = "the tokens do not tell the two kinds apart" if by_tokens else "the model does not refuse"
        return _most_induced(race, trials, by_separation[:_FINALISTS], why)
    race.induce(race.usable)
    inducing = [n for n in race.usable if race.candidates[n].induce >= INDUCE_BOUND]
    tried = _tried(race, trials, inducing or race.usable)
    unmet = "" if inducing else f" (no candidate has induce >= {INDUCE_BOUND:g})"
    fewest = f"fewest {'begun with the tokens' if by_tokens else 'refused'} or gibberish, then smallest KL"
    for budget in (KL_BOUND, KL_BUDGET):
        finalists = _finalists([place for place in tried if place.kl <= budget])
        known = trials.answered(finalists, judge, val.harmful, by_tokens)
        best = min(known, key=lambda place: (place.unanswered, place.kl), default=None)
        if best is not None and best.unanswered <= _ENOUGH:
            return best, f"{fewest}, with KL <= {budget:g}{unmet}"
    if best is not None:
        return best, f"{fewest}, with KL <= {KL_BUDGET:g} (all leave more than {_ENOUGH:.0%}){unmet}"
    return min(tried, key=lambda place: place.kl), f"smallest KL (no candidate has KL <= {KL_BUDGET:g})"


def _finalists(places: Sequence[Candidate]) -> list[Candidate]:
    """The smallest bypasses of the published way, and the smallest of every other one."""
    ranked = sorted(places, key=_by_bypass)
    others = {(place.toward, place.window): place for place in reversed(ranked) if not place.as_published}
    return [*[place for place in ranked if place.as_published][:_FINALISTS], *others.values()]


def _by_bypass(place: Candidate) -> float:
    return float(np.nan_to_num(place.bypass, nan=np.inf))


def _tried(race: Race, trials: Trials, open_to: Sequence[int]) -> list[Candidate]:
    """Candidates removed everywhere, and the best of them, and of those removed mildly, removed in every way."""
    race.kl(open_to)
    everywhere = [n for n in open_to if race.candidates[n].kl <= KL_BOUND]
    race.bypass(everywhere)
    everywhere = sorted(everywhere, key=lambda n: _by_bypass(race.candidates[n]))
    likely = sorted(open_to, key=lambda n: -race.candidates[n].induce)[:_LIKELY]
    mildly = dict(zip(likely, trials.mildly(likely), strict=True))
    best = sorted(likely, key=lambda n: _by_bypass(mildly[n]))[:_SHORT]
    trials.in_every_way(list(dict.fromkeys([*everywhere[:_SHORT], *best])))
    return [*(race.candidates[n] for n in everywhere[:_FINALISTS]), *trials.found]


def _most_induced(race: Race, trials: Trials, places: Sequence[int], why: str) -> tuple[Candidate, str]:
    race.induce(places)
    race.kl(places)
    mild = [n for n in places if race.candidates[n].kl <= KL_BOUND]
    how = f"KL <= {KL_BOUND}" if mild else "whatever KL"
    best = max(mild or places, key=lambda n: race.candidates[n].induce)
    (chosen,) = [race.candidates[best]] if mild else trials.mildly([best])
    return chosen, f"largest induce with {how} ({why})"


def _meets(place: Candidate) -> bool:
    return place.kl <= KL_BOUND and place.induce >= INDUCE_BOUND
