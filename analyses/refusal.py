"""Do base and post-trained model share a refusal direction? The refusal study on any pair, as a TOML file says.

    python analyses/refusal.py analyses/zoo_small.toml
    python analyses/refusal.py analyses/qwen_0_5b.toml

`preset = "published"` in the file gives the published method; see docs/methods/refusal.md for what differs.
"""

from __future__ import annotations

from _one_study import main

if __name__ == "__main__":
    main(__doc__ or "", "refusal")
