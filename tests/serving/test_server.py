"""A steered model behind transformers' server, asked by OpenAI's own client."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from families import tiny

from steerlab.directions import Direction
from steerlab.errors import DirectionError, RunError, SteeringError
from steerlab.models import LanguageModel, Site
from steerlab.steering import Ablate, Add

pytest.importorskip("fastapi", reason="needs the extra serve")
pytest.importorskip("uvicorn", reason="needs the extra serve")
openai = pytest.importorskip("openai", reason="needs the extra serve")

from steerlab.serving import Server  # noqa: E402

N = 32
PROMPT = "The capital of France is Paris."


def direction(model: LanguageModel, name: str = "resid_post.1", seed: int = 0) -> Direction:
    site = Site.parse(name)
    vector = torch.randn(model.width(site), generator=torch.Generator().manual_seed(seed))
    return Direction({site: vector}, model.name, model.fingerprint)


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return tiny("llama", chat=True, max_position_embeddings=256)


@pytest.fixture(scope="module")
def vectors(model: LanguageModel) -> dict[str, Any]:
    added = {f"v{number}": Add(direction(model, seed=number), strength=3.0) for number in range(N)}
    return {
        "main": Add(direction(model, "resid_post.0", seed=99), strength=2.0),
        **added,
        "gone": Ablate(direction(model)),
    }


@pytest.fixture(scope="module")
def server(model: LanguageModel, vectors: dict[str, Any]) -> Iterator[Server]:
    probes = {"probe": direction(model, "resid_post.2", seed=7)}
    with Server(model, vectors, always=["main"], probes=probes, port=0, cache_tokens=4096) as running:
        yield running


@pytest.fixture(scope="module")
def client(server: Server) -> Any:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=60)


def written(client: Any, server: Server, prompt: str = PROMPT, n: int = 8, **extra: Any) -> str:
    settings = {key: extra.pop(key) for key in ("temperature", "seed", "top_p") if key in extra}
    answer = client.completions.create(
        model=server.name, prompt=prompt, max_tokens=n, extra_body=extra, **settings
    )
    text: str = answer.choices[0].text
    return text


def expected(model: LanguageModel, *edits: Any, prompt: str = PROMPT, n: int = 8) -> str:
    if not edits:
        return model.generate(prompt, max_new_tokens=n).text
    with model.steering(*edits):
        return model.generate(prompt, max_new_tokens=n).text


def test_a_request_without_fields_gets_what_always_acts(
    model: LanguageModel, client: Any, server: Server, vectors: dict[str, Any]
) -> None:
    assert server.url.startswith("http://127.0.0.1:")
    assert written(client, server) == expected(model, vectors["main"])
    assert written(client, server, vectors=[]) == expected(model)
    assert expected(model) != expected(model, vectors["main"])
    assert written(client, server, strength=0) == expected(model)


def test_vectors_and_strengths_by_name(
    model: LanguageModel, client: Any, server: Server, vectors: dict[str, Any]
) -> None:
    one = direction(model, seed=1)
    assert written(client, server, vectors="v1") == expected(model, Add(one, 3.0))
    assert written(client, server, vectors=["v1"], strength=-2) == expected(model, Add(one, -2.0))
    assert written(client, server, vectors={"v1": 1.5, "main": 1}) == expected(
        model, Add(direction(model, "resid_post.0", seed=99), 1.0), Add(one, 1.5)
    )
    assert written(client, server, vectors="gone") == expected(model, vectors["gone"])


def test_thirty_two_requests_at_once_and_none_crosses(
    model: LanguageModel, client: Any, server: Server, vectors: dict[str, Any]
) -> None:
    """Every request its own vector and prompt; each answer is the one it has alone, twice over."""
    prompts = [f"{'A dog and a cat sat. ' * (number % 4)}The {number}" for number in range(N)]
    wanted = [
        expected(model, vectors[f"v{number}"], prompt=prompts[number], n=12) if number % 4 else
        expected(model, prompt=prompts[number], n=12)
        for number in range(N)
    ]  # fmt: skip

    def ask(number: int) -> str:
        chosen = [f"v{number}"] if number % 4 else []
        return written(client, server, prompts[number], 12, vectors=chosen)

    for _ in range(2):
        with ThreadPoolExecutor(N) as pool:
            assert list(pool.map(ask, range(N))) == wanted
    assert len(set(wanted)) > N // 2


def test_requests_of_one_name_stay_two(
    server: Server, client: Any, model: LanguageModel, vectors: Any
) -> None:
    def ask(name: str) -> str:
        answer = client.completions.create(
            model=server.name, prompt=PROMPT, max_tokens=12, extra_body={"vectors": name},
            extra_headers={"x-request-id": "the same"},
        )  # fmt: skip
        text: str = answer.choices[0].text
        return text

    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(ask, ["v3", "v4"]))
    assert found == [expected(model, vectors[name], n=12) for name in ("v3", "v4")]


def test_chat_streams_and_is_watched(model: LanguageModel, client: Any, server: Server, vectors: Any) -> None:
    message = [{"role": "user", "content": "What is Paris?"}]
    prompt = model.conversation_prompt(message)
    with model.steering(vectors["v5"]), model.watch(direction(model, "resid_post.2", seed=7)) as seen:
        wanted = model.generate(prompt, max_new_tokens=8)
    asked: dict[str, Any] = {"model": server.name, "messages": message, "max_tokens": 8}
    answer = client.chat.completions.create(**asked, extra_body={"vectors": "v5", "watch": "probe"})
    assert answer.choices[0].message.content == wanted.text
    assert answer.usage.prompt_tokens == model.lengths(prompt)[0]
    scores = answer.model_extra["watch"]["probe"]
    assert scores["site"] == "resid_post.2"
    assert scores["written"] == pytest.approx(list(seen.scores[0]), rel=1e-4, abs=1e-4)
    assert scores["prompt"] == pytest.approx(seen.scores[0].prompt_values.tolist(), rel=1e-4, abs=1e-4)
    pieces = list(
        client.chat.completions.create(
            **asked, stream=True, extra_body={"vectors": "v5", "watch": ["probe", "v5"]}
        )
    )
    text = "".join(piece.choices[0].delta.content or "" for piece in pieces if piece.choices)
    assert text == wanted.text
    watched = pieces[-1].model_extra["watch"]
    assert set(watched) == {"probe", "v5"}
    assert watched["probe"]["written"] == pytest.approx(scores["written"], rel=1e-4, abs=1e-4)


def test_responses_are_steered_too(model: LanguageModel, client: Any, server: Server, vectors: Any) -> None:
    answer = client.responses.create(
        model=server.name, input="What is Paris?", max_output_tokens=8, extra_body={"vectors": "v6"}
    )
    prompt = model.instruction_prompt("What is Paris?")
    with model.steering(vectors["v6"]):
        assert answer.output_text == model.generate(prompt, max_new_tokens=8).text


def test_a_seed_decides_what_is_drawn_whoever_is_beside(
    model: LanguageModel, client: Any, server: Server, vectors: Any
) -> None:
    with model.steering(vectors["v1"]):
        wanted = model.generate(
            PROMPT, max_new_tokens=8, do_sample=True, temperature=1.3, top_p=0.9, seed=5
        ).text

    def ask(number: int) -> str:
        if number % 2:
            return written(client, server, vectors=f"v{number}")
        return written(client, server, vectors="v1", temperature=1.3, top_p=0.9, seed=5)

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(ask, range(8)))
    assert found[0::2] == [wanted] * 4
    assert found[1::2] == [expected(model, vectors[f"v{number}"]) for number in (1, 3, 5, 7)]


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"vectors": "nobody"}, "There is no vector 'nobody' here"),
        ({"vectors": ["/etc/passwd"]}, "There is no vector '/etc/passwd' here"),
        ({"vectors": 3}, "give a name, a list of names"),
        ({"vectors": "v1", "strength": "much"}, "strength is 'much'; give a number"),
        ({"vectors": "v1", "strength": True}, "strength is True; give a number"),
        ({"vectors": {"v1": None}}, "strength of 'v1' is None"),
        ({"vectors": {"v1": 1}, "strength": 2}, "stand twice"),
        ({"vectors": "v1", "strength": 1e39}, "cannot act: The strength is 1e"),
        ({"vectors": "v1", "strength": 3e38}, "is not finite"),
        ({"watch": "nobody"}, "There is no probe 'nobody' here"),
        ({"max_tokens": 1000}, "context holds 256"),
        ({"prompt": "A cat. " * 200}, "context holds 256"),
        ({"prompt": ""}, "no 'prompt'"),
        ({"temperature": "hot"}, "temperature is 'hot'"),
        ({"top_p": 2}, "top_p is 2"),
        ({"n": 3}, "does not heed 'n'"),
        ({"stop": ["x"]}, "does not heed 'stop'"),
        ({"model": "another"}, "pinned to"),
        ({"nonsense": 1}, "Unexpected fields"),
    ],
)
def test_wrong_requests_are_sentences_and_the_server_stays_up(
    body: dict[str, Any], said: str, model: LanguageModel, client: Any, server: Server
) -> None:
    asked = {"model": server.name, "prompt": PROMPT, "max_tokens": 4, **body}
    with pytest.raises(openai.APIStatusError, match=said) as error:
        client.post("/completions", body=asked, cast_to=object)
    assert 400 <= error.value.status_code < 500
    assert written(client, server, vectors=[]) == expected(model)


def test_a_strength_that_breaks_the_numbers_touches_nobody_else(
    model: LanguageModel, client: Any, server: Server, vectors: Any
) -> None:
    def ask(number: int) -> str:
        try:
            return written(
                client, server, n=12, **({"vectors": "v1", "strength": 3e38} if number % 3 == 0 else {})
            )
        except openai.BadRequestError as error:
            return f"refused: {error.message}"

    with ThreadPoolExecutor(9) as pool:
        found = list(pool.map(ask, range(9)))
    fine = expected(model, vectors["main"], n=12)
    for number, text in enumerate(found):
        assert (text.startswith("refused") and "steer less" in text) if number % 3 == 0 else text == fine


def test_pictures_and_bodies_that_are_none_are_refused(client: Any, server: Server) -> None:
    picture = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]
    for asked, said in (
        ({"messages": picture}, "reads text, and a message holds 'image_url'"),
        ({"messages": []}, "no 'messages'"),
        ({"messages": ["hello"]}, "is no message"),
        ({"messages": [{"content": "no role"}]}, "cannot be read"),
    ):
        body = {"model": server.name, "max_tokens": 2, **asked}
        with pytest.raises(openai.BadRequestError, match=said):
            client.post("/chat/completions", body=body, cast_to=object)
    with pytest.raises(openai.APIStatusError, match="no JSON object"):
        client.post("/completions", body=[1, 2], cast_to=object)


def test_the_list_of_models_names_what_there_is(client: Any, server: Server) -> None:
    (found,) = client.models.list().data
    assert found.id == server.name
    assert found.model_extra["always"] == ["main"]
    assert "v31" in found.model_extra["vectors"]
    assert "probe" in found.model_extra["probes"]
    for path in ("/load_model", "/reset", "/v1/systemone"):
        with pytest.raises(openai.NotFoundError):
            client.post(f"{server.url}{path}", body={"model": "x"}, cast_to=object)


def test_what_is_wrong_at_the_start_is_a_sentence(model: LanguageModel) -> None:
    other = direction(tiny("gpt2", bos=False), "resid_post.1")
    with pytest.raises(DirectionError, match="not in"):
        Server(model, {"other": other})
    with pytest.raises(SteeringError, match="no vector 'gone' here"):
        Server(model, {"one": direction(model)}, always=["gone"])
    with pytest.raises(SteeringError, match="one Add or Ablate"):
        Server(model, {"two": [Add(direction(model)), Add(direction(model))]})
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(
            RunError, match=f"cannot listen on 127.0.0.1, port {port}: Address already in use"
        ):
            Server(model, {}, port=port).start()


def test_a_server_that_stopped_leaves_nothing_behind(model: LanguageModel) -> None:
    own = tiny("llama", chat=True, max_position_embeddings=256)
    plain = own.logits([PROMPT])
    with Server(own, {"one": Add(direction(own), 3.0)}, port=0) as running:
        assert running.port
    assert torch.equal(own.logits([PROMPT]), plain)
    with Server(own, {"one": Add(direction(own), 3.0)}, port=running.port):  # the port is free again
        pass
