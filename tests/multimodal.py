"""Tiny random multimodal models: a text part of a family of `families`, and what sees images."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import transformers
from families import _gated, _headed, _sliding
from transformers import PreTrainedModel

_eye: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 8,
    "patch_size": 4,
}
_qwen_eye: dict[str, Any] = {
    "depth": 1,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_heads": 2,
    "patch_size": 4,
    "out_hidden_size": 32,
}
_qwen_marks: dict[str, Any] = {
    "image_token_id": 310,
    "video_token_id": 311,
    "vision_start_token_id": 312,
    "vision_end_token_id": 313,
}


def _turned(*sections: int, **more: Any) -> dict[str, Any]:
    """Rotary positions in three parts: time, height, width."""
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": list(sections), **more}
    return {"rope_parameters": rope}


_tied = {"tie_word_embeddings": True}
WRAPPERS: dict[str, Callable[[], Any]] = {
    "llava": lambda: transformers.LlavaConfig(
        vision_config=transformers.CLIPVisionConfig(**_eye),
        text_config=transformers.LlamaConfig(**_gated),
        image_token_id=310,
    ),
    "llava_next": lambda: transformers.LlavaNextConfig(
        vision_config=transformers.CLIPVisionConfig(**_eye),
        text_config=transformers.MistralConfig(**_headed),
        image_token_id=310,
    ),
    "mistral3": lambda: transformers.Mistral3Config(
        vision_config=transformers.PixtralVisionConfig(**_eye),
        text_config=transformers.MistralConfig(**_headed),
        image_token_id=310,
    ),
    "qwen2_vl": lambda: transformers.Qwen2VLConfig(
        text_config={**_gated, **_turned(1, 1, 2)},
        vision_config={**_qwen_eye, "embed_dim": 16, "hidden_size": 32},
        **_qwen_marks,
    ),
    "qwen2_5_vl": lambda: transformers.Qwen2_5_VLConfig(
        text_config={**_gated, **_turned(1, 1, 2)},
        vision_config={**_qwen_eye, "fullatt_block_indexes": [0]},
        **_qwen_marks,
    ),
    "qwen3_vl": lambda: transformers.Qwen3VLConfig(
        text_config={**_headed, **_turned(2, 2, 2)},
        vision_config={**_qwen_eye, "deepstack_visual_indexes": [0], "num_position_embeddings": 4},
        **_qwen_marks,
    ),
    "qwen3_5": lambda: transformers.Qwen3_5Config(
        text_config={
            **_headed,
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 4,
            "linear_key_head_dim": 8,
            "linear_value_head_dim": 8,
            "layer_types": ["linear_attention", "full_attention", "linear_attention"],
            **_turned(1, 1, 1, partial_rotary_factor=0.5),
        },
        vision_config={**_qwen_eye, "num_position_embeddings": 4},
        **_qwen_marks,
    ),
    "gemma3": lambda: transformers.Gemma3Config(
        vision_config=transformers.SiglipVisionConfig(**_eye),
        text_config=transformers.Gemma3TextConfig(**{**_sliding, **_tied}, query_pre_attn_scalar=12),
        mm_tokens_per_image=4,
        image_token_id=310,
    ),
    "paligemma": lambda: transformers.PaliGemmaConfig(
        vision_config=transformers.SiglipVisionConfig(**_eye),
        text_config=transformers.GemmaConfig(**{**_headed, **_tied}),
        image_token_id=310,
        projection_dim=32,
    ),
    "smolvlm": lambda: transformers.SmolVLMConfig(
        vision_config=dict(_eye), text_config=transformers.LlamaConfig(**_gated), image_token_id=310
    ),
    "internvl": lambda: transformers.InternVLConfig(
        vision_config={**_eye, "image_size": [8, 8], "patch_size": [4, 4]},
        text_config=transformers.Qwen2Config(**_gated),
        image_token_id=310,
    ),
}


def build_wrapper(kind: str) -> PreTrainedModel:
    """A random multimodal model in float32 and evaluation mode, norms and biases drawn too."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = transformers.AutoModelForImageTextToText.from_config(WRAPPERS[kind](), dtype=torch.float32)
        for name, parameter in model.named_parameters():
            is_gain = parameter.dim() == 1 and name.endswith("weight")
            noise = (0.3 if parameter.dim() > 1 else 0.2) * torch.randn_like(parameter)
            parameter.data = parameter.data + noise if is_gain else noise
    model.config.architectures = [type(model).__name__]
    return model.eval()
