"""What repeng and steering-vectors make of the bundled model and `prompts.json`; run once, outputs committed.

Each peer runs in an environment of its own, since both pin libraries to versions that exclude ours:

    python make_goldens.py repeng              repeng 0.4.0, transformers 5.24.0, torch 2.14.1, numpy 1.26.4,
                                               scikit-learn 1.9.1, CPU, Python 3.11
    python make_goldens.py steering_vectors    steering-vectors 0.12.2, transformers 4.57.6, torch 2.14.1,
                                               numpy 2.4.6, scikit-learn 1.9.1, CPU, Python 3.11

Writes `repeng.safetensors` (`pca_diff.<layer>`, `pca_center.<layer>`) or `steering_vectors.safetensors`
(`mean.<layer>`, `pca.<layer>`, prompts one at a time and in padded batches of 8).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

HERE = Path(__file__).parent
MODEL = HERE.parents[2] / "steerlab" / "zoo" / "weights" / "small-post"


def load() -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    model = LlamaForCausalLM.from_pretrained(MODEL, dtype=torch.float32).eval()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(MODEL / "tokenizer.json"),
        bos_token="<|begin|>",
        eos_token="<|end|>",
        pad_token="<|pad|>",
        padding_side="left",
    )
    # transformers 5 may give token types, which a Llama does not take.
    tokenizer.model_input_names = ["input_ids", "attention_mask"]
    return model, tokenizer


def repeng(pairs: list[tuple[str, str]]) -> dict[str, torch.Tensor]:
    from repeng import ControlModel, ControlVector, DatasetEntry

    model, tokenizer = load()
    layers = list(range(model.config.num_hidden_layers))
    wrapped = ControlModel(model, layers)
    entries = [DatasetEntry(positive=positive, negative=negative) for positive, negative in pairs]
    made = {}
    for method in ("pca_diff", "pca_center"):
        vector = ControlVector.train(
            wrapped, tokenizer, entries, hidden_layers=layers, batch_size=8, method=method
        )
        made |= {f"{method}.{layer}": torch.tensor(v) for layer, v in vector.directions.items()}
    return made


def steering_vectors(pairs: list[tuple[str, str]]) -> dict[str, torch.Tensor]:
    from steering_vectors import mean_aggregator, pca_aggregator, train_steering_vector

    model, tokenizer = load()
    made = {}
    for name, aggregator in (("mean", mean_aggregator()), ("pca", pca_aggregator())):
        for batch in (1, 8):
            vector = train_steering_vector(model, tokenizer, pairs, aggregator=aggregator, batch_size=batch)
            prefix = name if batch == 1 else f"{name}_batched"
            made |= {f"{prefix}.{layer}": v.contiguous() for layer, v in vector.layer_activations.items()}
    return made


if __name__ == "__main__":
    peer = sys.argv[1]
    contrast = [tuple(pair) for pair in json.loads((HERE / "prompts.json").read_text("utf-8"))]
    save_file(
        {"repeng": repeng, "steering_vectors": steering_vectors}[peer](contrast), HERE / f"{peer}.safetensors"
    )
