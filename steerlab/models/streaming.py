"""Text from the model as it is written, token by token, with the KV cache.

The loop is our own rather than transformers' streamer, which needs a second thread: edits belong to the thread that
entered them, and a stream is steered by the context it is read in. Nothing is held between two pieces (no lock, no
hook, no inference mode), so a stream may be left at any point, by `break` or by an interrupt.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import TYPE_CHECKING, Any

import torch

from steerlab.models.decoding import Decoding
from steerlab.models.drawing import Sampler
from steerlab.models.generation import Generation, end_token_ids, require_settings
from steerlab.models.prompts import Prompt, Tokens

if TYPE_CHECKING:
    from steerlab.models.language_model import LanguageModel


def stream(
    model: LanguageModel,
    prompt: str | Prompt,
    *,
    max_new_tokens: int,
    do_sample: bool,
    temperature: float,
    top_p: float,
    seed: int | None,
) -> Generator[str, None, Generation]:
    """See `LanguageModel.stream`."""
    require_settings(max_new_tokens, do_sample, temperature, top_p)
    tokens = model.tokenize([prompt])
    sampler = Sampler(seed, [0], max_new_tokens, temperature=temperature, top_p=top_p) if do_sample else None
    return _pieces(model, tokens, max_new_tokens, sampler)


def _pieces(
    model: LanguageModel, tokens: Tokens, max_new_tokens: int, sampler: Sampler | None
) -> Generator[str, None, Generation]:
    length = tokens.lengths[0]
    room = min(max_new_tokens, (model.context or length + max_new_tokens) - length)
    ends = end_token_ids(model)
    written: list[int] = []
    text, settled = _Text(model.tokenizer), ""
    decoding: Decoding | None = None
    ids, mask = tokens.input_ids.to(model.device), tokens.attention_mask.to(model.device)
    while len(written) < room and not (written and written[-1] in ends):
        with model.lock, torch.inference_mode(), model.frames.of(tokens):
            if decoding is None:
                decoding = Decoding(model.model, ids, mask)
            else:
                decoding.append(torch.tensor(written[-1:]))
            scores = decoding.logits[:, : model.vocab_size]
            token = scores.argmax(-1) if sampler is None else sampler.draw(scores, len(written))
        written.append(int(token))
        if piece := text.add(written):
            settled += piece
            yield piece
    if rest := text.rest(written):
        settled += rest
        yield rest
    finished = bool(written) and written[-1] in ends
    return Generation(text=settled, token_ids=tuple(written), finished=finished, prompt=tokens.prompts[0])


class _Text:
    """Text of a growing list of tokens, in pieces that stay: half a character waits for its other half."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        # Decoded from a little before, since what a token says may depend on the one it follows (leading spaces).
        self._from, self._to = 0, 0

    def add(self, ids: Sequence[int]) -> str:
        """The text that the new tokens settle."""
        piece = self._new(ids)
        if not piece or piece.endswith("\ufffd"):
            return ""
        self._from, self._to = self._to, len(ids)
        return piece

    def rest(self, ids: Sequence[int]) -> str:
        """What is left at the end, half characters included."""
        return self._new(ids)

    def _new(self, ids: Sequence[int]) -> str:
        return self._decode(ids[self._from :])[len(self._decode(ids[self._from : self._to])) :]

    def _decode(self, ids: Sequence[int]) -> str:
        decoded: str = self._tokenizer.decode(
            list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return decoded
