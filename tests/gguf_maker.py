"""A tiny Qwen2 as llama.cpp stores it: one GGUF file, or several parts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import torch
from families import KV_HEADS, LAYERS, build, tiny_tokenizer

_LAYER = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_NAMES = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"} | {
    f"model.layers.{layer}.{theirs}": f"blk.{layer}.{ours}"
    for layer in range(LAYERS)
    for ours, theirs in _LAYER.items()
}


def write_gguf(file: Path, *, tensors_a_part: int = 0) -> Any:
    """Write the file, or `name-00001-of-….gguf` beside each other; the transformers model it is of comes back."""
    model = build("qwen2")
    config, writer = model.config, gguf.GGUFWriter(file, "qwen2", split_max_tensors=tensors_a_part)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    _add_tokenizer(writer, config.vocab_size)
    for name, parameter in model.named_parameters():
        module, _, leaf = name.rpartition(".")
        writer.add_tensor(f"{_NAMES[module]}.{leaf}", parameter.detach().to(torch.float32).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model


def _add_tokenizer(writer: gguf.GGUFWriter, size: int) -> None:
    stored = json.loads(tiny_tokenizer().backend_tokenizer.to_str())["model"]
    words = sorted(stored["vocab"], key=stored["vocab"].get)
    words += [f"<unused{number}>" for number in range(size - len(words))]
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(words)
    writer.add_token_types([3 if word.startswith("<") and len(word) > 1 else 1 for word in words])
    writer.add_token_merges([pair if isinstance(pair, str) else " ".join(pair) for pair in stored["merges"]])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
