"""The tables of the study of differences."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from steerlab.results import Table, with_rows

if TYPE_CHECKING:
    from steerlab.studies._difference.result import DifferenceResult, Layer


def tables(result: DifferenceResult) -> list[Table]:
    """Every table that has a row, in reading order."""
    return with_rows(
        _nulls(result),
        _layers(result),
        _places(result),
        _positions(result),
        _tokens(result),
        _steering(result),
        _forks(result),
        _examples(result),
    )


# -- private, in the order of the page --


def _nulls(result: DifferenceResult) -> Table:
    return Table.of(
        "nulls",
        "The difference beside its nulls",
        result.nulls,
        {
            "null": "name",
            "shared": lambda _: result.shared,
            "shared, null": "shared",
            "p of shared": "shared_p",
            "stands out": lambda _: result.stands_out,
            "stands out, null": "stands_out",
            "p of stands out": "stands_out_p",
            "alike": lambda _: result.alike,
            "alike, null": "alike",
            "p of alike": "alike_p",
        },
        note="Shared: what the texts' differences have in common, as a share of the stream's norm, mean over layers. "
        "Stands out, alike: the words that one half of the texts gives, on the other half, at the layer where they "
        f"stand out most. Nulls: mean, least and greatest draw. Base against itself differs by {result.itself:g}.",
    )


def _layers(result: DifferenceResult) -> Table:
    columns: dict[str, str | Callable[[Layer], Any]] = {
        "layer": "layer",
        "shared": "shared",
        "random LoRA": "lora",
        "stands out": "stands_out",
        "alike": "alike",
        "words": lambda row: _listed(row.words[:10]),
    }
    if result.read.topic is not None:
        columns["topic's rank AUC"] = "topic"
    return Table.of(
        "layers",
        "The average difference by layer",
        result.layers,
        columns,
        note="Words: those that base's final norm and unembedding read in the average difference of all texts.",
    )


def _places(result: DifferenceResult) -> Table:
    return Table.of(
        "places",
        f"The average difference by place, at layer {result.read_at}",
        [row for row in result.places if row.layer == result.read_at],
        {
            "place": "place",
            "texts": "texts",
            "shared": "shared",
            "words": lambda row: _listed(row.words),
        },
        note="Token 1 is the first of the text itself; later: those behind the fourth.",
    )


def _positions(result: DifferenceResult) -> Table:
    return Table.of(
        "positions",
        "Next-token laws by position",
        result.positions,
        {"behind text token": "behind", "KL(base ‖ post)": "kl", "rank shift": "rank_shift"},
        note="KL in nats. Rank shift: how many tokens are likelier in post than the one that base holds likeliest.",
    )


def _tokens(result: DifferenceResult) -> Table:
    return Table.of(
        "tokens",
        "Tokens promoted and demoted most",
        [*result.promoted, *result.demoted],
        {
            "token": lambda row: repr(row.token),
            "change of ln p": "change",
            "q": "q",
            "p in base": "base",
            "p in post": "post",
            "most behind": lambda row: repr(row.context),
        },
        note=f"Mean over the positions of a text, Student's t over texts; {result.called} of {result.tested} tokens "
        "with a mean probability of 1e-5 or more are called at a false-discovery rate of 5 %. Nats.",
    )


def _steering(result: DifferenceResult) -> Table:
    return Table.of(
        "steering",
        "Base steered with the average difference",
        [result.steering],
        {
            "layer": "layer",
            "texts": "texts",
            "KL(post ‖ base)": "before",
            "taken from it": "effect",
            "random vectors": "control",
            "beyond all": lambda row: "yes" if row.above_control else "no",
            "KL(base ‖ steered)": "price",
        },
        note="Nats a token. The average difference is added as long as it is, random vectors have its length.",
    )


def _forks(result: DifferenceResult) -> Table:
    return Table.of(
        "forks",
        "Where answers fork",
        [result.forks],
        {
            "texts": "texts",
            "forked": "forked",
            "at token": "position",
            "share of the path's KL": "share",
            "at a random token": "share_control",
            "commitment": "commitment",
            "shuffled": "commitment_control",
        },
        note="Base writes greedily behind the first tokens of a text; post leaves that path at the fork. Commitment: "
        "share of the variance of how post-like post's continuations are that the fork's token settles.",
    )


def _examples(result: DifferenceResult) -> Table:
    return Table.of(
        "examples",
        "Some forks",
        result.forks.examples,
        {
            "behind": lambda row: repr(row.before),
            "base": lambda row: repr(row.base),
            "post": lambda row: repr(row.post),
            "at token": "position",
        },
    )


def _listed(words: tuple[str, ...]) -> str:
    return " ".join(repr(word) for word in words)
