"""Do base and post-trained model share a refusal direction? The refusal study on any pair, as a TOML file says.

    python analyses/refusal.py analyses/zoo_small.toml
    python analyses/refusal.py analyses/qwen_0_5b.toml

`preset = "published"` in the file gives the published method; see docs/methods/refusal.md for what differs.
"""

from __future__ import annotations

from typing import Any

from _one_study import main
from base_vs_post import require_known

from steerlab import studies
from steerlab.comparison import Data
from steerlab.models import LanguageModel
from steerlab.studies import StudyResult


def study(base: LanguageModel, post: LanguageModel, data: Data, options: dict[str, Any]) -> StudyResult:
    """The refusal study with the price of steering on plain text and labelled statements."""
    require_known(options, studies.refusal)
    return studies.refusal(
        base, post, data.requests, plain_text=data.plain_text, statements=data.statements, **options
    )


if __name__ == "__main__":
    main(__doc__ or "", study)
