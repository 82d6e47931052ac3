"""The analysis of operators, on the bundled model: part by part, each beside its control."""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path

import pytest
from scripts import local_copy, rows_of, run_analysis

import steerlab as sl
from steerlab import datasets, zoo

SCRIPT = Path(__file__).parents[1] / "analyses" / "real_operators.py"
FILES = ("ablation", "several", "leaning", "categories", "low_rank", "erasure", "attribution")
AMOUNTS = """\
name = "tried"
seed = 0
texts = 5
[refusal]
train = 24
dev = 8
test = 10
depths = [0.4, 0.7]
[ablation]
randoms = 2
statements = 12
answers = 3
new_tokens = 8
[several]
most = 2
randoms = 2
prompts = 4
categories = ["first", "second"]
per_category = 3
[low_rank]
depth = 0.5
rank = 2
strengths = [0.5, 2.0]
train = 16
dev = 4
test = 6
own = 6
steps = 6
token_budget = 512
optimised_on = 6
optimised_steps = 3
new_tokens = 8
randoms = 2
[erasure]
affirmed = "cities"
negated = "neg_cities"
subject = "city"
subjects = [14, 8, 6]
depth = 0.6
[attribution]
every = 2
asked = 40
facts = 4
most_tokens = 20
"""


def table(folder: Path, contents: Mapping[str, str]) -> str:
    """Write files of a table of the plan; its lines."""
    folder.mkdir(parents=True)
    lines = [
        f'[data.{folder.name}]\nrepository = "ours"\nfolder = "{folder.name}"\n[data.{folder.name}.files]\n'
    ]
    for name, text in contents.items():
        (folder / name).write_text(text, "utf-8")
        lines.append(f'"{name}" = "{hashlib.sha256(text.encode()).hexdigest()}"\n')
    return "".join(lines)


def requests() -> dict[str, str]:
    """The packaged requests in the files of the refusal paper, every other one of a category."""
    found = {}
    for name, part in (("train", "train"), ("val", "test"), ("test", "test")):
        of = datasets.requests().split(part)
        for kind, texts in (("harmful", of.positive), ("harmless", of.negative)):
            rows = [
                {"instruction": text, "category": ("first", "second")[at % 2]}
                for at, text in enumerate(texts)
            ]
            found[f"{kind}_{name}.json"] = json.dumps(rows)
    return found


def cities() -> dict[str, str]:
    """Packaged statements of cities, affirmed and negated, in the columns of the published files."""
    items = [item for item in datasets.statements() if item.topic == "cities"]

    def written(polarity: int) -> str:
        rows = [
            (item.text, int(item.label), item.text[slice(*item.spans["subject"])])
            for item in items
            if item.polarity == polarity
        ]
        return as_csv([("statement", "label", "city"), *rows])

    return {"cities.csv": written(1), "neg_cities.csv": written(-1)}


def as_csv(rows: Iterable[Iterable[object]]) -> str:
    """Rows as a CSV file's text."""
    from io import StringIO

    file = StringIO()
    csv.writer(file, lineterminator="\n").writerows(rows)
    return file.getvalue()


def facts() -> dict[str, str]:
    """What the bundled model says of some cities, as ROME's facts."""
    model = sl.load(zoo.path("small-post"))
    prompts = [
        f"The city of {name} is in" for name in ("Lyon", "Rome", "Madrid", "Marseille", "Milan", "Turin")
    ]
    words = [answer.text.split()[0].strip(".") for answer in model.generate(prompts, max_new_tokens=3)]
    rows = [
        {"prompt": prompt, "subject": prompt.split()[3], "attribute": word}
        for prompt, word in zip(prompts, words, strict=True)
    ]
    return {"known.json": json.dumps(rows)}


@pytest.fixture
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The bundled post-trained model, with files in the shapes of the public ones."""
    data = tmp_path / "data"
    tables = [table(data / "requests", requests()), table(data / "statements", cities())]
    tables.append(table(data / "facts", facts()))
    model = zoo.path("small-post")
    weights = local_copy(model, tmp_path, monkeypatch)
    monkeypatch.setenv("STEERLAB_DATA", str(data))
    written = tmp_path / "operators.toml"
    written.write_text(AMOUNTS + "".join(tables) + f'[models."someone/{model.name}"]\nsha256 = "{weights}"\n')
    return written


def test_operators_beside_plain_ones_and_random_ones(
    plan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_analysis(SCRIPT, plan, tmp_path, "--dry-run", runs=False)
    said = capsys.readouterr().out
    assert "5 parts are left" in said
    assert "erasure: about" in said
    assert run_analysis(SCRIPT, plan, tmp_path, runs=False) is None
    tables = rows_of(tmp_path, *FILES)
    ways = {row["way"]: row for row in tables["ablation"]}
    assert float(ways["norm-preserving"]["change"]) < -1  # the bundled model refuses, and it takes that away
    assert abs(float(ways["norm-preserving, random"]["change"])) < abs(
        float(ways["norm-preserving"]["change"])
    )
    for plain in ("plain, whole stream", "plain, same maps"):
        assert float(ways[plain]["change"]) == pytest.approx(
            float(ways["norm-preserving"]["change"]), rel=0.3
        )
        assert ways[plain]["kl_less_norm_low"] <= ways[plain]["kl_less_norm_high"]
    assert float(ways["nothing"]["kl"]) == 0
    assert {(row["kind"], row["chosen"]) for row in tables["several"]} >= {
        ("clusters", "yes"),
        ("cone", "yes"),
    }
    assert all(
        float(row["random_change"]) > float(row["change"]) for row in tables["several"] if row["k"] == "1"
    )
    maps = {row["way"]: float(row["loss"]) for row in tables["low_rank"]}
    assert maps["learned map"] < maps["nothing"]
    assert maps["learned map"] < maps["random maps of equal norm"]
    erased = {(row["label"], row["way"]): row for row in tables["erasure"]}
    assert float(erased["negation", "erased"]["moved"]) > 0
    assert float(erased["negation", "erased"]["linear"]) <= float(erased["negation", "nothing"]["linear"])
    attributed = {row["kind"]: row for row in tables["attribution"]}
    assert set(attributed) == {"resid_post", "attn_out", "mlp_out"}
    assert all(-1 <= float(row["spearman"]) <= 1 for row in attributed.values())
    texts = datasets.requests().split("test").positive
    kept = [file for file in (tmp_path / "figures").rglob("*") if file.is_file()]
    assert not [file for file in kept if any(text in file.read_text("utf-8") for text in texts)]
    capsys.readouterr()
    run_analysis(SCRIPT, plan, tmp_path, runs=False)
    assert "0 parts are left" in capsys.readouterr().out
