"""Does the audit name what was done to real weights, and find the direction without being told?

    python analyses/real_audit.py analyses/real_audit.toml [--dry-run] [--only MODEL ...] [--figures figures]

Every change is made to the weights of a real model, written as a checkpoint in the model's own type into a temporary
folder, and audited from the files. `verdicts.csv` has the kind that was found beside the one that is right, the cosine
of what was found with the direction that was removed or added (a packaged contrast's, of the same model), and the
seconds; `leaks.csv` has what is left of that direction in what attention and MLPs add and in the stream: the root of
its share of the energy, over all layers and tokens of some texts. A part is a change of a model; one whose rows are in
the file is not made again. STEERLAB_REAL_MODELS names the folder of local copies; `../shared/models` has the stories.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import _weight_changes as made
import torch
from _local_copies import model_folder
from _part_files import PartFile, Row
from _script import arguments_of, draw, part_files, settings_of

import steerlab as sl
from steerlab.auditing import AuditResult
from steerlab.plots import Series, bars

PART = ("model", "weights_sha256", "settings", "change")
COLUMNS = {
    "verdicts": (
        *PART,
        "right",
        "found",
        "cosine",
        "rank",
        "share",
        "agreement",
        "lineage",
        "seconds",
        "sentence",
    ),
    "leaks": (*PART, "site", "before", "after"),
}
#: Changes that are made with the tuned model.
TUNED = ("cast to bfloat16", "merged by 0.5", "fine-tuned")
LEAKING = ("ablated as published", "ablated, columns kept", "ablated, rows kept")


@dataclass
class Subject:
    """A real model, the direction that is removed from it or added to it, and a place for candidates."""

    name: str
    folder: Path
    plan: dict[str, Any]
    place: Path
    candidate: Path | None = None
    base: Path = field(init=False)

    def __post_init__(self) -> None:
        self.base = self.folder

    @cached_property
    def model(self) -> sl.LanguageModel:
        """In the type of its files."""
        return sl.load(
            self.folder, dtype=torch.bfloat16 if self.plan["type"] == "bfloat16" else torch.float32
        )

    @cached_property
    def direction(self) -> sl.Direction:
        """Of the packaged contrast, at its best layer."""
        pairs = sl.datasets.contrasts()[self.plan["contrast"]].split("train")
        n = self.plan["pairs"]
        model = sl.load(self.folder, dtype="float32")
        found = sl.extract(
            model, sl.datasets.ContrastSet(pairs.positive[:n], pairs.negative[:n]), seed=self.plan["seed"]
        )
        return found.at(found.best or found.sites[len(found.sites) // 2]).moved_to(self.model)

    @property
    def unit(self) -> torch.Tensor:
        """The direction at length one."""
        return torch.nn.functional.normalize(self.direction[self.direction.sites[0]].float(), dim=0)

    @cached_property
    def tuned(self) -> Path:
        """The model after some steps on a few texts, in float32."""
        model = sl.load(self.folder, dtype="float32")
        made.tune(model, sl.datasets.plain_text()[: self.plan["texts"]], **self.plan["tune"])
        return self.written(model.model, "tuned")

    def written(self, module: Any, name: str = "candidate") -> Path:
        """A checkpoint of it."""
        folder = self.place / name
        shutil.rmtree(folder, ignore_errors=True)
        module.save_pretrained(folder)
        return folder


# -- the changes: each gives a module or a folder, and what the audit is told beside --


def same(subject: Subject) -> Any:
    """The model, written again."""
    return subject.model.model


def rounded(subject: Subject) -> Any:
    """The tuned model, whose float32 numbers no shorter type holds, in bfloat16."""
    subject.base = subject.tuned
    return sl.load(subject.tuned, tokenizer=subject.model.tokenizer, dtype="bfloat16").model


def tuned(subject: Subject) -> Any:
    """The tuned model, in the type of the files."""
    return sl.load(subject.tuned, tokenizer=subject.model.tokenizer, dtype=subject.plan["type"]).model


def merged(subject: Subject) -> Any:
    """Half-way to the tuned model."""
    other = sl.load(subject.tuned, tokenizer=subject.model.tokenizer, dtype="float32").model
    return made.between(subject.model.model, other, 0.5)


def on_maps(change: Callable[[Subject], made.Change], *, writers: bool = False) -> Callable[[Subject], Any]:
    """A change of every map of the blocks, or of those that write to the stream."""
    names = made.WRITERS if writers else made.MAPS
    return lambda subject: made.changed(subject.model.model, change(subject), names)


def baked(edit: Callable[[Subject], Any]) -> Callable[[Subject], Any]:
    """What `sl.bake` makes of an intervention."""
    return lambda subject: sl.bake(subject.model, edit(subject)).model


ADAPTERS = {
    f"adapter of rank {rank}": (
        "low-rank adapter",
        on_maps(lambda subject, rank=rank: made.adapter(rank, 0.05, subject.plan["seed"])),
    )
    for rank in (1, 8, 64)
}
#: By name: the kind that is right, and how the candidate is made.
CHANGES: dict[str, tuple[str, Callable[[Subject], Any]]] = {
    "same": ("identical", same),
    "cast to bfloat16": ("cast or requantised", rounded),
    "int8 and back": ("cast or requantised", on_maps(lambda _: made.int8)),
    "ablated": ("directional ablation", baked(lambda subject: sl.Ablate(subject.direction))),
    "ablated, columns kept": (
        "directional ablation",
        baked(lambda subject: sl.Ablate(subject.direction, preserve="norm")),
    ),
    "ablated, rows kept": (
        "directional ablation",
        on_maps(lambda subject: made.rows_kept(subject.unit), writers=True),
    ),
    "ablated as published": (
        "directional ablation",
        on_maps(lambda subject: made.without(subject.unit), writers=True),
    ),
    "added": ("constant addition", baked(lambda subject: sl.Add(subject.direction, 1.0))),
    **ADAPTERS,
    "merged by 0.5": ("merge", merged),
    "noise": ("noise", on_maps(lambda subject: made.noise(0.02, subject.plan["seed"]))),
    "fine-tuned": ("full fine-tune", tuned),
    "another seed": ("not the same lineage", lambda subject: made.drawn_anew(subject.model.model, 1)),
    "tuned by others": ("full fine-tune", lambda subject: subject.candidate),
}


def verdict(subject: Subject, change: str) -> tuple[Row, Path]:
    """What the audit finds, and the candidate's folder."""
    right, make = CHANGES[change]
    subject.base = subject.folder
    found = make(subject)
    folder = found if isinstance(found, Path) else subject.written(found)
    del found
    began = time.perf_counter()
    result = sl.audit(subject.base, folder, other=subject.tuned if right == "merge" else None)
    row = {
        "right": right,
        "found": result.kind,
        "cosine": "" if result.direction is None else cosine(result, subject),
        "rank": result.rank,
        "share": result.share,
        "agreement": result.agreement,
        "lineage": result.lineage.correlation,
        "seconds": round(time.perf_counter() - began, 1),
        "sentence": result.sentence,
    }
    return row, folder


def cosine(result: AuditResult, subject: Subject) -> float:
    """Of what was found with the direction that was removed or added."""
    return max(result.cosines(subject.direction).values())


def leaks(subject: Subject, candidate: Path) -> Iterator[Row]:
    """What is left of the direction at each kind of site: root of its share of the energy, before and after."""
    texts = sl.datasets.plain_text()[: subject.plan["texts"]]
    shares = []
    for folder in (subject.folder, candidate):
        model = sl.load(folder, tokenizer=subject.model.tokenizer, dtype="float32")
        names = ["attn_out", "mlp_out", "resid_post"]
        states = sl.capture(model, texts, names, positions=sl.All() - sl.Index(0))
        shares.append({name: _share([states[site] for site in states.sites if site.name == name], subject.unit)
                       for name in names})  # fmt: skip
    for name, before in shares[0].items():
        yield {"site": name, "before": before, "after": shares[1][name]}


def _share(states: list[torch.Tensor], unit: torch.Tensor) -> float:
    along = sum(float((state.double() @ unit.double()).square().sum()) for state in states)
    return (along / sum(float(state.double().square().sum()) for state in states)) ** 0.5


def picture(rows: list[Row]) -> Any:
    """The cosine of what was found with what was removed or added, by change and model."""
    kept = [row for row in rows if row["cosine"]]
    changes = [name for name in CHANGES if any(row["change"] == name for row in kept)]
    by_cell = {(row["model"], row["change"]): float(row["cosine"]) for row in kept}
    models = list(dict.fromkeys(row["model"] for row in kept))
    right = sum(row["right"] == row["found"] for row in rows)
    series = [
        Series(model.rpartition("/")[2], [by_cell.get((model, change), float("nan")) for change in changes])
        for model in models
    ]
    return bars(
        changes,
        series,
        title=f"The direction that the audit finds ({right} of {len(rows)} verdicts are right)",
        y_title="Cosine with the true one",
        y_range=(0.0, 1.05),
    )


@contextmanager
def subject_of(name: str, own: dict[str, Any], plan: dict[str, Any]) -> Iterator[Subject]:
    """A model, with a temporary place for what is made of it."""
    beside = own.get("candidate")
    candidate = None if beside is None else model_folder(beside, own["candidate_sha256"])
    with tempfile.TemporaryDirectory() as place:
        yield Subject(name, model_folder(name, own["sha256"]), {**plan, **own}, Path(place), candidate)


def part_of(name: str, own: dict[str, Any], plan: dict[str, Any], change: str) -> Row:
    """What tells a part from others; how the model is tuned matters to some changes alone."""
    shared = {key: value for key, value in plan.items() if key not in ("models", "name", "tune")}
    tuning = plan["tune"] if change in TUNED else None
    settings = settings_of(shared, own["type"], tuning)
    return {"model": name, "weights_sha256": own["sha256"], "settings": settings, "change": change}


def run(subject: Subject, part: Row, files: dict[str, PartFile]) -> None:
    """One change of one model."""
    row, candidate = verdict(subject, part["change"])
    if part["change"] in LEAKING:
        files["leaks"].write(part, leaks(subject, candidate))
    files["verdicts"].write(part, [row])
    print(f"{'right' if row['right'] == row['found'] else 'WRONG'}: {row['sentence']}", flush=True)


def main() -> None:
    """Read the arguments and the file, run what is not yet done, draw."""
    arguments = arguments_of(__doc__, only="models")
    plan = arguments.plan
    files = part_files(arguments.folder, COLUMNS, PART)
    for name, own in plan["models"].items():
        if arguments.only and name not in arguments.only:
            continue
        parts = [part_of(name, own, plan, change) for change in own["changes"]]
        todo = [part for part in parts if not files["verdicts"].holds(part)]
        print(f"{name}: {len(todo)} of {len(parts)} changes to make, no token to generate", flush=True)
        if arguments.dry_run or not todo:
            continue
        try:
            with subject_of(name, own, plan) as subject:
                for part in todo:
                    run(subject, part, files)
        except sl.SteerlabError as error:
            raise SystemExit(f"{arguments.configuration}: {error}") from error
    if not arguments.dry_run:
        draw(picture(files["verdicts"].rows()), arguments.folder / "cosines.svg")


if __name__ == "__main__":
    main()
