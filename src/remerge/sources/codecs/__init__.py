"""The quantised formats that a base can be stored in: one file each, and the registry.

A format is found by ``quantization_config.quant_method`` of config.json, else by the names of its
tensors. A new format is one module with `find` and one line in `FORMATS`.
"""
