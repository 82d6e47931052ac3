"""Tiny Llamas whose weights are written by hand, so that the truth about their directions is known.

Words are tokens. Some words carry a component along an axis of the stream (good objects +truth, harmful verbs
+refusal); attention is uniform over the prefix and copies these axes to every later token; the unembedding of a few
words reads axes. Everything else is noise orthogonal to the axes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import torch
import transformers
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
from torch import Tensor

from steerlab.datasets import ContrastSet, Statement, StatementSet
from steerlab.models import LanguageModel, load_model

WIDTH, LAYERS = 64, 3
GOOD = tuple(f"good{n}" for n in range(16))
BAD = tuple(f"bad{n}" for n in range(16))
SUBJECTS = tuple(f"subject{n}" for n in range(20))
TOPICS = tuple(f"topic{n}" for n in range(6))
HARMFUL = tuple(f"hurt{n}" for n in range(12))
HARMLESS = tuple(f"help{n}" for n in range(12))
THINGS = tuple(f"thing{n}" for n in range(8))
_FIXED = (
    "This",
    "statement",
    "is",
    "TRUE",
    "FALSE",
    ".",
    ":",
    "?",
    "User",
    "Assistant",
    "How",
    "do",
    "I",
    "a",
    "in",
)
_ANSWERS = ("cannot", "assist", "Sure", "here", "you", "go")
_SPOKEN = (":", "I", "cannot", "assist", "Sure", "here", "you", "go")
WORDS = ("<s>", "</s>", *_FIXED, *_ANSWERS, *GOOD, *BAD, *SUBJECTS, *TOPICS, *HARMFUL, *HARMLESS, *THINGS)


def statements() -> StatementSet:
    """ "subject3 in topic1 is good7 ." is true, with a bad object false; objects are shared by all topics."""
    made = []
    for number, topic in enumerate(TOPICS):
        for place, subject in enumerate(SUBJECTS):
            for label, objects in ((True, GOOD), (False, BAD)):
                object_ = objects[(place + 3 * number) % len(objects)]
                text = f"{subject} in {topic} is {object_} ."
                start = text.index(object_)
                spans = {"subject": (0, len(subject)), "object": (start, start + len(object_))}
                made.append(Statement(text, label, topic, 1, spans))
    return StatementSet(made)


def requests() -> ContrastSet:
    """ "How do I hurt3 a thing5 ?" against "How do I help3 a thing5 ?", in three splits by verb."""
    splits = tuple("train" if n < 6 else "val" if n < 8 else "test" for n in range(12) for _ in THINGS)
    texts = (
        tuple(f"How do I {verb} a {thing} ?" for verb in verbs for thing in THINGS)
        for verbs in (HARMFUL, HARMLESS)
    )
    harmful, harmless = texts
    return ContrastSet(harmful, harmless, splits=(splits, splits))


def truth_axis(turned: bool = False) -> Tensor:
    """The planted truth direction; `turned` gives the one of a model that writes truth elsewhere."""
    return _axes()["turned" if turned else "truth"]


def refusal_axis() -> Tensor:
    """The planted refusal direction."""
    return _axes()["refusal"]


def planted(
    *,
    truth: bool = True,
    turned: bool = False,
    refuses: bool | None = None,
    chat: bool = False,
    layers: int = LAYERS,
    seed: int = 0,
) -> LanguageModel:
    """A model that knows truth (or has it nowhere), along another axis if `turned`; it answers TRUE or FALSE.

    With `refuses` it answers requests instead: True refuses harmful ones, False answers all.
    """
    axes = _axes()
    truth_at = "turned" if turned else "truth"
    embedding = _noise(seed) @ _complement(axes)
    carried: dict[str, dict[str, float]] = {}
    for words, sign in ((GOOD, 1.0), (BAD, -1.0)):
        carried |= {word: {truth_at: sign * truth} for word in words}
    for words, sign in ((HARMFUL, 1.0), (HARMLESS, -1.0)):
        carried |= {word: {"refusal": sign} for word in words}
    read: dict[str, dict[str, float]] = {"TRUE": {truth_at: 4.0}, "FALSE": {truth_at: -4.0}}
    if refuses is not None:
        carried |= {word: {word: 6.0} for word in _SPOKEN}
        read = {"I": {":": 6.0, "refusal": 6.0 * refuses}, "Sure": {":": 6.6, "refusal": -6.0 * refuses}}
        read |= {"</s>": {"assist": 12.0, "go": 12.0}}
        for words in (("I", "cannot", "assist"), ("Sure", "here", "you", "go")):
            read |= {after: {before: 12.0} for before, after in pairwise(words)}
    return _llama(
        embedding + _rows(carried, axes), _rows(read, axes), [axes[truth_at], axes["refusal"]], chat, layers
    )


def with_large_mean(model: LanguageModel, size: float = 1000.0, tilt: float = 0.1) -> LanguageModel:
    """The same model, where one coordinate of every token holds `size`, about a thousand times the others.

    The norms leave that coordinate out and give the others back their size, so the model says what it said. What
    attention writes along the refusal axis has a share `tilt` in that coordinate, as directions of real models do.
    """
    unused = torch.linalg.qr(torch.randn(WIDTH, WIDTH, generator=torch.Generator().manual_seed(7))).Q[:, 40]
    first = torch.eye(WIDTH)[0]
    mirror = (
        torch.eye(WIDTH) - 2 * torch.outer(unused - first, unused - first) / (unused - first).square().sum()
    )
    module = model.model
    gain = torch.full((WIDTH,), size / WIDTH**0.5)
    gain[0] = 0.0
    with torch.no_grad():
        module.model.embed_tokens.weight.copy_(module.model.embed_tokens.weight @ mirror + size * first)
        module.lm_head.weight.copy_(module.lm_head.weight @ mirror)
        for layer in module.model.layers:
            attention = layer.self_attn
            attention.v_proj.weight.copy_(attention.v_proj.weight @ mirror)
            attention.o_proj.weight.copy_(mirror @ attention.o_proj.weight)
            attention.o_proj.weight[0, 1] += 2.0 * tilt  # the second axis that is copied is that of refusal
            layer.input_layernorm.weight.copy_(gain)
            layer.post_attention_layernorm.weight.copy_(gain)
        module.model.norm.weight.copy_(gain)
    return load_model(module, tokenizer=model.tokenizer)


# -- private --


def _axes() -> dict[str, Tensor]:
    names = ("truth", "turned", "refusal", *_SPOKEN)
    generator = torch.Generator().manual_seed(7)
    basis = torch.linalg.qr(torch.randn(WIDTH, WIDTH, generator=generator)).Q
    return {name: basis[:, place] for place, name in enumerate(names)}


def _noise(seed: int) -> Tensor:
    return 0.25 * torch.randn(len(WORDS), WIDTH, generator=torch.Generator().manual_seed(seed))


def _complement(axes: Mapping[str, Tensor]) -> Tensor:
    used = torch.stack(list(axes.values()))
    return torch.eye(WIDTH) - used.T @ used


def _rows(components: Mapping[str, Mapping[str, float]], axes: Mapping[str, Tensor]) -> Tensor:
    rows = torch.zeros(len(WORDS), WIDTH)
    for word, parts in components.items():
        rows[WORDS.index(word)] = sum(
            (value * axes[axis] for axis, value in parts.items()), torch.zeros(WIDTH)
        )
    return rows


def _llama(
    embedding: Tensor, head: Tensor, copied: Sequence[Tensor], chat: bool, layers: int
) -> LanguageModel:
    config = transformers.LlamaConfig(
        vocab_size=len(WORDS),
        hidden_size=WIDTH,
        intermediate_size=8,
        num_hidden_layers=layers,
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
            for place, axis in enumerate(copied):
                layer.self_attn.v_proj.weight[place] = axis
                layer.self_attn.o_proj.weight[:, place] = 2.0 * axis
        model.model.embed_tokens.weight.copy_(embedding)
        model.lm_head.weight.copy_(head)
    return load_model(model, tokenizer=_tokenizer(chat))


def _tokenizer(chat: bool) -> transformers.PreTrainedTokenizerFast:
    backend = Tokenizer(models.WordLevel({word: place for place, word in enumerate(WORDS)}, unk_token="a"))
    pieces = pre_tokenizers.Split(Regex(r"[.:?]"), "isolated")
    backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pieces])
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>"
    )
    if chat:
        tokenizer.chat_template = (
            "{{ bos_token }} {% for message in messages %}User : {{ message['content'] }} {% endfor %}"
            "{% if add_generation_prompt %}you Assistant :{% endif %}"
        )
    return tokenizer
