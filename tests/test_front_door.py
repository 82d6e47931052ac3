"""The front door: every name and room from `import steerlab as sl`, lazily, from one map."""

from __future__ import annotations

import ast
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest
from families import tiny

import steerlab as sl
from steerlab import _ROOM_OF, _ROOMS

SOURCE = Path(sl.__file__).read_text(encoding="utf-8")


def test_every_name_and_room_is_there() -> None:
    for name in sl.__all__:
        assert getattr(sl, name) is not None
    assert 35 <= len(_ROOM_OF) <= 60
    assert set(sl.__all__) <= set(dir(sl))


def test_every_module_is_a_room() -> None:
    assert set(_ROOMS) == {module.name for module in pkgutil.iter_modules(sl.__path__)} - {"__main__"}


def test_type_checkers_see_the_same_names() -> None:
    (block,) = [node for node in ast.parse(SOURCE).body if isinstance(node, ast.If)]
    seen: dict[str, str] = {}
    for line in block.body:
        assert isinstance(line, ast.ImportFrom)
        assert line.module is not None
        for alias in line.names:
            assert alias.asname == alias.name
            # A function that shares its module's name is imported from there, or mypy takes it for the module.
            seen[alias.name] = line.module.removesuffix(f".{alias.name}")
    rooms = {name: "steerlab" for name in _ROOMS}
    assert seen == rooms | {name: f"steerlab.{room}" for name, room in _ROOM_OF.items()}


def test_rooms_and_names_load_one_by_one_without_torch_before() -> None:
    code = (
        "import sys, steerlab as sl\n"
        "sl.SteerlabError, sl.errors, sl.registry, sl.results, sl.studies\n"
        "assert 'torch' not in sys.modules\n"
        "assert sl.comparison.compare is sl.compare and sl.activations.capture is sl.capture\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_package_runs_as_a_module() -> None:
    for name in ("steerlab", "steerlab.cli"):
        shown = subprocess.run(
            [sys.executable, "-m", name, "--help"], capture_output=True, text=True, check=True
        )
        assert "compare" in shown.stdout


@pytest.mark.parametrize(
    ("name", "words"),
    [("fit_directions", "sl.fit_direction"), ("language_model", "sl.LanguageModel"), ("zzz", "dir")],
)
def test_an_unknown_name_says_what_there_is(name: str, words: str) -> None:
    with pytest.raises(AttributeError, match=words):
        getattr(sl, name)


def test_export_goes_by_the_registry_and_leaves_the_model_alone(tmp_path: Path) -> None:
    model = tiny()
    site = sl.Site("resid_post", 1)
    state = sl.capture(model, ["a cat", "a dog"], [site])[site]
    edit = sl.Add(sl.Direction({site: state[0]}, model.name, model.fingerprint), 2.0, unit="raw")
    before = model.logits(["a cat"])
    folder = sl.export(model, edit, tmp_path / "baked")
    assert (folder / "config.json").exists()
    assert (model.logits(["a cat"]) == before).all()
    again = sl.load(folder)
    with model.steering(edit):
        assert (again.logits(["a cat"]) - model.logits(["a cat"])).abs().max() < 1e-3
    assert sl.export(model, [edit], tmp_path / "v.json", format="vllm-lens").exists()
    with pytest.raises(sl.SteerlabError, match=r"no export 'onnx'; choose from .*transformers"):
        sl.export(model, edit, tmp_path / "x", format="onnx")


def test_the_page_of_names_lists_the_door() -> None:
    page = Path(__file__).parents[1] / "docs" / "names.md"
    assert sorted(set(re.findall(r"`sl\.(\w+)`", page.read_text("utf-8")))) == sorted(sl.__all__)


@pytest.mark.parametrize(
    ("room", "old", "new"),
    [
        ("models", "load", "load_model"),
        ("models", "Selection", "SelectedTokens"),
        ("activations", "Patch", "StatePatch"),
        ("alignment", "Affine", "AffineMap"),
        ("zoo", "load", "load_bundled"),
        ("zoo", "statements", "known_statements"),
    ],
)
def test_names_of_before_say_the_new_one(room: str, old: str, new: str) -> None:
    opened = getattr(sl, room)
    with pytest.warns(DeprecationWarning, match=rf"steerlab\.{room}\.{old} is now steerlab\.{room}\.{new}"):
        assert getattr(opened, old) is getattr(opened, new)
    assert old not in opened.__all__
    with pytest.raises(AttributeError, match="has no 'nothing'"):
        opened.nothing  # noqa: B018  # the access is what raises


#: Words that named two things before: each is now defined once in the package.
ONCE = ("Affine", "Agreement", "Answers", "Patch", "Price", "Role", "Selection", "WORDS", "load")


@pytest.mark.parametrize("word", ONCE)
def test_one_word_is_one_thing(word: str) -> None:
    places = []
    for file in Path(sl.__file__).parent.rglob("*.py"):
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            targets = getattr(node, "targets", [getattr(node, "target", None)])
            names = [getattr(node, "name", ""), *(getattr(target, "id", "") for target in targets)]
            places += [file.name] * (word in names)
    assert len(places) <= 1
