"""Two tiny models that compute the same: the second is the first in a rotated and wider stream.

The norms have no gains, so a rotation Q with orthonormal rows [width, wider] may be put into every reader and
writer: the wider stream is x Q, its root mean square smaller by √(width / wider), which gains and the norm's
epsilon make up for.
"""

from __future__ import annotations

import torch
import transformers
from families import tiny_tokenizer
from torch import Tensor

from steerlab.models import LanguageModel, load_model

WIDTH, WIDER, LAYERS, VOCAB = 24, 40, 3, 320


def turn(seed: int = 7) -> Tensor:
    """Q: [width, wider], orthonormal rows."""
    drawn = torch.randn(WIDER, WIDTH, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.linalg.qr(drawn).Q.T.float()


def pair() -> tuple[LanguageModel, LanguageModel]:
    """The model and its wider copy."""
    torch.manual_seed(0)
    narrow = _empty(WIDTH, 1e-6)
    with torch.no_grad():
        for name, weight in narrow.named_parameters():
            weight.fill_(1.0) if "norm" in name else weight.normal_(std=0.2)
    wide = _empty(WIDER, 1e-6 * WIDTH / WIDER)
    q = turn()
    given = dict(narrow.named_parameters())
    with torch.no_grad():
        for name, weight in wide.named_parameters():
            source = given[name]
            if "norm" in name:
                weight.fill_((WIDTH / WIDER) ** 0.5)
            elif any(part in name for part in ("o_proj", "down_proj")):
                weight.copy_(q.T @ source)
            else:  # embedding, unembedding and everything that reads the stream
                weight.copy_(source @ q)
    return load_model(narrow, tokenizer=tiny_tokenizer()), load_model(wide, tokenizer=tiny_tokenizer())


def _empty(width: int, epsilon: float) -> transformers.LlamaForCausalLM:
    config = transformers.LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=width,
        intermediate_size=32,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=8,
        rms_norm_eps=epsilon,
        tie_word_embeddings=False,
        max_position_embeddings=64,
        bos_token_id=0,
        eos_token_id=1,
    )
    return transformers.LlamaForCausalLM(config).eval()
