"""Do base and post-trained model share a truth direction? The truthfulness study on any pair, as a TOML file says.

    python analyses/truthfulness.py analyses/zoo_small.toml
    python analyses/truthfulness.py analyses/qwen_0_5b.toml

`preset = "published"` in the file gives the published method; see docs/methods/truthfulness.md for what differs.
"""

from __future__ import annotations

from typing import Any

from _one_study import main

from steerlab import studies
from steerlab.comparison import Data
from steerlab.models import LanguageModel
from steerlab.studies.result import StudyResult


def study(base: LanguageModel, post: LanguageModel, data: Data, options: dict[str, Any]) -> StudyResult:
    """The truthfulness study with the price of steering on plain text."""
    return studies.truthfulness(base, post, data.statements, plain_text=data.plain_text, **options)


if __name__ == "__main__":
    main(__doc__ or "", study)
