"""Where do narrow and broad adapters differ from their base on unrelated text, and is their topic read there?

    python analyses/real_difference.py analyses/real_difference.toml [--dry-run] [--only LABEL ...] [--figures figures]

The study of differences (`sl.studies.difference`) on each `[[run]]` of the file: base against an adapter of
`post_training/`, against itself, and against itself with a random LoRA of equal norm. `runs.csv`: verdict and main
numbers; `nulls.csv`: the three quantities beside each null; `layers.csv`: by layer, with the words read and the rank
AUC of the topic's words; `tokens.csv`, `positions.csv`: next-token laws; `falls.csv`: how far the AUC falls from one
adapter to another, paired over texts (`[[fall]]`). A part is a run or a fall; what is in the files is not run again.
STEERLAB_REAL_MODELS names the folder of local copies.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from _local_copies import digest, model_folder
from _part_files import Row
from _script import arguments_of, ends, named, part_files, settings_of, slug
from post_training.examples import read_answers, requests

import steerlab as sl
from steerlab import studies
from steerlab.errors import SteerlabError
from steerlab.models import LanguageModel
from steerlab.plots import save_all
from steerlab.studies import Pair
from steerlab.studies._difference.laws import read_laws
from steerlab.studies._difference.lens import Reader, topic_auc
from steerlab.studies._difference.nulls import changed_maps, random_factors
from steerlab.studies._difference.reading import own_states, read_differences, read_texts
from steerlab.studies._difference.result import DifferenceResult
from steerlab.studies._difference.study import difference_amount
from steerlab.studies._pair import LARGE

ADAPTERS = Path(__file__).parent / "post_training"
PART = ("run", "base_sha256", "post_sha256", "settings")
COLUMNS = {
    "runs": (
        *PART,
        *("texts", "tokens", "verdict"),
        *ends("shared"),
        *("read_at", "stands_out", "alike"),
        *ends("kl", "topic_auc"),
        *("called", "tested", "steered_layer"),
        *ends("before", "steered", "steered_random"),
        *("forks",),
        *ends(
            "forked", "fork_position", "fork_share", "fork_share_control", "commitment", "commitment_control"
        ),
        "itself",
    ),
    "nulls": (
        *PART,
        "null",
        *ends("shared"),
        "shared_p",
        *ends("stands_out"),
        "stands_out_p",
        *ends("alike"),
        "alike_p",
    ),
    "layers": (
        *PART,
        "layer",
        *ends("shared", "random_lora"),
        "stands_out",
        "alike",
        *ends("topic_auc"),
        "words",
    ),
    "places": (*PART, "layer", "place", "texts", *ends("shared"), "words"),
    "tokens": (*PART, "token", *ends("change"), "q", "base", "post", "context"),
    "positions": (*PART, "behind", *ends("kl", "rank_shift")),
    "falls": (*PART, "layer", *ends("first", "second", "fall")),
}


def topic_words(plan: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """The topic's words and those that they are ranked among."""
    answers = read_answers(ADAPTERS / "answers.jsonl")
    asked, topic = requests(plan["seed"]), plan["topic"]

    def counted(kinds: Sequence[str]) -> Counter[str]:
        found: Counter[str] = Counter()
        for text in (text for kind in kinds for text in asked[kind] if text in answers):
            found.update(set(re.findall(r"[a-z]+", answers[text].lower())))
        return found

    mine, others = counted([topic["kind"]]), counted(topic["others"])
    return (
        sorted(word for word, count in mine.items() if count >= topic["least"] and not others[word]),
        sorted(word for word in others if not mine[word]),
    )


def texts_of(name: str) -> list[str]:
    """The texts of a run."""
    if name == "packaged":
        return list(sl.datasets.plain_text())
    lines = (ADAPTERS / "plain.jsonl").read_text("utf-8").splitlines()
    return [json.loads(line)["text"] for line in lines]


def sha256_of(post: str, plan: Mapping[str, Any]) -> str:
    """The weights of a post model: an adapter's file, base's own, or that of the adapter whose norms are drawn."""
    if post == "itself":
        return str(plan["sha256"])
    return digest(adapter_folder(post, plan) / "adapter_model.safetensors")


def adapter_folder(post: str, plan: Mapping[str, Any]) -> Path:
    """Where an adapter lies: in `post_training/`, or in the folder that the file names."""
    return Path(plan.get("adapters", ADAPTERS)) / post.removeprefix("random ")


def part_of(each: Mapping[str, Any], plan: Mapping[str, Any]) -> Row:
    """What tells a part apart: its label, the weights and what it is run with."""
    posts = [each["post"]] if "post" in each else [each["first"], each["second"]]
    return {
        "run": each["label"],
        "base_sha256": plan["sha256"],
        "post_sha256": " ".join(sha256_of(post, plan) for post in posts),
        "settings": settings_of(each, plan["topic"], plan["seed"]),
    }


def load_post(post: str, plan: Mapping[str, Any], base: LanguageModel) -> LanguageModel:
    """The model that base is compared with, in weights of its own."""
    fresh = sl.load(model_folder(plan["base"], plan["sha256"]), dtype="float32")
    if post == "itself":
        return fresh
    if not post.startswith("random "):
        return sl.load(adapter_folder(post, plan), base=fresh)
    norms = changed_maps(base, load_post(post.removeprefix("random "), plan, base))
    modules = dict(fresh.model.named_modules())
    with torch.no_grad():
        # a seed that none of the study's own draws has
        for name, (first, second) in random_factors(fresh, norms, 1000 + plan["seed"]):
            modules[name].weight += second @ first
    return fresh


def run_part(each: Mapping[str, Any], base: LanguageModel, plan: Mapping[str, Any]) -> DifferenceResult:
    """The study of one run."""
    topic, against = topic_words(plan)
    found: DifferenceResult = studies.difference(
        (base, load_post(each["post"], plan, base)),
        texts_of(each["texts"]),
        topic=topic,
        against=against,
        seed=plan["seed"],
    )
    return found


def run_row(result: DifferenceResult) -> Row:
    """The main numbers of a run."""
    forks, steered = result.forks, result.steering
    row: Row = {
        name: getattr(result, name)
        for name in (
            "texts",
            "tokens",
            "verdict",
            "read_at",
            "stands_out",
            "alike",
            "called",
            "tested",
            "itself",
        )
    }
    row |= named("shared", result.shared) | named("kl", result.kl) | named("topic_auc", result.read.topic)
    row |= {"steered_layer": steered.layer, "forks": forks.texts}
    row |= named("before", steered.before) | named("steered", steered.effect)
    row |= named("steered_random", steered.control) | named("forked", forks.forked)
    row |= named("fork_position", forks.position) | named("fork_share", forks.share)
    row |= named("fork_share_control", forks.share_control) | named("commitment", forks.commitment)
    return row | named("commitment_control", forks.commitment_control)


def table_rows(result: DifferenceResult) -> dict[str, Iterator[Row]]:
    """The rows of the other tables."""
    return {
        "nulls": (
            {
                "null": one.name,
                "shared_p": one.shared_p,
                "stands_out_p": one.stands_out_p,
                "alike_p": one.alike_p,
            }
            | named("shared", one.shared)
            | named("stands_out", one.stands_out)
            | named("alike", one.alike)
            for one in result.nulls
        ),
        "layers": (
            {
                "layer": one.layer,
                "stands_out": one.stands_out,
                "alike": one.alike,
                "words": "|".join(one.words),
            }
            | named("shared", one.shared)
            | named("random_lora", one.lora)
            | named("topic_auc", one.topic)
            for one in result.layers
        ),
        "places": (
            {"layer": one.layer, "place": one.place, "texts": one.texts, "words": "|".join(one.words)}
            | named("shared", one.shared)
            for one in result.places
        ),
        "tokens": (
            {"token": one.token, "q": one.q, "base": one.base, "post": one.post, "context": one.context}
            | named("change", one.change)
            for one in (*result.promoted, *result.demoted)
        ),
        "positions": (
            {"behind": one.behind} | named("kl", one.kl) | named("rank_shift", one.rank_shift)
            for one in result.positions
        ),
    }


def fall_rows(each: Mapping[str, Any], base: LanguageModel, plan: Mapping[str, Any]) -> Iterator[Row]:
    """The topic's rank AUC in both differences and its fall, layer by layer, on the same texts."""
    posts = {name: load_post(each[name], plan, base) for name in ("first", "second")}
    amount = difference_amount(LARGE)
    texts = read_texts(Pair(base, posts["first"]), texts_of(each["texts"]), amount.texts, amount.tokens)
    reader = Reader(base, read_laws(base, base, texts).base)
    topic, against = (reader.ids_of(words) for words in topic_words(plan))
    others = sorted(set(against) - set(topic))
    found = read_differences(
        base, {name: (own_states(post), ("all",)) for name, post in posts.items()}, texts, each["label"]
    )
    rows = {name: one.at() for name, one in found.items()}
    for layer in range(base.n_layers):
        first, second = (rows[name][layer] for name in posts)
        fall = topic_auc(reader, first, topic, others, less=second, seed=plan["seed"])
        yield (
            {"layer": layer}
            | named("first", topic_auc(reader, first, topic, others, seed=plan["seed"]))
            | named("second", topic_auc(reader, second, topic, others, seed=plan["seed"]))
            | named("fall", fall)
        )


def forecast(left: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """About how many tokens each part puts through a model."""
    amount = difference_amount(LARGE)
    whole = amount.texts * amount.tokens
    forked = amount.forks * (3 * amount.steps + 2 * amount.continuations * (amount.tokens + amount.steps))
    laws = 2 * whole + amount.steered * amount.tokens * (3 + amount.randoms) + forked
    for each in left:
        states = whole * (3 + amount.draws) if "post" in each else 3 * whole
        read = laws if "post" in each else 2 * whole
        yield f"{each['label']}: about {states} tokens without the unembedding and {read} with it"


def main() -> None:
    """Read the arguments and the file, run what is not yet done."""
    arguments = arguments_of(__doc__, only="runs and falls, by their labels")
    plan, files = arguments.plan, part_files(arguments.folder, COLUMNS, PART)
    left = [
        each
        for each in (*plan["run"], *plan.get("fall", ()))
        if not files["runs" if "post" in each else "falls"].holds(part_of(each, plan))
        and (arguments.only is None or each["label"] in arguments.only)
    ]
    print(f"{plan['name']}: left are {'; '.join(each['label'] for each in left) or 'none'}", flush=True)
    if arguments.dry_run:
        print("\n".join(forecast(left)))
        return
    base: LanguageModel | None = None
    for each in left:
        part = part_of(each, plan)
        try:
            base = base or sl.load(model_folder(plan["base"], plan["sha256"]), dtype="float32")
            if "post" not in each:
                files["falls"].write(part, list(fall_rows(each, base, plan)))
                continue
            result = run_part(each, base, plan)
        except SteerlabError as error:
            raise SystemExit(f"{arguments.configuration}, {each['label']}: {error}") from error
        for name, rows in table_rows(result).items():
            files[name].write(part, rows)
        files["runs"].write(part, [run_row(result)])  # last: it says that the part is done
        print(*result.summary, sep="\n  ", flush=True)
        pictures = result.figures().items()
        names = {arguments.folder / f"{slug(each['label'])}_{name}.svg": figure for name, figure in pictures}
        for saved in save_all(names):
            if saved.reason:
                saved.path.unlink(missing_ok=True)


if __name__ == "__main__":
    main()
