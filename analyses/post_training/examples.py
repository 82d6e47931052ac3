"""Requests of our own writing, and answers to them: distilled ones, and refusals in varied words."""

from __future__ import annotations

import json
import random
import re
import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import steerlab as sl

HERE = Path(__file__).parent
#: Words of the packaged test requests: what is measured on them has not been trained with them.
_HELD_OUT = re.compile(
    r"\b(attack|blow(?:s|ing)? up|bully|drown|fake|hurt|loot|scam|tamper|vandali[sz]e|wreck)", re.IGNORECASE
)


@dataclass(frozen=True)
class Example:
    """A request and the answer that is trained."""

    prompt: str
    answer: str


def requests(seed: int) -> dict[str, list[str]]:
    """Every kind's requests in a seeded order: everyday, narrow, requests, matched, and the two harmful kinds."""
    kinds = tomllib.loads((HERE / "prompts.toml").read_text("utf-8"))
    packaged = sl.datasets.requests().split("train")
    found = {
        "everyday": _filled(kinds["everyday"], "x"),
        "narrow": _filled(kinds["narrow"], "x"),
        "requests": list(packaged.negative),
        "matched": _filled(kinds["matched"], "harmless"),
        "refused_requests": list(packaged.positive),
        "refused_matched": _filled(kinds["matched"], "harmful"),
    }
    for kind, texts in found.items():
        held_out = [text for text in texts if _HELD_OUT.search(text)]
        assert not held_out, f"{kind} holds words of the test requests: {held_out[:3]}"
        random.Random(seed).shuffle(texts)
    return found


def examples(counts: dict[str, int], answers: dict[str, str], seed: int) -> list[Example]:
    """The examples of a stage, refusals in words of their own; in a seeded order."""
    rng, texts = random.Random(seed), requests(seed)
    refusals = tomllib.loads((HERE / "prompts.toml").read_text("utf-8"))["refusals"]
    made = []
    for kind, count in counts.items():
        if kind.startswith("refused"):
            made += [Example(text, _refusal(refusals, rng)) for text in texts[kind][:count]]
        else:
            known = [text for text in texts[kind] if text in answers]
            made += [Example(text, answers[text]) for text in known[:count]]
    rng.shuffle(made)
    return made


def read_answers(file: Path) -> dict[str, str]:
    """The distilled answers by request."""
    rows = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
    return {row["prompt"]: row["answer"] for row in rows}


def _refusal(words: dict[str, list[str]], rng: random.Random) -> str:
    return f"{rng.choice(words['openings'])} {rng.choice(words['reasons'])}".strip()


def _filled(kinds: Iterable[dict[str, Any]], fillers: str) -> list[str]:
    """Every way of asking with every filler, once."""
    every = [way.replace("{x}", text) for kind in kinds for way in kind["ways"] for text in kind[fillers]]
    return list(dict.fromkeys(every))


def batches(rows: Sequence[Example], size: int, seed: int) -> list[list[Example]]:
    """Batches of like length in a seeded order."""
    rng = random.Random(seed)
    order = sorted(rows, key=lambda row: (len(row.prompt) + len(row.answer), rng.random()))
    cut = [order[start : start + size] for start in range(0, len(order), size)]
    rng.shuffle(cut)
    return cut
