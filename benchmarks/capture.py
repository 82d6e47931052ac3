"""What reading states costs: `capture` against the plain forward pass, against arrival-order batches and against peers.

    python benchmarks/capture.py            # writes results/capture.json and the table in README.md
    python benchmarks/capture.py --quick    # fewer turns, writes nothing

The model has the Llama shape, 12 layers, width 768, 32,000 words, random float32 weights, and two threads (or
``OMP_NUM_THREADS`` of them); batches are 8 prompts of 64 tokens. `_timing` says how the ratios are taken.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "2")

import torch
import transformers
from _peers import PEERS
from _table import print_table, write_readme, write_results
from _timing import Turns, cpu_ratio, in_turn, wall_ratio
from tokenizers import Tokenizer, models, pre_tokenizers

import steerlab as sl
from steerlab.environment import hardware, library_versions

HERE = Path(__file__).parent
LAYERS, WIDTH, HEADS, NEURONS, WORDS = 12, 768, 12, 2048, 32_000
ROWS, TOKENS, BATCHES = 8, 64, 1
CUTS = (2, 5, 8)
READ_GOAL, CUT_GOAL = 1.03, 1.05


def main() -> None:
    """Measure, print the table and, unless quick, write results and README."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--quick", action="store_true", help="three turns and 4,000 prompts; writes nothing")
    options.add_argument("--turns", type=int, default=None, help="turns of every comparison (default 15)")
    options.add_argument("--memory", type=int, metavar="PROMPTS", help=argparse.SUPPRESS)
    chosen = options.parse_args()
    if chosen.memory:
        print(json.dumps(memory_curve(chosen.memory)))
        return
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    turns = chosen.turns or (3 if chosen.quick else 15)
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = save_checkpoint(Path(folder), LAYERS, WIDTH, HEADS, NEURONS, WORDS)
        rows = measure(checkpoint, turns)
    results = {
        "configuration": {
            "shape": f"Llama, {LAYERS} layers, width {WIDTH}, {HEADS} heads, {NEURONS} neurons, {WORDS:,} words",
            "weights": "random, float32",
            "threads": torch.get_num_threads(),
            "batch": f"{ROWS} prompts of {TOKENS} tokens",
            "turns": turns,
        },
        "machine": hardware(),
        "versions": library_versions(),
        "command": "python " + " ".join(["benchmarks/capture.py", *sys.argv[1:]]),
        "rows": rows,
        "memory": measured_apart(4_000 if chosen.quick else 20_000),
    }
    print_table(results)
    if not chosen.quick:
        write_results(HERE / "results" / "capture.json", results)
        write_readme(HERE / "README.md", results)


def measure(checkpoint: Path, turns: int) -> list[dict[str, Any]]:
    """Every comparison as a row: what, over what, ratio, goal."""
    model = sl.load(str(checkpoint), device="cpu", dtype=torch.float32)
    random = torch.Generator().manual_seed(1)
    ids = torch.randint(WORDS, (BATCHES, ROWS, TOKENS), generator=random)
    prompts = [text_of(row) for row in ids.flatten(0, 1).tolist()]
    return [
        *reading(model, ids, prompts, turns),
        *cutting(model, ids, prompts, turns),
        *mixed_lengths(model, turns),
        *through_backends(model, checkpoint, ids, prompts, turns),
        *peers(model, checkpoint, ids, prompts, turns),
    ]


def reading(
    model: sl.LanguageModel, ids: torch.Tensor, prompts: list[str], turns: int
) -> list[dict[str, Any]]:
    """The last token at every layer, over the headless forward pass on the same batches."""
    sites, budget = model.sites("resid_post"), ROWS * TOKENS

    def stream(order: Any) -> int:
        moments = sl.Moments(order)
        sl.capture(model, prompts, sites, into=moments, token_budget=budget)
        return moments.count()  # what still waits is summed before the clock stops

    times = in_turn(
        {
            "plain": lambda: headless(model, ids),
            "rows": lambda: sl.capture(model, prompts, sites, token_budget=budget),
            "means": lambda: stream("mean"),
            "scatter": lambda: stream("scatter"),
        },
        turns,
    )
    over = "plain headless forward, same batches"
    return [
        row("last token at every layer, rows kept", over, times, "rows", "plain", goal=READ_GOAL),
        row("last token at every layer, streamed means", over, times, "means", "plain", goal=READ_GOAL),
        row("last token at every layer, streamed scatter of all 12 sites", over, times, "scatter", "plain"),
    ]


def cutting(
    model: sl.LanguageModel, ids: torch.Tensor, prompts: list[str], turns: int
) -> list[dict[str, Any]]:
    """Reading at layer k over (k+1)/n of the headless forward pass."""
    variants: dict[str, Any] = {"plain": lambda: headless(model, ids)}
    for k in CUTS:
        site = sl.Site("resid_post", k)
        variants[str(k)] = lambda site=site: sl.capture(model, prompts, site, token_budget=ROWS * TOKENS)
    times = in_turn(variants, turns)
    return [
        row(
            f"last token at layer {k} only",
            f"{k + 1}/{LAYERS} of the plain headless forward",
            times,
            str(k),
            "plain",
            share=(k + 1) / LAYERS,
            goal=CUT_GOAL,
        )
        for k in CUTS
    ]


def mixed_lengths(model: sl.LanguageModel, turns: int) -> list[dict[str, Any]]:
    """Prompts of 8 to 128 tokens: sorted token-budget batches against batches of 8 in the order of arrival."""
    random = torch.Generator().manual_seed(2)
    lengths = (8 * 16 ** torch.rand(32, generator=random)).int().tolist()
    prompts = [text_of(torch.randint(WORDS, (n,), generator=random).tolist()) for n in lengths]
    sites = model.sites("resid_post")
    batches = [model.tokenize(prompts[start : start + ROWS]) for start in range(0, len(prompts), ROWS)]

    def arrival() -> None:
        states: list[torch.Tensor] = []
        for tokens in batches:
            model.run(
                tokens, read={site: lambda state: states.append(state[:, -1].clone()) for site in sites}
            )

    times = in_turn(
        {
            "arrival": arrival,
            "sorted": lambda: sl.capture(model, prompts, sites, token_budget=ROWS * TOKENS),
        },
        turns,
    )
    padded = sum(tokens.input_ids.numel() for tokens in batches)
    return [
        row(
            f"32 prompts of 8 to 128 tokens, last token at every layer ({sum(lengths):,} tokens)",
            f"batches of {ROWS} in order of arrival ({padded:,} tokens with padding)",
            times,
            "sorted",
            "arrival",
        )
    ]


def through_backends(
    model: sl.LanguageModel, checkpoint: Path, ids: torch.Tensor, prompts: list[str], turns: int
) -> list[dict[str, Any]]:
    """`capture` through each engine, over the headless forward pass of the plain model on the same batches."""
    sites = model.sites("resid_post")
    models = {
        name: sl.load(str(checkpoint), backend=name, device="cpu", dtype=torch.float32)
        for name in ("transformers", "transformer_lens", "nnsight")
    }
    variants: dict[str, Any] = {"plain": lambda: headless(model, ids)}
    for name, engine in models.items():
        variants[name] = lambda engine=engine: sl.capture(engine, prompts, sites, token_budget=ROWS * TOKENS)
    expected = variants["transformers"]()
    errors = {
        name: max(float((variants[name]()[site] - expected[site]).abs().max()) for site in sites)
        for name in models
    }
    times = in_turn(variants, turns)
    return [
        {
            **row(
                f"backend {name}: last token at every layer", "plain headless forward", times, name, "plain"
            ),
            "largest difference of states": errors[name],
        }
        for name in models
    ]


def peers(
    model: sl.LanguageModel, checkpoint: Path, ids: torch.Tensor, prompts: list[str], turns: int
) -> list[dict[str, Any]]:
    """The last token at every layer with other tools, over the headless forward pass on the same batches."""
    sites = model.sites("resid_post")
    ours = sl.capture(model, prompts, sites, token_budget=ROWS * TOKENS)
    expected = torch.stack([ours[site] for site in sites])
    readers = {name: make(checkpoint) for name, make in PEERS.items()}
    errors = {}
    for name, read in readers.items():
        states = torch.cat([read(batch) for batch in ids], dim=1)
        errors[name] = float((states - expected)[:-1].abs().max())  # the last layer: see the note in the row
        if errors[name] > 1e-3:
            raise SystemExit(f"{name} reads other states: they differ by {errors[name]:.2g}.")
    variants: dict[str, Any] = {
        "plain": lambda: headless(model, ids),
        "steerlab capture": lambda: sl.capture(model, prompts, sites, token_budget=ROWS * TOKENS),
    }
    for name, read in readers.items():
        variants[name] = lambda read=read: [read(batch) for batch in ids]
    times = in_turn(variants, turns)
    return [
        {
            **row(f"{name}: last token at every layer", "plain headless forward", times, name, "plain"),
            "largest difference of states": errors.get(name, 0.0),
        }
        for name in variants
        if name != "plain"
    ]


def headless(model: sl.LanguageModel, ids: torch.Tensor) -> None:
    """The base model on each batch, no cache, no unembedding: what reading is measured against."""
    with torch.inference_mode():
        for batch in ids:
            model.model.model(batch, use_cache=False)


def memory_curve(n: int) -> dict[str, Any]:
    """Peak memory of this process while n prompts stream into `Moments`, sampled as reading goes on."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        model = sl.load(str(save_checkpoint(Path(folder), 4, 128, 4, 256, 1_000)), device="cpu")
    random = torch.Generator().manual_seed(3)
    texts = [
        text_of(torch.randint(1_000, (size,), generator=random).tolist())
        for size in [16, 32, 48] * (n // 3 + 1)
    ]
    watched = _Watched(texts[:n])
    moments = sl.Moments("scatter")
    sl.capture(model, watched, model.sites("resid_post"), into=moments, labels=[i % 2 for i in range(n)])
    assert moments.count() == n
    points = [*watched.points, [n, peak_mib()]]
    return {
        "setting": "4 layers, width 128, scatter of 4 sites in 2 classes, prompts of 16 to 48 tokens, 1 thread",
        "prompts read": [count for count, _ in points],
        "peak memory of the process in MiB": [peak for _, peak in points],
        "second moments in MiB": moments.memory_needed({site: 128 for site in moments.sites}, 2) / 2**20,
        "rows would take in MiB": n * 4 * 128 * 4 / 2**20,
    }


class _Watched(Sequence[str]):
    """A list that notes the process's peak memory whenever a further piece of it is read."""

    def __init__(self, texts: list[str]) -> None:
        self.texts = texts
        self.points: list[list[float]] = []

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice) and index.start:
            self.points.append([index.start, peak_mib()])
        return self.texts[index]


def measured_apart(n: int) -> dict[str, Any]:
    """The memory curve from a process of its own, which holds nothing else."""
    command = [sys.executable, str(HERE / "capture.py"), "--memory", str(n)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def peak_mib() -> float:
    """Largest resident size of this process so far."""
    # Linux: the peak since this program began; getrusage would still count the process that started it.
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return round(int(line.split()[1]) / 1024, 1)
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1)


def row(
    what: str, over: str, times: Turns, name: str, base: str, *, share: float = 1.0, goal: float | None = None
) -> dict[str, Any]:
    """One line of the table: the times of ``name`` over ``share`` times those of ``base``."""
    return {
        "what": what,
        "over": over,
        "wall ratio": wall_ratio(times, name, base, share).to_dict(),
        "cpu ratio": cpu_ratio(times, name, base, share).to_dict(),
        "goal": goal,
        "seconds": [round(turn.wall, 4) for turn in times[name]],
        "seconds of the base": [round(turn.wall, 4) for turn in times[base]],
    }


def text_of(words: Sequence[int]) -> str:
    """A prompt whose tokens are these word numbers."""
    return " ".join(f"w{word}" for word in words)


def save_checkpoint(folder: Path, layers: int, width: int, heads: int, neurons: int, words: int) -> Path:
    """A random Llama with a tokenizer of whole words."""
    transformers.utils.logging.disable_progress_bar()
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=neurons,
        vocab_size=words,
    )
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer_of(words).save_pretrained(folder)
    return folder


def tokenizer_of(words: int) -> transformers.PreTrainedTokenizerFast:
    """A tokenizer of whole words, whose numbers they are: see `text_of`."""
    backend = Tokenizer(models.WordLevel({f"w{i}": i for i in range(words)}, unk_token="w0"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="w0")


if __name__ == "__main__":
    main()
