"""Differences in the texts beside the weights: tokenizer, special tokens, chat template, generation config.

In folders the files are read, unless one is larger than `MOST_JSON` (tokenizer.json: `MOST_TOKENIZER`). For releases by
name, the facts of the built-in descriptions are compared, if a source for them exists.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

from dsctl.checkpoint.reading import strict_json
from dsctl.core.errors import DsctlError, FormatError
from dsctl.look.config_changes import ABSENT, config_changes
from dsctl.look.tokenizers import TOKENIZER, AddedToken, Tokenizer, read_tokenizer
from dsctl.releases import Release
from dsctl.stores.local import LocalFolder

CONFIG, GENERATION, SPECIAL = "tokenizer_config.json", "generation_config.json", "special_tokens_map.json"
MOST_JSON = 8 << 20
# At most this many differences of one kind are kept.
MOST = 1000
# Values with more characters are given by their length and digest.
LONG = 500
SHOWN = 3
# Where a chat template can be, the one that transformers prefers first (transformers, tokenization_utils_base.py).
TEMPLATES = ("chat_template.jinja", "chat_template.json", CONFIG, "assets/chat_template.jinja")
MORE_TEMPLATES = "additional_chat_templates/"
# Fields of tokenizer_config.json that are compared by themselves.
_APART = ("chat_template", "added_tokens_decoder")

T = TypeVar("T")


class TextChange(NamedTuple):
    """One difference: the kind of text, the field in it, and the value on both sides; `ABSENT` if a side has none.

    `moved` marks a chat template with the same text in a different file; the values are its places.
    """

    kind: str
    what: str
    before: Any
    after: Any
    moved: bool = False

    @property
    def sign(self) -> str:
        """added, removed or changed; nothing if the text is the same."""
        if self.moved:
            return ""
        if self.before is ABSENT:
            return "added"
        return "removed" if self.after is ABSENT else "changed"


@dataclass(frozen=True, slots=True)
class Texts:
    """All differences; `compared` lists the kinds known of two releases, `problems` the files that cannot be read."""

    changes: tuple[TextChange, ...] = ()
    compared: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()


@dataclass
class _Side:
    """One folder: its files, and the names of those that could not be read."""

    store: LocalFolder
    problems: list[str]
    files: dict[str, int] = field(init=False)
    unread: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.files = self.store.files()

    def json(self, name: str) -> dict[str, Any]:
        """A JSON object by its file, empty if it is absent or cannot be read."""
        if name not in self.files or self._too_long(name):
            return {}
        return self._tried(name, lambda: _object(self._read(name), name)) or {}

    def text(self, name: str) -> str | None:
        """A text in UTF-8, or None."""
        if name not in self.files or self._too_long(name):
            return None
        return self._tried(name, lambda: self._read(name).decode())

    def tokenizer(self) -> Tokenizer | None:
        """tokenizer.json, or None if it is absent or cannot be read."""
        if TOKENIZER not in self.files:
            return None
        return self._tried(TOKENIZER, lambda: read_tokenizer(self.store, self.files[TOKENIZER]))

    def _read(self, name: str) -> bytes:
        return self.store.read(name, 0, self.files[name])

    def _too_long(self, name: str) -> bool:
        if self.files[name] > MOST_JSON:
            self._refused(name, f"it has more than {MOST_JSON:,} bytes")
        return self.files[name] > MOST_JSON

    def _refused(self, name: str, reason: str) -> None:
        self.unread.add(name)
        self.problems.append(f"{self.store.root}/{name} was not compared: {reason}")

    def _tried(self, name: str, read: Callable[[], T]) -> T | None:
        try:
            return read()
        except DsctlError as error:
            reason = error.message.removeprefix(f"{name}: ")
        except UnicodeDecodeError:
            reason = "it is not text in UTF-8"
        except ValueError as error:
            reason = f"it is not valid JSON: {error}"
        except RecursionError:
            reason = "it is nested too deep"
        self._refused(name, reason)
        return None


def _object(raw: bytes, name: str) -> dict[str, Any]:
    """A JSON object of a file of this name.

    Raises:
        FormatError: it is not an object, or has a key twice. ValueError: it is not JSON. RecursionError: it is nested
            too deep.
    """
    value = strict_json(raw, name)
    if not isinstance(value, dict):
        raise FormatError("it is not a JSON object")
    return value


def texts_of_folders(before: str, after: str, same: Collection[str]) -> Texts:
    """The differences in the texts of two folders; files whose names are in `same` have the same bytes.

    Raises:
        SourceError: a folder cannot be listed.
    """
    problems: list[str] = []
    sides = _Side(LocalFolder.at(before), problems), _Side(LocalFolder.at(after), problems)
    changes: list[TextChange] = []
    for compare in (_tokenizers, _fields, _templates):
        try:
            changes += compare(*sides, same)
        except RecursionError:
            problems.append("a JSON file is nested too deep to be compared")
    return Texts(tuple(_bounded(changes, problems)), (), tuple(dict.fromkeys(problems)))


def _bounded(changes: list[TextChange], problems: list[str]) -> Iterator[TextChange]:
    for kind in dict.fromkeys(change.kind for change in changes):
        found = [change for change in changes if change.kind == kind]
        yield from found[:MOST]
        if len(found) > MOST:
            problems.append(f"{kind}: {len(found) - MOST:,} further differences are left out")


def _tokenizers(a: _Side, b: _Side, same: Collection[str]) -> Iterator[TextChange]:
    if TOKENIZER in same:
        return
    before, after = a.tokenizer(), b.tokenizer()
    if before and after:
        yield from _vocabularies(before.model.vocabulary, after.model.vocabulary)
        ours, theirs = before.sections(), after.sections()
        for name in ours | theirs:
            x, y = ours.get(name, ABSENT), theirs.get(name, ABSENT)
            if x != y:
                yield TextChange("tokenizer", name, _short(x), _short(y))
    tokens = _added(a, before), _added(b, after)
    if not {TOKENIZER, CONFIG} & (a.unread | b.unread):
        yield from _added_tokens(*tokens)


def _vocabularies(before: Mapping[str, int], after: Mapping[str, int]) -> Iterator[TextChange]:
    """Two vocabularies, token to number: how many entries, and which are on one side or have different numbers."""
    if len(before) != len(after):
        yield TextChange("tokenizer", "vocabulary", len(before), len(after))
    alone = [[token for token in x if token not in y] for x, y in ((before, after), (after, before))]
    if any(alone):
        x, y = (f"{len(tokens):,}: {_listed(tokens)}" if tokens else ABSENT for tokens in alone)
        yield TextChange("tokenizer", "tokens on one side", x, y)
    moved = [token for token, number in before.items() if token in after and after[token] != number]
    if moved:
        x, y = (_listed([f"{token} {side[token]}" for token in moved]) for side in (before, after))
        yield TextChange("tokenizer", f"{len(moved):,} tokens renumbered", x, y)


def _listed(words: list[str]) -> str:
    return ", ".join(words[:SHOWN]) + (", ..." if len(words) > SHOWN else "")


def _added(side: _Side, read: Tokenizer | None) -> dict[str, AddedToken]:
    """Tokens beside the vocabulary, from tokenizer.json or else from tokenizer_config.json."""
    if read:
        return {token.content: token for token in read.added_tokens}
    found: dict[str, AddedToken] = {}
    listed = side.json(CONFIG).get("added_tokens_decoder")
    for number, one in listed.items() if isinstance(listed, dict) else ():
        content = one.get("content") if isinstance(one, dict) else None
        if isinstance(content, str) and number.isdecimal() and len(number) < 10:
            found[content] = AddedToken(int(number), content, bool(one.get("special")))
    return found


def _added_tokens(before: Mapping[str, AddedToken], after: Mapping[str, AddedToken]) -> Iterator[TextChange]:
    for token in dict.fromkeys((*before, *after)):
        x, y = before.get(token), after.get(token)
        ids = (x.id if x else ABSENT, y.id if y else ABSENT)
        if ids[0] != ids[1]:
            yield TextChange("special tokens", token, *ids)
        elif x and y and x.special != y.special:
            yield TextChange("special tokens", f"{token} special", x.special, y.special)


def _fields(a: _Side, b: _Side, same: Collection[str]) -> Iterator[TextChange]:
    """Fields of the small JSON files, nested ones by their path."""
    for kind, name in (("tokenizer", CONFIG), ("special tokens", SPECIAL), ("generation config", GENERATION)):
        if name in same or not (name in a.files and name in b.files):
            continue
        sides = [{key: value for key, value in side.json(name).items() if key not in _APART} for side in (a, b)]
        if name in a.unread | b.unread:
            continue
        for change in config_changes(*sides):
            yield TextChange(kind, change.field, _short(change.before), _short(change.after))


def _templates(a: _Side, b: _Side, same: Collection[str]) -> Iterator[TextChange]:
    ours, theirs = _templates_of(a), _templates_of(b)
    if any(place.endswith(".jinja") or place in TEMPLATES for place in a.unread | b.unread):
        return
    for name in dict.fromkeys((*ours, *theirs)):
        x, y = ours.get(name), theirs.get(name)
        if x and y and x[1] == y[1]:
            if x[0] != y[0]:
                yield TextChange("chat template", name, x[0], y[0], moved=True)
            continue
        before, after = (f"{side[0]}: {_digest(side[1])}" if side else ABSENT for side in (x, y))
        yield TextChange("chat template", name, before, after)


def _templates_of(side: _Side) -> dict[str, tuple[str, str]]:
    """Templates by their names: where each is, and its text without a last newline, which Jinja drops (Jinja,
    Environment, keep_trailing_newline)."""
    found: dict[str, tuple[str, str]] = {}
    for place in TEMPLATES:
        if place not in side.files:
            continue
        held = side.text(place) if place.endswith(".jinja") else side.json(place).get("chat_template")
        for name, text in _named(held):
            found.setdefault(name, (place, text.removesuffix("\n")))
    for place in side.files:
        if place.startswith(MORE_TEMPLATES) and place.endswith(".jinja"):
            name = place.removeprefix(MORE_TEMPLATES).removesuffix(".jinja")
            for _, text in _named(side.text(place)):
                found[name] = (place, text.removesuffix("\n"))
    return found


def _named(held: object) -> Iterator[tuple[str, str]]:
    """Templates as files hold them: a text, or a list of names and texts."""
    for one in held if isinstance(held, list) else ({"name": "default", "template": held},):
        name, text = (one.get("name"), one.get("template")) if isinstance(one, dict) else (None, None)
        if isinstance(name, str) and isinstance(text, str):
            yield name, text


def _short(value: Any) -> Any:
    """A value, or its length and digest if it is long."""
    if value is ABSENT:
        return value
    text = json.dumps(value, ensure_ascii=False)
    return value if len(text) <= LONG else _digest(text)


def _digest(text: str) -> str:
    many = f"{len(text):,} character{'s' * (len(text) != 1)}"
    return f"{many}, SHA-256 {hashlib.sha256(text.encode(errors='replace')).hexdigest()[:8]}"


def texts_of_releases(a: Release, b: Release) -> Texts:
    """The known differences between the chat templates and special tokens of two releases."""
    changes, compared = [], []
    if a.chat_template and b.chat_template and a.chat_template != b.chat_template:
        kinds = [template.endswith(".py") for template in (a.chat_template, b.chat_template)]
        # Two Jinja templates in different files may have the same text.
        if any(kinds):
            compared.append("chat template")
            x, y = map(_form, (a.chat_template, b.chat_template))
            changes.append(TextChange("chat template", "default", x, y))
    shared = [token for token in a.tokens if token in b.tokens]
    if shared:
        compared.append("some special tokens")
        moved = (token for token in shared if a.tokens[token] != b.tokens[token])
        changes += [TextChange("special tokens", token, a.tokens[token], b.tokens[token]) for token in moved]
    return Texts(tuple(changes), tuple(compared))


def _form(template: str) -> str:
    return f"Python code ({template})" if template.endswith(".py") else f"Jinja ({template})"
