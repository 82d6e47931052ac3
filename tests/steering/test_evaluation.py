"""Evaluation harnesses on steered models, on a local task without network: by baked weights and by hooks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from families import tiny
from tolerances import close

from steerlab.directions import Direction
from steerlab.models import LanguageModel, Site
from steerlab.steering import Add, bake, export_transformers

QUESTIONS = [("A kitten becomes a", 0), ("A puppy becomes a", 1), ("It barks, so it is a", 1)]
CHOICES = ["cat", "dog"]


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))


def added(model: LanguageModel) -> Add:
    rows = torch.randn(model.d_model, generator=torch.Generator().manual_seed(0))
    return Add(Direction({Site("resid_post", 1): rows}, model.name, model.fingerprint), strength=3.0)


def _task(folder: Path) -> Path:
    rows = [{"question": question, "choices": CHOICES, "label": label} for question, label in QUESTIONS]
    (folder / "pets.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (folder / "pets.yaml").write_text(
        f"task: pets\ndataset_path: json\ndataset_kwargs:\n  data_files: {{test: {folder / 'pets.jsonl'}}}\n"
        "test_split: test\noutput_type: multiple_choice\ndoc_to_text: '{{question}}'\ndoc_to_choice: choices\n"
        "doc_to_target: label\nmetric_list:\n  - {metric: acc, aggregation: mean, higher_is_better: true}\n"
    )
    return folder


def test_lm_eval_scores_the_steered_model(tmp_path: Path) -> None:
    pytest.importorskip("lm_eval", reason="needs lm_eval, which the extra eval installs")
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    model = tiny("llama")
    edit = added(model)
    tasks = TaskManager(include_path=str(_task(tmp_path)))

    def scores(module: Any) -> list[list[float]]:
        door = HFLM(pretrained=module, tokenizer=model.tokenizer, batch_size=2, device="cpu")
        found = simple_evaluate(door, tasks=["pets"], task_manager=tasks, bootstrap_iters=0, log_samples=True)
        return [[answer[0][0] for answer in sample["resps"]] for sample in found["samples"]["pets"]]

    baked = scores(bake(model, edit).model)
    with model.steering(edit):
        hooked = scores(model.model)
    close(torch.tensor(baked), torch.tensor(hooked))
    plain = torch.tensor(scores(model.model))
    assert (plain - torch.tensor(baked)).abs().max() > 0.1


def test_inspect_generates_from_the_exported_folder(tmp_path: Path) -> None:
    pytest.importorskip("inspect_ai", reason="needs inspect-ai")
    from inspect_ai import Task, eval
    from inspect_ai.dataset import Sample
    from inspect_ai.model import get_model
    from inspect_ai.scorer import includes
    from inspect_ai.solver import generate

    model = tiny("llama", chat=True)
    edit = added(model)
    text = "Is a cat an animal?"
    with model.steering(edit):
        expected = model.generate([model.instruction_prompt(text)], max_new_tokens=8)[0].text
    folder = export_transformers(model, [edit], tmp_path / "steered")
    # The template writes the BOS itself; left alone, inspect's provider lets the tokenizer add a second one.
    door = get_model(
        "hf/steered",
        model_path=str(folder),
        device="cpu",
        do_sample=False,
        tokenizer_call_args={"add_special_tokens": False},
    )
    task = Task(dataset=[Sample(input=text, target="yes")], solver=generate(), scorer=includes())
    (log,) = eval(task, model=door, display="none", log_dir=str(tmp_path / "logs"), max_tokens=8)
    assert log.status == "success", log.error
    assert log.samples[0].output.completion == expected
