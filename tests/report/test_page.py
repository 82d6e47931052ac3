from __future__ import annotations

import base64
import csv
import io
import json
import os
import re
import zlib
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from report.sample import MANIFEST, NASTY, results

from steerlab.errors import RunError
from steerlab.report import write_report
from steerlab.report.manifest import label
from steerlab.report.page import render
from steerlab.report.questions import json_for_html, question
from steerlab.results import StudyResult, result_from_dict


class Reader(HTMLParser):
    """Tags with attributes, and the text of script elements."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text.append(data)


@pytest.fixture(scope="module")
def page() -> str:
    return render(results(), MANIFEST)


@pytest.fixture(scope="module")
def read(page: str) -> Reader:
    reader = Reader()
    reader.feed(page)
    return reader


def test_hostile_text_adds_no_element(read: Reader) -> None:
    kinds = [tag for tag, _ in read.tags]
    assert "img" not in kinds
    # seven figures, the packed library and the page's own script
    assert kinds.count("script") == 9
    assert any(NASTY in piece for piece in read.text)


def test_nothing_points_outside(read: Reader) -> None:
    for tag, attributes in read.tags:
        assert "src" not in attributes, tag
        target = attributes.get("href") or "#"
        assert target.startswith(("#", "data:")), target
    policy = next(a["content"] for _, a in read.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert policy.startswith("default-src 'none'")
    assert "http" not in policy


def test_plotly_is_inside_once_and_only_where_it_draws(page: str) -> None:
    (packed,) = re.findall(r'<script type="text/plain" id="plotly" data-size="\d+">(.*?)</script>', page)
    assert "plotly.js v" in zlib.decompress(base64.b64decode(packed), wbits=-15).decode()[:200]
    assert 'id="plotly"' not in render([], MANIFEST)
    assert len(render([], MANIFEST)) < 40_000


def test_every_figure_has_a_table_and_an_empty_one_a_sentence(page: str) -> None:
    figures = re.findall(r"<figure id=.*?</figure>", page, flags=re.DOTALL)
    assert len(figures) == 8
    empty = [figure for figure in figures if "<table>" not in figure]
    assert len(empty) == 1
    assert "nothing to draw" in empty[0]
    assert '<div class="plot"' not in empty[0]
    # the study's own table stands under its figure, once
    assert page.count("<summary>Cosine by layer") == 1
    assert "Cosine by layer" in figures[0]
    # intervals reach the tables that are made from figures
    assert re.search(r'0\.95 <span class="interval">\[0\.91, 0\.97\]', figures[1])


def test_figure_json_is_the_figure(page: str) -> None:
    found = re.findall(
        r'<script type="application/json" id="figure-(\w+)-(\w+)-data">(.*?)</script>', page, flags=re.DOTALL
    )
    figures = {
        (result.study, key): figure for result in results() for key, figure in result.figures().items()
    }
    assert len(found) == 7
    for study, key, text in found:
        assert not re.search(r"[<>&]", text)
        expected = json.loads(figures[study, key].to_json())
        assert json.loads(text)["data"] == expected["data"]


def test_statuses_sentences_and_headlines(page: str) -> None:
    assert page.count('<span class="badge not-identified">not identified</span>') == 2
    assert page.count('<figure class="key">') == 2
    assert page.count("The two models have different vocabularies.") >= 2
    assert "A probe fitted on one model reads the other" in page
    assert '<strong>0.93</strong> <span class="interval">[0.88, 0.98]</span>' in page
    assert "random directions: <strong>0.00</strong>" in page


def downloads(read: Reader) -> dict[str, str]:
    return {
        str(a["download"]): base64.b64decode(str(a["href"]).partition("base64,")[2]).decode()
        for _, a in read.tags
        if "download" in a
    }


def test_downloads_hold_the_numbers(read: Reader) -> None:
    files = downloads(read)
    rows = list(csv.reader(io.StringIO(files["truthfulness-cosine.csv"])))
    assert rows[0] == [
        "Layer",
        "Cosine",
        "Cosine low",
        "Cosine high",
        "Cosine n",
        *["Random", "Random low", "Random high", "Random n"],
    ]
    assert float(rows[3][1]) == 0.2
    examples = list(csv.reader(io.StringIO(files["truthfulness-examples.csv"])))
    assert examples[1] == [NASTY, "True", "0.12345", "1234"]
    assert json.loads(files["truthfulness.json"]) == results()[0].to_dict()
    assert json.loads(files["manifest.json"]) == MANIFEST


def test_manifest_is_told(page: str) -> None:
    for said in ("abc123", "aa11", "Chat template", "quick", "2.13", "12.5", "threads", "packaged"):
        assert said.lower() in page.lower()


def test_any_manifest_can_be_shown() -> None:
    odd: dict[str, Any] = {
        "notes": ["one", 2],
        "models": {"base": "a/b"},
        "deep": {"x": {"y": {"z": None}}},
        "empty": {},
    }
    page = render([], odd)
    assert "<h1>b</h1>" in page
    assert "z: –" in page
    assert "<h1>steerlab report</h1>" in render([], {})


def test_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "new" / "report.html"
    assert write_report(results()[1:2], MANIFEST, target) == target
    before = target.read_text("utf-8")

    def full(*paths: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(RunError, match="No space left"):
        write_report(results(), MANIFEST, target)
    assert target.read_text("utf-8") == before
    assert [path.name for path in target.parent.iterdir()] == ["report.html"]


def test_a_study_that_breaks_while_drawing_leaves_no_file(tmp_path: Path) -> None:
    class Broken(StudyResult):
        def figures(self) -> dict[str, Any]:
            raise RuntimeError("no figure")

    with pytest.raises(RuntimeError):
        write_report([Broken(study="broken", summary=[])], MANIFEST, tmp_path / "report.html")
    assert list(tmp_path.iterdir()) == []


def test_half_characters_of_a_path_are_written(tmp_path: Path) -> None:
    page = write_report([], {"notes": "half \ud83d a character"}, tmp_path / "report.html")
    assert "half ? a character" in page.read_text("utf-8")


def test_json_for_html_and_labels() -> None:
    text = json.dumps({"a": "</script>&\u2028"}, ensure_ascii=False)
    safe = json_for_html(text)
    assert not set("<>&\u2028") & set(safe)
    assert json.loads(safe) == json.loads(text)
    assert label("open_prompts") == "Open prompts"


def test_control_characters_are_shown_and_words_from_the_right_isolated() -> None:
    manifest = {**MANIFEST, "title": "\x1b[2J\x00\u202e שלום 7"}
    page = render([], manifest)
    assert "<h1>␛[2J␀\\u202e \u2068שלום\u2069 7</h1>" in page
    assert not {chr(code) for code in range(32) if code not in (9, 10)} & set(page)
    studies = [StudyResult(study="refusal", summary=["\x07 שלום 0.9"])]
    assert '<p class="answer">␇ \u2068שלום\u2069 0.9</p>' in render(studies, {})


def test_the_bundled_pair_has_answers_captions_and_little_weight(tmp_path: Path) -> None:
    """The stored run of `make compare`: under 4 MB, three to five figures a page, each with a caption of its study."""
    stored = Path(__file__).parents[1] / "goldens" / "compare"
    found = [
        result_from_dict(json.loads(path.read_text("utf-8")))
        for path in sorted((stored / "results").glob("*.json"))
    ]
    page = write_report(
        found, json.loads((stored / "manifest.json").read_text("utf-8")), tmp_path / "report.html"
    )
    assert page.stat().st_size < 4_000_000
    assert len(found) == 5
    for result in found:
        shown = question(result)
        assert 3 <= len(shown["figures"]) <= 5
        assert all(figure["captioned"] for figure in shown["figures"])
        assert shown["key"] is not None
        assert all(shown["argument"].model_dump().values()), result.study
        assert len(shown["argument"].answer) < 220


def test_a_study_that_says_nothing_more_has_the_defaults() -> None:
    """Somebody else's study, and what was stored before studies said more."""
    bare = question(results()[1])
    assert bare["argument"].answer == results()[1].summary[0]
    assert "More data" in bare["argument"].would_change
    assert [row.name for row in bare["key"].rows] == ["found"]
    shown = question(results()[2])
    assert [len(shown[kind]) for kind in ("figures", "more_figures")] == [4, 0]
    assert shown["figures"][1]["caption"] == "Accuracy. Whiskers are 95 % intervals."
    assert question(StudyResult(study="theirs", summary=[]))["question"] == ""
