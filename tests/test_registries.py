"""Whatever goes by a name is found by it: our own things, a file put beside them, and unknown or doubled names."""

from __future__ import annotations

import subprocess
import sys
import warnings
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from steerlab.alignment import ALIGNERS, Aligner, Ridge
from steerlab.directions import ESTIMATORS, DifferenceInMeans, fit_direction
from steerlab.errors import AlignmentError, DirectionError, ModelError, SteeringError, SteerlabError
from steerlab.models.backends import BACKENDS, Transformers, register_backend
from steerlab.registry import Registry
from steerlab.steering import EXPORTS, INTERVENTIONS, Add, Scale, register_intervention

OURS = [
    (
        ESTIMATORS,
        {
            "difference-in-means",
            "mass-mean",
            "logistic",
            "lda",
            "leace",
            "pca",
            "ccs",
            "ttpd",
            "cluster-directions",
            "concept-cone",
        },
        DirectionError,
    ),
    (
        ALIGNERS,
        {
            "ridge",
            "svd-regression",
            "reduced-rank",
            "procrustes",
            "cca",
            "affine",
            "anchor",
            "shuffled-pairs",
        },
        AlignmentError,
    ),
    (BACKENDS, {"transformers", "transformer_lens", "nnsight"}, ModelError),
    (
        INTERVENTIONS,
        {
            *("add", "ablate", "clamp", "project", "rotate", "affine", "erase", "low_rank", "patch", "scale"),
            "per_row",
        },
        SteeringError,
    ),
    (EXPORTS, {"transformers", "gguf", "vllm-lens", "easysteer"}, SteeringError),
]
NAMES = ["estimators", "aligners", "backends", "interventions", "exports"]


@pytest.fixture(autouse=True)
def _as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test registers is gone after it."""
    for registry, _, _ in OURS:
        assert list(registry)  # the real ones are looked for first
        monkeypatch.setattr(registry, "_entries", dict(registry._entries))


@pytest.mark.parametrize(("registry", "names", "error"), OURS, ids=NAMES)
def test_our_names_are_known_and_others_refused(
    registry: Registry[Any], names: set[str], error: type[SteerlabError]
) -> None:
    assert names <= set(registry)
    with pytest.raises(error, match=r"There is no .* 'nothing'; choose from ") as refused:
        registry["nothing"]
    assert all(name in str(refused.value) for name in names)
    with pytest.raises(ValueError, match=r"There are two of the .* give one of them another name"):
        registry.add(min(names), object())


def test_an_estimator_is_found_by_its_name() -> None:
    from steerlab.activations import Activations
    from steerlab.models import Site

    @ESTIMATORS.register("twice")
    class Twice(DifferenceInMeans):
        def _learn(self, high: Any, low: Any) -> Twice:
            super()._learn(2 * high, 2 * low)
            return self

    import torch

    site = Site("resid_post", 0)
    rows = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    states = Activations(
        {site: rows},
        torch.arange(2),
        torch.zeros(2, dtype=torch.long),
        n_prompts=2,
        model_name="",
        fingerprint=None,
    )
    assert fit_direction(states, [1, 0], "twice")[site].tolist() == [2.0, -2.0]
    assert fit_direction(states, [1, 0], "difference-in-means")[site].tolist() == [1.0, -1.0]


def test_an_aligner_is_found_by_its_name_and_its_class_in_files(tmp_path: Path) -> None:
    @ALIGNERS.register("strong-ridge")
    class StrongRidge(Ridge):
        def __init__(self, strength: float = 10.0) -> None:
            super().__init__(strength)

    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((2, 12, 3))
    aligner = ALIGNERS["strong-ridge"]().fit(x, y)
    aligner.save(tmp_path / "a.safetensors")
    assert isinstance(Aligner.load(tmp_path / "a.safetensors"), StrongRidge)
    del ALIGNERS._entries["strong-ridge"]
    with pytest.raises(AlignmentError, match="no aligner class 'StrongRidge'"):
        Aligner.load(tmp_path / "a.safetensors")


def test_a_backend_is_found_by_its_name_and_its_objects() -> None:
    from steerlab.models.backends import backend_of

    @register_backend
    class Boxed(Transformers):
        name = "boxed"

        @classmethod
        def wraps(cls, source: Any) -> bool:
            return isinstance(source, dict)

    assert BACKENDS["boxed"] is Boxed
    assert backend_of({}) is Boxed
    assert backend_of(object()) is Transformers


def test_an_intervention_is_found_by_its_kind() -> None:
    from steerlab.models import Site
    from steerlab.steering import edit_from_dict

    @register_intervention
    class Halve(Scale):
        kind = "halve"

    written = Halve(0.5, sites=[Site("resid_post", 0)]).to_dict()
    assert written["edit"] == "halve"
    assert isinstance(edit_from_dict(written, []), Halve)
    with pytest.raises(ValueError, match="two of the edit 'add'"):
        register_intervention(type("Other", (Add,), {}))


def test_a_file_in_a_package_is_an_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One file beside the others registers itself; nothing else is edited."""
    package = tmp_path / "some_exports"
    package.mkdir()
    (package / "__init__.py").write_text(
        "from steerlab.registry import Registry\nFORMS = Registry('form', package='some_exports')\n"
    )
    (package / "shout.py").write_text(
        "from some_exports import FORMS\n\n@FORMS.register('shout')\ndef shout(text):\n    return text.upper()\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    from some_exports import FORMS  # type: ignore[import-not-found]

    assert list(FORMS) == ["shout"]
    assert FORMS["shout"]("a") == "A"
    with pytest.raises(SteerlabError, match="There is no form 'whisper'; choose from shout"):
        FORMS["whisper"]


def test_an_entry_point_is_an_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "our_forms").mkdir()
    (tmp_path / "our_forms" / "__init__.py").write_text(
        "from steerlab.registry import Registry\n"
        "FORMS = Registry('form', package='our_forms', group='some.forms')\n"
    )
    (tmp_path / "their_forms.py").write_text(
        "from our_forms import FORMS\n\nFORMS.add('whisper', str.lower)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(
        "steerlab.registry.entry_points", lambda group: [EntryPoint("theirs", "their_forms", group)]
    )
    from our_forms import FORMS  # type: ignore[import-not-found]

    assert FORMS["whisper"]("A") == "a"


def test_an_entry_point_that_cannot_be_imported_is_left_out_and_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "plain_forms").mkdir()
    (tmp_path / "plain_forms" / "__init__.py").write_text(
        "from steerlab.registry import Registry\n"
        "FORMS = Registry('form', package='plain_forms', group='some.forms')\n"
    )
    (tmp_path / "half_forms.py").write_text(
        "from plain_forms import FORMS\n\nFORMS.add('half', str.lower)\nimport nothing_of_this_name\n"
    )
    (tmp_path / "good_forms.py").write_text("from plain_forms import FORMS\n\nFORMS.add('good', str.upper)\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(
        "steerlab.registry.entry_points",
        lambda group: [EntryPoint("half", "half_forms", group), EntryPoint("good", "good_forms", group)],
    )
    from plain_forms import FORMS  # type: ignore[import-not-found]

    with pytest.warns(UserWarning, match=r"'half' \(half_forms\) is left out.*nothing_of_this_name"):
        assert list(FORMS) == ["good"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert "half" not in FORMS


def test_a_lookup_that_fails_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module of ours that cannot be imported is an error each time, not a registry with a part of its names."""
    (tmp_path / "torn_forms").mkdir()
    (tmp_path / "torn_forms" / "__init__.py").touch()
    broken = tmp_path / "torn_forms" / "broken.py"
    broken.write_text("import nothing_of_this_name\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    forms: Registry[Any] = Registry("form", package="torn_forms")
    for _ in range(2):
        with pytest.raises(ModuleNotFoundError, match="nothing_of_this_name"):
            list(forms)
    broken.unlink()
    assert not list(forms)


def test_an_export_is_written_by_its_name(tmp_path: Path) -> None:
    @EXPORTS.register("names")
    def export_names(model: Any, interventions: Any, path: Path) -> Path:
        path.write_text(" ".join(type(edit).__name__ for edit in interventions))
        return path

    written = EXPORTS["names"](None, [Scale.__new__(Scale)], tmp_path / "names.txt")
    assert written.read_text() == "Scale"


def test_the_doctor_lists_every_registry(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from steerlab import cli

    monkeypatch.setattr(sys, "argv", ["steerlab", "doctor"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert not ended.value.code
    shown = capsys.readouterr().out
    for name in ("difference-in-means", "procrustes", "transformer_lens", "easysteer", "per_row", "refusal"):
        assert name in shown


@pytest.mark.parametrize("command", ["extract", "export"])
def test_help_does_not_wait_for_torch(command: str) -> None:
    check = (
        "import sys\nfrom steerlab.cli import main\nsys.argv[1:] = [" + repr(command) + ", '--help']\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code\nassert 'torch' not in sys.modules\n"
    )
    ran = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert "NAME" in ran.stdout or "estimator" in ran.stdout or "FORM" in ran.stdout
