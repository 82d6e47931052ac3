"""The same prompts through two models: rows matched by prompt and token, split into fit, dev and test prompts."""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

import numpy as np
from jaxtyping import Float, Int

from steerlab.activations import Activations, capture
from steerlab.errors import AlignmentError
from steerlab.models import All, LanguageModel, Last, Prompt, Selector, Site, Tokens

Rule: TypeAlias = Literal["last_prompt", "all_tokens", "end_of_word"]
Part: TypeAlias = Literal["fit", "dev", "test"]
PARTS: tuple[Part, ...] = get_args(Part)


@dataclass(frozen=True, eq=False)
class PairedActivations:
    """States of the same tokens in two models.

    source, target: captured states, row i of both from the same token of the same prompt. splits: by part, the prompts
    in it, disjoint. rule: which tokens. hash: of prompts, rule and split; kept in what is made of the rows.
    """

    source: Activations
    target: Activations
    splits: dict[Part, Int[np.ndarray, " prompt"]]
    rule: str
    hash: str

    def __post_init__(self) -> None:
        if len(self.source) != len(self.target) or not np.array_equal(
            self.source.example.numpy(), self.target.example.numpy()
        ):
            raise AlignmentError(
                f"{len(self.source)} source and {len(self.target)} target rows do not come from the same "
                "prompts in the same order."
            )
        seen: set[int] = set()
        for part, prompts in self.splits.items():
            if part not in PARTS:
                raise AlignmentError(f"There is no part {part!r}; choose from {', '.join(PARTS)}.")
            if again := seen & set(prompts.tolist()):
                raise AlignmentError(
                    f"Prompt {min(again)} is in two parts; what is fitted on must not be judged on."
                )
            seen |= set(prompts.tolist())

    @classmethod
    def read(
        cls,
        source: LanguageModel,
        target: LanguageModel,
        prompts: Sequence[str | Prompt],
        *,
        target_prompts: Sequence[str | Prompt] | None = None,
        rule: Rule = "last_prompt",
        site: str = "resid_post",
        source_layers: Sequence[int] | None = None,
        target_layers: Sequence[int] | None = None,
        shares: tuple[float, float, float] = (0.6, 0.2, 0.2),
        groups: Sequence[Hashable] | None = None,
        seed: int = 0,
    ) -> PairedActivations:
        """Read both models.

        Args:
            source: the one model.
            target: the other; widths, depths and tokenizers may differ.
            prompts: texts or rendered prompts for the source.
            target_prompts: the same prompts as the target wants them rendered; by default the same.
            rule: "last_prompt"; "all_tokens", which needs equal tokens; or "end_of_word": the tokens at which a
                word ends in both models, found by character offsets of equal texts.
            site: what is read, at every layer or the layers named.
            source_layers: layers to read of the source.
            target_layers: and of the target.
            shares: of the prompts (of the groups) that go to fit, dev and test.
            groups: one name a prompt; a group (a pair, a template) goes whole to one part. By default prompts of equal
                text are a group.
            seed: of the split.

        Raises:
            AlignmentError: other numbers of prompts, tokens that cannot be matched, or shares that are none.
            SiteError: a layer that a model has not.
        """
        their_prompts = prompts if target_prompts is None else target_prompts
        if len(their_prompts) != len(prompts):
            raise AlignmentError(
                f"{len(prompts)} source prompts came with {len(their_prompts)} target prompts."
            )
        if rule not in get_args(Rule):
            raise AlignmentError(f"There is no rule {rule!r}; choose from {', '.join(get_args(Rule))}.")
        ours, others = _selectors(source, target, prompts, their_prompts, rule)
        first, second = (
            capture(model, list(texts), model.sites(site, layers), positions=selector)
            for model, texts, layers, selector in (
                (source, prompts, source_layers, ours),
                (target, their_prompts, target_layers, others),
            )
        )
        splits = split(
            len(prompts), shares, seed, [_text(prompt) for prompt in prompts] if groups is None else groups
        )
        return cls(first, second, splits, rule, digest(prompts, their_prompts, rule, splits))

    def rows(self, part: Part) -> Int[np.ndarray, " row"]:
        """The rows of a part's prompts."""
        return np.flatnonzero(np.isin(self.source.example.numpy(), self.splits[part]))

    def layer(
        self, source: Site, target: Site, part: Part
    ) -> tuple[Float[np.ndarray, "row width_x"], Float[np.ndarray, "row width_y"]]:
        """Matched rows of one layer pair and part."""
        chosen = self.rows(part)
        return self.source[source].numpy()[chosen], self.target[target].numpy()[chosen]

    def __repr__(self) -> str:
        sizes = ", ".join(f"{part} {len(prompts)}" for part, prompts in self.splits.items())
        return (
            f"PairedActivations({self.source.model_name} and {self.target.model_name}, {len(self.source)} rows at "
            f"{self.rule}; prompts: {sizes})"
        )


def split(
    n: int, shares: tuple[float, float, float], seed: int, groups: Sequence[Hashable] | None = None
) -> dict[Part, Int[np.ndarray, " prompt"]]:
    """Prompts dealt to fit, dev and test in whole groups; disjoint by construction.

    Raises:
        AlignmentError: another number of groups than prompts, shares that are negative or add up to more than one, or a
            fit part of fewer than four prompts.
    """
    if min(shares) < 0 or not 0 < sum(shares) <= 1 + 1e-9:
        raise AlignmentError(f"Shares {shares} are not three parts of one.")
    names = range(n) if groups is None else groups
    if len(names) != n:
        raise AlignmentError(f"{n} prompts came with {len(names)} groups; give one a prompt.")
    number = {name: at for at, name in enumerate(dict.fromkeys(names))}
    group = np.array([number[name] for name in names], dtype=int)
    order = np.random.default_rng(seed).permutation(len(number))
    ends = np.round(np.cumsum(shares) * len(number)).astype(int)
    parts = {
        part: np.flatnonzero(np.isin(group, order[start:end]))
        for part, start, end in zip(PARTS, (0, *ends[:-1]), ends, strict=True)
    }
    if len(parts["fit"]) < 4:
        raise AlignmentError(
            f"{n} prompts leave {len(parts['fit'])} to fit on, which is fewer than four; give more."
        )
    return parts


def digest(
    prompts: Sequence[str | Prompt],
    their_prompts: Sequence[str | Prompt],
    rule: str,
    splits: dict[Part, Int[np.ndarray, " prompt"]],
) -> str:
    """A short hash of the texts, the rule and the split."""
    digest = hashlib.sha256(rule.encode())
    for text in (*map(_text, prompts), *map(_text, their_prompts)):
        digest.update(text.encode() + b"\0")
    for part, rows in splits.items():
        digest.update(part.encode() + rows.astype(np.int64).tobytes())
    return digest.hexdigest()[:16]


# -- private, in the order they are called --


@dataclass(frozen=True)
class _TokensByPrompt(Selector):
    """Tokens by prompt."""

    indices: tuple[tuple[int, ...], ...]

    def resolve(self, tokens: Tokens, row: int) -> list[int]:
        return list(self.indices[tokens.rows[row]])


def _selectors(
    source: LanguageModel,
    target: LanguageModel,
    prompts: Sequence[str | Prompt],
    their_prompts: Sequence[str | Prompt],
    rule: Rule,
) -> tuple[Selector, Selector]:
    if rule == "last_prompt":
        return Last(), Last()
    if rule == "all_tokens":
        ids = source.token_ids(prompts), target.token_ids(their_prompts)
        for row, (own_ids, their_ids) in enumerate(zip(*ids, strict=True)):
            if own_ids != their_ids:
                raise AlignmentError(
                    f"Prompt {row} has other tokens in {target.name} than in {source.name}; use rule='end_of_word' or "
                    "'last_prompt'."
                )
        return All(), All()
    ours, others = source.tokenize(list(prompts)), target.tokenize(list(their_prompts))
    if ours.offsets is None or others.offsets is None:
        raise AlignmentError(
            "A tokenizer gives no character offsets, so ends of words cannot be matched; use a fast one."
        )
    couples: list[tuple[tuple[int, ...], tuple[int, ...]]] = []
    for row, (own_prompt, their_prompt) in enumerate(zip(ours.prompts, others.prompts, strict=True)):
        if own_prompt.text != their_prompt.text:
            raise AlignmentError(
                f"Prompt {row} is another text for each model; end_of_word needs equal ones."
            )
        couples.append(_shared_ends(own_prompt.text, ours.offsets[row], others.offsets[row]))
        if not couples[-1][0]:
            raise AlignmentError(f"No word of prompt {row} ends at a token's end in both models.")
    own_indices, their_indices = zip(*couples, strict=True)
    return _TokensByPrompt(tuple(own_indices)), _TokensByPrompt(tuple(their_indices))


def _shared_ends(
    text: str, ours: Sequence[tuple[int, int]], others: Sequence[tuple[int, int]]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Tokens of either model whose end is the end of a word, at ends that both have."""
    # several tokens may share an end (bytes of one character); the last of them has seen it all
    at = [{high: index for index, (low, high) in enumerate(side) if high > low} for side in (ours, others)]
    ends = [
        end
        for end in range(1, len(text) + 1)
        if not text[end - 1].isspace() and (end == len(text) or text[end].isspace())
    ]
    both = [end for end in ends if end in at[0] and end in at[1]]
    return tuple(at[0][end] for end in both), tuple(at[1][end] for end in both)


def _text(prompt: str | Prompt) -> str:
    return prompt if isinstance(prompt, str) else prompt.text
