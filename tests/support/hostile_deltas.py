"""Deltas that are not what they should be: what is done to them, and how they are refused."""

from __future__ import annotations

import json
import os
import shutil
import struct
from base64 import b64encode
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from blake3 import blake3

from tests.support.little_deltas import SIGNED, packed, record, said, signed_again
from tests.support.raw_tensors import INDEX

Spoil = Callable[[Path], object]
TERABYTE = 1 << 40


class Case(NamedTuple):
    """A delta of a kind, what is done to it, and how it is refused."""

    name: str
    kind: str
    spoil: Spoil
    codes: tuple[int, ...]
    says: str = ""


def key(name: str, value: Any) -> Spoil:
    return lambda folder: record(folder, lambda it: it.update({name: value}))


def entry(side: str, file: str, **fields: Any) -> Spoil:
    return lambda folder: record(folder, lambda it: it[side][file].update(fields))


def renamed(side: str, old: str, new: str) -> Spoil:
    return lambda folder: record(folder, lambda it: it[side].update({new: it[side].pop(old)}))


def metadata(name: str, value: Any) -> Spoil:
    return lambda folder: said(folder, lambda it: it["metadata"].update({name: value}), INDEX)


def mapped(change: Callable[[Any], object]) -> Spoil:
    return lambda folder: said(folder, lambda it: change(it["weight_map"]), INDEX)


def text(name: str, data: str | bytes) -> Spoil:
    return lambda folder: (folder / name).write_bytes(data.encode() if isinstance(data, str) else data)


def side(name: str, data: str = "text") -> Spoil:
    """One more other file of the result, as `dsctl.json` says."""

    def spoil(folder: Path) -> None:
        path = folder / "side" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(data)
        entry = {"size": len(data), "blake3": blake3(data.encode()).hexdigest()}
        said(
            folder, lambda it: (it["files"].update({f"side/{name}": entry}), it["delta"]["sides"].update({name: entry}))
        )

    return spoil


def sums(file: str, name: str, value: str | None) -> Spoil:
    """Another checksum, or none, in the header of a file."""

    def spoil(folder: Path) -> None:
        data = (folder / file).read_bytes()
        (size,) = struct.unpack("<Q", data[:8])
        header = json.loads(data[8 : 8 + size])
        header["__metadata__"] = {one: it for one, it in header["__metadata__"].items() if one != name}
        header["__metadata__"] |= {} if value is None else {name: value}
        raw = json.dumps(header).encode()
        (folder / file).write_bytes(struct.pack("<Q", len(raw)) + raw + data[8 + size :])
        signed_again(folder, file)

    return spoil


def header(change: Callable[[Any], object], file: str = "x.safetensors") -> Spoil:
    """Other JSON in a file's header."""

    def spoil(folder: Path) -> None:
        data = (folder / file).read_bytes()
        (size,) = struct.unpack("<Q", data[:8])
        value = json.loads(data[8 : 8 + size])
        change(value)
        raw = json.dumps(value).encode()
        (folder / file).write_bytes(struct.pack("<Q", len(raw)) + raw + data[8 + size :])
        said(folder, lambda it: it["files"][file].update(size=8 + len(raw) + len(data) - 8 - size))

    return spoil


def dropped(name: str) -> Spoil:
    return lambda folder: record(folder, lambda it: it.pop(name))


def bomb(nbytes: int) -> str:
    """A little frame that says it holds so many bytes."""
    head = struct.pack("<IBBQ", 0xFD2FB528, 0b1100_0000, 0x58, nbytes)
    return b64encode(head + b"\x01\x00\x00").decode()


def flipped(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 255
    path.write_bytes(data)


FAR = "leads out of the repository"
NAMES = [
    *((name, FAR) for name in ("../x", "a/../../x", "/etc/x", "a\\..\\x", ".", "a//b", "a/./b", "")),
    *((name, "is not part of a repository") for name in (".dsctl/x", ".DSCTL/x", "a/.git/x", ".cache/x")),
    *((name, "dsctl needs itself") for name in ("dsctl.json", "DSCTL.json", "dsctl.intoto.json")),
    ("a\nb", "not printable"), ("x" * 300, "too long"), ("x.part", "unfinished"), ("x.new", "unfinished"),
]  # fmt: skip
CASES = [
    # Names in the record.
    *(
        Case(
            f"side {name!r}",
            "own",
            lambda it, name=name: record(it, lambda one: one["sides"].update({name: one["sides"]["config.json"]})),
            (20,),
            says,
        )
        for name, says in NAMES
    ),
    *(Case(f"removed {name!r}", "own", key("removed", [name]), (20,), says) for name, says in NAMES),
    *(Case(f"result {name!r}", "own", renamed("result", "x.safetensors", name), (20,)) for name, _ in NAMES),
    *(Case(f"base {name!r}", "own", renamed("base", "x.safetensors", name), (20,)) for name, _ in NAMES),
    Case(
        "a result in the folder of sides",
        "own",
        renamed("result", "x.safetensors", "side/x.safetensors"),
        (20,),
        "the folder side",
    ),
    Case("a twin by case", "own", renamed("result", "x.safetensors", "Z.safetensors"), (20,), "differ in case only"),
    Case("sides that are twins", "own", lambda it: (side("Note")(it), side("note")(it)), (20,), "differ in case only"),
    Case("a side that is weights", "own", side("x.safetensors"), (20,), "one of weights"),
    Case("a side that is weights in capitals", "own", side("X.SAFETENSORS"), (20,), "one of weights"),
    Case("a side within a weight file", "own", side("z.safetensors/x"), (20,), "is a file and the folder"),
    Case("a side within a file of the base", "own", side("kept.txt/x"), (30,), "is a file and the folder"),
    Case(
        "a side removed",
        "own",
        lambda it: record(it, lambda one: one["removed"].append("config.json")),
        (20,),
        "removes config.json",
    ),
    Case("weights removed", "own", key("removed", ["x.safetensors"]), (20,), "one of weights"),
    # The record's own fields.
    *(
        Case(f"{name} is {value!r}", "own", key(name, value), (20,))
        for name in ("base", "result", "headers", "whole", "equal", "sides", "removed", "encoding")
        for value in (None, 1, "x", [1], {"x": 1})
    ),
    *(
        Case(f"no {name}", "own", dropped(name), (20, 30))
        for name in ("base", "result", "headers", "whole", "version", "base_version", "encoding")
    ),
    Case("another version", "own", key("version", "000002"), (20,), "its version is '000002'"),
    Case("another base version", "own", key("base_version", "000001"), (20,), "its base_version is"),
    Case("another encoding", "own", key("encoding", "overwrite"), (20,), "its encoding is"),
    *(
        Case(f"size {value}", "own", entry("result", "x.safetensors", size=value), (20,))
        for value in (-1, 1, 10**30, TERABYTE, True, 1.5, "1", None)
    ),
    Case("a base size", "own", entry("base", "x.safetensors", size=10**30), (20,)),
    Case(
        "no digest of the result",
        "own",
        entry("result", "x.safetensors", tree="", blake3="0" * 64),
        (20,),
        "no digest of its tensors",
    ),
    Case(
        "no digest of the base",
        "own",
        entry("base", "x.safetensors", tree="", sha256="0" * 64),
        (20,),
        "no digest of its tensors",
    ),
    Case(
        "another digest of the result",
        "own",
        entry("result", "x.safetensors", tree="0" * 64),
        (20,),
        "are not of its header",
    ),
    Case(
        "tensors that are not base64",
        "own",
        entry("result", "x.safetensors", tensors="???"),
        (20,),
        "are not of its header",
    ),
    Case("too few tensors", "own", entry("result", "x.safetensors", tensors=""), (20,), "are not of its header"),
    Case(
        "another digest of the base", "own", entry("base", "x.safetensors", tree="0" * 64), (30,), "nothing was written"
    ),
    Case(
        "a file that the base lacks",
        "own",
        lambda it: record(it, lambda one: one["base"].update({"q.safetensors": one["base"]["x.safetensors"]})),
        (30,),
    ),
    Case(
        "a whole tensor that is not there",
        "own",
        key("whole", [["x.safetensors", "no"]]),
        (20,),
        "which no file of the delta holds",
    ),
    Case("a whole tensor said to be a difference", "own", key("whole", []), (30,), "has"),
    Case(
        "a header too many",
        "own",
        lambda it: record(it, lambda one: one["headers"].update(q="")),
        (20,),
        "has a header for q",
    ),
    Case("a header that is not base64", "own", key("headers", {"x.safetensors": "é"}), (20,), "is not base64"),
    Case("a header that is no frame", "own", key("headers", {"x.safetensors": "AAAA"}), (20,), "is not a zstd frame"),
    Case(
        "a header that is none",
        "own",
        lambda it: record(it, lambda one: one["headers"].update({"x.safetensors": packed(b"x" * 40)})),
        (20,),
    ),
    Case(
        "a header of a terabyte",
        "own",
        lambda it: record(it, lambda one: one["headers"].update({"x.safetensors": bomb(TERABYTE)})),
        (20,),
        "expected at most",
    ),
    Case(
        "headers of many megabytes",
        "own",
        lambda it: record(
            it,
            lambda one: (
                one["headers"].update(dict.fromkeys(("x.safetensors", "z.safetensors"), bomb(100_000_000))),
                one["headers"].update({"x.safetensors": bomb(100_000_001)}),
            ),
        ),
        (20,),
        "headers take more than",
    ),
    Case(
        "a header of other tensors",
        "own",
        lambda it: record(it, lambda one: one["headers"].update({"x.safetensors": one["headers"]["z.safetensors"]})),
        (20, 30),
    ),
    Case("the record is a list", "own", lambda it: said(it, lambda one: one.update(delta=[])), (20,)),
    Case("no record", "own", lambda it: said(it, lambda one: one.pop("delta")), (20,), "is missing"),
    Case("files is a number", "own", lambda it: said(it, lambda one: one.update(files=1)), (20,)),
    Case("a file is missing", "own", lambda it: (it / "side" / "config.json").unlink(), (20,), "is missing"),
    # Files.
    *(
        Case(f"{name}: {what}", kind, text(name, data), (10, 20))
        for kind in ("own", "theirs")
        for name in (INDEX, SIGNED)
        for what, data in (
            ("empty", ""),
            ("null", "null"),
            ("a list", "[]"),
            ("deep", "[" * 100_000),
            ("NaN", '{"metadata": NaN}'),
            ("a key twice", '{"metadata": {}, "metadata": {}}'),
            ("a big number", '{"delta": ' + "9" * 5000 + "}"),
            ("not UTF-8", b"\xff{}"),
        )
        if kind == "own" or name == INDEX
    ),
    Case("files is a number, without a record", "xor", text(SIGNED, '{"files": 1}'), (20, 50)),
    Case("a side changed", "own", text("side/config.json", '{"a": 3}'), (20,), "changed since the delta was made"),
    Case("a side of another size", "own", text("side/config.json", '{"a": 33}'), (20,), "has 9 bytes, expected 8"),
    Case("a frame changed", "xor", lambda it: flipped(it / "x.safetensors", -1), (20,), "differs from dsctl.json: a"),
    Case("a file truncated", "xor", lambda it: os.truncate(it / "x.safetensors", 90), (20,)),
    Case(
        "a longer file",
        "theirs",
        lambda it: next(it.glob("*.safetensors")).open("ab").write(b"more"),
        (20,),
        "longer than its tensors",
    ),
    Case(
        "a header of a terabyte",
        "theirs",
        lambda it: next(it.glob("*.safetensors")).write_bytes(struct.pack("<Q", TERABYTE) + b"{}"),
        (20,),
    ),
    # The index.
    *(
        Case(f"{name} is {value!r}", "theirs", metadata(name, value), (20,))
        for name in ("version", "base_version", "delta_encoding", "compression_format", "checksum_format")
        for value in (None, 1, "", "\n", "nonsense" if "format" in name or "encoding" in name else {}, [])
    ),
    Case("an own encoding without a record", "theirs", metadata("delta_encoding", "dsctl-xor"), (20,), "is missing"),
    Case("weight_map is a list", "theirs", lambda it: said(it, lambda one: one.update(weight_map=[]), INDEX), (20,)),
    Case("weight_map names numbers", "theirs", mapped(lambda it: it.update(a=1)), (20,)),
    *(
        Case(f"weight_map names {name}", "theirs", mapped(lambda it, name=name: it.update(a=name)), (20,), "holds it")
        for name in ("../x", "/etc/passwd", "x.safetensors", "")
    ),
    Case(
        "a tensor that no file holds",
        "theirs",
        mapped(lambda it: it.update(q="x.safetensors")),
        (20,),
        "no file holds it",
    ),
    Case("a tensor that the index does not name", "theirs", mapped(lambda it: it.pop("a")), (20,), "does not name a"),
    Case(
        "a tensor in two files",
        "theirs",
        lambda it: shutil.copy(min(it.glob("*.safetensors")), it / "q.safetensors"),
        (20,),
        "two of its files hold",
    ),
    # Checksums.
    *(
        Case(f"checksum {value!r}", "xor", sums("x.safetensors", "a", value), (20,), "has no adler32 checksum")
        for value in (None, "", "ABCDEF01", "0" * 32, "0x123456", "é" * 8)
    ),
    Case(
        "a checksum of other bytes",
        "theirs",
        lambda it: sums(min(it.glob("*.safetensors")).name, "a", "0" * 32)(it),
        (30,),
        "nothing was written",
    ),
    # Headers of its files.
    Case("F32", "xor", header(lambda it: it["a"].update(dtype="F32", shape=[5])), (20,)),
    Case(
        "two dimensions",
        "xor",
        header(lambda it: it["a"].update(shape=[1, it["a"]["shape"][0]])),
        (20,),
        "U8 of one dimension",
    ),
    Case("an absurd shape", "xor", header(lambda it: it["a"].update(shape=[1 << 62])), (20,)),
    Case(
        "offsets beyond the end",
        "xor",
        header(lambda it: it["a"].update(shape=[TERABYTE], data_offsets=[0, TERABYTE])),
        (20,),
    ),
    Case(
        "a tensor that the result lacks",
        "xor",
        header(lambda it: (it.update(q=it.pop("a")), it["__metadata__"].update(q="00000000"))),
        (20, 30),
    ),
]
