"""Where two models hold what they know, and whether one's knowledge works in the other: any pair, as a TOML file says.

    python analyses/knowledge.py analyses/knowledge_zoo_large.toml

Beside the keys of every study: `pairs` names a file of pairs in place of statements, `template` says where subject and
object stand ("The city of {subject} is in {object}."), `align = true` patches across through a ridge map fitted on
other statements, and `by_topic = true` maps every topic for itself as well and says where it sits. What is finished is
kept in runs/sweeps/ until the end, so an interrupted run goes on.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from _one_study import main

from steerlab import studies
from steerlab.alignment import Ridge
from steerlab.datasets import StatementSet, StudyData
from steerlab.errors import SteerlabError
from steerlab.results import StudyResult
from steerlab.studies import Pair

SWEEPS = Path("runs/sweeps")


def study(pair: Pair, data: StudyData, options: dict[str, Any]) -> StudyResult:
    """The knowledge study, and one of each topic where that is asked for."""
    options = {
        **options,
        **{key: tuple(options[key]) for key in ("answers", "sites") if key in options},
    }
    by_topic = options.pop("by_topic", False)
    if options.pop("align", False):
        options["aligner"] = Ridge()
    result = studies.knowledge(pair, data, kept_in=SWEEPS, **options)
    if by_topic and isinstance(data.statements, StatementSet):
        each_topic(pair, data.statements, options)
    shutil.rmtree(SWEEPS, ignore_errors=True)
    return result


def each_topic(pair: Pair, statements: StatementSet, options: dict[str, Any]) -> None:
    """Maps of single topics; topics that cannot be paired or are answered at chance say so."""
    for topic in statements.topics_present:
        try:
            result = studies.knowledge(
                pair, statements.topic(topic), **{**options, "noise": False, "kept_in": SWEEPS}
            )
        except SteerlabError as error:
            print(f"{topic}: {error}")
            continue
        print(f"{topic}: {' '.join(result.summary[1:3]) or result.summary[0]}")


if __name__ == "__main__":
    main(__doc__ or "", "knowledge", study, also=["align", "by_topic"], data=["pairs", "template"])
