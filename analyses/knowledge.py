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
from steerlab.datasets import StatementSet, StudyData, read_pairs, with_template
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
    pairs, template = options.pop("pairs", None), options.pop("template", None)
    by_topic = options.pop("by_topic", False)
    if options.pop("align", False):
        options["aligner"] = Ridge()
    statements = data.labelled_statements
    statements = statements if template is None else with_template(statements, template)
    asked = statements if pairs is None else read_pairs(pairs, template=template)
    result = studies.knowledge(pair, asked, kept_in=SWEEPS, **options)
    if by_topic and isinstance(asked, StatementSet):
        each_topic(pair, asked, options)
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
    main(__doc__ or "", "knowledge", study, also=["pairs", "template", "align", "by_topic"])
