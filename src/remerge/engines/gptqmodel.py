"""gptqmodel: checkpoints in GPTQ's own layout, for engines that do not read compressed-tensors."""

from __future__ import annotations

from remerge.engines.engine import Engine

GPTQMODEL = Engine(
    name="gptqmodel",
    enables="GPTQ in its native layout",
    requirements=("gptqmodel==7.7.0", "torch==2.13.0", "transformers==5.23.0"),
    modules=("gptqmodel",),
    lies_over=False,
    probe="remerge.engines.probes.gptqmodel",
    disk=1_700_000_000,
)
