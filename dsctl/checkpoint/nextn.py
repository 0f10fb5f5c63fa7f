"""An MTP layer that was exported alone, as layer 0 of a model with one layer: the same under the names of releases.

sgl-project/sglang, scripts/export_deepseek_nextn.py: config.json gets `num_hidden_layers` 1 and the architecture
`DeepseekV3ForCausalLMNextN`, the layer's tensors get the number 0, and most exports leave out the embedding and the
head that duplicate the model's own. lmsys/DeepSeek-R1-NextN and SGLang/DeepSeek-V3-NextN are such folders. No torch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from dsctl.checkpoint.checkpoint import Checkpoint
from dsctl.core.config_fields import text_fields
from dsctl.layouts.naming import DIALECTS

_LAYERS, _MTP = "num_hidden_layers", "num_nextn_predict_layers"
# A matrix that only MTP layers have, in layer 0, which is none in a release.
MARK = "model.layers.0.eh_proj.weight"
# Fields that the export replaces, and fields that mean other layers.
_FIELDS = (_LAYERS, "architectures", "first_k_dense_replace")


def released(other: Checkpoint, base: Checkpoint) -> Checkpoint:
    """The checkpoint under the names that its layer has beside the layers of a base, if it is such an export.

    Any other checkpoint is returned unchanged.
    """
    if base.config is None or other.config is None or other.model is None or MARK not in other.specs:
        return other
    fields = text_fields(base.config)
    if other.config.get(_LAYERS) != 1 or type(fields.get(_LAYERS)) is not int:
        return other
    config = {**other.config, **{name: fields[name] for name in _FIELDS if name in fields}, _MTP: 1}
    names = dict(_names(replace(other, config=config)))
    return replace(
        other,
        config=config,
        headers={
            file: replace(header, names=tuple(names.get(name, name) for name in header.names))
            for file, header in other.headers.items()
        },
        index=None if other.index is None else {names.get(name, name): file for name, file in other.index.items()},
    )


def _names(other: Checkpoint) -> Iterator[tuple[str, str]]:
    """Every tensor that the layer may have: its name in the export, and its name in a release."""
    assert other.model is not None and other.config is not None
    families = [family for family in other.model.families(other.config) if family.mtp]
    endings = {("", "")} | {ending for dialect in DIALECTS.values() for ending in dialect.endings.values()}
    for param in (param for family in families for param in family.params()):
        alone = param.family.named(param.template, param.family.first_layer, param.expert)
        for off, on in endings:
            yield alone.removesuffix(off) + on, param.name.removesuffix(off) + on
