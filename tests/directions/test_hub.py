"""Directions on the hub, against a fake one: a folder, behind the signatures of the real functions."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any
from unittest.mock import Mock, create_autospec

import huggingface_hub
import pytest
import torch
from huggingface_hub.errors import EntryNotFoundError, RepositoryNotFoundError

import steerlab as sl
from steerlab.errors import DirectionError
from steerlab.models import LanguageModel


class FakeHub:
    """Repositories as folders."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.private: dict[str, bool] = {}

    def create_repo(self, repo_id: str, *, private: bool, exist_ok: bool) -> None:
        if repo_id.startswith("somebody-else/"):
            raise RepositoryNotFoundError("403 Forbidden: not yours.", response=Mock())
        assert exist_ok
        self.private.setdefault(repo_id, private)
        (self.folder / repo_id).mkdir(parents=True, exist_ok=True)

    def upload_file(
        self, *, path_or_fileobj: Path, path_in_repo: str, repo_id: str, commit_message: str
    ) -> None:
        assert path_in_repo in commit_message
        place = self.folder / repo_id / path_in_repo
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path_or_fileobj, place)

    def hf_hub_download(self, repo_id: str, filename: str) -> str:
        if not (self.folder / repo_id).is_dir():
            raise ConnectionError("We couldn't connect to the hub.")
        if not (self.folder / repo_id / filename).is_file():
            raise EntryNotFoundError(f"404: no {filename} in {repo_id}.")
        return str(self.folder / repo_id / filename)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    fake = FakeHub(tmp_path / "hub")
    for name in ("create_repo", "upload_file", "hf_hub_download"):
        real: Any = getattr(huggingface_hub, name)
        monkeypatch.setattr(huggingface_hub, name, create_autospec(real, side_effect=getattr(fake, name)))
    return fake


@pytest.fixture
def direction(tiny_llama: LanguageModel) -> sl.Direction:
    vectors = {site: torch.randn(tiny_llama.d_model) for site in tiny_llama.sites("resid_post")}
    return sl.Direction(vectors, tiny_llama.name, tiny_llama.fingerprint, best=sl.Site("resid_post", 1))


@pytest.mark.parametrize("file", ["mood.safetensors", "layers/all.safetensors", None])
def test_what_is_pushed_loads_under_the_name_it_got(
    hub: FakeHub, direction: sl.Direction, file: str | None
) -> None:
    name = direction.push("me/moods", file) if file else direction.push("me/moods", private=True)
    assert name == f"me/moods:{file or 'direction.safetensors'}"
    assert hub.private == {"me/moods": file is None}
    found = sl.Direction.load(name)
    assert (found.hash, found.best, found.model_name) == (
        direction.hash,
        direction.best,
        direction.model_name,
    )


@pytest.mark.usefixtures("hub")
def test_what_the_hub_refuses_is_said(direction: sl.Direction) -> None:
    direction.push("me/moods")
    for act, words in (
        (lambda: sl.Direction.load("me/moods:other.safetensors"), "cannot be fetched from the hub: 404"),
        (lambda: sl.Direction.load("me/none:other.safetensors"), "couldn't connect"),
        (lambda: direction.push("somebody-else/moods"), "403 Forbidden"),
        (lambda: direction.push("moods"), r"push\('owner/name'"),
        (lambda: direction.push("me/moods", "mood.pt"), r"push\('owner/name'"),
    ):
        with pytest.raises(DirectionError, match=words):
            act()


def test_a_file_here_is_never_asked_of_the_hub(
    direction: sl.Direction, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", Mock(side_effect=AssertionError))
    direction.save(tmp_path / "here.safetensors")
    assert sl.Direction.load(tmp_path / "here.safetensors").hash == direction.hash
    with pytest.raises(DirectionError, match="nowhere"):
        sl.Direction.load(tmp_path / "nowhere.safetensors")
