"""Pairs streamed as differences, against differences of captured rows."""

from __future__ import annotations

import numpy as np
import pytest
from families import tiny
from tolerances import close

from steerlab.activations import DIFFERENCE, capture, capture_differences, differences
from steerlab.errors import PromptError, SteerlabError
from steerlab.models import All, Index, LanguageModel, Last, Selector

POSITIVES = [f"The capital of France is Paris {n}." for n in "abcdefg"]
NEGATIVES = [f"A cat is {n}." for n in "qrstuvw"]


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("positions", [Last(), Index(1) | Last()], ids=str)
def test_the_stream_holds_both_members_and_their_differences(
    family: str, positions: Selector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(differences, "_WINDOW", 3)
    model = tiny(family)
    sites = model.sites("resid_post", [0, 2])
    moments = capture_differences(model, POSITIVES, NEGATIVES, sites, positions=positions)
    high, low = (capture(model, texts, sites, positions=positions) for texts in (POSITIVES, NEGATIVES))
    for site in sites:
        p, n = high[site].double().numpy(), low[site].double().numpy()
        assert moments.count(DIFFERENCE) == moments.count(1) == moments.count(0) == len(p)
        close(moments.mean(site, 1), p.mean(0))
        close(moments.mean(site, 0), n.mean(0))
        close(moments.mean(site, DIFFERENCE), (p - n).mean(0))
        expected = np.cov((p - n).T, ddof=0) * len(p)
        close(moments.scatter(site, DIFFERENCE), expected, rtol=1e-05 * np.abs(expected).max())
        assert not moments.has_scatter(site, 1)
    assert moments.fingerprint == model.fingerprint


def test_pairs_that_do_not_fit_are_named(tiny_llama: LanguageModel) -> None:
    site = tiny_llama.sites("resid_post")[0]
    with pytest.raises(PromptError, match="7 positive prompts came with 6 negative ones"):
        capture_differences(tiny_llama, POSITIVES, NEGATIVES[:6], site)
    with pytest.raises(PromptError, match="at least one pair"):
        capture_differences(tiny_llama, [], [], site)
    with pytest.raises(PromptError, match=r"members of pair 1 have \d+ and \d+ tokens"):
        capture_differences(tiny_llama, ["a cat", "a cat"], ["a cat", "a cat is four"], site, positions=All())
    with pytest.raises(SteerlabError, match="more than the budget"):
        capture_differences(tiny_llama, POSITIVES, NEGATIVES, site, memory_budget=8 * 32 * 32 - 1)
