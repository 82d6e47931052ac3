"""The bundled models' tokenizer: byte-level BPE trained on the corpus, every digit a token of its own.

Base and post-trained models share all token ids. Only the post-trained folder has a chat template.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from steerlab.zoo.corpus import POST_TRAINING, PRETRAINING, documents
from steerlab.zoo.documents import Maker
from steerlab.zoo.knowledge import plain_facts

VOCABULARY = 2048
SPECIAL = ("<|pad|>", "<|begin|>", "<|end|>", "<|user|>", "<|assistant|>")
PAD, BEGIN, END, USER, ASSISTANT = SPECIAL
_PIECES = r" ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'user' %}{{ '<|user|>\n' + message['content'] + '<|end|>\n' }}"
    "{% elif message['role'] == 'assistant' %}{{ '<|assistant|>\n' + message['content'] + '<|end|>\n' }}"
    "{% else %}{{ raise_exception('this model knows user and assistant messages only') }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)


def train_tokenizer(seed: int, *, size: int = VOCABULARY, sample: int = 30_000) -> PreTrainedTokenizerFast:
    """Train the tokenizer on a sample of both corpora, with extra facts so that names become few tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PIECES), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    only_facts: Mapping[Maker, float] = {plain_facts: 1.0}
    texts = [
        document.whole
        for mixture, count in (
            (PRETRAINING, sample),
            (only_facts, sample),
            (POST_TRAINING, sample // 8),
        )
        for document in islice(documents(mixture, seed), count)
    ]
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BEGIN} $A", pair=f"{BEGIN} $A $B", special_tokens=[(BEGIN, tokenizer.token_to_id(BEGIN))]
    )
    return wrap(tokenizer)


def wrap(tokenizer: Tokenizer, *, chat: bool = False) -> PreTrainedTokenizerFast:
    """A transformers tokenizer around a trained one, with the chat template or without."""
    options: dict[str, Any] = {"chat_template": CHAT_TEMPLATE} if chat else {}
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=BEGIN,
        eos_token=END,
        additional_special_tokens=[USER, ASSISTANT],
        clean_up_tokenization_spaces=False,
        padding_side="left",
        model_max_length=512,
        **options,
    )
