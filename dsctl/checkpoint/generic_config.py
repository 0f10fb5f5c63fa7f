"""The `quantization_config` of a checkpoint whose architecture is unknown, after a conversion. Pure, no torch.

What the source says of modules that stay unquantized is kept; other unquantized modules are added by their names.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from dsctl.checkpoint.quantization import LISTED, is_named, linear, module_of, quantization_config, texts
from dsctl.codecs import dress
from dsctl.codecs.codec import Codec
from dsctl.core.config_fields import SPARED_FIELDS
from dsctl.core.errors import PlanError
from dsctl.core.params import Param

_REGEX = "re:"
# The field of compressed-tensors that lists unquantized modules, and the one of other methods.
_IGNORE, _USUAL = "ignore", "modules_to_not_convert"

# A parameter, its codec in the source, and its codec in the target.
Converted = tuple[Param, Codec, Codec]


def generic_config(
    stored: Sequence[Converted], said: Mapping[str, Any] | None, unread: frozenset[str]
) -> dict[str, Any] | None:
    """The `quantization_config` for these parameters, or None if none is quantized.

    `said` is the source's, `unread` are parameters in a form that no codec reads, which only the source can declare.

    Raises:
        PlanError: one `quantization_config` cannot declare them.
    """
    kept = [name for name in (param.name for param, _, _ in stored) if name in unread]
    after = [(param, codec) for param, _, codec in stored]
    if all(before == codec for _, before, codec in stored if before.quantized or codec.quantized):
        return None if said is None else dict(said)
    if not kept:
        made = quantization_config(after)
        return None if made is None else _with_spared(made, after, said or {})
    if any(codec.quantized for _, codec in after):
        what = f"{min(kept)} stays in a form that dsctl does not read"
        raise PlanError(f"{what}: one quantization_config cannot declare it with others", hint="--skip leaves it out")
    return (
        None if said is None else _with_spared(dict(said), after, said, only=[p for p, c, _ in stored if c.quantized])
    )


def _with_spared(
    made: dict[str, Any],
    stored: Sequence[tuple[Param, Codec]],
    said: Mapping[str, Any],
    only: Sequence[Param] | None = None,
) -> dict[str, Any]:
    """The config with the unquantized modules listed: all that loaders may quantize, or `only` some, as well as those
    that the source lists and that are still unquantized."""
    quantized = [param for param, codec in stored if codec.quantized]
    method, before = made.get("quant_method"), said.get("quant_method")
    entries = dict.fromkeys(text for field in SPARED_FIELDS for text in texts(said.get(field)))
    touched = _Named(quantized)
    kept = [one for one in entries if one not in touched and (method in (before, dress.METHOD) or not _is_regex(one))]
    plain = [param for param, codec in stored if not codec.quantized and linear(param)] if only is None else only
    added = [module_of(param) for param in plain if not _is_covered(param, kept, method == before)]
    spared = [*kept, *added]
    fields = _fields(made, said)
    rest = {name: value for name, value in made.items() if name not in SPARED_FIELDS}
    return rest | {name: spared for name in fields if spared or name == _IGNORE}


def _fields(made: Mapping[str, Any], said: Mapping[str, Any]) -> Iterable[str]:
    """The fields of this method that list unquantized modules: those that the source has, or all that loaders read."""
    method = made.get("quant_method")
    if method == dress.METHOD:
        return (_IGNORE,)
    same = [name for name in SPARED_FIELDS if name in said] if said.get("quant_method") == method else []
    return same or LISTED.get(str(method), (_USUAL,))


def _is_covered(param: Param, entries: Iterable[str], widely: bool) -> bool:
    """Whether an entry means a parameter's module: by a pattern, by its name, or `widely` also by parts of its name.

    Loaders of one method match names in their own way, which those of a different method do not know.
    """
    names = {*_around(param)} if widely else {module_of(param)}
    return any(entry in names or (_is_regex(entry) and _matches(entry, param)) for entry in entries)


def _is_regex(entry: str) -> bool:
    return entry.startswith(_REGEX)


def _matches(entry: str, param: Param) -> bool:
    return is_named(entry, module_of(param), param) is True


def _around(param: Param) -> Iterator[str]:
    """Every name by which a list may mean a parameter's module: its own, a parent's, or the last parts of its own."""
    parts = module_of(param).split(".")
    for place in range(len(parts)):
        yield ".".join(parts[: place + 1])
        yield ".".join(parts[place:])


class _Named:
    """The entries that mean some of these parameters; `in` asks for one."""

    def __init__(self, params: Sequence[Param]) -> None:
        self._params = params
        self._names = {name for param in params for name in _around(param)}

    def __contains__(self, entry: str) -> bool:
        if _is_regex(entry):
            return any(_matches(entry, param) for param in self._params)
        return entry in self._names
