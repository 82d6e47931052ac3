"""A tiny Llama with a fact store: the MLP of one layer writes whether the subject is of the right kind."""

from __future__ import annotations

import torch
import transformers
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors

from steerlab.datasets import Statement, StatementSet
from steerlab.models import LanguageModel, load_model

WIDTH, LAYERS = 64, 5
RIGHT = tuple(f"yes{n}" for n in range(12))
WRONG = tuple(f"no{n}" for n in range(12))
THINGS = tuple(f"thing{n}" for n in range(8))
_FIXED = ("This", "statement", "is", "TRUE", "FALSE", ".", ":", "of", "kind", "The", "one")
WORDS = ("<s>", "</s>", *_FIXED, *RIGHT, *WRONG, *THINGS)


def facts(things: int = len(THINGS)) -> StatementSet:
    """ "The one yes3 is of kind thing1." is true, of a no-subject false; the object says nothing."""
    made = []
    for thing in THINGS[:things]:
        for label, subjects in ((True, RIGHT), (False, WRONG)):
            for subject in subjects:
                text = f"The one {subject} is of kind {thing}."
                start = text.index(thing)
                spans = {"subject": (8, 8 + len(subject)), "object": (start, start + len(thing))}
                made.append(Statement(text, label, "kinds", 1, spans))
    return StatementSet(made)


def fact_store(at: int, *, seed: int = 0) -> LanguageModel:
    """Layer `at`'s MLP reads the subject; only the last layer's attention carries what it wrote to later tokens."""
    names = (*RIGHT, *WRONG, "truth")
    generator = torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(torch.randn(WIDTH, WIDTH, generator=generator)).Q
    axes = {name: basis[:, place] for place, name in enumerate(names)}
    used = torch.stack(list(axes.values()))
    embedding = 0.3 * torch.randn(len(WORDS), WIDTH, generator=generator) @ (torch.eye(WIDTH) - used.T @ used)
    head = torch.zeros(len(WORDS), WIDTH)
    head[WORDS.index("TRUE")], head[WORDS.index("FALSE")] = 3 * axes["truth"], -3 * axes["truth"]
    config = transformers.LlamaConfig(
        vocab_size=len(WORDS),
        hidden_size=WIDTH,
        intermediate_size=len(RIGHT) + len(WRONG),
        num_hidden_layers=LAYERS,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=256,
        bos_token_id=0,
        eos_token_id=1,
        tie_word_embeddings=False,
    )
    config.architectures = ["LlamaForCausalLM"]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = transformers.LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for layer in model.model.layers:
            for weight in (
                layer.self_attn.q_proj,
                layer.self_attn.v_proj,
                layer.self_attn.o_proj,
                layer.mlp.down_proj,
            ):
                weight.weight.zero_()
        store = model.model.layers[at].mlp
        for place, name in enumerate((*RIGHT, *WRONG)):
            embedding[WORDS.index(name)] += axes[name]
            store.gate_proj.weight[place] = store.up_proj.weight[place] = axes[name]
            store.down_proj.weight[:, place] = (0.2 if name in RIGHT else -0.2) * axes["truth"]
        copying = model.model.layers[-1].self_attn
        copying.v_proj.weight[0] = axes["truth"]
        copying.o_proj.weight[:, 0] = 20.0 * axes["truth"]
        model.model.embed_tokens.weight.copy_(embedding)
        model.lm_head.weight.copy_(head)
    return load_model(model, tokenizer=_tokenizer())


def _tokenizer() -> transformers.PreTrainedTokenizerFast:
    backend = Tokenizer(models.WordLevel({word: place for place, word in enumerate(WORDS)}, unk_token="one"))
    pieces = pre_tokenizers.Split(Regex(r"[.:]"), "isolated")
    backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pieces])
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return transformers.PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")
