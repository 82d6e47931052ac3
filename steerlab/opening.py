"""`steerlab.load`: a model by any name or as a live object. Beside the run, the only door that knows the zoo."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from steerlab.files import model_place, require_holds

if TYPE_CHECKING:
    from steerlab.models import LanguageModel


def load(source: Any, tokenizer: Any = None, **options: Any) -> LanguageModel:
    """Load a model: a hub name, a local folder, `zoo:NAME` for a bundled one, or a live object.

    A bundled model keeps the name `zoo:NAME`, wherever the package lies.

    Args:
        source: what to load.
        tokenizer: a tokenizer, or the name or folder of one; a live transformers model needs it.
        options: those of `models.load_model`.

    Raises:
        ModelError: as `models.load_model` does, and for an unknown bundled model.
    """
    from inspect import signature

    from steerlab import zoo
    from steerlab.errors import ModelError
    from steerlab.models import load_model, loading

    known = [
        name
        for name, part in signature(loading.load_model).parameters.items()
        if part.kind is part.KEYWORD_ONLY
    ]
    if unknown := sorted(options.keys() - set(known)):
        raise ModelError(f"Loading has no option {', '.join(unknown)}; there are {', '.join(known)}.")
    if isinstance(source, str | Path) and str(source).startswith("zoo:"):
        return zoo.load_bundled(str(source).removeprefix("zoo:"), tokenizer=tokenizer, **options)
    return load_model(source, tokenizer, **options)


def require_findable(*sources: Any) -> None:
    """Hold names of models against what is on this machine, without reading weights; hub names and objects pass.

    Raises:
        ModelError: no such folder, a folder that is no model's, or an unknown bundled model.
    """
    from steerlab import zoo

    for source in sources:
        if not isinstance(source, str | Path):
            continue
        if str(source).startswith("zoo:"):
            zoo.path(str(source).removeprefix("zoo:"))
            continue
        place = model_place(str(source))
        if place is not None and place.is_dir():
            require_holds(place, "config.json", "adapter_config.json", "*.gguf")


def name_and_revision(source: Any) -> tuple[Any, str | None]:
    """A name on the hub and its revision, as in `name@revision`; anything else as it is.

    Raises:
        ModelError: a folder with a revision.
    """
    from steerlab.errors import ModelError

    if not isinstance(source, str | Path):
        return source, None
    name = str(source)
    if "@" not in name or name.startswith("zoo:") or Path(name).expanduser().exists():
        return source, None
    before, _, revision = name.rpartition("@")
    place = model_place(before)
    if not before or not revision or (place is not None and place.is_dir()):
        raise ModelError(
            f"{name} names a revision, and only names on the hub have revisions; name the folder alone."
        )
    return before, revision


def load_pair(
    base: str | Path | LanguageModel,
    post: str | Path | LanguageModel,
    loading: dict[str, Any],
    announce: Callable[[str], None],
) -> tuple[LanguageModel, LanguageModel]:
    """Both models of a comparison; an adapter is put on the base that is loaded already, whatever base it names.

    loading: options of `load`. announce: is told, in a sentence, what begins.
    """
    from steerlab.models import is_adapter

    (base, of_base), (post, of_post) = name_and_revision(base), name_and_revision(post)
    require_findable(base, post)
    before = _loaded(base, _at(loading, of_base), announce)
    loading = _at(loading, of_post)
    is_named = isinstance(post, str | Path) and not str(post).startswith("zoo:")
    if is_named and is_adapter(str(post), loading.get("revision")):
        loading = {**loading, "base": before}
        for sentence in _other_base(Path(str(post)), before):
            announce(sentence)
    return before, _loaded(post, loading, announce)


def _at(loading: dict[str, Any], revision: str | None) -> dict[str, Any]:
    """The options of loading with this revision, where one is named."""
    return loading if revision is None else {**loading, "revision": revision}


def _other_base(adapter: Path, base: LanguageModel) -> list[str]:
    """A sentence where an adapter's card says that it was made on other weights (`base_fingerprint` in its header)."""
    try:
        card = (adapter / "README.md").read_text("utf-8")
    except (OSError, ValueError):
        return []
    noted = re.search(r"^base_fingerprint: *(\w+) *$", card.partition("\n---")[0], re.MULTILINE)
    if noted is None or noted[1] == base.fingerprint:
        return []
    return [
        f"{adapter} was made on weights with the fingerprint {noted[1]}, and {base.name} has {base.fingerprint}: what "
        "its card measured may not hold here"
    ]


def _loaded(
    model: str | Path | LanguageModel, loading: dict[str, Any], announce: Callable[[str], None]
) -> LanguageModel:
    from steerlab.models import LanguageModel

    if isinstance(model, LanguageModel):
        return model
    announce(f"Loading {model}")
    return load(model, **loading)
