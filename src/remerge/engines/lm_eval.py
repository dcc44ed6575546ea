"""lm-eval: EleutherAI's harness, for tasks that others have defined."""

from __future__ import annotations

from remerge.engines.engine import Engine

LM_EVAL = Engine(
    name="lm-eval",
    enables="task scores by lm-evaluation-harness",
    # tenacity is what lm-eval asks servers with.
    requirements=(
        *("lm-eval==0.4.13", "torch==2.13.0", "transformers==5.23.0", "peft==0.21.2"),
        "tenacity>=9",
    ),
    modules=("lm_eval", "lm_eval.models.huggingface"),
    lies_over=False,
    probe="remerge.engines.probes.lm_eval",
    disk=1_900_000_000,
)
