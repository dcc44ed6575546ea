"""The usual way, as PEFT's documentation has it: load, merge_and_unload, save.

python benchmarks/peft_merge.py BASE ADAPTER OUT
"""

from __future__ import annotations

import sys

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

if __name__ == "__main__":
    base, adapter, out = sys.argv[1:]
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
    PeftModel.from_pretrained(model, adapter).merge_and_unload().save_pretrained(out)
