"""The refusal study in plain words: what each model does, what the directions do, where they are and what they cost."""

from __future__ import annotations

from typing import TYPE_CHECKING

from steerlab.readouts.dominance import dominance_sentence, dominates
from steerlab.results import Headline
from steerlab.statistics import Estimate, percent

if TYPE_CHECKING:
    from steerlab.studies._refusal.result import Outcome, RefusalResult


def sentences(result: RefusalResult) -> list[str]:
    """The study in plain words."""
    harmful, harmless = result.setting.kinds
    made = []
    for model in result.setting.models:
        asked = f"{model.capitalize()} ({result.setting.templates[model]})"
        unsteered = [result.outcome(model, "none", "none", kind) for kind in ("harmful", "harmless")]
        refuses = [row.refused for row in unsteered if row is not None]
        verdict = "" if result.separates[model] else " — no difference to explain"
        made.append(
            f"{asked} refuses {refuses[0]:%} of {harmful} and {refuses[1]:%} of {harmless} prompts{verdict}."
        )
    made += _judge_sentences(result) + _unfinished_sentences(result)
    if not result.separates["post"]:
        made.append(
            "Refusal is not identified: the post-trained model does not refuse one kind more than the other."
        )
        return made + list(result.missing.values())
    for model in result.setting.models:
        for direction in (model, *(other for other in result.setting.models if other != model)):
            made += [_effect_sentence(result, model, direction, kind) for kind in ("ablation", "addition")]
        made += [_kept_sentence(result, model), _published_sentence(result, model)]
        made.append(_mean_sentence(result, model))
    made = [sentence for sentence in made if sentence]
    for name, rows in (
        ("each in its own template", result.own),
        ("both in the plain template", result.plain),
    ):
        at = next((row for row in rows if row.layer == result.choices["post"].chosen.layer), None)
        if at is not None:
            made.append(
                f"Cosine of the two refusal directions at layer {at.layer}, {name}: {at.cosine}; on different halves "
                f"of the prompts {at.crossed}, where one model with itself gives {at.ceiling}."
            )
    made.append(_grid_sentence(result))
    made += [_apart_sentence(result, model) for model in result.setting.models]
    made += [_price_sentence(result, model) for model in result.setting.models]
    made = [sentence for sentence in made if sentence]
    if result.surface is not None and result.surface.above_chance:
        made.append(_surface_sentence(result))
    if result.status == "not identified":
        made.append(
            "Refusal is not identified: random directions do as much as the post-trained model's own."
        )
    return made + list(result.missing.values())


def headline(result: RefusalResult) -> Headline | None:
    """What ablating its own direction does to the post-trained model's refusal, beside random directions."""
    row, null = result.outcome("post", "ablation", "post"), result.outcome("post", "ablation", "random")
    if row is None or row.effect is None:
        asked = result.outcome("post", "none", "none", "harmful")
        control = result.outcome("post", "none", "none", "harmless")
        if asked is None or control is None:
            return None
        return Headline(
            what=f"refusal of {result.setting.kinds[0]} prompts, post-trained model",
            value=asked.refused,
            control=control.refused,
            control_name=f"{result.setting.kinds[1]} prompts",
            share=True,
        )
    return Headline(
        what=f"change of refusal of {result.setting.kinds[0]} prompts, own direction ablated in the post-trained model",
        value=row.effect,
        control=null.effect if null else None,
        control_name="random directions",
        share=True,
    )


# -- private, in the order they are called --


def _judge_sentences(result: RefusalResult) -> list[str]:
    return [
        f"The judge {result.judge} says who refuses; of the {model} model's {found.n} unsteered answers the phrases "
        f"say the same of {found.same:%} (Cohen's kappa {found.kappa:.2f}), refused being {found.judged:%} by "
        f"the judge and {found.phrases:%} by the phrases."
        for model, found in result.agreements.items()
    ]


def _unfinished_sentences(result: RefusalResult) -> list[str]:
    """Where unsteered answers never ended their thinking: they count as neither refused nor answered."""
    rows = ((row, row.unfinished) for row in result.outcomes if row.intervention == "none")
    return [
        f"{share:%} of the {row.model} model's answers to {row.prompts} prompts never end their thinking block within "
        f"{result.setting.new_tokens} tokens, so they are not answered: neither refused nor complied with."
        for row, share in rows
        if share
    ]


def _effect_sentence(result: RefusalResult, model: str, direction: str, intervention: str) -> str:
    row, null = result.outcome(model, intervention, direction), result.control(model, intervention, direction)
    if row is None or null is None or row.effect is None:
        return ""
    plain = result.outcome(model, "none", "none", row.prompts)
    kind = result.setting.kinds[0 if row.prompts == "harmful" else 1]
    if intervention == "ablation" and not result.separates[model]:
        return ""  # a model that does not refuse has nothing to lose
    verb = "Removing" if intervention == "ablation" else "Adding"
    verdict = (
        "" if result.above_control(model, intervention, direction) else " — no more than random directions do"
    )
    broken = (
        f", {percent(row.gibberish.value)} of the answers gibberish" if row.gibberish.value >= 0.1 else ""
    )
    return (
        f"{verb} the {direction} direction{_way(result, model, intervention)} in the {model} model changes its refusal "
        f"of {kind} prompts from "
        f"{percent(plain.refused.value if plain else float('nan'))} to {row.refused:%} (random directions: "
        f"{null.refused:%}{_furthest(null)}){broken}{verdict}."
    )


def _way(result: RefusalResult, model: str, intervention: str) -> str:
    """How a direction is taken out, where that is not the published way."""
    choice = result.choices.get(model)
    if intervention != "ablation" or choice is None or choice.chosen.as_published:
        return ""
    return f" {choice.ablated()}"


def _kept_sentence(result: RefusalResult, model: str) -> str:
    """What the ablation leaves of answers to the other kind of prompts."""
    row = result.outcome(model, "ablation", model, "harmless")
    if row is None or not result.separates[model]:
        return ""
    return (
        f"With its own direction removed, the {model} model refuses {row.refused:%} of {result.setting.kinds[1]} "
        f"prompts, and {row.gibberish:%} of its answers to them are gibberish."
    )


def _published_sentence(result: RefusalResult, model: str) -> str:
    row = result.outcome(model, "ablation", f"{model}, as published")
    if row is None or not result.separates[model]:
        return ""
    return (
        f"Removed as published (toward 0 everywhere), the {model} direction leaves {row.refused:%} refused and "
        f"{row.gibberish:%} gibberish."
    )


def _mean_sentence(result: RefusalResult, model: str) -> str:
    """Where one mean dominates, what that is and what follows."""
    shares = result.shared_means.get(model, ())
    return f"In {model}: {dominance_sentence(shares)}" if shares and dominates(shares) else ""


def _furthest(null: Outcome) -> str:
    """How far the furthest random direction goes."""
    if not null.draws:
        return ""
    furthest = min(null.draws) if null.intervention == "ablation" else max(null.draws)
    return f", the furthest of {len(null.draws)} by {100 * furthest:+.0f} points"


def _grid_sentence(result: RefusalResult) -> str:
    """The highest cosine of any place in the shared plain template, so that place and direction are told apart."""
    cells = [cell for cell in result.grid if cell.template == "plain"]
    if not cells:
        return ""
    best = max(cells, key=lambda cell: cell.agreement.cosine.value)
    at = best.agreement
    return (
        f"Over all {len(cells)} layers and positions of the plain template the cosine is at most {at.cosine} (layer "
        f"{at.layer}, position {best.position}; ceiling there {at.ceiling}, random directions below {at.random:.2f})."
    )


def _apart_sentence(result: RefusalResult, model: str) -> str:
    apart = result.apart(model)
    if apart is None or apart.low > 0.5:
        return ""
    return (
        f"The {model} direction does not tell the kinds of test prompts apart in the {model} model (AUROC {apart}), "
        "so it is a difference in means and not a direction of refusal."
    )


def _price_sentence(result: RefusalResult, model: str) -> str:
    rows = [price for price in result.prices if price.model == model and price.kl is not None]

    def kl(kind: str, direction: str) -> Estimate | None:
        values = (row.kl for row in rows if (row.intervention, row.direction) == (kind, direction))
        return next(values, None)

    parts = [
        f"{verb} it changes plain text by {own} nats a token of KL (random directions: {null})"
        for verb, kind in (("removing", "ablation"), ("adding", "addition"))
        if (own := kl(kind, "own")) and (null := kl(kind, "random"))
    ]
    return f"Price of the {model} direction in the {model} model: {'; '.join(parts)}." if parts else ""


def _surface_sentence(result: RefusalResult) -> str:
    form = result.surface
    assert form is not None
    shares = [percent(share) for share in form.ends_in_punctuation]
    return (
        f"Careful: length and final punctuation alone tell {result.setting.kinds[0]} from {result.setting.kinds[1]} "
        f"prompts in {form.accuracy:%} of cases (chance {percent(form.chance)}; {shares[0]} and {shares[1]} end in "
        "punctuation), so part of the direction may be one of form; match the two lists."
    )
