"""A release's checkpoint at full size, all holes: true headers, index and config, and no weights."""

from __future__ import annotations

import json
from pathlib import Path

from dsctl import releases
from dsctl.checkpoint.groups import groups_of_release
from dsctl.core.config_fields import text_fields
from dsctl.core.header import TensorSpec, build
from dsctl.layouts.naming import DIALECTS
from dsctl.stores import INDEX


def hollow(folder: Path, name: str) -> Path:
    """The files of a release as they are published: embedding, a layer each, heads, a stage of the drafter each, and
    an n-gram table each."""
    release = releases.find(name)
    layers, count = text_fields(release.config)["num_hidden_layers"], release.storage.files
    assert count is not None
    tables = text_fields(release.config).get("engram_layer_ids")
    files: dict[str, dict[str, TensorSpec]] = {}
    for group in groups_of_release(release):
        named = DIALECTS[group.codec.dialect]
        for param in group.family.params():
            first = param.role in ("embedding", "vision")
            layer = param.layer if param.layer is not None else -1 if first else layers
            number = layer + 2 + (param.layer is not None and layer >= layers)
            if param.role.startswith("engram"):
                number = count - (param.layer == tables[0])
            held = files.setdefault(f"model-{number:05d}-of-{count:05d}.safetensors", {})
            held |= {named.tensor(param.name, part): spec for part, spec in group.specs.items()}
    folder.mkdir()
    for file, specs in files.items():
        header, _ = build(specs, {})
        with open(folder / file, "wb") as opened:
            opened.write(header)
            opened.truncate(len(header) + sum(spec.nbytes for spec in specs.values()))
    index = {tensor: file for file, specs in files.items() for tensor in specs}
    text = {"metadata": {"total_size": release.storage.total_size}, "weight_map": dict(sorted(index.items()))}
    (folder / INDEX).write_text(json.dumps(text))
    (folder / "config.json").write_text(json.dumps(release.config))
    return folder
