"""The families of PEFT other than LoRA: one file each, and a line in `families.FAMILIES`."""
