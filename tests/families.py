"""Tiny randomly initialised models of every family the toolkit is tested on, and tiny tokenizers.

Nothing is downloaded: configurations are written out here, weights are drawn from a fixed seed (norm
gains and biases too, so that a forgotten gain or bias shows), and the tokenizers are byte-level BPE
trained in memory on a few sentences. `build("llama")` is a transformers model, `tiny("llama")` a
`LanguageModel` around it, `FAMILIES` the names.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedModel, PreTrainedTokenizerFast

#: Where the models of the tests live: `STEERLAB_DEVICE=cuda python -m pytest tests/models` asks a GPU.
DEVICE = torch.device(os.environ.get("STEERLAB_DEVICE", "cpu"))

LAYERS, WIDTH, HEADS, KV_HEADS, NEURONS, CONTEXT = 3, 32, 4, 2, 48, 64
VOCAB = 320

_common: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "max_position_embeddings": CONTEXT,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": None,
}
_gated: dict[str, Any] = {
    **_common,
    "num_key_value_heads": KV_HEADS,
    "intermediate_size": NEURONS,
    "tie_word_embeddings": False,
}
_headed: dict[str, Any] = {**_gated, "head_dim": 12}  # heads wider together than the stream: 4 x 12 = 48
_sliding: dict[str, Any] = {
    **_headed,
    "sliding_window": 8,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
}
_old_names: dict[str, Any] = {"vocab_size": VOCAB, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": None}
_gpt2: dict[str, Any] = {
    **_old_names,
    "n_embd": WIDTH,
    "n_layer": LAYERS,
    "n_head": HEADS,
    "n_positions": CONTEXT,
    "n_inner": NEURONS,
}
_experts: dict[str, Any] = {"num_experts_per_tok": 2, "output_router_logits": False}

_CONFIGS: dict[str, Callable[[], Any]] = {
    "llama": lambda: transformers.LlamaConfig(**_gated),
    "mistral": lambda: transformers.MistralConfig(**_headed, sliding_window=8),
    "qwen2": lambda: transformers.Qwen2Config(**_gated),
    "qwen3": lambda: transformers.Qwen3Config(**_headed),
    "gemma": lambda: transformers.GemmaConfig(**{**_headed, "tie_word_embeddings": True}),
    "gemma2": lambda: transformers.Gemma2Config(
        **{**_sliding, "tie_word_embeddings": True},
        final_logit_softcapping=3.0,
        attn_logit_softcapping=5.0,
        query_pre_attn_scalar=12,
    ),
    "gemma3": lambda: transformers.Gemma3TextConfig(
        **{**_sliding, "tie_word_embeddings": True}, query_pre_attn_scalar=12
    ),
    "phi": lambda: transformers.PhiConfig(
        **{**_gated, "num_key_value_heads": HEADS}, partial_rotary_factor=0.5
    ),
    "phi3": lambda: transformers.Phi3Config(**_gated, original_max_position_embeddings=CONTEXT),
    "gpt2": lambda: transformers.GPT2Config(**_gpt2),
    "gpt_neo": lambda: transformers.GPTNeoConfig(
        **_common,
        intermediate_size=NEURONS,
        num_layers=LAYERS,
        num_heads=HEADS,
        attention_types=[[["global", "local", "global"], 1]],
        window_size=8,
    ),
    "gpt_neox": lambda: transformers.GPTNeoXConfig(
        **_common, intermediate_size=NEURONS, tie_word_embeddings=False
    ),
    "gpt_neox_sequential": lambda: transformers.GPTNeoXConfig(
        **_common, intermediate_size=NEURONS, use_parallel_residual=False, tie_word_embeddings=False
    ),
    "gptj": lambda: transformers.GPTJConfig(**_gpt2, rotary_dim=4, tie_word_embeddings=False),
    "opt": lambda: transformers.OPTConfig(
        **{**_common, "pad_token_id": 1}, ffn_dim=NEURONS, word_embed_proj_dim=WIDTH
    ),
    "bloom": lambda: transformers.BloomConfig(**_old_names, hidden_size=WIDTH, n_layer=LAYERS, n_head=HEADS),
    "falcon": lambda: transformers.FalconConfig(
        **_common, new_decoder_architecture=True, num_kv_heads=KV_HEADS, ffn_hidden_size=NEURONS, bias=False
    ),
    "falcon_7b": lambda: transformers.FalconConfig(**_common, multi_query=True, parallel_attn=True),
    "falcon_alibi": lambda: transformers.FalconConfig(
        **_common, alibi=True, parallel_attn=False, multi_query=False, bias=True
    ),
    "olmo": lambda: transformers.OlmoConfig(**_gated),
    "olmo2": lambda: transformers.Olmo2Config(**_gated),
    "stablelm": lambda: transformers.StableLmConfig(**_gated, use_qkv_bias=True),
    "stablelm_parallel": lambda: transformers.StableLmConfig(**_gated, use_parallel_residual=True),
    "granite": lambda: transformers.GraniteConfig(
        **_gated,
        residual_multiplier=0.3,
        embedding_multiplier=5.0,
        logits_scaling=2.0,
        attention_multiplier=0.2,
    ),
    "cohere": lambda: transformers.CohereConfig(**{**_gated, "tie_word_embeddings": True}, logit_scale=0.25),
    "smollm3": lambda: transformers.SmolLM3Config(**_gated, no_rope_layers=[1, 0, 1]),
    "mixtral": lambda: transformers.MixtralConfig(**_headed, num_local_experts=4, **_experts),
    "qwen3_moe": lambda: transformers.Qwen3MoeConfig(
        **_headed, num_experts=4, moe_intermediate_size=16, mlp_only_layers=[1], **_experts
    ),
    "gpt_oss": lambda: transformers.GptOssConfig(**_sliding, num_local_experts=4, **_experts),
}
FAMILIES = tuple(_CONFIGS)

_mamba: dict[str, Any] = {
    "mamba_n_heads": 4,
    "mamba_d_head": 16,
    "mamba_d_state": 8,
    "mamba_n_groups": 1,
    "mamba_chunk_size": 16,
}
_linear: dict[str, Any] = {
    **_headed,
    "layer_types": ["linear_attention", "full_attention", "linear_attention"],
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}
_conv: dict[str, Any] = {**_gated, "layer_types": ["conv", "full_attention", "conv"]}
_routed: dict[str, Any] = {"num_experts": 4, "moe_intermediate_size": 16, **_experts}

# Blocks that are not all attention, and more families for the table of ways (`test_every_way`).
_MORE: dict[str, Callable[[], Any]] = {
    "qwen3_next": lambda: transformers.Qwen3NextConfig(
        **_linear, **_routed, shared_expert_intermediate_size=16, decoder_sparse_step=1
    ),
    "qwen3_5": lambda: transformers.Qwen3_5TextConfig(**_linear),
    "qwen3_5_moe": lambda: transformers.Qwen3_5MoeTextConfig(
        **_linear, **_routed, shared_expert_intermediate_size=16
    ),
    "lfm2": lambda: transformers.Lfm2Config(**_conv),
    "lfm2_moe": lambda: transformers.Lfm2MoeConfig(**_conv, **_routed, num_dense_layers=1),
    "bamba": lambda: transformers.BambaConfig(**_gated, **_mamba, attn_layer_indices=[1]),
    "jamba": lambda: transformers.JambaConfig(
        **_gated,
        attn_layer_period=2,
        attn_layer_offset=1,
        expert_layer_period=2,
        expert_layer_offset=1,
        num_experts=4,
        num_experts_per_tok=2,
        mamba_d_state=8,
        mamba_d_conv=4,
        mamba_expand=2,
        use_mamba_kernels=False,
    ),
    "falcon_h1": lambda: transformers.FalconH1Config(
        **_gated,
        **_mamba,
        mamba_d_ssm=64,
        attention_out_multiplier=0.5,
        ssm_out_multiplier=0.7,
        lm_head_multiplier=0.6,
    ),
    "granite_hybrid": lambda: transformers.GraniteMoeHybridConfig(
        **_gated,
        **_mamba,
        layer_types=["mamba", "attention", "mamba"],
        num_local_experts=0,
        shared_intermediate_size=NEURONS,
        residual_multiplier=0.3,
    ),
    "nemotron_h": lambda: transformers.NemotronHConfig(
        **{key: value for key, value in _gated.items() if key != "num_hidden_layers"},
        layers_block_type=["mamba", "attention", "moe"],
        mamba_num_heads=4,
        mamba_head_dim=16,
        ssm_state_size=8,
        n_groups=1,
        chunk_size=16,
        moe_intermediate_size=16,
        moe_shared_expert_intermediate_size=16,
        n_routed_experts=4,
        num_experts_per_tok=2,
        head_dim=8,
    ),
    "mamba": lambda: transformers.MambaConfig(
        **_old_names, hidden_size=WIDTH, num_hidden_layers=LAYERS, state_size=8
    ),
    "mamba2": lambda: transformers.Mamba2Config(
        **_old_names,
        hidden_size=WIDTH,
        num_hidden_layers=LAYERS,
        state_size=8,
        num_heads=4,
        head_dim=16,
        n_groups=1,
        chunk_size=16,
    ),
    "arcee": lambda: transformers.ArceeConfig(**_gated),
    "apertus": lambda: transformers.ApertusConfig(**_gated),
    "codegen": lambda: transformers.CodeGenConfig(**_gpt2, rotary_dim=4),
    "cohere2": lambda: transformers.Cohere2Config(
        **{**_sliding, "tie_word_embeddings": True}, logit_scale=0.25
    ),
    "ernie4_5": lambda: transformers.Ernie4_5Config(**_gated),
    "ernie4_5_moe": lambda: transformers.Ernie4_5_MoeConfig(
        **_gated, moe_num_experts=4, moe_intermediate_size=16, moe_k=2, moe_layer_start_index=1
    ),
    "exaone4": lambda: transformers.Exaone4Config(**_sliding),
    "glm": lambda: transformers.GlmConfig(**_headed),
    "glm4": lambda: transformers.Glm4Config(**_headed),
    "glm4_moe": lambda: transformers.Glm4MoeConfig(
        **_headed,
        n_routed_experts=4,
        moe_intermediate_size=16,
        num_experts_per_tok=2,
        first_k_dense_replace=1,
        n_group=1,
        topk_group=1,
    ),
    "granite_moe": lambda: transformers.GraniteMoeConfig(**_gated, num_local_experts=4, **_experts),
    "gpt_bigcode": lambda: transformers.GPTBigCodeConfig(**_gpt2),
    "hunyuan_dense": lambda: transformers.HunYuanDenseV1Config(**_headed),
    "ministral3": lambda: transformers.Ministral3Config(**_headed),
    "mpt": lambda: transformers.MptConfig(
        **_old_names, d_model=WIDTH, n_layers=LAYERS, n_heads=HEADS, expansion_ratio=2, max_seq_len=CONTEXT
    ),
    "nemotron": lambda: transformers.NemotronConfig(**_gated),
    "olmo3": lambda: transformers.Olmo3Config(**_sliding),
    "olmoe": lambda: transformers.OlmoeConfig(**_gated, num_experts=4, **_experts),
    "qwen2_moe": lambda: transformers.Qwen2MoeConfig(**_gated, **_routed, shared_expert_intermediate_size=16),
    "seed_oss": lambda: transformers.SeedOssConfig(**_headed),
    "starcoder2": lambda: transformers.Starcoder2Config(**_gated),
    "vaultgemma": lambda: transformers.VaultGemmaConfig(**_sliding, query_pre_attn_scalar=12),
    "xglm": lambda: transformers.XGLMConfig(
        **_old_names,
        d_model=WIDTH,
        ffn_dim=NEURONS,
        num_layers=LAYERS,
        attention_heads=HEADS,
        max_position_embeddings=CONTEXT,
    ),
    "deepseek_v2": lambda: transformers.DeepseekV2Config(
        **{**_gated, "num_key_value_heads": HEADS},
        n_routed_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=16,
        n_shared_experts=1,
        first_k_dense_replace=1,
        kv_lora_rank=8,
        q_lora_rank=8,
        qk_nope_head_dim=8,
        qk_rope_head_dim=8,
        v_head_dim=8,
        n_group=1,
        topk_group=1,
    ),
    "deepseek_v3": lambda: transformers.DeepseekV3Config(
        **{**_gated, "num_key_value_heads": HEADS},
        n_routed_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=16,
        n_shared_experts=1,
        first_k_dense_replace=1,
        kv_lora_rank=8,
        q_lora_rank=8,
        qk_nope_head_dim=8,
        qk_rope_head_dim=8,
        v_head_dim=8,
        n_group=1,
        topk_group=1,
    ),
    "jetmoe": lambda: transformers.JetMoeConfig(
        **_old_names,
        hidden_size=WIDTH,
        num_hidden_layers=LAYERS,
        num_key_value_heads=2,
        kv_channels=8,
        intermediate_size=NEURONS,
        num_local_experts=4,
        num_experts_per_tok=2,
    ),
    "bitnet": lambda: transformers.BitNetConfig(**_gated),
    "minimax_m2": lambda: transformers.MiniMaxM2Config(**_headed, num_local_experts=4, num_experts_per_tok=2),
}
MORE = tuple(_MORE)


def build(family: str, *, seed: int = 0, **changes: Any) -> PreTrainedModel:
    """A random model of `family` in float32 and evaluation mode; `changes` overwrite its configuration."""
    config = (_CONFIGS | _MORE)[family]()
    for key, value in changes.items():
        setattr(config, key, value)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        for name, parameter in model.named_parameters():
            spread = 0.3 if parameter.dim() > 1 else 0.2
            noise = spread * torch.randn_like(parameter)
            is_gain = parameter.dim() == 1 and name.endswith("weight")
            parameter.data = parameter.data + noise if is_gain else noise
    config.architectures = [type(model).__name__]
    config.name_or_path = f"tiny-{family}"
    return model.eval().to(DEVICE)


_CORPUS = (
    "The capital of France is Paris. The capital of Italy is Rome. Is a cat an animal? Yes, a cat is an animal.",
    "User: How do I bake bread?\nAssistant: You can bake bread in an oven, slowly and with patience.",
    "This statement is: TRUE. This statement is: FALSE. Two plus two is four; three plus four is seven.",
)

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    "<|{{ message['role'] }}|>\n{{ message['content'] | trim }}{{ eos_token }}\n"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)


@cache
def _trained() -> str:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<s>", "</s>", "<|user|>", "<|assistant|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_CORPUS, trainer)
    return tokenizer.to_str()


def tiny_tokenizer(*, bos: bool = True, chat: bool = False, pad: bool = False) -> PreTrainedTokenizerFast:
    """Byte-level BPE of 300 tokens: `bos` prepends `<s>` by itself, `chat` adds a template that writes it."""
    backend = Tokenizer.from_str(_trained())
    if bos:
        backend.post_processor = processors.TemplateProcessing(
            single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 0)]
        )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="</s>" if pad else None
    )
    if chat:
        tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def tiny(
    family: str = "llama", *, bos: bool = True, chat: bool = False, seed: int = 0, **changes: Any
) -> Any:
    """A `LanguageModel` around `build(family)` and `tiny_tokenizer(...)`."""
    from steerlab.models import load_model

    return load_model(build(family, seed=seed, **changes), tokenizer=tiny_tokenizer(bos=bos, chat=chat))


#: Plain texts of several lengths.
TEXTS = [
    "Paris is a city in France.",
    "The cat sat on the mat and slept.",
    "Water boils when it is hot enough.",
]
