"""`steerlab serve` as a person runs it: a process, asked over HTTP, ended with Ctrl-C."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import steerlab as sl
from steerlab.cli import app
from steerlab.directions import Direction

pytest.importorskip("fastapi", reason="needs the extra serve")
pytest.importorskip("uvicorn", reason="needs the extra serve")
pytest.importorskip("openai", reason="needs the extra serve")

CLI = CliRunner()


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = sl.load("zoo:small-post")
    sites = [sl.Site("resid_post", layer) for layer in (1, 2)]
    generator = torch.Generator().manual_seed(0)
    vectors = {site: torch.randn(model.d_model, generator=generator) for site in sites}
    path = tmp_path_factory.mktemp("vectors") / "mood.safetensors"
    Direction(vectors, model.name, model.fingerprint).save(path)
    return path


def asked(url: str, body: dict[str, Any]) -> dict[str, Any]:
    """What `curl -d` gets."""
    request = urllib.request.Request(
        f"{url}/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        read: dict[str, Any] = json.loads(answer.read())
        return read


def test_a_process_serves_until_it_is_interrupted(file: Path) -> None:
    command = [sys.executable, "-m", "steerlab.cli", "serve", "zoo:small-post", "--port", "0"]
    command += ["--ablate", f"gone={file}@1", "--probe", f"mood={file}@2"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        said = process.stdout.readline()
        url = said.partition(" at ")[2].partition("/v1")[0]
        assert url.startswith("http://127.0.0.1:"), said
        assert process.stdout.readline().strip() == "always: gone"
        body = {"messages": [{"role": "user", "content": "How do I feed a horse?"}], "max_tokens": 12}
        answer = asked(url, {**body, "watch": "mood"})
        model = sl.load("zoo:small-post")
        prompt = model.instruction_prompt("How do I feed a horse?")
        with model.steering(sl.Ablate(Direction.load(file).at("resid_post.1"))):
            assert (
                answer["choices"][0]["message"]["content"] == model.generate(prompt, max_new_tokens=12).text
            )
        assert answer["watch"]["mood"]["site"] == "resid_post.2"
        with pytest.raises(urllib.error.HTTPError) as wrong:
            asked(url, {**body, "vectors": "nobody"})
        assert "There is no vector 'nobody' here" in json.loads(wrong.value.read())["error"]["message"]
        taken = url.rpartition(":")[2]
        second = CLI.invoke(app, ["serve", "zoo:small-post", "--port", taken])
        assert second.exit_code != 0
        assert f"port {taken}: Address already in use" in second.output + str(second.exception)
        assert asked(url, body)["choices"]
    finally:
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode in (0, 130), errors
    assert "Traceback" not in errors


def test_wrong_options_are_sentences(file: Path) -> None:
    for arguments, said in (
        (["--steer", f"{file}:1@1", "--offer", f"{file}:1@2"], "Two vectors are called 'mood'"),
        (["--steer", "gone.safetensors:1"], "gone.safetensors cannot be read"),
        (["--steer", f"{file}:much@1"], "write a number"),
        (["--offer", f"a={file}:1"], "does not know where it works best"),
        (["--offer", f"a={file}:1@1"], "class means at resid_post.1 are not known"),
        (["--probe", str(file)], "no best one"),
        (["--probe", "gone.safetensors"], "gone.safetensors cannot be read"),
    ):
        ran = CLI.invoke(app, ["serve", "zoo:small-post", "--port", "0", *arguments])
        assert ran.exit_code != 0
        assert said in ran.output + str(ran.exception)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
    other = CLI.invoke(app, ["serve", "zoo:small-base", "--offer", f"{file}:1@1"])
    assert other.exit_code != 0
