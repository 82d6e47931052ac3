"""A model whose weights are on nnsight's server (NDIF): `load(..., backend="nnsight", remote=True)`.

Only the skeleton is here. Every pass is one nnsight trace: inputs, the tokens to read and the edits go out as data with
the few functions of `_shipped`, and what was asked for comes back. The two traces of this module are the only places
that run anything remotely; ``remote`` is nnsight's own argument: True, the address of a server, or "local", which
sends nothing but packs and unpacks the request and runs it here.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, NoReturn, overload

import torch
from torch import Tensor

from steerlab.errors import ModelError, SteeringError, SteerlabError, reason
from steerlab.models import _shipped, check, weights
from steerlab.models.backends.nnsight import NNsight
from steerlab.models.edits import Edit, EditTable, SteeringGiven, edits_of
from steerlab.models.generation import Generation
from steerlab.models.language_model import LanguageModel
from steerlab.models.positions import Selector
from steerlab.models.program import Applied
from steerlab.models.prompts import Conversation, Prompt, PromptsGiven, Tokens
from steerlab.models.scopes import Scope
from steerlab.models.sites import Site

# What a checkpoint may recommend for sampling, set to no effect: the server's own settings cannot be hidden.
_PLAIN = {
    "repetition_penalty": 1.0, "no_repeat_ngram_size": 0, "typical_p": 1.0, "epsilon_cutoff": 0.0, "eta_cutoff": 0.0,
    "min_p": 0.0,
}  # fmt: skip


class Remote(NNsight):
    """An nnsight model that stays without weights here."""

    def __init__(self, source: Any, remote: bool | str) -> None:
        if not hasattr(source, "to_model_key"):
            raise ModelError(
                f"A {type(source).__name__} names no model a server could hold; use nnsight.TransformersModel."
            )
        super().__init__(source)
        self.remote = remote

    @classmethod
    def skeleton(cls, name: str, tokenizer: Any, *, revision: str | None, trust_remote_code: bool) -> Any:
        """nnsight's model without weights."""
        import nnsight

        options = {"trust_remote_code": True} if trust_remote_code else {}
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return nnsight.TransformersModel(
                    name, task="text-generation", tokenizer=tokenizer, revision=revision, **options
                )
        except Exception as error:  # transformers' pipeline is built inside, which fails in many ways
            raise ModelError(f"nnsight cannot describe {name} ({reason(error)}); check the name.") from error

    def module_of(self, source: Any) -> Any:
        """The transformers model without weights."""
        return source._module


class RemoteModel(LanguageModel):
    """A `LanguageModel` that runs on nnsight's server.

    Reading, steering and generation are those of `LanguageModel`. What needs the weights here (`unembed`,
    `unembedding`, `final_norm_gain`, `w_out`) is refused, and so are edits that are decided while the model runs.
    """

    engine: Remote

    def __init__(self, engine: Remote, tokenizer: Any, *, name: str) -> None:
        super().__init__(engine, tokenizer, name=name)
        self._steered: Scope[_Steered] = Scope()

    @property
    def is_remote(self) -> bool:
        """True."""
        return True

    @property
    def device(self) -> torch.device:
        """Where inputs and results are: the CPU."""
        return torch.device("cpu")

    @cached_property
    def fingerprint(self) -> str:
        """That of the checkpoint, from a sample of the weights on the server."""
        kept, _ = _passed(self.engine, _inputs(self._probe), steps=[], logits=None, sampling=True)
        return weights.digest(self.model.config, kept.items())

    def self_check(self) -> check.SelfCheck:
        """The load-time proof, from one request; the unembedding is the server's own and not among it."""
        if self._check is None:
            states: dict[Site, Tensor] = {}
            sites = [site for name in self.site_names() for site in self.sites(name)]
            self.run(self._probe, read={site: _keeper(states, site) for site in sites})
            self._check = check.verdict(self, states, set(), logits=None)
        return self._check

    @cached_property
    def _probe(self) -> Tokens:
        return check.probe(self.vocab_size)

    def run(
        self,
        tokens: Tokens,
        *,
        read: Mapping[Site, Callable[[Tensor], object]] | None = None,
        at: tuple[Tensor, Tensor] | None = None,
        logits: Literal["last", "all"] | None = None,
        behind: Sequence[Sequence[int]] | None = None,
    ) -> Tensor | None:
        """See `LanguageModel.run`; without logits the pass stops on the server after the deepest site."""
        self.engine.check()
        if behind is not None:
            raise SteeringError(f"{self.name} is run by a server, where written tokens are not read again.")
        read = dict(read or {})
        for site in read:
            self.require(site)
        steps = self._steps(tokens, passes=1, read=read, at=at)
        with self.lock:
            kept, result = _passed(self.engine, _inputs(tokens), steps, logits, lengths=tokens.ends)
        for site in sorted(read):
            read[site](kept[str(site)])
        return None if result is None else result[..., : self.vocab_size].float()

    def steering(self, *interventions: SteeringGiven) -> AbstractContextManager[Applied]:
        """See `LanguageModel.steering`; edits need a normal form, and neither schedule nor condition.

        What is counted is counted on the server and not sent back, so the `Applied` handed over is empty.
        """
        edits: list[Edit] = []
        for intervention in edits_of(interventions):
            if isinstance(intervention, EditTable):
                raise SteeringError(
                    f"A {type(intervention).__name__} cannot be sent to a server; steer each prompt in a context of "
                    "its own."
                )
            edits.append(intervention)
        return self._steering(edits)

    @contextmanager
    def _steering(self, edits: Sequence[Edit]) -> Iterator[Applied]:
        for edit in edits:
            _require_data(edit)
            edit.check(self)
            for site in edit.sites:
                self.require(site)
                _normal_form(edit, site)
        with self._steered.holding(_Steered(tuple(edits))) as entered:
            yield Applied(())
        for edit in edits:
            if id(edit) not in entered.value.acted:
                sites = ", ".join(str(site) for site in edit.sites[:4])
                raise SteeringError(
                    f"{type(edit).__name__} at {sites} never acted: no forward pass reached its sites and positions "
                    f"({edit.positions}); run the model inside the context or change them."
                )

    @overload
    def generate(self, texts: str | Prompt | Conversation, **options: Any) -> Generation: ...

    @overload
    def generate(self, texts: Iterable[str | Prompt | Conversation], **options: Any) -> list[Generation]: ...

    def generate(self, texts: PromptsGiven, **options: Any) -> Generation | list[Generation]:
        """See `LanguageModel.generate`; a seed would have to be the server's, so it is refused."""
        if options.get("do_sample") and options.get("seed") is not None:
            raise SteerlabError(
                "The random numbers of a remote model are the server's; sample without a seed, or greedily."
            )
        return super().generate(texts, **options)

    def stream(self, text: str | Prompt | Conversation, **options: Any) -> NoReturn:
        """Refused: a stream would run the skeleton here, which has no weights."""
        raise SteerlabError(
            f"The weights of {self.name} are on the server, which sends a text when it is finished; use generate."
        )

    def continued(
        self,
        tokens: Tokens,
        config: Any,
        assistant: LanguageModel | None = None,
        processors: Sequence[Any] = (),
    ) -> Tensor:
        """See `LanguageModel.continued`."""
        self.engine.check()
        config.update(**_PLAIN)
        passes = int(config.max_new_tokens)
        steps = self._steps(tokens, passes=passes, read={}, at=None)
        with self.lock:
            return _generated(self.engine, _inputs(tokens, positions=False), steps, config)

    def _steps(
        self,
        tokens: Tokens,
        *,
        passes: int,
        read: Mapping[Site, object],
        at: tuple[Tensor, Tensor] | None,
    ) -> list[dict[str, Any]]:
        """The steps of the passes, in the order in which the sites are computed."""
        edited: dict[Site, list[dict[str, Any]]] = {}
        for entered, edit in [
            (entry.value, edit) for entry in self._steered.here() for edit in entry.value.edits
        ]:
            masks = _masks(edit.positions, tokens, passes)
            if any(bool(mask.any()) for mask in masks.values()):
                entered.acted.add(id(edit))
            for site in dict.fromkeys(edit.sites):
                edited.setdefault(site, []).append({**_normal_form(edit, site), **masks})
        carried = {Site("resid_post", site.layer) for site in edited if site.name == "resid_mid"}
        steps = []
        for site in sorted({*edited, *carried, *read}):
            tap = self.anatomy.tap(site)
            keep = "keep" if site.name == "resid_mid" and site in edited else None
            steps.append(
                {
                    "path": self.anatomy.path(site),
                    "side": tap.side,
                    "scale": tap.scale,
                    "carry": "add" if site in carried else keep,
                    "edits": edited.get(site, []),
                    "read": str(site) if site in read else None,
                    "at": at,
                }
            )
        return steps

    def last_hidden(self, tokens: Tokens, rows: Tensor, columns: Tensor) -> Tensor:
        """The logits themselves, since the unembedding is on the server."""
        logits = self.run(tokens, logits="all")
        assert logits is not None
        return logits[rows, columns]

    def _slice_logits(self, hidden: Tensor) -> Tensor:
        return hidden

    def unembed(self, resid: Tensor) -> NoReturn:
        """Refused: the weights are on the server."""
        self._no_weights("unembed")

    @property
    def unembedding(self) -> NoReturn:
        """Refused: the weights are on the server."""
        self._no_weights("unembedding")

    @property
    def final_norm_gain(self) -> NoReturn:
        """Refused: the weights are on the server."""
        self._no_weights("final_norm_gain")

    def w_out(self, layer: int) -> NoReturn:
        """Refused: the weights are on the server."""
        self._no_weights("w_out")

    def _no_weights(self, name: str) -> NoReturn:
        raise ModelError(
            f"The weights of {self.name} are on the server, so it has no {name} here; load it without remote."
        )


@dataclass(eq=False)
class _Steered:
    """The edits of one context, and which of them acted."""

    edits: tuple[Edit, ...]
    acted: set[int] = field(default_factory=set)


# Requests


def _passed(
    engine: Remote,
    inputs: dict[str, Tensor],
    steps: list[dict[str, Any]],
    logits: str | None,
    *,
    lengths: tuple[Tensor, Tensor] | None = None,
    sampling: bool = False,
) -> tuple[dict[str, Any], Tensor | None]:
    """One forward pass on the server: what its steps kept (or a sample of every weight), and logits."""
    source, remote, visit, sample, rows = _sent(engine, inputs)
    ends = lengths if logits == "last" else None
    with (
        torch.inference_mode(),
        _asking(engine),
        source.trace(**inputs, use_cache=False, remote=remote) as tracer,
    ):
        kept = {}.save()  # type: ignore[attr-defined]
        result = [].save()  # type: ignore[attr-defined]
        if sampling:
            for name, parameter in source.named_parameters():
                kept[name] = (tuple(parameter.shape), sample(parameter))
            for name, buffer in source.named_buffers():
                if buffer.is_floating_point() and "inv_freq" not in name:
                    kept[name] = (tuple(buffer.shape), sample(buffer))
        visit(source, steps, 0, rows, kept)
        if logits is None:
            tracer.stop()
        everywhere = source.output.logits
        result.append((everywhere if ends is None else everywhere[ends]).detach().cpu())
    return kept, result[0] if logits is not None else None


def _generated(engine: Remote, inputs: dict[str, Tensor], steps: list[dict[str, Any]], config: Any) -> Tensor:
    """Prompt and continuation of every row, written on the server."""
    source, remote, visit, _, rows = _sent(engine, inputs)
    passes = range(int(config.max_new_tokens)) if steps else ()
    with (
        torch.inference_mode(),
        _asking(engine),
        source.generate(generation_config=config, remote=remote) as tracer,
    ):
        with tracer.invoke(**inputs):
            for number in tracer.iter[: len(passes)]:
                visit(source, steps, number, rows, {})
        with tracer.invoke():
            ids = tracer.result.save()
    written: Tensor = ids
    return written.cpu()


def _sent(engine: Remote, inputs: dict[str, Tensor]) -> tuple[Any, bool | str, Any, Any, int]:
    """What a traced block refers to, as plain local names: only those are packed into the request."""
    import nnsight

    nnsight.register(_shipped)
    return engine.source, engine.remote, _shipped.visit, _shipped.sample, len(inputs["input_ids"])


@contextmanager
def _asking(engine: Remote) -> Iterator[None]:
    """Say in one sentence what went wrong on the way or on the server."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a text that ends before the last step it was asked for
        try:
            yield
        except Exception as error:  # the hub, the connection, the server, the code run there: many kinds
            raise ModelError(
                f"The request to nnsight's server failed ({type(error).__name__}: {reason(error)}); check the "
                f"connection, your key (nnsight.login) and that the server holds {engine.source.repo_id}."
            ) from error


def _inputs(tokens: Tokens, *, positions: bool = True) -> dict[str, Tensor]:
    inputs = {"input_ids": tokens.input_ids, "attention_mask": tokens.attention_mask}
    return {**inputs, "position_ids": tokens.position_ids} if positions else inputs


def _keeper(states: dict[Site, Tensor], site: Site) -> Callable[[Tensor], object]:
    return lambda state: states.update({site: state})


# Edits as data


def _require_data(edit: Any) -> None:
    """Refuse edits that are decided while the model runs: their code is not on the server."""
    for part in ("schedule", "condition"):
        if getattr(edit, part, None) is not None:
            raise SteeringError(f"A {part} is not sent to a remote model; give {type(edit).__name__} none.")


def _normal_form(edit: Any, site: Site) -> dict[str, Any]:
    """x ← keep ⊙ x + (x A) C + c, the parts an edit's `operator(site)` has."""
    operator = edit.operator(site) if hasattr(edit, "operator") else None
    if operator is None:
        raise SteeringError(
            f"{type(edit).__name__} at {site} has no normal form, so it cannot be sent to a remote model; use an "
            "intervention that is linear in the state."
        )
    return {part: getattr(operator, part) for part in ("keep", "reads", "writes", "shift")}


def _masks(positions: Selector, tokens: Tokens, passes: int) -> dict[str, Tensor]:
    """Which tokens an edit acts on: of the prompt `[batch, position, 1]`, and each later pass `[batch, 1, 1]`."""
    prompt = torch.zeros(len(tokens), tokens.width, 1, dtype=torch.bool)
    selection = tokens.select(positions)
    prompt[selection.rows, selection.columns] = True
    generated = torch.zeros(max(0, passes - 1), len(tokens), 1, 1, dtype=torch.bool)
    selects = getattr(positions, "selects", lambda step, length: positions.generated)
    for step in range(len(generated)):
        for row, length in enumerate(tokens.lengths):
            generated[step, row] = selects(step, length)
    return {"prompt": prompt, "generated": generated}
