"""Tasks of evaluation harnesses on the steered model, beside the unsteered one (extra `eval`).

lm-evaluation-harness runs in the caller's thread, so hooks steer it. inspect-ai generates in threads of its own, so it
is given the baked model in a folder; interventions that cannot be baked cannot be evaluated there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from steerlab.errors import SteerlabError, reason
from steerlab.models import LanguageModel
from steerlab.record import Record
from steerlab.statistics import Estimate
from steerlab.steering import Intervention, export

_NORMAL = 1.96


class Score(Record):
    """A metric of a task, unsteered and steered; the intervals are of the harness' own standard errors."""

    suite: str
    task: str
    metric: str
    unsteered: Estimate
    steered: Estimate


def lm_eval_scores(
    model: LanguageModel, interventions: Sequence[Intervention], tasks: Sequence[Any], limit: int | None
) -> list[Score]:
    """Scores of lm-evaluation-harness, with the interventions in force and without.

    Raises:
        SteerlabError: the harness is not installed, or a task fails.
    """
    try:
        from lm_eval import simple_evaluate  # type: ignore[import-not-found,unused-ignore]
        from lm_eval.models.huggingface import HFLM  # type: ignore[import-not-found,unused-ignore]
    except ImportError as error:
        raise _not_there("lm-evaluation-harness") from error

    def scores(edits: Sequence[Intervention]) -> dict[tuple[str, str], Estimate]:
        with model.steering(*edits) if edits else nullcontext():
            try:
                asked = HFLM(pretrained=model.model, tokenizer=model.tokenizer)
                found = simple_evaluate(asked, tasks=list(tasks), limit=limit, bootstrap_iters=0)
            except Exception as error:  # tasks are other people's programs
                raise SteerlabError(
                    f"lm-evaluation-harness fails on {', '.join(map(str, tasks))}: {reason(error)}."
                ) from error
        return dict(_of_lm_eval(found["results"]))

    return _paired("lm-eval", scores(()), scores(interventions))


def inspect_scores(
    model: LanguageModel, interventions: Sequence[Intervention], tasks: Sequence[Any], limit: int | None
) -> list[Score]:
    """Scores of inspect-ai on the model in a folder, baked and as it is.

    Raises:
        SteerlabError: the harness is not installed, a task fails, or an intervention cannot be baked.
    """
    try:
        import inspect_ai  # type: ignore[import-not-found,unused-ignore]
        from inspect_ai.model import get_model  # type: ignore[import-not-found,unused-ignore]
    except ImportError as error:
        raise _not_there("inspect-ai") from error
    with TemporaryDirectory() as place:
        plain, steered = Path(place, "unsteered"), Path(place, "steered")
        model.model.save_pretrained(plain)
        model.tokenizer.save_pretrained(plain)
        export(model, list(interventions), steered, "transformers")

        def scores(folder: Path) -> dict[tuple[str, str], Estimate]:
            asked = get_model(
                f"hf/{folder.name}",
                model_path=str(folder),
                tokenizer_call_args={"add_special_tokens": False},
                memoize=False,
            )
            logs = inspect_ai.eval(
                list(tasks), model=asked, limit=limit, log_dir=f"{place}/logs", display="none"
            )
            return dict(_of_inspect(logs))

        return _paired("inspect", scores(plain), scores(steered))


# -- private --


def _of_lm_eval(results: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[tuple[str, str], Estimate]]:
    for task, metrics in results.items():
        for key, value in metrics.items():
            name, _, kind = key.partition(",")
            if not kind or name.endswith("_stderr") or not isinstance(value, int | float):
                continue
            yield (task, name), _estimate(float(value), metrics.get(f"{name}_stderr,{kind}"))


def _of_inspect(logs: Sequence[Any]) -> Iterator[tuple[tuple[str, str], Estimate]]:
    for log in logs:
        if log.status != "success":
            raise SteerlabError(
                f"inspect-ai fails on {log.eval.task}: {log.error.message if log.error else log.status}."
            )
        for score in log.results.scores:
            metrics = {name: metric.value for name, metric in score.metrics.items()}
            error = metrics.pop("stderr", None)
            for name, value in metrics.items():
                yield (log.eval.task, f"{score.name} {name}"), _estimate(float(value), error)


def _estimate(value: float, error: Any) -> Estimate:
    """A value with the normal interval of its standard error, where the harness gives one."""
    if not isinstance(error, int | float) or error != error:
        return Estimate(value=value)
    half = _NORMAL * float(error)
    return Estimate(value=value, low=value - half, high=value + half, method="the harness' standard error")


def _paired(
    suite: str, plain: Mapping[tuple[str, str], Estimate], steered: Mapping[tuple[str, str], Estimate]
) -> list[Score]:
    return [
        Score(suite=suite, task=task, metric=metric, unsteered=value, steered=steered[task, metric])
        for (task, metric), value in plain.items()
        if (task, metric) in steered
    ]


def _not_there(name: str) -> SteerlabError:
    return SteerlabError(f"{name} is not installed; pip install 'steerlab[eval]'.")
