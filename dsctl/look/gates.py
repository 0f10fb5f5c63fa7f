"""The kinds of difference that a check can fail on, and whether a diff has them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from dsctl.core.config_fields import CLERICAL_FIELDS
from dsctl.core.errors import UsageError
from dsctl.look.diff import Diff
from dsctl.look.templates import TemplateChange

ANY = "any"
KINDS = ("architecture", "config", "storage", ANY)


def found(diff: Diff, kinds: Iterable[str], part: str | None = None) -> tuple[str, ...]:
    """Those of `kinds` in which two sides differ, each with its extent, in the order of `KINDS`.

    - `architecture`: parameters differ in name, shape, layers, experts or the dimension that tensor parallelism cuts,
      or only one side has them;
    - `config`: a field of config.json differs, apart from the fields without effect of `CLERICAL_FIELDS`;
    - `storage`: a parameter that both sides have is stored in a different format; if they have no parameter in
      common, the two sides use different formats;
    - `any`: a compared part differs, or with `part` that one of `dsctl.look.diff.PARTS`.

    Raises:
        UsageError: `config` cannot be judged, because a config was derived, not read, or neither side has one.
    """
    wanted = set(kinds)
    differing = [said for kind in KINDS if kind in wanted for said in _JUDGES[kind](diff, part)]
    return tuple({said.partition(" ")[0]: said for said in reversed(differing)}.values())[::-1]


def _architecture(diff: Diff, part: str | None) -> Iterator[str]:
    structural = (change for change in diff.changed if change.structural or "count" in change.aspects)
    number = sum(one.count for one in (*diff.added, *diff.removed)) + _count(structural)
    missing = set(diff.a.missing) ^ set(diff.b.missing)
    if diff.a.part != diff.b.part:
        yield "architecture (the sides hold different ranks)"
    elif number or missing:
        yield f"architecture ({_counted(number or len(missing), 'parameter')})"


def _config(diff: Diff, part: str | None) -> Iterator[str]:
    unread = [name for name in diff.not_compared if name.startswith("config.json")]
    if unread:
        hint = "compare folders that have a config.json, or leave out config"
        raise UsageError(f"--fail-on config: {' and '.join(unread)} was not read", hint=hint)
    fields = [change for change in diff.config if change.top not in CLERICAL_FIELDS]
    if fields:
        yield f"config ({_counted(len(fields), 'field')})"


def _storage(diff: Diff, part: str | None) -> Iterator[str]:
    number = _count(change for change in diff.changed if "stored" in change.aspects)
    if number:
        yield f"storage ({_counted(number, 'parameter')})"
    elif diff.renamed and _formats(diff, 0) != _formats(diff, 1):
        yield f"storage ({', '.join(sorted(_formats(diff, 0)))} → {', '.join(sorted(_formats(diff, 1)))})"


def _count(changes: Iterable[TemplateChange]) -> int:
    return sum(max(change.before.count, change.after.count) for change in changes)


def _formats(diff: Diff, side: int) -> set[str]:
    return {template.stored for template in diff.templates[side].values()}


def _any(diff: Diff, part: str | None) -> Iterator[str]:
    if part and diff.differs_in(part):
        yield part
    elif diff.differs_in(part):
        kinds = [*_architecture(diff, part), *["config"] * bool(diff.config), *_storage(diff, part)]
        yield from [*kinds, *["files"] * diff.differs_in("files")] or [diff.verdict]


def _counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'s' * (number != 1)}"


_JUDGES = {"architecture": _architecture, "config": _config, "storage": _storage, ANY: _any}
