"""Where the seconds of a study go: in the blocks, in the unembedding, or in code of steerlab's own, by function.

    python benchmarks/shares.py BASE POST --studies refusal confidence

A thread looks at the running stack every ten milliseconds, as a sampling profiler does, and asks hooks on the models
whether a pass is going on. Writes `benchmarks/results/shares.json`, the studies that ran in place of earlier ones.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "2")

import torch

import steerlab as sl
from steerlab.comparison import run_study
from steerlab.environment import hardware, library_versions
from steerlab.models.metering import metered
from steerlab.run_data import read_data
from steerlab.studies import Pair

RESULT = Path(__file__).parent / "results" / "shares.json"
PACKAGE = str(Path(sl.__file__).parent)
EVERY, TOP = 0.01, 12  # seconds between looks; functions that are kept


class Sampler:
    """Counts of (place, function) of the thread that made it, while it is entered."""

    def __init__(self, pair: Pair) -> None:
        self.counts: Counter[tuple[str, str]] = Counter()
        self._pair, self._watched, self._inside = pair, threading.get_ident(), list[str]()
        self._done = threading.Event()

    @contextmanager
    def running(self) -> Iterator[None]:
        """Look on until the context ends."""
        handles = [handle for model in dict.fromkeys(self._pair) for handle in self._mark(model)]
        thread = threading.Thread(target=self._look, daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._done.set()
            thread.join()
            for handle in handles:
                handle.remove()

    def _mark(self, model: sl.LanguageModel) -> Iterator[Any]:
        for place, part in (("blocks", model.anatomy.base), ("unembedding", model.anatomy.head)):
            yield part.register_forward_pre_hook(lambda *_, place=place: self._inside.append(place))
            yield part.register_forward_hook(lambda *_: self._inside.pop() and None, always_call=True)

    def _look(self) -> None:
        while not self._done.wait(EVERY):
            place = self._inside[-1] if self._inside else "outside"
            frame = sys._current_frames()[self._watched]
            self.counts[place, function(frame, own=place == "outside")] += 1


def function(frame: FrameType, *, own: bool) -> str:
    """The innermost function, or outside of the models the innermost of steerlab's own that has a frame."""
    found: FrameType | None = frame
    while own and found is not None and not found.f_code.co_filename.startswith(PACKAGE):
        found = found.f_back
    code = (found or frame).f_code
    folders = Path(code.co_filename).with_suffix("").parts
    start = max(
        (at for at, name in enumerate(folders) if name in ("steerlab", "torch", "transformers")), default=-1
    )
    return f"{'.'.join(folders[max(start, -2) :])}: {code.co_qualname}"


def profile(study: str, pair: Pair) -> dict[str, Any]:
    """Shares of one study by place, and its largest functions."""
    sampler = Sampler(pair)
    started = time.perf_counter()
    with sampler.running(), metered(pair.by_name) as spent:
        run_study(study, pair, read_data())
    seconds, looks = time.perf_counter() - started, sampler.counts.total()
    places = Counter[str]()
    for (place, _), count in sampler.counts.items():
        places[place] += count
    metered_share = sum(own.seconds for own in spent.values()) / seconds
    return {
        "seconds": round(seconds, 1),
        "looks": looks,
        "share in the models by the meter": round(metered_share, 3),
        "places": {place: round(count / looks, 3) for place, count in places.most_common()},
        "functions": [
            {"place": place, "function": name, "share": round(count / looks, 3)}
            for (place, name), count in sampler.counts.most_common(TOP)
        ],
    }


def fewer() -> None:
    """Ask large models as little as the tests do."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
    smaller = importlib.import_module("smaller")
    smaller.ask_little_of_large_models()


def main() -> None:
    """Read the command line, run the studies and write what they spent their time on."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("base")
    parser.add_argument("post")
    parser.add_argument("--studies", nargs="+", default=["refusal", "confidence"])
    parser.add_argument("--few", action="store_true", help="the amounts of the tests (tests/smaller.py)")
    parser.add_argument("--note", default="", help="what else the machine did, written beside the numbers")
    chosen = parser.parse_args()
    if chosen.few:
        fewer()
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    base = sl.load(chosen.base)
    pair = Pair(base, sl.load(chosen.post, base=base))
    before = json.loads(RESULT.read_text()) if RESULT.exists() else {"studies": {}}
    studies = {**before["studies"]}
    for study in chosen.studies:
        studies[study] = {
            **profile(study, pair),
            "few": chosen.few,
            "machine": hardware(),
            "beside it": chosen.note,
        }
        print(study, json.dumps(studies[study], indent=1))
        found = {"versions": library_versions(), "studies": studies}
        RESULT.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
