"""Which law was each token drawn from? Sampling that records itself.

One step of ours, in `laws`, does everything between logits and token, and the record is of exactly that law, q: its
entropy h = -sum q ln q, the surprisal s = -ln q(token), the size of the kept set, the untruncated entropy. Nothing is
rescored later, so E[sum s - h] = 0 holds by construction.
Draws invert the cumulative law, in token order, at uniform numbers that belong to (seed, prompt, sample): a sample
does not depend on the batch it ran in. A prompt is read once and its cache shared by its samples; end-of-text
counts as a step; sequences cut at the limit are marked as not ended.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from steerlab.batching import tokens_of_a_batch
from steerlab.errors import PromptError
from steerlab.models.batches import run_halving
from steerlab.models.decoding import Decoding
from steerlab.models.drawing import uniforms, wide_dtype
from steerlab.models.offloaded import device_of
from steerlab.progress import track
from steerlab.readouts.laws import SamplingLaw, Step, draw_step

_DROP_SHARE = 1 / 16  # rows that have ended leave the batch once they are this share of it
_BATCH_CELLS = 2**24  # logits of the rows of a batch: 64 MB of float32
_BATCH_CELLS_OF_ACCELERATORS = 2**26


@dataclass(frozen=True)
class Trajectories:
    """Sampled sequences and the laws they were drawn from; NaN (tokens: -1) after a sequence's end. Nats.

    prompt, sample: which prompt, and which of its samples. tokens: drawn ids, the stop token included. ended: a stop
    token was drawn (otherwise the sequence was cut at the limit). entropy: of the sampled law. surprisal: of the
    drawn token under it. untruncated: entropy before truncation, after temperature. kept: size of the kept set.
    """

    prompt: Int[np.ndarray, " sequence"]
    sample: Int[np.ndarray, " sequence"]
    ended: Bool[np.ndarray, " sequence"]
    tokens: Int[np.ndarray, "sequence step"]
    entropy: Float[np.ndarray, "sequence step"]
    surprisal: Float[np.ndarray, "sequence step"]
    untruncated: Float[np.ndarray, "sequence step"]
    kept: Float[np.ndarray, "sequence step"]

    def __len__(self) -> int:
        return len(self.prompt)

    @property
    def lengths(self) -> Int[np.ndarray, " sequence"]:
        """Steps of each sequence, its stop token included."""
        return np.asarray((self.tokens >= 0).sum(axis=1))

    def some(self, prompts: range, samples: int, steps: int) -> Trajectories:
        """What `sample_tokens` draws of these prompts alone, with as few `samples` of each and as few `steps`.

        Prompts are numbered from 0 again.
        """
        rows = np.isin(self.prompt, prompts) & (self.sample < samples)
        columns = (self.tokens, self.entropy, self.surprisal, self.untruncated, self.kept)
        return Trajectories(
            self.prompt[rows] - prompts.start,
            self.sample[rows],
            (self.ended & (self.lengths <= steps))[rows],
            *(column[rows, :steps] for column in columns),
        )

    def cut(self, lengths: Int[np.ndarray, " sequence"]) -> Trajectories:
        """The same sequences stopped after `lengths` steps (a cut sequence counts as ended)."""
        gone = np.arange(self.tokens.shape[1]) >= lengths[:, None]

        def without(values: Any) -> Any:
            return np.where(gone, np.nan, values)

        return Trajectories(
            self.prompt,
            self.sample,
            self.ended | (lengths < self.lengths),
            np.where(gone, -1, self.tokens),
            without(self.entropy),
            without(self.surprisal),
            without(self.untruncated),
            without(self.kept),
        )


@torch.inference_mode()
def sample_tokens(
    network: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    *,
    vocab_size: int,
    stop_ids: Collection[int],
    samples: int,
    max_new_tokens: int,
    law: SamplingLaw | None = None,
    seed: int = 0,
    rows: int = 256,
    numbers: Sequence[int] | None = None,
    description: str = "sampling",
) -> Trajectories:
    """Draw `samples` continuations of each prompt (token ids) from a causal `network` of transformers' kind.

    vocab_size: ids from here on are padding rows of the unembedding and never drawn. stop_ids: every id that ends a
    sequence (may be empty: then all are cut at `max_new_tokens`). rows: sequences in a batch at most, fewer where the
    vocabulary is large; it changes memory and speed, not samples. numbers: by which a prompt's random numbers go, its
    place where none are given. Sequences come in order of prompt, then sample.
    Raises PromptError for no or empty prompts and for prompts that leave no room for `max_new_tokens` in the model's
    context.
    """
    _check(network, prompts, samples, max_new_tokens)
    law = law or SamplingLaw()
    decoder = _Decoder(network, vocab_size, torch.tensor(sorted(stop_ids), dtype=torch.int64), law)
    longest = max(map(len, prompts)) + max_new_tokens
    rows = max(1, min(rows, tokens_of_a_batch(rows * longest) // longest))
    rows = min(rows, rows_of_a_batch(vocab_size, _device(network)))
    records = _Records(len(prompts) * samples, max_new_tokens, _device(network))
    numbers = range(len(prompts)) if numbers is None else numbers

    def write(batch: Sequence[tuple[int, int]]) -> None:
        uniform = np.stack([uniforms(seed, numbers[prompt], at, max_new_tokens) for prompt, at in batch])
        texts = [list(prompts[prompt]) for prompt, _ in batch]
        decoder.run(texts, uniform, records, _sequence_ids(batch, samples))

    for batch in track(list(_batches(prompts, samples, rows)), description):
        run_halving(write, batch, f"A continuation of {max_new_tokens} tokens")
    return records.trajectories(samples)


def rows_of_a_batch(vocab: int, device: torch.device) -> int:
    """How many sequences are decoded together at most: beyond these no step is cheaper, and logits fill the memory."""
    return max(1, (_BATCH_CELLS if device.type == "cpu" else _BATCH_CELLS_OF_ACCELERATORS) // vocab)


def context_length(network: PreTrainedModel) -> int | None:
    """The largest number of positions `network` was made for, if its configuration says so."""
    config = network.config
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    length = getattr(text, "max_position_embeddings", None)
    return length if isinstance(length, int) and length > 0 else None


class _Records:
    """What was recorded of every sequence, on the device until all is done."""

    def __init__(self, sequences: int, steps: int, device: torch.device) -> None:
        self.tokens = torch.full((sequences, steps), -1, dtype=torch.int64, device=device)
        self.values = torch.full((4, sequences, steps), torch.nan, device=device)
        self.ended = torch.zeros(sequences, dtype=torch.bool, device=device)

    def write(self, sequences: Int[Tensor, " row"], step: int, drawn: Step) -> None:
        self.tokens[sequences, step] = drawn.token
        columns = (drawn.entropy, drawn.surprisal, drawn.untruncated, drawn.kept.float())
        self.values[:, sequences, step] = torch.stack(columns)

    def trajectories(self, samples: int) -> Trajectories:
        number = np.arange(len(self.tokens))
        entropy_, surprisal, untruncated, kept = self.values.cpu().numpy().astype(np.float64)
        return Trajectories(
            number // samples,
            number % samples,
            self.ended.cpu().numpy(),
            self.tokens.cpu().numpy(),
            entropy_,
            surprisal,
            untruncated,
            kept,
        )


class _Decoder:
    """Runs one batch of (prompt, sample) rows to its end."""

    def __init__(
        self, network: PreTrainedModel, vocab_size: int, stops: Int[Tensor, " stop"], law: SamplingLaw
    ) -> None:
        self.network, self.vocab_size, self.law = network, vocab_size, law
        self.stops = stops.to(_device(network))

    def start(self, prompts: list[list[int]]) -> Decoding:
        """A row for every prompt; equal ones that follow each other are read once."""
        distinct, repeats = _runs(prompts)
        decoding = Decoding(self.network, *_left_padded(distinct, self.stops.device))
        if len(distinct) < len(prompts):
            decoding.keep(torch.arange(len(distinct)).repeat_interleave(torch.tensor(repeats)))
        return decoding

    def run(
        self,
        prompts: list[list[int]],
        numbers: Float[np.ndarray, "row step"],
        records: _Records,
        sequences: Int[Tensor, " row"],
    ) -> None:
        """Draw every row's sequence with `numbers` and write it to `records` at `sequences`."""
        device = self.stops.device
        decoding = self.start(prompts)
        sequences = sequences.to(device)
        uniform = torch.from_numpy(numbers).to(device, wide_dtype(device))
        alive = torch.ones(len(sequences), dtype=torch.bool, device=device)
        for step in range(uniform.shape[1]):
            drawn = draw_step(decoding.logits[:, : self.vocab_size].to(device), self.law, uniform[:, step])
            token = drawn.token
            records.write(sequences[alive], step, Step(*(column[alive] for column in drawn)))
            stopped = torch.isin(token, self.stops) & alive
            records.ended[sequences[stopped]] = True
            alive &= ~stopped
            n_alive = int(alive.sum())
            if n_alive == 0 or step + 1 == uniform.shape[1]:
                return
            if n_alive <= (1 - _DROP_SHARE) * len(alive):
                left = alive.nonzero().squeeze(-1)
                decoding.keep(left)
                token, sequences, uniform, alive = token[left], sequences[left], uniform[left], alive[left]
            decoding.append(token)


def _check(
    network: PreTrainedModel, prompts: Sequence[Sequence[int]], samples: int, max_new_tokens: int
) -> None:
    if not prompts or any(len(prompt) == 0 for prompt in prompts):
        raise PromptError(
            "Sampling needs at least one prompt, and at least one token in each; leave empty ones out."
        )
    if samples < 1 or max_new_tokens < 1:
        raise PromptError(
            f"Sampling needs samples and new tokens, at least one each, not {samples} and {max_new_tokens}."
        )
    longest, context = max(map(len, prompts)), context_length(network)
    if context is not None and longest + max_new_tokens > context:
        raise PromptError(
            f"The longest prompt has {longest} tokens and {max_new_tokens} new ones do not fit into the model's "
            f"context of {context}; shorten the prompts or ask for at most {max(0, context - longest)} new tokens."
        )


def _batches(prompts: Sequence[Sequence[int]], samples: int, rows: int) -> Iterator[list[tuple[int, int]]]:
    """(prompt, sample) pairs, prompts of like length together, samples of a prompt side by side."""
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    pairs = [(prompt, sample) for prompt in order for sample in range(samples)]
    for start in range(0, len(pairs), rows):
        yield pairs[start : start + rows]


def _sequence_ids(batch: Sequence[tuple[int, int]], samples: int) -> Int[Tensor, " row"]:
    return torch.tensor([prompt * samples + sample for prompt, sample in batch])


def _runs(prompts: list[list[int]]) -> tuple[list[list[int]], list[int]]:
    """Neighbouring equal prompts once, and how often each came."""
    distinct: list[list[int]] = []
    repeats: list[int] = []
    for prompt in prompts:
        if distinct and distinct[-1] == prompt:
            repeats[-1] += 1
        else:
            distinct.append(prompt)
            repeats.append(1)
    return distinct, repeats


def _left_padded(
    prompts: list[list[int]], device: torch.device
) -> tuple[Int[Tensor, "row position"], Int[Tensor, "row position"]]:
    width = max(map(len, prompts))
    # the padding id is never attended to, so any id that exists will do
    ids = torch.tensor([[prompt[0]] * (width - len(prompt)) + prompt for prompt in prompts], device=device)
    mask = torch.tensor(
        [[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=device
    )
    return ids, mask


def _device(network: PreTrainedModel) -> torch.device:
    return device_of(network)
