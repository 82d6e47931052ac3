"""What a shell offers for a half-written value; nothing heavy is imported for it."""

from __future__ import annotations

from collections.abc import Iterable


def models(incomplete: str) -> list[str]:
    """Bundled models; the shell itself offers folders where none fits."""
    from steerlab import zoo

    return _beginning(incomplete, (f"zoo:{name}" for name in zoo.names()))


def estimators(incomplete: str) -> list[str]:
    """Names of estimators."""
    return _registered("estimators", incomplete)


def exports(incomplete: str) -> list[str]:
    """Names of export forms."""
    return _registered("exports", incomplete)


def contrasts(incomplete: str) -> list[str]:
    """Packaged contrasts."""
    from steerlab.datasets.contrasts import names

    return _beginning(incomplete, ("truth", "refusal", *names()))


def steering_tasks(incomplete: str) -> list[str]:
    """Packaged tasks of steering cards."""
    from steerlab.datasets.steering_tasks import steering_task_names

    return _beginning(incomplete, steering_task_names())


def studies(incomplete: str) -> list[str]:
    """Studies of a comparison, the last one of a list that is separated by commas."""
    from steerlab.registry import ordered_studies

    before, comma, last = incomplete.rpartition(",")
    chosen = before.split(",")
    names = (study.name for study in ordered_studies(in_compare=True) if study.name not in chosen)
    return [f"{before}{comma}{name}" for name in _beginning(last, names)]


def devices(incomplete: str) -> list[str]:
    """Kinds of devices."""
    return _beginning(incomplete, ("auto", "cpu", "cuda", "mps"))


def _registered(things: str, incomplete: str) -> list[str]:
    from steerlab.registry import names_in_source

    return _beginning(incomplete, names_in_source(things))


def _beginning(incomplete: str, names: Iterable[str]) -> list[str]:
    return [name for name in names if name.startswith(incomplete)]
