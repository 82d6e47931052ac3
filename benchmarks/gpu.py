"""What reading and steering cost on a GPU, and whether its numbers are those of the CPU: one run of a few minutes.

    python benchmarks/gpu.py                                   # Llama-3-8B's shape in bfloat16 on CUDA
    python benchmarks/gpu.py --device cpu --shape tiny         # the same checks on a CPU; writes nothing
    python benchmarks/gpu.py --out gpu.json                    # the JSON elsewhere than results/gpu.json

Nothing is fetched: weights are drawn on the device, words are numbers. Ratios are those of `_timing`, taken when the
device is done. A count of the memory that reading takes is printed before it is read. On a CPU, where nothing limits or
counts the memory of tensors, a hook refuses what is too large, and torch's tracker counts.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "2")

import torch
import transformers
from _inside import every_hook, no_waiting, share_in_hooks
from _table import _COLUMNS, _cells, write_results
from _timing import Spread, in_turn
from capture import row, text_of, tokenizer_of
from rich.console import Console
from rich.table import Table
from torch.distributed._tools.mem_tracker import MemTracker

import steerlab as sl
from steerlab.environment import hardware, library_versions
from steerlab.models.memory import readable
from steerlab.steering import Add, Clamp, Condition, PerRow, Rotate

HERE = Path(__file__).parent
READ_GOAL, ONE_GOAL, ALL_GOAL = 1.03, 1.02, 1.05
STATES_GOAL, COSINE_GOAL, MEMORY_GOAL = 1e-4, 0.999, 0.1
LLAMA_3_8B: dict[str, Any] = {
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "intermediate_size": 14336,
    "vocab_size": 128256,
    "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0},
}
TINY: dict[str, Any] = {
    "hidden_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 224,
    "vocab_size": 500,
}
SMALL: dict[str, Any] = TINY | {"hidden_size": 256, "intermediate_size": 688, "num_hidden_layers": 8}


@dataclass(frozen=True)
class Size:
    """A model's shape, the prompts that are read (rows of tokens), and the tokens that are written to each of 8."""

    config: dict[str, Any]
    rows: int
    tokens: int
    new: int

    @property
    def budget(self) -> int:
        """Tokens of one batch: all prompts at once."""
        return self.rows * self.tokens


SIZES = {"llama-3-8b": Size(LLAMA_3_8B, 16, 512, 64), "tiny": Size(TINY, 8, 16, 4)}
WRITTEN = 8


def main() -> None:
    """Measure, print the table and write the JSON."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--device", default="cuda", help="cuda (default) or cpu")
    options.add_argument("--shape", choices=SIZES, default="llama-3-8b")
    options.add_argument("--turns", type=int, default=9, help="turns of every comparison (default 9)")
    options.add_argument("--out", type=Path, help="the JSON (default on CUDA: results/gpu.json)")
    chosen = options.parse_args()
    started, device, size = time.perf_counter(), torch.device(chosen.device), SIZES[chosen.shape]
    model = random_model(size.config, device, torch.bfloat16)
    rows = []
    for measure in (memory, waiting, reading, writing, halving, precision, direction):
        found = measure(model, size, chosen.turns)
        rows += found
        print(f"{time.perf_counter() - started:4.0f} s: {measure.__name__} is measured", flush=True)
    results = {
        "configuration": {
            "shape": chosen.shape,
            "weights": "random, bfloat16",
            "threads": torch.get_num_threads(),
            "turns": chosen.turns,
            "device": chosen.device,
            **asdict(size),
        },
        "machine": hardware(),
        "versions": library_versions(),
        "command": "python " + " ".join(["benchmarks/gpu.py", *sys.argv[1:]]),
        "seconds": round(time.perf_counter() - started, 1),
        "rows": rows,
    }
    show(rows)
    if chosen.out or device.type == "cuda":
        write_results(chosen.out or HERE / "results" / "gpu.json", results)


def show(rows: list[dict[str, Any]]) -> None:
    """The ratios as a table, the other numbers as lines."""
    table = Table(*_COLUMNS, title="On the device: time ratios")
    for cells in _cells({"rows": [one for one in rows if "wall ratio" in one]}):
        table.add_row(*cells)
    console = Console()
    console.print(table)
    for one in rows:
        if "found" in one:
            console.print(f"{one['what']}: {one['found']} ({one['over']}; goal {one['goal']})")


def memory(model: sl.LanguageModel, size: Size, turns: int) -> list[dict[str, Any]]:
    """The peak of a reading pass over what was counted before it ran."""
    counted = counted_memory(model, size)
    print(f"Counted before: {readable(counted)} at the peak of reading.", flush=True)
    peak = peak_memory(model, lambda: read(model, prompts_of(size), size.budget))
    return [
        {
            **check("peak memory of reading", "counted before", peak / counted, f"1 ± {MEMORY_GOAL}"),
            "passed": abs(peak / counted - 1) <= MEMORY_GOAL,
            "counted bytes": counted,
            "peak bytes": peak,
            "bytes of the weights": weights_of(model),
        }
    ]


def waiting(model: sl.LanguageModel, size: Size, turns: int) -> list[dict[str, Any]]:
    """Whether a hook waits for the device while states are read and while text is written; twice, cold and warm."""
    few, vectors = prompts_of(size)[:4], directions(model)
    first, last = vectors.at(vectors.sites[0]), vectors.at(vectors.sites[-1])
    everywhere: dict[str, Any] = {"strength": 0.1, "layers": "all"}
    kinds = {
        "reading at every layer": None,
        "Add": Add(vectors, **everywhere),
        "Add where a token's condition holds": Add(
            vectors, **everywhere, condition=Condition(first, 0.0, None)
        ),
        "Clamp": Clamp(vectors, value=0.5, layers="all"),
        "Rotate": Rotate(vectors, layers="all"),
        "a table by row": PerRow(Add(first), Clamp(first, value=0.5), Rotate(last), ()),
    }
    # These ask the host about places and bounds, which on a CPU is the device itself.
    if model.device.type == "cuda":
        kinds |= {
            "Add of the prompt's last token": Add(vectors, **everywhere, positions=sl.Last()),
            "Add where a prompt's condition holds": Add(
                vectors, **everywhere, condition=Condition(first, 0.0)
            ),
            "a floor": Clamp(last, value=0.5, bound="floor"),
        }

    def run(edit: Any) -> None:
        if edit is None:
            read(model, few, size.budget)
        else:
            steered(model, few, 3, edit)

    found = []
    for name, edit in kinds.items():
        said = "none"
        try:
            with every_hook(lambda: no_waiting(model.device)):
                run(edit)
                run(edit)
        except RuntimeError as error:
            said = str(error)
        one = check(f"waits for the device inside hooks: {name}", "every hook of two runs", said, "none")
        found.append({**one, "passed": said == "none"})
    return found


def reading(model: sl.LanguageModel, size: Size, turns: int) -> list[dict[str, Any]]:
    """The last token at every layer, over the headless forward pass on the same batch."""
    prompts = prompts_of(size)
    ids = model.tokenize(prompts).input_ids.to(model.device)

    def headless() -> None:
        with torch.inference_mode():
            model.model.model(ids, use_cache=False)

    times = in_turn(
        {
            "plain": when_done(model, headless),
            "read": when_done(model, lambda: read(model, prompts, size.budget)),
        },
        turns,
    )
    what, over = "last token at every layer, rows kept", "plain headless forward, same batch"
    return [timed(row(what, over, times, "read", "plain", goal=READ_GOAL))]


def writing(model: sl.LanguageModel, size: Size, turns: int) -> list[dict[str, Any]]:
    """Steered generation over plain generation, and the host's time inside the hooks over the rest of a run."""
    prompts, vectors = [text_of(words[:64]) for words in words_of(size, WRITTEN)], directions(model)
    middle = vectors.at(vectors.sites[len(vectors.sites) // 2])
    cases = {
        "Add at one layer": (Add(middle, strength=0.1), ONE_GOAL),
        "Add at every layer": (Add(vectors, strength=0.1, layers="all"), ALL_GOAL),
    }
    variants: dict[str, Any] = {"plain": when_done(model, lambda: steered(model, prompts, size.new))}
    for name, (edit, _) in cases.items():
        variants[name] = when_done(model, lambda edit=edit: steered(model, prompts, size.new, edit))
    times = in_turn(variants, turns)
    found = []
    for name, (_, goal) in cases.items():
        over = f"unsteered generate, batch {WRITTEN}"
        one = timed(row(f"{name}, batch {WRITTEN}", over, times, name, "plain", goal=goal))
        found.append({**one, "inside the hooks": share_in_hooks(variants[name])})
    return found


def halving(model: sl.LanguageModel, size: Size, turns: int) -> list[dict[str, Any]]:
    """Reading with half of the memory that the batch takes: it goes on in smaller batches, to the same states."""
    prompts = prompts_of(size)
    expected = read(model, prompts, size.budget // 4)
    batches: list[int] = []
    with counted_batches(model, batches), tight_memory(model, size):
        found = read(model, prompts, size.budget)
    error = max(relative(found[site], expected[site]) for site in found.sites)
    one = check("batches after memory ran out", "the same states, relative", error, "≤ 0.05, more than one")
    # Kernels of another batch size round otherwise in bfloat16.
    return [
        {**one, "batches": batches, "passed": error <= 0.05 and len(batches) > 2 and batches[0] > batches[-1]}
    ]


def precision(model: sl.LanguageModel, size: Size, turns: int) -> list[dict[str, Any]]:
    """Float32 states of a small model on the device against those of the CPU, over the largest state of the layer."""
    torch.set_float32_matmul_precision("highest")
    here = random_model(SMALL, torch.device("cpu"), torch.float32)
    there = wrapped(deepcopy(here.model).to(model.device), SMALL["vocab_size"])
    prompts = [text_of(words) for words in words_of(Size(SMALL, 8, 32, 0), 8)]
    ours, theirs = read(here, prompts, 256), read(there, prompts, 256)
    error = max(
        float((theirs[site] - ours[site]).abs().max() / ours[site].abs().max()) for site in ours.sites
    )
    one = check("float32 states of the device", "the CPU's, over the largest", error, f"≤ {STATES_GOAL}")
    return [{**one, "passed": error <= STATES_GOAL}]


def direction(model: sl.LanguageModel, size: Size, turns: int) -> list[dict[str, Any]]:
    """A difference in means from bfloat16 states against the one from float32, the same weights."""
    halves = words_of(size, 32) // 2
    halves[16:] += size.config["vocab_size"] // 2  # the classes use different words
    prompts, labels = [text_of(words[:64]) for words in halves.tolist()], [0] * 16 + [1] * 16
    precise = wrapped(deepcopy(model.model).float(), size.config["vocab_size"])
    coarse, fine = (mean_differences(one, prompts, labels) for one in (model, precise))
    cosine = min(float(torch.cosine_similarity(a, b, dim=0)) for a, b in zip(coarse, fine, strict=True))
    one = check("cosine of a bfloat16 direction", "float32's, the worst layer", cosine, f"≥ {COSINE_GOAL}")
    return [{**one, "passed": cosine >= COSINE_GOAL}]


# ------------------------------------------------------------------------------------------------------- models, runs


def random_model(config: dict[str, Any], device: torch.device, dtype: torch.dtype) -> sl.LanguageModel:
    """A Llama of a shape whose weights are drawn on the device."""
    transformers.utils.logging.disable_progress_bar()
    torch.manual_seed(0)
    with torch.device(device):
        module = transformers.AutoModelForCausalLM.from_config(
            transformers.LlamaConfig(**config), dtype=dtype
        )
    return wrapped(module, config["vocab_size"])


def wrapped(module: Any, words: int) -> sl.LanguageModel:
    """The model with a tokenizer of whole words; no text ends early."""
    module.config.eos_token_id = module.generation_config.eos_token_id = None
    return sl.load(module.eval(), tokenizer=tokenizer_of(words), dtype="auto")


def words_of(size: Size, rows: int) -> torch.Tensor:
    """Random words [row, token]."""
    random = torch.Generator().manual_seed(1)
    return torch.randint(size.config["vocab_size"], (rows, size.tokens), generator=random)


def prompts_of(size: Size) -> list[str]:
    """The prompts that are read: as many tokens each."""
    return [text_of(words) for words in words_of(size, size.rows).tolist()]


def directions(model: sl.LanguageModel) -> sl.Direction:
    """A random unit vector at every layer."""
    random = torch.Generator().manual_seed(0)
    vectors = {site: torch.randn(model.d_model, generator=random) for site in model.sites("resid_post")}
    return sl.Direction(vectors, model.name, model.fingerprint).unit()


def read(model: sl.LanguageModel, prompts: Sequence[str], budget: int) -> sl.Activations:
    """The last token at every layer."""
    return sl.capture(model, prompts, "resid_post", token_budget=budget)


def steered(model: sl.LanguageModel, prompts: list[str], new: int, *edits: Any) -> None:
    """Generation, inside `steering` where there are edits."""
    if not edits:
        model.generate(prompts, max_new_tokens=new)
        return
    with model.steering(*edits):
        model.generate(prompts, max_new_tokens=new)


def mean_differences(model: sl.LanguageModel, prompts: list[str], labels: list[int]) -> list[torch.Tensor]:
    """The difference of the class means of last tokens, layer by layer."""
    moments = sl.Moments("mean")
    sl.capture(model, prompts, "resid_post", into=moments, labels=labels)
    return [moments.mean(site, 1) - moments.mean(site, 0) for site in moments.sites]


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    """The size of the difference over that of what is expected."""
    return float((found - expected).norm() / expected.norm())


def when_done(model: sl.LanguageModel, run: Callable[[], object]) -> Callable[[], None]:
    """The run to its end, the device's queue included."""

    def whole() -> None:
        run()
        if model.device.type == "cuda":
            torch.cuda.synchronize()

    return whole


def check(what: str, over: str, found: object, goal: str) -> dict[str, Any]:
    """One line of the results that is no ratio of times."""
    return {"what": what, "over": over, "found": found, "goal": goal}


def timed(one: dict[str, Any]) -> dict[str, Any]:
    """A row of times, and whether its median keeps to the goal."""
    return {**one, "passed": Spread(**one["wall ratio"]).median <= one["goal"]}


# -------------------------------------------------------------------------------------------------------------- memory


def weights_of(model: sl.LanguageModel) -> int:
    """Bytes of the weights."""
    return sum(weight.numel() * weight.element_size() for weight in model.model.parameters())


def counted_memory(model: sl.LanguageModel, size: Size) -> int:
    """Bytes at the peak of reading: weights, kept rows, and what a block's MLP holds at once.

    That is the stream and its normed copy, [token, width] each, and the gate's activation, the up projection and their
    product, [token, neuron] each; attention holds less.
    """
    config = size.config
    number = model.model.dtype.itemsize
    block = size.budget * (2 * config["hidden_size"] + 3 * config["intermediate_size"])
    kept = size.rows * config["num_hidden_layers"] * config["hidden_size"]
    return int(weights_of(model) + number * (block + kept))


def peak_memory(model: sl.LanguageModel, run: Callable[[], object]) -> int:
    """Bytes that tensors of the device take at most during a run, the weights included."""
    if model.device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        run()
        return torch.cuda.max_memory_allocated()
    tracker = MemTracker()
    tracker.track_external(model.model)
    with tracker:
        run()
    return int(tracker.get_tracker_snapshot("peak")[model.device]["Total"])


@contextmanager
def tight_memory(model: sl.LanguageModel, size: Size) -> Iterator[None]:
    """Half of what a batch of all prompts takes beside the weights; on a CPU a batch of more than half is refused."""
    if model.device.type != "cuda":
        with refused_batches(model, size.budget // 2):
            yield
        return
    torch.cuda.empty_cache()
    working = counted_memory(model, size) - weights_of(model)
    allowed = torch.cuda.memory_reserved() + working // 2
    torch.cuda.set_per_process_memory_fraction(allowed / torch.cuda.get_device_properties(0).total_memory)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


@contextmanager
def refused_batches(model: sl.LanguageModel, tokens: int) -> Iterator[None]:
    """Batches of more tokens run out of memory."""

    def refuse(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        if kwargs["input_ids"].numel() > tokens:
            raise torch.OutOfMemoryError("out of memory")

    handle = model.model.model.register_forward_pre_hook(refuse, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def counted_batches(model: sl.LanguageModel, batches: list[int]) -> Iterator[None]:
    """Writes down the rows of every batch that is begun."""
    handle = model.model.model.register_forward_pre_hook(
        lambda module, args, kwargs: batches.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    try:
        yield
    finally:
        handle.remove()


if __name__ == "__main__":
    main()
