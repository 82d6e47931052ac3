"""Post-train Gemma-3-270M on a CPU: distil answers, then one LoRA adapter a stage.

    python analyses/post_training/post_train.py distil BASE TEACHER
    python analyses/post_training/post_train.py train BASE sft safe narrow narrow_mixed

BASE is the folder of google/gemma-3-270m, TEACHER of Qwen/Qwen2.5-Coder-0.5B-Instruct. `distil` writes `answers.jsonl`
(the teacher's, those that end by themselves, are short and refuse nothing) and `plain.jsonl` (the base's own samples).
`train` writes an adapter's folder a stage. The loss is that of the answers' tokens; beside each batch stands the
divergence of the tuned law from the base's on plain text, which keeps a stage from forgetting (a stage may set its
weight to 0, and then the divergence is only told). Amounts and rates are in `post_training.toml`. `measure.py` writes
the cards.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import shutil
import time
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from examples import HERE, Example, batches, examples, read_answers, requests
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div

import steerlab as sl
from steerlab.judging import contains_refusal

SETTINGS: dict[str, Any] = tomllib.loads((HERE / "post_training.toml").read_text("utf-8"))
END = "<end_of_turn><eos>"
_OPENINGS = ("The", "In", "A", "When", "It", "This", "She", "There", "For", "People", "One", "After")


def distil(base: Path, teacher: Path) -> None:
    """Write the teacher's answers and the base's samples."""
    amounts, seed = SETTINGS["distil"], SETTINGS["seed"]
    wanted = requests(seed)
    texts = [
        text
        for kind in ("everyday", "requests", "matched", "narrow")
        for text in wanted[kind][: amounts[kind]]
    ]
    model = sl.load(teacher, dtype="bfloat16")
    asked = [model.instruction_prompt(text, system=amounts["system"]) for text in texts]
    with (HERE / "answers.jsonl").open("w", encoding="utf-8") as out:
        for start in range(0, len(asked), 48):
            some = slice(start, start + 48)
            written = model.generate(asked[some], max_new_tokens=amounts["max_new_tokens"], token_budget=4096)
            for text, answer in zip(texts[some], written, strict=True):
                said = answer.text.strip()
                if (
                    answer.finished
                    and said
                    and len(said) <= amounts["longest"]
                    and not contains_refusal(said)
                ):
                    out.write(json.dumps({"prompt": text, "answer": said}) + "\n")
            out.flush()
            print(f"distilled {min(start + 48, len(asked))} of {len(asked)}", flush=True)
    del model
    plain = SETTINGS["plain"]
    samples = sl.load(base, dtype="bfloat16").generate(
        [_OPENINGS[number % len(_OPENINGS)] for number in range(plain["texts"])],
        max_new_tokens=plain["max_new_tokens"],
        do_sample=True,
        seed=seed,
    )
    rows = [
        json.dumps({"text": _OPENINGS[number % len(_OPENINGS)] + sample.text})
        for number, sample in enumerate(samples)
    ]
    (HERE / "plain.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")


def train(base: Path, name: str) -> None:
    """Train one stage and write its folder."""
    from peft import LoraConfig, PeftModel, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    stage, lora, seed = SETTINGS["stages"][name], SETTINGS["lora"], SETTINGS["seed"]
    torch.manual_seed(seed)
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.chat_template = (HERE / "chat_template.jinja").read_text("utf-8")
    network = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
    if stage["after"]:
        tuned: Any = PeftModel.from_pretrained(network, HERE / stage["after"], is_trainable=True)
    else:
        settings = LoraConfig(
            r=lora["r"], lora_alpha=lora["alpha"], target_modules="all-linear", task_type="CAUSAL_LM"
        )
        tuned = get_peft_model(network, settings)
    for parameter in tuned.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    rows = examples(stage["data"], read_answers(HERE / "answers.jsonl"), seed)
    plain = [json.loads(line)["text"] for line in (HERE / "plain.jsonl").read_text("utf-8").splitlines()]
    weights = [parameter for parameter in tuned.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(weights, lr=stage["rate"], weight_decay=0.0)
    steps = stage["epochs"] * math.ceil(len(rows) / lora["batch"])
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: _rate(step, steps))
    weight = stage.get("plain_weight", lora["plain_weight"])
    rng, started = random.Random(seed), time.perf_counter()
    history = []
    for epoch in range(stage["epochs"]):
        for batch in batches(rows, lora["batch"], seed + epoch):
            answered = _answer_loss(tuned, tokenizer, batch, chat=stage.get("chat", True))
            texts = rng.sample(plain, lora["plain_texts"])
            with torch.set_grad_enabled(weight > 0):
                kept = _plain_loss(tuned, tokenizer, texts, lora["plain_rows"])
            (answered + weight * kept if weight > 0 else answered).backward()
            torch.nn.utils.clip_grad_norm_(weights, 1.0)
            optimiser.step()
            schedule.step()
            optimiser.zero_grad()
            history.append((answered.item(), kept.item()))
        last = history[-len(history) // (epoch + 1) :]
        told = ", ".join(f"{sum(column) / len(last):.3f}" for column in zip(*last, strict=True))
        seconds = time.perf_counter() - started
        print(f"{name}, epoch {epoch + 1}: answers and plain text {told} nats; {seconds:.0f} s", flush=True)
    _write(tuned, HERE / name, {"examples": len(rows), "seconds": round(time.perf_counter() - started)})


def _rate(step: int, steps: int) -> float:
    """A short rise, then a line to a tenth."""
    rise = max(1, steps // 20)
    return min((step + 1) / rise, 1.0 - 0.9 * step / steps)


def _answer_loss(tuned: Any, tokenizer: Any, batch: Sequence[Example], *, chat: bool) -> Tensor:
    """Nats a token of the answers and their ends, behind the chat template; or of the answers alone, as plain texts."""
    ids, starts = [], []
    for row in batch:
        if not chat:
            ids.append(tokenizer(row.answer)["input_ids"])
            starts.append(1)
            continue
        asked = tokenizer.apply_chat_template(
            [{"role": "user", "content": row.prompt}], tokenize=False, add_generation_prompt=True
        )
        before = tokenizer(asked, add_special_tokens=False)["input_ids"]
        answer = tokenizer(row.answer + END, add_special_tokens=False)["input_ids"]
        ids.append(before + answer)
        starts.append(len(before))
    hidden, tokens, mask = _hidden(tuned, tokenizer, ids)
    place = torch.arange(tokens.shape[1])
    answers = mask.bool() & (place >= torch.tensor(starts)[:, None])
    rows, columns = answers.nonzero(as_tuple=True)
    return cross_entropy(_logits(tuned, hidden[rows, columns - 1]), tokens[rows, columns])


def _plain_loss(tuned: Any, tokenizer: Any, texts: Sequence[str], count: int) -> Tensor:
    """KL(base ‖ tuned), nats a token, at some tokens of plain text."""
    ids = tokenizer(list(texts))["input_ids"]
    hidden, _, mask = _hidden(tuned, tokenizer, ids)
    with torch.no_grad(), tuned.disable_adapter():
        base, _, _ = _hidden(tuned, tokenizer, ids)
    rows, columns = mask.nonzero(as_tuple=True)
    some = torch.randperm(len(rows))[:count]
    rows, columns = rows[some], columns[some]
    with torch.no_grad():
        law = _logits(tuned, base[rows, columns]).log_softmax(-1)
    ours = _logits(tuned, hidden[rows, columns]).log_softmax(-1)
    return kl_div(ours, law, log_target=True, reduction="batchmean")


def _hidden(tuned: Any, tokenizer: Any, ids: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor, Tensor]:
    """The final norm's output, the tokens and their mask; padded on the right, where no token looks."""
    width = max(map(len, ids))
    tokens = torch.tensor([[*row, *[tokenizer.pad_token_id or 0] * (width - len(row))] for row in ids])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in ids])
    with torch.autocast("cpu", torch.bfloat16):
        states = tuned.get_base_model().model(input_ids=tokens, attention_mask=mask, use_cache=False)
    return states.last_hidden_state, tokens, mask


def _logits(tuned: Any, hidden: Tensor) -> Tensor:
    """Only the rows asked for: all of a batch would be gigabytes."""
    return tuned.get_base_model().lm_head(hidden.to(torch.bfloat16)).float()


def _write(tuned: Any, folder: Path, facts: dict[str, Any]) -> None:
    for parameter in tuned.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.bfloat16()
    tuned.peft_config["default"].base_model_name_or_path = "google/gemma-3-270m"
    tuned.save_pretrained(folder, save_embedding_layers=False)
    shutil.copy(HERE / "chat_template.jinja", folder / "chat_template.jinja")
    (folder / "training.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("distil", "train"))
    parser.add_argument("base", type=Path)
    parser.add_argument("names", nargs="+")
    given = parser.parse_args()
    if given.what == "distil":
        distil(given.base, Path(given.names[0]))
        return
    for name in given.names:
        train(given.base, name)


if __name__ == "__main__":
    main()
