"""A chat template is a program: whatever it does it ends, in any thread, and an ordinary one is what it was."""

from __future__ import annotations

import copy
import threading
import time
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from families import tiny, tiny_tokenizer
from transformers import AutoTokenizer

from steerlab.errors import PromptError
from steerlab.models import bounded as bounds
from steerlab.models.bounded import bounded
from steerlab.models.templates import render

LOOP = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
GROWING = "{% set ns = namespace(s='xx') %}{% for i in range(60) %}{% set ns.s = SUM %}{% endfor %}{{ ns.s }}"
LONG = "{% set s = 'x' * 1000000 %}"
ENDLESS = {
    "a loop without output": LOOP,
    "a loop that writes": LOOP.replace("{% endfor %}{% endfor %}", "xxxxxxxxxx{% endfor %}{% endfor %}"),
    "a filtered loop": LOOP.replace("range(99999) %}{% for j", "range(99999) if i < 0 or true %}{% for j"),
    "macros that call twice": "{% macro f(n) %}{% if n %}{{ f(n-1) }}{{ f(n-1) }}{% endif %}{% endmacro %}{{ f(60) }}",
}
LARGE = {
    "a product": "{{ 'x' * 100000000 }}",
    "a product of products": "{{ 'x' * (10 ** 4 * 10 ** 4) }}",
    "a product of what is not constant": "{{ 'x' * (100000000 * messages|length) }}",
    "a power": "{{ 10 ** (10 ** 10) }}",
    "a doubling by ~": GROWING.replace("SUM", "ns.s ~ ns.s"),
    "a doubling by +": GROWING.replace("SUM", "ns.s + ns.s"),
    "a doubling list": GROWING.replace("SUM", "[ns.s, ns.s]"),
    "a filter's width": "{{ 'x'|center(1000000000) }}",
    "a method's width": "{{ 'x'.ljust(1000000000) }}",
    "a format's width": "{{ '%1000000000d' % 1 }}",
    "another format's width": "{{ '{:1000000000}'.format(1) }}",
    "a replacement": LONG + "{{ s.replace('x', s) }}",
    "a join": LONG + "{{ ([s] * 10000)|join(',') }}",
    "a method's join": LONG + "{{ ','.join([s] * 10000) }}",
    "a written list": LONG + "{{ [s] * 10000 }}",
    "a list as JSON": LONG + "{{ ([s] * 10000)|tojson }}",
    "a list in a format": LONG + "{{ '%s' % ([s] * 10000) }}",
    "a list as text": LONG + "{{ ([s] * 10000)|string }}",
    "a long text kept often": LONG + "{% for i in range(1000) %}{% set t = s ~ i %}{% endfor %}",
}


def rendered(template: str) -> str:
    tokenizer = copy.copy(tiny_tokenizer(chat=True))
    tokenizer.chat_template = template
    return render(tokenizer, "Hello").text


@pytest.mark.parametrize("template", ENDLESS.values(), ids=list(ENDLESS))
def test_a_template_that_goes_on_ends_within_seconds(template: str) -> None:
    start = time.monotonic()
    with pytest.raises(PromptError, match=r"The chat template goes on after .*; set another one"):
        rendered(template)
    assert time.monotonic() - start < 3 * bounds.SECONDS


@pytest.mark.parametrize("template", LARGE.values(), ids=list(LARGE))
def test_a_template_that_makes_too_much_ends_without_the_memory(template: str) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(PromptError, match="makes more than 10,000,000 characters"):
            rendered(template)
        assert tracemalloc.get_traced_memory()[1] < 150e6
    finally:
        tracemalloc.stop()


def test_it_ends_off_the_main_thread_as_well() -> None:
    said: list[str] = []

    def ask() -> None:
        try:
            rendered(LOOP)
        except PromptError as error:
            said.append(str(error))

    thread = threading.Thread(target=ask)
    thread.start()
    thread.join(30)
    assert not thread.is_alive()
    assert "goes on" in said[0]


def test_a_call_of_the_model_says_it() -> None:
    model = tiny("llama", chat=True)
    model.tokenizer.chat_template = LOOP
    for call in (model.ask, model.instruction_prompt):
        with pytest.raises(PromptError, match="goes on"):
            call("Hello")
    with pytest.raises(PromptError, match="goes on"):
        model.generate([{"role": "user", "content": "Hello"}], max_new_tokens=1)
    assert model.instruction_prompt("Hello", template="plain").text == "User: Hello\nAssistant:"


def test_endless_recursion_is_a_sentence() -> None:
    with pytest.raises(PromptError, match=r"The chat template fails .*recursion"):
        rendered("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}")


#: What templates use, and what the counting touches: loops with their variables, else, recursion, ~, filters, macros.
ORDINARY = """
{%- macro told(message, function='x') %}{{ message.role ~ ': ' ~ message.content | trim }}{% endmacro %}
{%- for message in messages if message.content %}
  {%- if loop.first %}[{{ loop.length }}]{% endif %}{{ loop.index0 }} {{ told(message, function=1) }}
  {{- '' if loop.last else ', ' + loop.nextitem.role }}{% else %}nothing{% endfor %}
{% for key, value in {'a': 1, 'b': [2, none]}.items() %}{{ key }}={{ value }};{% endfor %}
{%- for part in [[1, [2]], 3] recursive %}{{ loop(part) if part is iterable else part }}{% endfor %}
{{ ['a', 'b'] | join('-') }} {{ '-'.join(['a', 'b']) }} {{ messages | map(attribute='role') | join(', ') }}
{{ {'n': 3} | tojson(indent=2) }} {{ 'x' * 3 + 'y' }} {{ 7 % 4 }} {{ 2 ** 5 }} {{ '%05d' % 42 }} {{ '{:>4}'.format(1) }}
{{ 'a,b'.replace(',', ';') }} {{ 'ab' | replace('a', 'c') }} {{ 'x' | center(5) }}{{ missing }} {{ 1700000000 }}
{%- for i in range(3) %}{% if i == 1 %}{% continue %}{% endif %}{{ i }}{% endfor %}
{%- set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}
{%- set block %}{% for m in messages %}{{ m.role }}{% endfor %}{% endset %}{{ block }}
{%- generation %}{{ messages[-1].content }}{% endgeneration %}{{ strftime_now('%Y') | length }}
"""


def test_an_ordinary_template_is_what_transformers_renders(shared: Path) -> None:
    real = AutoTokenizer.from_pretrained(shared / "models/tokenizers/minimind3")
    own = copy.copy(tiny_tokenizer(chat=True))
    messages: list[dict[str, Any]] = [
        {"role": "user", "content": " Hi "}, {"role": "assistant", "content": "Ho"}, {"role": "user", "content": "é"}
    ]  # fmt: skip
    for tokenizer, template in ((real, real.chat_template), (own, own.chat_template), (own, ORDINARY)):
        tokenizer.chat_template = template + "{# seen by nobody before #}"
        plain = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        with bounded(tokenizer):
            counted = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        assert counted == plain
        assert tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True) == plain


def test_a_long_conversation_is_within_the_bounds_and_costs_next_to_nothing(shared: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(shared / "models/tokenizers/minimind3")
    turns = [{"role": role, "content": "word " * 200} for _ in range(500) for role in ("user", "assistant")]
    messages = [*turns, {"role": "user", "content": "x"}]

    def seconds(bound: bool) -> float:
        start = time.perf_counter()
        if bound:
            with bounded(tokenizer):
                tokenizer.apply_chat_template(messages, tokenize=False)
        else:
            tokenizer.apply_chat_template(messages, tokenize=False)
        return time.perf_counter() - start

    seconds(False)
    plain = min(seconds(False) for _ in range(3))
    counted = min(seconds(True) for _ in range(3))
    assert counted < 3 * plain + 0.05
