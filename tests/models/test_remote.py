"""A model on nnsight's server: the same numbers from the request nnsight would send.

No server can be reached here. In most tests nnsight packs, unpacks and runs each request itself (remote="local"); in
one its client speaks to a stand-in for the server, which runs the payload in a process without steerlab.
"""

from __future__ import annotations

import io
import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nnsight
import pytest
import torch
from families import build, tiny_tokenizer
from nnsight.intervention.backends.remote import RemoteBackend
from nnsight.modeling import huggingface
from nnsight.schema.request import RequestModel
from nnsight.schema.response import ResponseModel, Status
from torch import Tensor

import steerlab as sl
from steerlab.errors import ModelError, SiteError, SteeringError, SteerlabError
from steerlab.models import LanguageModel, Selector, Site

TEXTS = ["The capital of France is", "Is a cat an animal? Yes", "Rome"]
TOLERANCE = 1e-5
# Sequential, parallel, post-norm, residual multiplier, attention with a residual inside, flattened MLP, experts.
FAMILIES = ("llama", "gpt2", "gemma2", "gptj", "granite", "bloom", "opt", "qwen3_moe")


class Shift:
    """Add a vector; in normal form as well."""

    def __init__(self, site: Site, vector: Tensor, positions: Selector | None = None) -> None:
        self.sites, self.vector, self.positions = [site], vector, positions or sl.All()

    def check(self, model: LanguageModel) -> None:
        return None

    def apply(self, state: Tensor, site: Site) -> Tensor:
        return state + self.vector.to(state.dtype)

    def operator(self, site: Site) -> Any:
        return SimpleNamespace(keep=None, reads=None, writes=None, shift=self.vector)


class Halve(Shift):
    """Halve the first coordinates and take the vector's direction away."""

    def _parts(self) -> tuple[Tensor, Tensor]:
        keep = torch.ones_like(self.vector)
        keep[:4] = 0.5
        return keep, (self.vector / self.vector.norm())[:, None]

    def apply(self, state: Tensor, site: Site) -> Tensor:
        keep, basis = (part.to(state.dtype) for part in self._parts())
        return state * keep - (state @ basis) @ basis.T

    def operator(self, site: Site) -> Any:
        keep, basis = self._parts()
        return SimpleNamespace(keep=keep, reads=-basis, writes=basis.T, shift=None)


pytestmark = pytest.mark.filterwarnings("ignore")  # the engines warn of their own affairs


@pytest.fixture(scope="module", autouse=True)
def _no_chatter() -> Iterator[None]:
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[LanguageModel, LanguageModel]]:
    """A family's model here, and the same checkpoint behind nnsight's dry run."""
    made: dict[str, tuple[LanguageModel, LanguageModel]] = {}

    def of(family: str) -> tuple[LanguageModel, LanguageModel]:
        if family not in made:
            folder = save(family, tmp_path_factory.mktemp(family))
            plain = sl.load(folder, device="cpu")
            traced = nnsight.TransformersModel(
                folder, task="text-generation", tokenizer=plain.tokenizer, dispatch=True
            )
            made[family] = plain, sl.load(traced, remote="local")
        return made[family]

    return of


def save(family: str, folder: Path) -> str:
    build(family).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return str(folder)


def distance(left: Tensor, right: Tensor) -> float:
    return float((left - right).abs().max() / right.abs().max())


def random_vector(model: LanguageModel, site: Site) -> Tensor:
    return torch.randn(model.width(site), generator=torch.Generator().manual_seed(7), dtype=torch.float64)


@pytest.mark.parametrize("family", FAMILIES)
def test_states_logits_and_fingerprint(pair: Any, family: str) -> None:
    plain, remote = pair(family)
    sites = [site for name in plain.site_names() for site in plain.sites(name)]
    for positions in (sl.All(), sl.Last()):
        expected = sl.capture(plain, TEXTS, sites, positions=positions)
        found = sl.capture(remote, TEXTS, sites, positions=positions)
        for site in sites:
            assert distance(found[site], expected[site]) < TOLERANCE, site
    assert found.fingerprint == expected.fingerprint
    assert distance(remote.logits(TEXTS), plain.logits(TEXTS)) < TOLERANCE
    whole = plain.logits(TEXTS[:2], last_only=False)
    assert distance(remote.logits(TEXTS[:2], last_only=False), whole) < TOLERANCE


@pytest.mark.parametrize("family", FAMILIES)
def test_edits_at_every_site(pair: Any, family: str) -> None:
    plain, remote = pair(family)
    after = plain.sites("resid_post")
    for site in [site for name in plain.site_names() for site in plain.sites(name)]:
        shift, halve = Shift(site, vector := random_vector(plain, site)), Halve(site, vector, sl.Last())
        seen = []
        for model in (plain, remote):
            with model.steering(shift, halve):
                states = sl.capture(model, TEXTS, after)
                seen.append(torch.cat([model.logits(TEXTS), *states.states.values()], dim=1))
        assert distance(seen[1], seen[0]) < TOLERANCE, site


@pytest.mark.parametrize("positions", [sl.All(), sl.Last(), sl.Generated(), sl.Last() | sl.Generated()])
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
def test_the_same_text_under_steering(pair: Any, family: str, positions: Selector) -> None:
    plain, remote = pair(family)
    for site in (Site("resid_post", 1), Site("resid_mid", 1)):
        vector = 3 * random_vector(plain, site)
        written = []
        for model in (plain, remote):
            with model.steering(Shift(site, vector, positions)):
                written.append([one.token_ids for one in model.generate(TEXTS, max_new_tokens=6)])
        assert written[0] == written[1]
        assert written[0] != [one.token_ids for one in plain.generate(TEXTS, max_new_tokens=6)]


def test_contexts_nest_and_end(pair: Any) -> None:
    plain, remote = pair("llama")
    site = Site("resid_post", 1)
    add, cut = Shift(site, random_vector(plain, site)), Halve(site, random_vector(plain, site))
    seen = []
    for model in (plain, remote):
        with model.steering(add), model.steering(cut):
            seen.append(model.logits(TEXTS))
    assert distance(seen[1], seen[0]) < TOLERANCE
    with pytest.raises(RuntimeError, match="boom"), remote.steering(add):
        raise RuntimeError("boom")
    assert distance(remote.logits(TEXTS), plain.logits(TEXTS)) < TOLERANCE


class Server:
    """A stand-in for nnsight's server at the two places its client meets the network."""

    def __init__(self, folder: str, work: Path) -> None:
        self.work, self.requests = work, list[RequestModel]()
        self.answers: list[str | bytes] = []
        script = Path(__file__).with_name("nnsight_server.py")
        self.process = subprocess.Popen(
            [sys.executable, str(script), folder],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=work,
            env={**os.environ, "HF_HUB_OFFLINE": "1"},
        )

    # The websocket

    def connect(self, address: str, **options: Any) -> Server:
        assert address.startswith("wss://")
        self.answers = [json.dumps({"session_id": "7"})]
        return self

    def settimeout(self, seconds: float) -> None: ...

    def recv(self) -> str | bytes:
        return self.answers.pop(0)

    def close(self) -> None: ...

    # The request

    def post(self, backend: RemoteBackend, request: RequestModel, payload: bytes) -> ResponseModel:
        import zstandard

        self.requests.append(request)
        file = self.work / f"request-{len(self.requests)}"
        file.write_bytes(payload)
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{file}\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        assert answer == "done\n", self.process.communicate()[1]
        saved = zstandard.ZstdCompressor().compress(file.read_bytes())
        self.answers.append(ResponseModel(id="1", status=Status.COMPLETED, data=saved).pickle())
        return ResponseModel(id="1", status=Status.RECEIVED)


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, Server]]:
    folder = save("gpt2", tmp_path / "model")
    server = Server(folder, tmp_path)
    import websocket

    monkeypatch.setattr(websocket, "create_connection", server.connect)
    monkeypatch.setattr(RemoteBackend, "_post", lambda *arguments: server.post(*arguments))
    monkeypatch.setitem(
        huggingface._ID_CACHE, folder, "owner/model"
    )  # else the hub is asked for its spelling
    monkeypatch.setattr(nnsight.CONFIG.APP, "REMOTE_LOGGING", False)
    yield folder, server
    server.process.kill()
    server.process.communicate()


def test_a_request_runs_where_steerlab_is_not(served: tuple[str, Server]) -> None:
    folder, server = served
    plain = sl.load(folder, device="cpu")
    skeleton = nnsight.TransformersModel(folder, task="text-generation", tokenizer=plain.tokenizer)
    remote = sl.load(skeleton, remote=True)
    assert len(server.requests) == 1  # the self-check
    assert all(parameter.device.type == "meta" for parameter in remote.model.parameters())
    assert remote.fingerprint == plain.fingerprint
    site = Site("resid_post", 1)
    edit = Shift(site, 3 * random_vector(plain, site), sl.Last() | sl.Generated())
    seen = []
    for model in (plain, remote):
        with model.steering(edit):
            states = sl.capture(model, TEXTS, [Site("z", 2), site])
            text = [one.token_ids for one in model.generate(TEXTS, max_new_tokens=4)]
            seen.append((states, model.logits(TEXTS), text))
    (expected, logits, text), (found, theirs, same) = seen
    for name in (Site("z", 2), site):
        assert distance(found[name], expected[name]) < TOLERANCE
    assert distance(theirs, logits) < TOLERANCE
    assert same == text
    key, _, suffix = server.requests[-1].model_key.partition(":")
    assert key == "nnsight.modeling.transformers.TransformersModel"
    assert json.loads(suffix) == {"repo_id": "owner/model", "revision": None, "task": "text-generation"}
    assert server.requests[-1].session_id == "7"


def test_a_server_that_cannot_be_reached(pair: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    _, remote = pair("llama")
    monkeypatch.setitem(huggingface._ID_CACHE, remote.source.repo_id, "owner/model")
    with pytest.raises(ModelError, match="request to nnsight's server failed"):
        sl.load(remote.source, remote="http://localhost:9")


def test_a_folder_in_a_dry_run(tmp_path: Path) -> None:
    folder = save("llama", tmp_path)
    plain, dry = sl.load(folder, device="cpu"), sl.load(folder, backend="nnsight", remote="local")
    assert distance(dry.logits(TEXTS), plain.logits(TEXTS)) < TOLERANCE


def test_only_the_wanted_tokens_travel(pair: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The payload grows with the tokens asked for and holds no weights."""
    _, remote = pair("llama")
    sizes = []
    packed = RequestModel.serialize

    def watched(tracer: Any, compress: bool = False) -> bytes:
        payload = packed(tracer, compress)
        sizes.append(len(payload))
        return payload

    monkeypatch.setattr(RequestModel, "serialize", staticmethod(watched))
    tokens = remote.tokenize(TEXTS, padding_side="right")
    seen: list[Tensor] = []
    at = (torch.tensor([0, 2]), torch.tensor([1, 0]))
    remote.run(tokens, read={Site("resid_post", 0): seen.append}, at=at)
    assert seen[0].shape == (2, remote.d_model)
    buffer = io.BytesIO()
    torch.save(remote.model.state_dict(), buffer)
    assert sizes[0] < buffer.tell() / 4


def test_refusals(pair: Any, tmp_path: Path) -> None:
    plain, remote = pair("llama")
    site = Site("resid_post", 1)
    plain_edit = Shift(site, random_vector(plain, site))
    for change, words in (
        ({"schedule": lambda step: 0.5}, "schedule is not sent"),
        ({"condition": object()}, "condition is not sent"),
        ({"operator": lambda site: None}, "has no normal form"),
    ):
        edit = Shift(site, plain_edit.vector)
        for name, value in change.items():
            setattr(edit, name, value)
        with pytest.raises(SteeringError, match=words), remote.steering(edit):
            pass
    with pytest.raises(SteeringError, match="never acted"), remote.steering(plain_edit):
        pass
    with pytest.raises(SteeringError, match="at least one edit"), remote.steering():
        pass
    with pytest.raises(SiteError, match="layers 0 to 2"):
        remote.run(remote.tokenize(TEXTS), read={Site("resid_post", 9): print})
    with pytest.raises(SteerlabError, match="random numbers of a remote model"):
        remote.generate(TEXTS, max_new_tokens=1, do_sample=True, seed=1)
    for use in (
        lambda: remote.unembedding,
        lambda: remote.final_norm_gain,
        lambda: remote.w_out(0),
        lambda: remote.unembed(torch.zeros(32)),
    ):
        with pytest.raises(ModelError, match="are on the server"):
            use()
    folder = save("llama", tmp_path)
    for source, options, words in (
        (folder, {}, "Only nnsight runs remotely"),
        (folder, {"backend": "transformer_lens"}, "Only nnsight runs remotely"),
        (folder, {"backend": "nnsight"}, "is here and not on a server"),
        (plain, {}, "is loaded already"),
        (build("llama"), {"backend": "nnsight"}, "is here and not on a server"),
        (nnsight.NNsight(build("llama")), {"backend": "nnsight"}, "names no model a server could hold"),
        (str(tmp_path / "nowhere"), {"backend": "nnsight"}, "There is no folder"),
    ):
        with pytest.raises(ModelError, match=words):
            sl.load(source, remote=True, **options)
