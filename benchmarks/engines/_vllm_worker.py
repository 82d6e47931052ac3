"""Runs in vLLM's environment: reads jobs, writes what the engine wrote. Nothing of steerlab is imported here."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "1")


def main(jobs: Path, out: Path) -> None:
    """One model, some runs: each with prompts as tokens and, for every prompt, a vector's JSON or nothing."""
    from vllm import LLM, SamplingParams

    job = json.loads(jobs.read_text())
    llm = LLM(
        job["model"], dtype="float32", enforce_eager=True, max_model_len=job["room"], max_num_seqs=32, seed=0,
        enable_prefix_caching=False,
    )  # fmt: skip
    found = []
    for run in job["runs"]:
        settings = [
            SamplingParams(
                temperature=0.0,
                max_tokens=job["tokens"],
                logprobs=1,
                extra_args=None if vector is None else {"apply_steering_vectors": vector},
            )
            for vector in run["vectors"]
        ]
        answers = llm.generate(
            [{"prompt_token_ids": ids} for ids in run["prompts"]], settings, use_tqdm=False
        )
        found.append(
            {
                "written": [list(answer.outputs[0].token_ids) for answer in answers],
                "logprobs": [
                    [
                        law[token].logprob
                        for token, law in zip(
                            answer.outputs[0].token_ids, answer.outputs[0].logprobs, strict=True
                        )
                    ]
                    for answer in answers
                ],
            }
        )
    out.write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
