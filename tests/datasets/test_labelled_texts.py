"""A person's own contrast is read however it is kept, and matched texts are held out together."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from families import tiny
from hypothesis import given
from hypothesis import strategies as st

import steerlab as sl
from steerlab.datasets import ContrastSet, Statement, StatementSet, read_requests
from steerlab.datasets.groups import groups_of
from steerlab.datasets.labelled_texts import labelled_texts
from steerlab.datasets.readers import read_published
from steerlab.directions import DifferenceInMeans
from steerlab.directions.held_out import held_out_accuracy
from steerlab.errors import DatasetError

HAPPY = [
    "I am glad today",
    "What a bright morning of joy",
    "She laughed out loud",
    "They won the long game",
    "We sang",
]
SAD = [
    "I am sorry today",
    "What a dark morning of grief",
    "She cried out loud",
    "They lost the long game",
    "We wept",
]
ROWS = [{"positive": one, "negative": other} for one, other in zip(HAPPY, SAD, strict=True)]


class Frame:
    """What pandas' DataFrame offers of a table."""

    columns = ("positive", "negative")

    def to_dict(self, orient: str) -> list[dict[str, str]]:
        assert orient == "records"
        return ROWS


@pytest.mark.parametrize(
    "given_as", ["lists", "pairs", "rows", "frame", "csv", "labelled", "contrast", "files"]
)
def test_every_way_to_keep_a_contrast(given_as: str, tmp_path: Path) -> None:
    (tmp_path / "pairs.csv").write_text(
        "\n".join(["positive,negative", *(f"{h},{s}" for h, s in zip(HAPPY, SAD, strict=True))])
    )
    for name, texts in (("happy", HAPPY), ("sad", SAD)):
        (tmp_path / f"{name}.txt").write_text("\n".join(texts) + "\n\n")
    labelled = [{"text": text, "label": "glad"} for text in HAPPY] + [
        {"text": text, "label": "sorry"} for text in SAD
    ]
    ways: dict[str, tuple[Any, ...]] = {
        "lists": (HAPPY, SAD),
        "pairs": (list(zip(HAPPY, SAD, strict=True)),),
        "rows": (ROWS,),
        "frame": (Frame(),),
        "csv": (tmp_path / "pairs.csv",),
        "labelled": (labelled,),
        "contrast": (ContrastSet(tuple(HAPPY), tuple(SAD), "glad", "sorry"),),
        "files": (tmp_path / "happy.txt", tmp_path / "sad.txt"),
    }
    data = labelled_texts(*ways[given_as])
    assert data.texts == (*HAPPY, *SAD)
    assert data.labels == (1,) * 5 + (0,) * 5
    assert data.groups.matched == 5
    assert data.groups.numbers[:5] == data.groups.numbers[5:]
    assert len(data.groups) == 5


def test_twins_are_found_in_order_and_said() -> None:
    groups = groups_of([*HAPPY, *SAD], [1] * 5 + [0] * 5)
    assert groups.sentence == "5 matched pairs found; both of a pair are held out together."
    unlike = groups_of(["red apple", "green pear", "old car", "new boat"], [1, 1, 0, 0])
    assert (len(unlike), unlike.matched, unlike.sentence) == (4, 0, "")
    shuffled = groups_of([*HAPPY[:4], *reversed(SAD[:4])], [1] * 4 + [0] * 4)
    assert shuffled.matched >= 2  # each other's closest with half of the words in common


def test_a_group_of_the_callers_stands() -> None:
    groups = groups_of(["a b", "c d", "e f", "g h"], [1, 1, 0, 0], ["x", "y", "x", "y"])
    assert groups.numbers == (0, 1, 0, 1)
    data = labelled_texts(
        [{"text": t, "label": n % 2, "group": n // 2} for n, t in enumerate(["p", "q", "r", "s"])]
    )
    assert data.groups.numbers == (0, 0, 1, 1)
    assert data.names == ("1", "0")


def test_rewordings_of_all_texts_are_kept_apart_where_too_few_groups_are_left() -> None:
    frame = "On that long day by the old river near the quiet town the young farmer was {}"
    happy, sad = (
        [f"{frame.format(word)} about number {n}" for n in range(6)] for word in ("very glad", "so sorry")
    )
    groups = groups_of([*happy, *sad], [1] * 6 + [0] * 6)
    assert len(groups) >= 6
    assert "rewordings are not held out together" in groups.sentence
    twice = groups_of([*happy, *happy], [1] * 6 + [0] * 6)
    assert len(twice) == 6


@pytest.mark.parametrize(
    ("labels", "positive", "names", "first"),
    [
        ([1.0, 0.0], None, ("1", "0"), 0),
        (["sad", "happy"], "happy", ("happy", "sad"), 1),
        (["sad", "happy"], "Sad", ("sad", "happy"), 0),
        ([True, False], False, ("False", "True"), 1),
        ([0, 1], 0.0, ("0", "1"), 0),
    ],
)
def test_a_named_class_is_pointed_to(
    labels: list[Any], positive: Any, names: tuple[str, str], first: int
) -> None:
    rows = [{"text": text, "label": label} for text, label in zip("ab", labels, strict=True)]
    data = labelled_texts(rows, positive=positive)
    assert data.names == names
    assert data.sentence.startswith(f"The direction points from {names[1]!r} to {names[0]!r}.")
    assert data.texts[data.labels.index(1)] == "ab"[first]


def test_every_kind_of_contrast_can_point_the_other_way() -> None:
    plain, turned = labelled_texts(HAPPY, SAD), labelled_texts(HAPPY, SAD, positive="negative")
    assert turned.labels == tuple(1 - label for label in plain.labels)
    assert turned.texts == plain.texts
    glad = labelled_texts(ContrastSet(tuple(HAPPY), tuple(SAD), "glad", "sorry"), positive="sorry")
    assert glad.names == ("sorry", "glad")
    with pytest.raises(DatasetError, match="the labels are 'positive' and 'negative'"):
        labelled_texts(HAPPY, SAD, positive="happy")


@pytest.mark.parametrize(
    ("columns", "kind"),
    [
        ("text,label\nA b,1\nC d,0", None),
        ("text,label\nA b,happy\nC d,sad", None),
        ("statement,label\nA b,1\nC d,0", StatementSet),
        ("text,label,topic\nA b,true,x\nC d,false,x", StatementSet),
        ("text,label,topic\nA b,happy,x\nC d,sad,x", None),
        ("text,label\nA b,harmful\nC d,harmless", ContrastSet),
        ("text,label,group\nA b,harmful,1\nC d,harmless,1", None),
        ("positive,negative\nA b,C d", None),
    ],
)
def test_published_formats_are_told_from_a_persons_own_rows(
    columns: str, kind: type | None, tmp_path: Path
) -> None:
    file = tmp_path / "data.csv"
    file.write_text(columns + "\n")
    assert isinstance(read_published(file), kind or type(None))


@pytest.mark.parametrize(
    ("given_as", "sentence"),
    [
        ((["a"],), "cannot be read from this"),
        ((["a b", "c"], []), "one class only"),
        ((["a", "b"], ["b", "c"]), "stand in both classes"),
        ((["a", 3], ["b"]), "is an int"),
        ((["a", " "], ["b"]), "is empty"),
        (("happy", ["sad"]), "One text is no list of texts"),
        ((Path("none.txt"), ["sad"]), "cannot be read"),
        (([{"text": text, "label": text} for text in "xyz"],), "a contrast has two"),
        (({"a": 1},), "cannot be read from this"),
        (([],), "cannot be read from this"),
        ((3,), "cannot be read from this"),
    ],
)  # fmt: skip
def test_what_is_no_contrast_is_a_sentence(given_as: tuple[Any, ...], sentence: str) -> None:
    with pytest.raises(DatasetError, match=sentence):
        labelled_texts(*given_as)


FAULTS = {  # what stands in a file of a contrast: what the sentence says behind the file's name
    "positive,negative\nGlad.,Sorry.\nHappy.,\n": ", row 2, column 'negative': empty; write a text or delete the row",
    "positive,negative\nGlad.,Sorry.\n,Sad.\n": ", row 2, column 'positive': empty; write a text or delete the row",
    "positive,negative\nGlad.,Sorry.\nHappy.\n": ", row 2: 1 cells where the header has 2",
    "positive,negative\nGlad.,Sorry.\nHappy., \n": ", row 2, column 'negative': empty",
    "positive,negative\nGlad.,Sorry.\nSorry.,Sad.\n": ": Texts stand in both classes .1 of them.; a text has one label",
    "positive\nGlad.\nHappy.\n": ", row 0: the columns are positive; name those of a contrast text and label, or",
    "text\nGlad.\nSad.\n": ", row 0: the columns are text; name those of a contrast text and label, or",
    "words,label\nGlad.,1\nSad.,0\n": ", row 0: the columns are words, label; name those of a contrast text and label",
    "text,label\nGlad.,happy\n,sad\n": ", row 2, column 'text': empty; write a text or delete the row",
    "text,label\nGlad.,happy\nSad.,\n": ", row 2, column 'label': empty; every row needs one",
    "text,label\nGlad.,happy\nMerry.,happy\n": ": All 2 rows have the label 'happy'; add rows with a second label",
    "text,label\nGlad.,harmful\nMerry.,harmful\n": ": All 2 rows have the label 'harmful'; add rows with a second",
    "statement,label\nIce is cold.,1\nFire is hot.,1\n": ".*(add rows with a second|both true and false .* needed)",
    "text,label\nA b.,x\nC d.,y\nE f.,x\nG h.,z\n": ": There are 3 labels, 'x' .first in row 1., 'y' .first in row 2., "
    "'z' .first in row 4.; a contrast has two, so keep the rows of two of them",
    "text,label\nSame.,happy\nSame.,sad\n": ": Texts stand in both classes .1 of them.; a text has one label",
    "text,label\nWise.,harmful\n,harmless\n": ", row 2, column 'text': empty; write a text or delete the row",
    '{"positive": "Glad.", "negative": "Sorry."}\n{"positive": "Happy."}\n': ", row 2, column 'negative': missing",
    '{"text": "Glad.", "label": "happy"}\n{"text": "Sad."}\n': ", row 2, column 'label': empty; every row needs one",
    '{"text": "Glad.", "label": "happy"}\n{"label": "sad"}\n': ", row 2, column 'text': missing; every row needs one",
    '{"text": "Glad.", "label": "happy"}\n{"text": 3, "label": "sad"}\n': ", row 2, column 'text': not a text but a",
    '{"positive": "Glad.", "negative": null}\n': ", row 1, column 'negative': empty; write a text or delete the row",
    "": ": empty; a header with the columns' names is needed",
    "text,label\n": ": there is no row; at least one prompt is needed",
}  # fmt: skip


@pytest.mark.parametrize("content", FAULTS)
def test_a_bad_file_is_named_with_its_row_or_labels(content: str, tmp_path: Path) -> None:
    file = tmp_path / ("own.jsonl" if content.startswith("{") else "own.csv")
    file.write_text(content)
    sentence = f"^{re.escape(str(file))}{FAULTS[content]}"
    if "harmful" not in content:  # requests have a reader of their own
        with pytest.raises(DatasetError, match=sentence):
            labelled_texts(file)
    with pytest.raises(DatasetError, match=sentence):
        sl.extract(tiny("llama"), file)


@pytest.mark.parametrize("side", ["positive", "negative"])
def test_an_empty_file_of_texts_is_named(side: str, tmp_path: Path) -> None:
    files = {name: tmp_path / f"{name}.txt" for name in ("positive", "negative")}
    for name, file in files.items():
        file.write_text("\n" if name == side else "Some text.\nAnother one.\n")
    with pytest.raises(DatasetError, match=rf"{side}\.txt: empty; write the texts of one class, one a line"):
        labelled_texts(files["positive"], files["negative"])


def test_a_frame_is_named_too() -> None:
    pandas = pytest.importorskip("pandas")
    with pytest.raises(DatasetError, match=r"^DataFrame: There are 3 labels"):
        labelled_texts(pandas.DataFrame({"text": list("abc"), "label": list("xyz")}))
    with pytest.raises(DatasetError, match=r"^DataFrame, row 2, column 'negative': empty"):
        labelled_texts(pandas.DataFrame({"positive": ["a", "b"], "negative": ["c", None]}))


def test_a_text_has_one_label(tmp_path: Path) -> None:
    for words, make in {
        r"Texts stand in both classes \(2 of them\); a text has one label": lambda: labelled_texts(
            HAPPY, [*SAD, *HAPPY[:2]]
        ),
        r"in both kinds, harmful and harmless \(1 of them\)": lambda: ContrastSet(("a", "b"), ("b", "c")),
        r"in both classes \(1 of them\)": lambda: labelled_texts(
            StatementSet([Statement("a", True), Statement("b", False), Statement("a", False)])
        ),
    }.items():
        with pytest.raises(DatasetError, match=words):
            make()
    file = tmp_path / "twice.csv"
    file.write_text("text,label\nOne.,harmful\nOne.,harmless\n")
    with pytest.raises(DatasetError, match=r"twice\.csv.*; a text has one label"):
        read_requests(file)


@pytest.mark.parametrize("twins", [False, True], ids=["single", "twins"])
def test_held_out_accuracy_of_random_labels_is_one_half(twins: bool) -> None:
    """200 draws of states whose labels mean nothing; twins share most of their state and have opposite labels."""
    rng = np.random.default_rng(0)
    values, n, width = [], 20, 16
    for draw in range(200):
        base = rng.standard_normal((n, width))
        states = np.concatenate([base, base if twins else rng.standard_normal((n, width))])
        states = states + (0.3 if twins else 0.0) * rng.standard_normal(states.shape)
        flips = rng.integers(0, 2, n)
        labels = np.concatenate([flips, 1 - flips])
        groups = np.tile(np.arange(n), 2) if twins else None
        values.append(held_out_accuracy(DifferenceInMeans(), states, labels, groups, seed=draw).value)
    assert np.mean(values) == pytest.approx(0.5, abs=0.02)


def test_twins_in_the_training_part_push_the_held_out_one_to_the_wrong_side() -> None:
    """Why groups are held out whole: the same states, split row by row, are called wrong more often than right."""
    rng = np.random.default_rng(1)
    base = 3 * rng.standard_normal((20, 64))
    signal = rng.standard_normal(64) / 8
    states = np.concatenate([base + signal, base - signal])
    labels = np.array([1] * 20 + [0] * 20)
    whole = held_out_accuracy(DifferenceInMeans(), states, labels, np.tile(np.arange(20), 2)).value
    split = held_out_accuracy(DifferenceInMeans(), states, labels).value
    assert split < whole


@given(st.lists(st.sampled_from(["red fox", "blue cat", "old dog"]), min_size=1, max_size=8), st.data())
def test_groups_never_part_equal_texts(texts: list[str], data: st.DataObject) -> None:
    labels = data.draw(st.lists(st.integers(0, 1), min_size=len(texts), max_size=len(texts)))
    groups = groups_of(texts, labels)
    by_text: dict[str, set[int]] = {}
    for text, number in zip(texts, groups.numbers, strict=True):
        by_text.setdefault(text, set()).add(number)
    assert all(len(numbers) == 1 for numbers in by_text.values())
