"""Fields of config.json that several rooms know by name. Data only."""

from __future__ import annotations

# They describe the stored weights, not the computation.
STORAGE_FIELDS = frozenset({"quantization_config", "torch_dtype", "dtype"})
# They say who wrote the file and where its code lies; they do not change the computation.
CLERICAL_FIELDS = frozenset({"transformers_version", "auto_map", "_name_or_path"})
# Keys of `quantization_config` that list unquantized modules, for any method.
SPARED_FIELDS = ("modules_to_not_convert", "ignored_layers", "ignore")
