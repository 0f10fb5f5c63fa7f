"""Checkpoints and targets with something changed at random, and every verb on them: what it says must be said in words.

A case is made from a seed and a number alone, so that one that fails can be made again: `replay(seed, number)`.
"""

from __future__ import annotations

import json
import random
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from tests.support.command import Done, Hung, at_most, call, dsctl, reports
from tests.support.faults import fault, met

SECONDS = 30
CODES = {0, 2, 10, 20, 30, 40, 41, 50}
SIZES = ("--layers", 2, "--experts", 2, "--hidden", 256, "--heads", 4, "--vocab", 8, "--intermediate", 256)
SIZES += ("--moe-intermediate", 256)
ODD: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 7, 128, 1 << 31, 1 << 63, -(1 << 63), 10**30, 0.5, -0.0, 1e308, float("inf"),
    float("nan"), "", "a", "\ud800", "x\udfff", "\0", "\n", "../x", "/etc/passwd", "[/]", "fp8", "BF16", "auto", "1",
    "a" * 3000, "é源", "re:(a+)+$",
    [], [[]], {}, [None], [1, 2], [""], [["x"]], {"": {}}, {"a": None}, {"a": {"b": [1]}}, {"\ud800": "\udc00"},
)  # fmt: skip
BIG = 10**1000


class Case(NamedTuple):
    """What was done to which kind of folder, and what was run."""

    kind: str
    change: str
    arguments: tuple[str, ...]


@dataclass
class Corpus:
    """Good folders of every kind, by name, made once; cases copy them."""

    root: Path
    scratch: Path
    kinds: dict[str, Path] = field(default_factory=dict)
    whole: str = "v3.2"
    beside: tuple[str, ...] = ("kimi-k2", "--bf16")
    mixed: tuple[str, ...] = ("--recipe", "int4-experts-fp8")
    split: tuple[str, ...] = ("--tp", "2", "--layout", "deepseek")

    def __post_init__(self) -> None:
        made = {
            "whole": ("tiny", self.whole, *SIZES),
            "beside": ("tiny", self.beside[0], *SIZES, *self.beside[1:]),
            "decoded": ("convert", self.root / "whole", "--bf16", "--workers", 1),
            "mixed": ("convert", self.root / "decoded", *self.mixed, "--workers", 1),
            "ranks": ("shard", self.root / "whole", "--tp", 2, "--workers", 1),
            "mp": ("shard", self.root / "whole", *self.split, "--workers", 1),
        }
        for name, (verb, first, *more) in made.items():
            dsctl(verb, first, self.root / name, *more)
            self.kinds[name] = self.root / name
        self.kinds["complete"] = self.root / "decoded"
        begun = self.root / "begun"
        for after in range(60, 400, 20):
            shutil.rmtree(begun, ignore_errors=True)
            with met(fault("ENOSPC", "pwrite", ".part", after=after)):
                assert call("convert", self.root / "whole", begun, "--bf16", "--workers", 1).returncode == 41
            if list(begun.glob("*.safetensors")):
                break
        self.kinds["begun"] = begun

    def case(self, chance: random.Random) -> Case:
        """A folder in `scratch`, changed in one or two places, and a command."""
        kind = chance.choice([*self.kinds, "begun", "complete", "ranks"])
        for left in self.scratch.iterdir():
            shutil.rmtree(left) if left.is_dir() and not left.is_symlink() else left.unlink()
        folder = self.scratch / "folder"
        shutil.copytree(self.kinds[kind], folder)
        changes = [change(folder, kind, chance) for _ in range(chance.choice((1, 1, 1, 2)))]
        whole, out = self.root / "whole", self.scratch / "out"
        lines = targets(folder, whole) if kind in ("begun", "complete") else sources(folder, whole, out)
        return Case(kind, "; ".join(changes), tuple(map(str, chance.choice(lines))))


def sources(folder: Path, whole: Path, out: Path) -> list[list[Any]]:
    """What is done with a checkpoint."""
    one = ["--workers", 1]
    return [
        ["inspect", folder], ["inspect", folder, "--json"], ["inspect", folder, "--tensors", "--fold"],
        ["inspect", folder, "--tree"], ["inspect", folder, "--html", f"{out}.html"],
        ["verify", folder], ["verify", folder, "--json"], ["verify", folder, "--deep"], ["verify", folder, "--fix"],
        ["verify", folder, "--deep", "--all"], ["verify", folder, "--against", whole],
        ["verify", folder, "--against", "v3.2"], ["verify", folder, "--fix", "--dry-run"],
        ["verify", whole, "--against", folder],
        ["compare", folder, whole], ["compare", whole, folder, "--json"],
        ["diff", folder, whole], ["diff", "v3.2", folder, "--json"], ["diff", whole, folder, "--tensors", "--markdown"],
        ["plan", folder], ["plan", folder, "--json", "--to", "bf16"],
        ["convert", folder, out, "--bf16", *one], ["convert", folder, out, "--fp8", *one],
        ["convert", folder, out, "--to", "nvfp4", "--allow-extra", "--allow-missing", *one],
        ["convert", folder, out, "--recipe", "int4-experts-fp8", "--dry-run"],
        ["shard", folder, out, "--tp", 2, *one], ["shard", folder, out, "--tp", 2, "--ep", 2, "--dry-run"],
        ["shard", folder, out, "--tp", 2, "--layout", "deepseek", *one], ["merge", folder, out, *one],
        ["merge", folder, out, "--bf16", "--dry-run"], ["slice", folder, out, "--layers", 0, *one],
        ["slice", folder, out, "--layers", "0,mtp", "--experts", "1", "--bf16", *one],
    ]  # fmt: skip


def targets(folder: Path, whole: Path) -> list[list[Any]]:
    """What is done with a folder that a run has begun or ended."""
    same = ["convert", whole, folder, "--bf16", "--workers", 1]
    return [
        same, same, same, [*same, "--dry-run"], [*same, "--force"], [*same, "--json"],
        ["convert", whole, folder, "--fp8"],
        ["verify", folder], ["verify", folder, "--deep"], ["verify", folder, "--fix"], ["inspect", folder],
        ["convert", folder, folder.parent / "out", "--fp8", "--workers", 1], ["shard", whole, folder, "--tp", 2],
        ["slice", whole, folder, "--layers", 0], ["tiny", "v3.2", folder, "--layers", 2], ["merge", whole, folder],
    ]  # fmt: skip


def change(folder: Path, kind: str, chance: random.Random) -> str:
    """Change one file, or the lot of files; says what."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    told = [path for path in files if path.name in ("config.json", "dsctl.json", "journal.jsonl", "request.json")]
    told += [path for path in files if path.name.endswith((".index.json", "manifest.json", ".dsctl"))]
    path = chance.choice(told * 3 + files)
    name = str(path.relative_to(folder))
    if chance.random() < 0.04:
        path.unlink()
        return f"{name}: removed"
    if chance.random() < 0.02:
        path.unlink()
        path.mkdir()
        return f"{name}: a folder"
    if path.suffix in (".safetensors", ".dsctl"):
        return f"{name}: {_weights(path, chance)}"
    raw = path.read_bytes()
    if path.suffix == ".jsonl":
        changed, what = _lines(raw, chance)
    elif path.suffix == ".json" and chance.random() < 0.8:
        changed, what = _json(raw, chance)
    else:
        changed, what = _bytes(raw, chance)
    path.write_bytes(changed)
    return f"{name}: {what}"


def _weights(path: Path, chance: random.Random) -> str:
    raw = path.read_bytes()
    end = 8 + int.from_bytes(raw[:8], "little")
    if chance.random() < 0.25:
        changed, what = _bytes(raw, chance)
        path.write_bytes(changed)
        return what
    if chance.random() < 0.15:
        data, what = _bytes(raw[end:], chance)
        path.write_bytes(raw[:end] + data)
        return f"data: {what}"
    head, what = _json(raw[8:end], chance) if chance.random() < 0.85 else _bytes(raw[8:end], chance)
    path.write_bytes(len(head).to_bytes(8, "little") + head + raw[end:])
    return f"header: {what}"


def _lines(raw: bytes, chance: random.Random) -> tuple[bytes, str]:
    lines = raw.splitlines(keepends=True)
    if not lines or chance.random() < 0.2:
        return _bytes(raw, chance)
    at = chance.randrange(len(lines))
    how = chance.choice(("nulls", "json", "cut", "twice", "gone", "bytes", "no end"))
    if how == "nulls":
        lines[at] = b"\0" * len(lines[at])
    elif how == "json":
        lines[at], how = _json(lines[at], chance)
        lines[at] = lines[at].replace(b"\n", b"") + b"\n"
    elif how == "cut":
        lines[at] = lines[at][: chance.randrange(len(lines[at]))]
    elif how == "twice":
        lines.insert(chance.randrange(len(lines)), lines[at])
    elif how == "gone":
        del lines[at]
    elif how == "bytes":
        lines[at], how = _bytes(lines[at], chance)
    else:
        lines[-1] = lines[-1].rstrip(b"\n")
    return b"".join(lines), f"line {at}: {how}"


def _bytes(raw: bytes, chance: random.Random) -> tuple[bytes, str]:
    at = chance.randrange(len(raw)) if raw else 0
    how = chance.choice(("cut", "flip", "nulls", "empty", "more", "null", "list", "deep", "insert", "random"))
    new = {
        "cut": lambda: raw[:at],
        "flip": lambda: (
            raw[:at] + bytes(255 - byte for byte in raw[at : at + chance.choice((1, 1, 4))]) + raw[at + 4 :]
        ),
        "nulls": lambda: b"\0" * len(raw),
        "empty": lambda: b"",
        "more": lambda: raw + raw[:at],
        "null": lambda: chance.choice((b"null", b"0", b'"x"', b"true", b"[null]")),
        "list": lambda: chance.choice((b"[]", b"{}", b'{"a":1}', b"[[]]")),
        "deep": lambda: chance.choice((b"[", b'{"a":')) * 100_000,
        "insert": lambda: (
            raw[:at] + chance.choice((b"\xff", b"\0", b"\\ud800", b'"', b"}", b"\xef\xbb\xbf", b",")) + raw[at:]
        ),
        "random": lambda: raw[:at] + chance.randbytes(8) + raw[at + 8 :],
    }[how]()
    return new, f"{how} at {at}"


def _json(raw: bytes, chance: random.Random) -> tuple[bytes, str]:
    try:
        value = json.loads(raw)
    except (ValueError, RecursionError):
        return _bytes(raw, chance)
    if chance.random() < 0.08:
        text = json.dumps(value, separators=(",", ":"))
        keys = [key for key in _keys(value) if key.isascii()]
        places = [at for at, letter in enumerate(text) if letter == "{"]
        if keys and places:
            at, key = chance.choice(places), chance.choice(keys)
            return (text[: at + 1] + json.dumps(key) + ":null," + text[at + 1 :]).replace(
                ",}", "}"
            ).encode(), f"{key!r} twice"
    holder: list[Any] = [value]
    places_ = list(_places(holder))
    # Places near the top are as likely as the many far below.
    depth = chance.choice(sorted({len(path) for path, _, _ in places_}))
    path, parent, key = chance.choice([place for place in places_ if len(place[0]) == depth])
    how = chance.choice(("odd", "odd", "odd", "gone", "key", "swap", "number", "string", "more", "big", "nest"))
    _mutate(parent, key, how, places_, chance)
    try:
        text = json.dumps(holder[0], indent=chance.choice((None, 2)))
    except (ValueError, RecursionError):
        return _bytes(raw, chance)
    return (
        text.encode(),
        f"{'.'.join(map(str, path[1:]))[:80]}: {how} -> {ascii(parent)[:60] if how != 'gone' else 'gone'}",
    )


def _mutate(parent: Any, key: Any, how: str, places: list[Any], chance: random.Random) -> None:
    value = parent[key]
    if how == "gone":
        del parent[key]
        if isinstance(parent, list) and not parent:
            parent.append(None)
    elif how == "key" and isinstance(parent, dict):
        parent[chance.choice([odd for odd in ODD if isinstance(odd, str)])] = parent.pop(key)
    elif how == "swap":
        _, other, its = chance.choice(places)
        other_value = other[its]
        if not _within(value, other_value) and not _within(other_value, value):
            parent[key], other[its] = other_value, value
    elif how == "number" and type(value) in (int, float):
        parent[key] = chance.choice(
            (value + 1, value - 1, -value, value * 2, value * 1000, value // 2, float(value), str(value))
        )
    elif how == "string" and isinstance(value, str):
        at = chance.randrange(len(value) + 1)
        parent[key] = value[:at] + chance.choice(("", "x", "\ud800", "/", "..", "\0", ".", " ")) + value[at + 1 :]
    elif how == "more" and isinstance(value, list):
        value.extend(chance.choice((value[:2], [chance.choice(ODD)], value[:1] * 3)))
    elif how == "big":
        parent[key] = chance.choice((BIG, 1 << 40, 10**6, 2.0**80))
    elif how == "nest":
        parent[key] = chance.choice(([value], {"a": value}, [[value]] * 2))
    else:
        parent[key] = chance.choice(ODD)


def _within(inner: Any, outer: Any) -> bool:
    if inner is outer:
        return True
    parts = outer.values() if isinstance(outer, dict) else outer if isinstance(outer, list) else ()
    return any(_within(inner, part) for part in parts)


def _places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any, Any]]:
    """Every place in a value: the way to it, what holds it, and by which key."""
    keys: Any = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        yield (*path, key), value, key
        yield from _places(value[key], (*path, key))


def _keys(value: Any) -> Iterator[str]:
    return (path[-1] for path, parent, _ in _places([value]) if isinstance(parent, dict))


def wrong(done: Done, arguments: tuple[str, ...]) -> str:
    """What a person should not have met, if anything."""
    if "Traceback" in done.stderr or "internal error" in done.stderr:
        return "an internal error"
    if done.returncode not in CODES:
        return f"exit code {done.returncode}"
    if len(reports(done.stderr)) != bool(done.returncode):
        return "not one error line"
    if any(not (c.isprintable() or c == "\n") for c in done.stdout + done.stderr):
        return "control characters"
    if "--json" in arguments and done.stdout:
        try:
            json.loads(done.stdout, parse_constant=_refuse)
        except ValueError as error:
            return f"JSON that is none: {error}"
    return ""


def _refuse(name: str) -> None:
    raise ValueError(name)


def replay(corpus: Corpus, seed: int, number: int) -> tuple[Case, str, Done]:
    """One case: what it was, what is wrong with how it ended, and what it said."""
    case = corpus.case(random.Random(f"{seed}:{number}"))
    done = Done(0, "", "")
    try:
        with at_most(SECONDS):
            done = call(*case.arguments)
    except Hung:
        return case, f"longer than {SECONDS} seconds", done
    except BaseException as error:  # noqa: BLE001  whatever came out of the command
        return case, f"{type(error).__name__}: {error}"[:200], done
    return case, wrong(done, case.arguments), done


def fuzz(corpus: Corpus, seed: int, numbers: range, report: Callable[[str], object] = lambda line: None) -> list[str]:
    """Run cases; gives one line for each that went wrong."""
    found, codes = [], Counter[int]()
    for number in numbers:
        case, what, done = replay(corpus, seed, number)
        codes[done.returncode] += 1
        if what:
            last = next(iter(reports(done.stderr)), done.stderr[-200:])
            found.append(
                f"{seed}:{number} {case.kind}: {case.change}: dsctl {' '.join(case.arguments)}: {what}: {last[:300]}"
            )
            report(found[-1])
        if number == numbers[-1] or not (number + 1) % 250:
            report(f"{codes.total():,} cases, exit codes {dict(codes)}")
    return found


if __name__ == "__main__":
    import tempfile

    seed_, first, last = map(int, sys.argv[1:4])
    with tempfile.TemporaryDirectory() as folder_:
        (Path(folder_) / "good").mkdir()
        (Path(folder_) / "scratch").mkdir()
        corpus_ = Corpus(Path(folder_) / "good", Path(folder_) / "scratch")
        fuzz(corpus_, seed_, range(first, last), lambda line: sys.stderr.write(line + "\n"))
