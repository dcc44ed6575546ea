"""The families of PEFT adapters: what a `peft_type` of adapter_config.json does to a base.

A new family is one entry here and a module that turns keys into changes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from remerge.adapters import tuner
from remerge.adapters.deltas import Changes
from remerge.adapters.facts import AdapterFacts, BaseFacts, FactorShapes, Wanted
from remerge.adapters.lora.family import LORA
from remerge.adapters.misfits import DoesNotFit, Misfit
from remerge.adapters.regions import Names
from remerge.adapters.tuner import Tuner
from remerge.adapters.tuners.adalora import ADALORA
from remerge.adapters.tuners.beft import BEFT
from remerge.adapters.tuners.boft import BOFT
from remerge.adapters.tuners.c3a import C3A
from remerge.adapters.tuners.deft import DEFT
from remerge.adapters.tuners.delora import DELORA
from remerge.adapters.tuners.fourierft import FOURIERFT
from remerge.adapters.tuners.glora import GLORA
from remerge.adapters.tuners.gralora import GRALORA
from remerge.adapters.tuners.hira import HIRA
from remerge.adapters.tuners.hra import HRA
from remerge.adapters.tuners.ia3 import IA3
from remerge.adapters.tuners.ln_tuning import LN_TUNING
from remerge.adapters.tuners.loha import LOHA
from remerge.adapters.tuners.lokr import LOKR
from remerge.adapters.tuners.miss import MISS
from remerge.adapters.tuners.oft import OFT
from remerge.adapters.tuners.osf import OSF
from remerge.adapters.tuners.peanut import PEANUT
from remerge.adapters.tuners.psoft import PSOFT
from remerge.adapters.tuners.pvera import PVERA
from remerge.adapters.tuners.randlora import RANDLORA
from remerge.adapters.tuners.road import ROAD
from remerge.adapters.tuners.shira import SHIRA
from remerge.adapters.tuners.supertuning import SUPERTUNING
from remerge.adapters.tuners.tinylora import TINYLORA
from remerge.adapters.tuners.trainable_tokens import TRAINABLE_TOKENS
from remerge.adapters.tuners.unilora import UNILORA
from remerge.adapters.tuners.vblora import VBLORA
from remerge.adapters.tuners.vera import VERA
from remerge.adapters.tuners.waveft import WAVEFT
from remerge.errors import BadInput, Unsupported

__all__ = [
    "AdapterFacts",
    "BaseFacts",
    "DoesNotFit",
    "FactorShapes",
    "Misfit",
    "Wanted",
    "changes",
    "wanted",
]


FAMILIES: Mapping[str, Tuner[Any]] = {
    "LORA": LORA,
    "VERA": VERA,
    "PVERA": PVERA,
    "VBLORA": VBLORA,
    "RANDLORA": RANDLORA,
    "ADALORA": ADALORA,
    "LOHA": LOHA,
    "LOKR": LOKR,
    "IA3": IA3,
    "LN_TUNING": LN_TUNING,
    "TRAINABLE_TOKENS": TRAINABLE_TOKENS,
    "FOURIERFT": FOURIERFT,
    "WAVEFT": WAVEFT,
    "C3A": C3A,
    "DELORA": DELORA,
    "DEFT": DEFT,
    "OFT": OFT,
    "BOFT": BOFT,
    "HRA": HRA,
    "ROAD": ROAD,
    "MISS": MISS,
    "GRALORA": GRALORA,
    "HIRA": HIRA,
    "SHIRA": SHIRA,
    "BEFT": BEFT,
    "SUPERTUNING": SUPERTUNING,
    "PEANUT": PEANUT,
    "OSF": OSF,
    "PSOFT": PSOFT,
    "GLORA": GLORA,
    "TINYLORA": TINYLORA,
    "UNILORA": UNILORA,
}

# What PEFT called a family before.
FORMER_NAMES: Mapping[str, str] = {"BONE": "MISS"}

# Why each of these cannot be merged: most add what is no weight of the model.
UNMERGEABLE: Mapping[str, str] = {
    "ADAMSS": "Which outputs its factors belong to is not saved: PEFT clusters the base's weights "
    "with scikit-learn to find them.",
    "ADAPTION_PROMPT": "It adds attention over trained prompts to every layer.",
    "CARTRIDGE": "It is a trained key-value cache.",
    "CPT": "It is a prompt of trained tokens.",
    "FROD": "It rebuilds every weight out of a square basis as wide as the layer, which must be "
    "inverted whole.",
    "LILY": "Its experts are weighed anew for every batch.",
    "MULTITASK_PROMPT_TUNING": "It is a prompt of trained tokens.",
    "P_TUNING": "It is a prompt of trained tokens.",
    "POLY": "Its skills are mixed for every task.",
    "PREFIX_TUNING": "It is a trained key-value prefix.",
    "PROMPT_TUNING": "It is a prompt of trained tokens.",
    "SHADOW": "It runs a second network beside the model.",
    "XLORA": "It mixes several LoRAs anew for every token.",
}


def changes(adapter: AdapterFacts, base: BaseFacts, names: Names) -> Changes:
    """What the adapter asks of this base. No weight of either is read.

    Raises `DoesNotFit` (with all misfits) when a tensor of the adapter has no place in the base,
    `Unsupported` for kinds that cannot be merged and `BadInput` for a broken configuration.
    """
    return tuner.changes(_family(adapter), adapter, base, names)


def wanted(adapter: AdapterFacts) -> Wanted:
    """The modules and parameters that the adapter speaks of, as `find_names` asks for them."""
    return tuner.wanted(_family(adapter), adapter)


def _family(adapter: AdapterFacts) -> Tuner[Any]:
    kind = adapter.config.get("peft_type")
    if not isinstance(kind, str):
        raise BadInput(
            f"adapter_config.json of {adapter.path} names no peft_type (found {kind!r}).",
            hint="Restore the adapter_config.json that the training run wrote.",
        )
    family = FAMILIES.get(FORMER_NAMES.get(kind, kind))
    if family is not None:
        return family
    if kind in UNMERGEABLE:
        raise Unsupported(
            f"{adapter.path} is a {kind} adapter, which cannot be merged.",
            why=UNMERGEABLE[kind],
            hint="Serve it as an adapter on its base.",
        )
    raise Unsupported(
        f"{adapter.path} has the peft_type {kind[:40]!r}, which is not known.",
        why="The families that can be merged are " + ", ".join(sorted(FAMILIES)) + ".",
    )
