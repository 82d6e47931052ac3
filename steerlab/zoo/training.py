"""Pretraining and post-training of the bundled models, on CPU, from fixed seeds.

Llama shape, bfloat16 matrix products with float32 weights; Muon for the matrices of the blocks, AdamW for embeddings,
unembedding and norms; the rate rises for a moment, stays, and falls to zero over the last part of the steps.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from steerlab.zoo.corpus import CURRICULUM, POST_TRAINING, REVISION, Stage, documents, pretraining
from steerlab.zoo.packing import IGNORED, Batch, batches
from steerlab.zoo.tokenizer import BEGIN, END, PAD, train_tokenizer, wrap

BASE, POST = "base", "post"
PRETRAINING_SEED, POST_TRAINING_SEED, REVISION_SEED = 5, 2, 17


class Track(Protocol):
    """A progress bar around an iterable, as `steerlab.progress.track`."""

    def __call__(self, iterable: Iterable[int], description: str, total: int | None = None) -> Iterable[int]:
        """The iterable itself, shown as it goes."""
        ...


@dataclass(frozen=True, slots=True)
class Scale:
    """The shape of a model and how long it is trained."""

    name: str
    width: int
    layers: int
    heads: int
    key_value_heads: int
    mlp: int
    steps: int
    post_steps: int
    rows: int = 24
    matrix_rate: float = 0.012
    vector_rate: float = 0.004
    post_rate: float = 0.25
    fall: int = 950
    revision_steps: int = 0
    curriculum: tuple[Stage, ...] = CURRICULUM

    def config(self, tokenizer: PreTrainedTokenizerFast) -> LlamaConfig:
        """The transformers configuration."""
        ids = {name: tokenizer.convert_tokens_to_ids(token) for name, token in _SPECIAL_IDS.items()}
        return LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=self.width,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.key_value_heads,
            intermediate_size=self.mlp,
            max_position_embeddings=512,
            rms_norm_eps=1e-5,
            tie_word_embeddings=False,
            **ids,
        )


_SPECIAL_IDS = {"bos_token_id": BEGIN, "eos_token_id": END, "pad_token_id": PAD}
SCALES = {
    "small": Scale("small", 128, 4, 4, 4, 384, steps=1800, post_steps=600, rows=16),
    "large": Scale("large", 256, 5, 4, 2, 512, steps=1800, post_steps=600, rows=20, revision_steps=300),
}


@dataclass(frozen=True, slots=True)
class Run:
    """One run of the training loop: its length, and how its rates rise, stay and fall to zero."""

    description: str
    steps: int
    warm: int
    fall: int
    factor: float

    def slope(self, step: int) -> float:
        """The share of the full rate at a step."""
        return min(1.0, (step + 1) / self.warm, (self.steps - step) / max(1, self.fall))


def train_pair(
    out: Path,
    scale: Scale,
    *,
    seed: int = 0,
    progress: Track | None = None,
    compiled: bool = False,
    tokenizer: PreTrainedTokenizerFast | None = None,
) -> tuple[Path, Path]:
    """Train base and post-trained model of a scale from nothing into `out/<scale>-base` and `out/<scale>-post`."""
    base, post = (out / f"{scale.name}-{kind}" for kind in (BASE, POST))
    tokenizer = tokenizer or train_tokenizer(seed)
    pretrain(base, scale, tokenizer, seed=seed, progress=progress, compiled=compiled)
    if scale.revision_steps:
        revise(base, scale, tokenizer, seed=seed, progress=progress, compiled=compiled)
    post_train(base, post, scale, tokenizer, seed=seed, progress=progress, compiled=compiled)
    return base, post


def pretrain(
    base: Path,
    scale: Scale,
    tokenizer: PreTrainedTokenizerFast,
    *,
    seed: int,
    progress: Track | None = None,
    compiled: bool = False,
) -> None:
    """Train a base model from nothing and store it."""
    torch.manual_seed(seed)
    model = LlamaForCausalLM(scale.config(tokenizer))
    done = [0]
    reading = pretraining(seed + PRETRAINING_SEED, lambda: done[0], scale.curriculum)
    run = Run(f"{base.name}: pretraining", scale.steps, warm=50, fall=scale.fall, factor=1.0)
    _fit(
        model, batches(reading, tokenizer, rows=scale.rows, whole=True), scale, run, done, progress, compiled
    )
    save(model, tokenizer, base, chat=False)


def revise(
    base: Path,
    scale: Scale,
    tokenizer: PreTrainedTokenizerFast,
    *,
    seed: int,
    progress: Track | None = None,
    compiled: bool = False,
) -> None:
    """Train a stored base model on more facts and labelled statements, at half the rate, and store it again."""
    model = LlamaForCausalLM.from_pretrained(base, dtype=torch.float32)
    reading = pretraining(seed + REVISION_SEED, lambda: 0, REVISION)
    name = f"{base.name}: revision"
    run = Run(name, scale.revision_steps, warm=25, fall=scale.revision_steps - 25, factor=0.5)
    _fit(model, batches(reading, tokenizer, rows=scale.rows, whole=True), scale, run, [0], progress, compiled)
    save(model, tokenizer, base, chat=False)


def post_train(
    base: Path,
    post: Path,
    scale: Scale,
    tokenizer: PreTrainedTokenizerFast,
    *,
    seed: int,
    progress: Track | None = None,
    compiled: bool = False,
) -> None:
    """Train a stored base model further and store the result."""
    model = LlamaForCausalLM.from_pretrained(base, dtype=torch.float32)
    answers = documents(POST_TRAINING, seed + POST_TRAINING_SEED)
    name = f"{post.name}: post-training"
    run = Run(name, scale.post_steps, warm=25, fall=scale.post_steps // 2, factor=scale.post_rate)
    _fit(
        model, batches(answers, tokenizer, rows=scale.rows, whole=False), scale, run, [0], progress, compiled
    )
    save(model, tokenizer, post, chat=True)


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path, *, chat: bool) -> None:
    """Write an ordinary transformers folder with bfloat16 weights."""
    shutil.rmtree(folder, ignore_errors=True)
    stored = LlamaForCausalLM(model.config)
    stored.load_state_dict(model.state_dict())
    stored.generation_config = GenerationConfig(
        **{name: tokenizer.convert_tokens_to_ids(token) for name, token in _SPECIAL_IDS.items()},
        max_new_tokens=64,
    )
    stored.to(torch.bfloat16).save_pretrained(folder)
    wrap(tokenizer.backend_tokenizer, chat=chat).save_pretrained(folder)


def loss(model: nn.Module, batch: Batch) -> Tensor:
    """Weighted mean loss per learnt token of a packed batch, in nats."""
    mask = torch.zeros(batch.attends.shape, dtype=torch.bfloat16).masked_fill(~batch.attends, -1e4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(input_ids=batch.input_ids, attention_mask=mask, use_cache=False).logits
    predicted, wanted = logits[:, :-1].float().flatten(0, 1), batch.labels[:, 1:].flatten()
    losses = nn.functional.cross_entropy(predicted, wanted, ignore_index=IGNORED, reduction="none")
    weights = batch.weights[:, 1:].flatten() * (wanted != IGNORED)
    return (losses * weights).sum() / weights.sum()


def _fit(
    model: LlamaForCausalLM,
    stream: Iterator[Batch],
    scale: Scale,
    run: Run,
    done: list[int],
    progress: Track | None,
    compiled: bool,
) -> None:
    """Train in place; `done` holds the number of steps made, for whoever makes the stream."""
    model.train()
    model.set_attn_implementation("eager")
    objective: Callable[[nn.Module, Batch], Tensor] = torch.compile(loss) if compiled else loss
    optimizers = _optimizers(model, scale)
    rates = [(group, group["lr"]) for optimizer in optimizers for group in optimizer.param_groups]
    numbers: Iterable[int] = range(run.steps)
    for step in progress(numbers, run.description, run.steps) if progress else numbers:
        done[0] = step
        for group, rate in rates:
            group["lr"] = rate * run.factor * run.slope(step)
        objective(model, next(stream)).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
        model.zero_grad(set_to_none=True)
    model.eval()


def _optimizers(model: LlamaForCausalLM, scale: Scale) -> list[torch.optim.Optimizer]:
    matrices = [weight for weight in model.model.layers.parameters() if weight.ndim == 2]
    chosen = {id(weight) for weight in matrices}
    others = [weight for weight in model.parameters() if id(weight) not in chosen]
    return [
        torch.optim.Muon(matrices, lr=scale.matrix_rate, weight_decay=0.05, adjust_lr_fn="original"),
        torch.optim.AdamW(others, lr=scale.vector_rate, betas=(0.9, 0.98), weight_decay=0.0, fused=True),
    ]
