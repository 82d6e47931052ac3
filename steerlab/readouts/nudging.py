"""A base model that is handed single tokens by an aligned one wherever it is unsure: which law narrows?

Where the base model's likeliest token has a probability below γ, the nudger's greedy token is written; elsewhere
the base model draws from its own law. Two laws are recorded:

    process law   what emitted each step: entropy 0 at a nudge, the base law's elsewhere. Lower by construction
    base law      the base model's own law at every position, nudged or not: does it become sure of itself?

The second, a few steps after the last nudge, is what the claim is about. Controls: random tokens at the same rule,
another base model as nudger, and an aligned prefix of k tokens with free base text behind it. Where tokenizers
differ, whole words are exchanged as text.
Source: Fei et al. (arXiv 2410.09300) for the rule; arXiv 2506.17871 for the experiment, which does not say whose
law it measures.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from steerlab.errors import PromptError
from steerlab.models import LanguageModel
from steerlab.models.drawing import uniforms, wide_dtype
from steerlab.models.generation import end_token_ids
from steerlab.readouts.laws import SamplingLaw, draw_step
from steerlab.readouts.sampling import Trajectories, _check, _Decoder, rows_of_a_batch

_PROPOSED = 12  # tokens of the nudger in which a word must end
_CHUNK = 16  # tokens the base model writes before it is looked at
_ROUNDS = 150


@dataclass(frozen=True)
class Nudged:
    """What was written [sequence, step], NaN (False, -1) after the end: nats.

    process: entropy of the law that emitted the step. base: entropy of the base law there. surprisal: under the process
    law. nudged: whether the step was the nudger's. prompt: [sequence].
    """

    prompt: Int[np.ndarray, " sequence"]
    tokens: Int[np.ndarray, "sequence step"]
    process: Float[np.ndarray, "sequence step"]
    base: Float[np.ndarray, "sequence step"]
    surprisal: Float[np.ndarray, "sequence step"]
    nudged: Bool[np.ndarray, "sequence step"]

    @property
    def share(self) -> Float[np.ndarray, " step"]:
        """Share of nudged steps among the sequences still running, by position."""
        running = ~np.isnan(self.process)
        return np.asarray(
            np.divide(
                (self.nudged & running).sum(axis=0),
                running.sum(axis=0),
                out=np.full(running.shape[1], np.nan),
                where=running.sum(axis=0) > 0,
            )
        )

    def away(self, steps: int) -> Float[np.ndarray, "sequence step"]:
        """The base law's entropy at least `steps` after the last nudge and at no nudge; NaN elsewhere."""
        since = np.full(self.nudged.shape, self.nudged.shape[1], dtype=np.int64)
        for at in range(self.nudged.shape[1]):
            before = since[:, at - 1] + 1 if at else np.full(len(since), self.nudged.shape[1])
            since[:, at] = np.where(self.nudged[:, at], 0, before)
        return np.where(since >= max(1, steps), self.base, np.nan)


@torch.inference_mode()
def nudge(
    base: LanguageModel,
    nudger: LanguageModel | None,
    prompts: Sequence[Sequence[int]],
    *,
    gamma: float = 0.3,
    samples: int = 4,
    max_new_tokens: int = 48,
    law: SamplingLaw | None = None,
    prefix: int | None = None,
    seed: int = 0,
) -> Nudged:
    """Write with the base model, nudged below γ.

    Args:
        base: what writes.
        nudger: what nudges, with the same tokenizer; None gives tokens drawn uniformly from the vocabulary.
        prompts: token ids.
        gamma: probability of the likeliest token below which a step is nudged; 0 never nudges.
        prefix: instead of γ: the nudger writes the first `prefix` tokens and nothing after.

    Raises:
        PromptError: no prompt, an empty one, one that leaves no room in a context, or models with other vocabularies.
    """
    for model in (base, nudger):
        if model is not None:
            _check(model.model, prompts, samples, max_new_tokens)
    if not 0 <= gamma <= 1:
        raise PromptError(f"γ is a probability, not {gamma}.")
    if nudger is not None and not same_tokens(nudger.tokenizer, base.tokenizer):
        raise PromptError(
            f"{nudger.name} has other tokens than {base.name}, so single tokens cannot be handed over; use nudge_words."
        )
    rule = law or SamplingLaw()
    stops = torch.tensor(sorted(end_token_ids(base)), dtype=torch.int64)
    readers = [_Decoder(base.model, base.vocab_size, stops, rule)]
    if nudger is not None and nudger is not base:
        readers.append(_Decoder(nudger.model, min(nudger.vocab_size, base.vocab_size), stops, rule))
    pairs = [(number, sample) for number in range(len(prompts)) for sample in range(samples)]
    rows = [list(prompts[number]) for number, _ in pairs]
    numbers = np.stack([uniforms(seed, *pair, max_new_tokens) for pair in pairs])
    words = np.random.default_rng([seed, 1]).integers(base.vocab_size, size=numbers.shape)
    size = rows_of_a_batch(base.vocab_size, readers[0].stops.device)
    batches = [
        _run(readers, rows[some], numbers[some], words[some] if nudger is None else None, gamma, prefix)
        for some in (slice(start, start + size) for start in range(0, len(rows), size))
    ]
    columns = (np.concatenate(column) for column in zip(*batches, strict=True))
    return Nudged(np.array([number for number, _ in pairs]), *columns)


def same_tokens(first: Any, second: Any) -> bool:
    """Whether two tokenizers give the same ids to the same tokens; large vocabularies take a while to compare."""
    return first is second or bool(first.get_vocab() == second.get_vocab())


def not_nudged(runs: Trajectories) -> Nudged:
    """What `nudge` records where nobody nudges: the base model's own samples."""
    return Nudged(
        runs.prompt,
        runs.tokens,
        runs.entropy,
        runs.entropy,
        runs.surprisal,
        np.zeros(runs.tokens.shape, dtype=bool),
    )


def nudge_words(
    base: LanguageModel,
    nudger: LanguageModel,
    prompts: Sequence[str],
    *,
    gamma: float = 0.3,
    max_new_tokens: int = 48,
) -> list[tuple[str, float]]:
    """The word-level rule for models with different tokenizers, both greedy: texts, and the share of nudged words.

    The nudger proposes; its first word is taken, and more while the base model stays below γ behind them. Then the
    base model goes on greedily up to its first unsure token.
    """
    nudged = []
    for prompt in prompts:
        text, words, nudges = "", 0, 0
        for _ in range(_ROUNDS):
            if (
                len(base.tokenize([prompt + text or " "]).input_ids[0])
                >= _tokens(base, prompt) + max_new_tokens
            ):
                break
            proposal = nudger.generate([prompt + text], max_new_tokens=_PROPOSED)[0]
            word = first_word(proposal.text)
            if not word:
                break
            text += word
            words, nudges = words + 1, nudges + 1
            if _certainty(base, prompt + text) < gamma:
                continue
            certain = _certain_text(base, prompt + text, gamma)
            text += certain
            words += len(certain.split())
            if not certain and proposal.finished and word == proposal.text:
                break
        nudged.append((text, nudges / words if words else 0.0))
    return nudged


def first_word(text: str) -> str:
    """A text up to the end of its first word, the white space before it kept; "" where there is none."""
    stripped = text.lstrip()
    if not stripped:
        return ""
    lead = text[: len(text) - len(stripped)]
    return lead + stripped.split(maxsplit=1)[0]


# -- private, in the order they are called --


def _run(
    readers: Sequence[_Decoder],
    rows: list[list[int]],
    numbers: Float[np.ndarray, "row step"],
    words: Int[np.ndarray, "row step"] | None,
    gamma: float,
    prefix: int | None,
) -> tuple[np.ndarray, ...]:
    """The columns of `Nudged` of some rows. The last of the readers nudges, or `words` do."""
    steps, device = numbers.shape[1], readers[0].stops.device
    asked = prefix if prefix is not None else steps if gamma > 0 else 0
    decodings = [reader.start(rows) for reader in readers[: 2 if asked else 1]]
    uniform = torch.from_numpy(numbers).to(device, wide_dtype(device))
    values = np.full((3, *numbers.shape), np.nan)
    tokens, nudged = np.full(numbers.shape, -1), np.zeros(numbers.shape, dtype=bool)
    left = torch.arange(len(rows), device=device)  # the rows that have not ended
    for step in range(steps):
        logits = [
            decoding.logits[:, : reader.vocab_size].to(device)
            for reader, decoding in zip(readers, decodings, strict=False)
        ]
        drawn = draw_step(logits[0], readers[0].law, uniform[left, step])
        here = left.cpu().numpy()
        given = logits[-1].argmax(dim=-1) if words is None else torch.from_numpy(words[here, step]).to(device)
        handed = (
            _likeliest(logits[0]) < gamma if prefix is None else torch.full_like(left, step < prefix).bool()
        )
        token = torch.where(handed, given, drawn.token)
        process, surprisal = (torch.where(handed, 0.0, column) for column in (drawn.entropy, drawn.surprisal))
        values[:, here, step] = torch.stack([process, drawn.entropy, surprisal]).double().cpu().numpy()
        tokens[here, step], nudged[here, step] = token.cpu().numpy(), handed.cpu().numpy()
        going = (~torch.isin(token, readers[0].stops)).nonzero().squeeze(-1)
        if step + 1 == steps or not len(going):
            break
        if step + 1 == asked:  # the nudger has written its prefix
            del decodings[1:]
        for decoding in decodings:
            if len(going) < len(left):
                decoding.keep(going)
            decoding.append(token[going])
        left = left[going]
    return tokens, *values, nudged


def _likeliest(logits: Float[Tensor, "row vocab"]) -> Float[Tensor, " row"]:
    """Probability of each row's likeliest token."""
    return (logits.amax(dim=-1) - logits.logsumexp(dim=-1)).exp()


def _tokens(model: LanguageModel, text: str) -> int:
    return model.lengths([text])[0]


def _certainty(model: LanguageModel, text: str) -> float:
    """Probability of the likeliest next token."""
    return float(model.logits([text]).softmax(dim=-1).amax())


def _certain_text(model: LanguageModel, text: str, gamma: float) -> str:
    """The greedy continuation up to the first step whose likeliest token is below γ."""
    chunk = model.generate([text], max_new_tokens=_CHUNK)[0].text
    if not chunk:
        return ""
    tokens = model.tokenize([text + chunk])
    start, end = _tokens(model, text), tokens.lengths[0]
    places = torch.arange(start - 1, end - 1)
    hidden = model.last_hidden(tokens, torch.zeros_like(places), places)
    parts = [logits.softmax(dim=-1).amax(dim=-1).cpu() for _, logits in model.logits_in_slices(hidden)]
    sure = torch.cat([torch.empty(0), *parts])
    for at in range(start, end):
        if float(sure[at - start]) < gamma:
            return str(model.tokenizer.decode(tokens.input_ids[0, start:at].tolist()))
    return chunk
