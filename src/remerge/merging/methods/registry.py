"""The combine methods by name. A new one is one file of this package and one entry here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from remerge.merging.methods.breadcrumbs import BREADCRUMBS, BREADCRUMBS_TIES
from remerge.merging.methods.cat import CAT
from remerge.merging.methods.consensus import CONSENSUS
from remerge.merging.methods.core_space import CORE_SPACE
from remerge.merging.methods.dare import DARE_LINEAR, DARE_TIES
from remerge.merging.methods.della import DELLA, DELLA_LINEAR
from remerge.merging.methods.knots import KNOTS
from remerge.merging.methods.linear import LINEAR
from remerge.merging.methods.magnitude_prune import MAGNITUDE_PRUNE
from remerge.merging.methods.method import Method
from remerge.merging.methods.model_stock import MODEL_STOCK
from remerge.merging.methods.nuslerp import NUSLERP
from remerge.merging.methods.peft_factors import (
    PEFT_DARE_LINEAR,
    PEFT_DARE_TIES,
    PEFT_LINEAR,
    PEFT_MAGNITUDE_PRUNE,
    PEFT_TIES,
)
from remerge.merging.methods.peft_svd import (
    PEFT_DARE_LINEAR_SVD,
    PEFT_DARE_TIES_SVD,
    PEFT_MAGNITUDE_PRUNE_SVD,
    PEFT_TIES_SVD,
)
from remerge.merging.methods.sce import SCE
from remerge.merging.methods.sequential import SEQUENTIAL
from remerge.merging.methods.slerp import SLERP
from remerge.merging.methods.sum import SUM
from remerge.merging.methods.svd import SVD
from remerge.merging.methods.ties import TIES
from remerge.merging.methods.tsv import TSV

METHODS: Mapping[str, Method[Any]] = {
    method.name: method
    for method in (
        SUM,
        LINEAR,
        SEQUENTIAL,
        TIES,
        DARE_LINEAR,
        DARE_TIES,
        DELLA,
        DELLA_LINEAR,
        BREADCRUMBS,
        BREADCRUMBS_TIES,
        SCE,
        MAGNITUDE_PRUNE,
        MODEL_STOCK,
        SLERP,
        NUSLERP,
        CONSENSUS,
        CAT,
        SVD,
        TSV,
        CORE_SPACE,
        KNOTS,
        PEFT_LINEAR,
        PEFT_TIES,
        PEFT_DARE_LINEAR,
        PEFT_DARE_TIES,
        PEFT_MAGNITUDE_PRUNE,
        PEFT_TIES_SVD,
        PEFT_DARE_LINEAR_SVD,
        PEFT_DARE_TIES_SVD,
        PEFT_MAGNITUDE_PRUNE_SVD,
    )
}

# What other tools call them.
ALIASES: Mapping[str, str] = {"task_arithmetic": "sum"}
