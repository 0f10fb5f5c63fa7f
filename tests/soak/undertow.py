"""Commands by the hundred, each killed, cut short or failing at a chosen moment or call of the C library."""

from __future__ import annotations

import errno
import hashlib
import json
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from tests.support.forks import LAYER, Done, Launcher

# Small enough that the smallest checkpoint has a dozen jobs.
JOB_BYTES = 300_000
SIZES = {
    "layers": 2, "experts": 2, "hidden": 256, "vocab": 64, "intermediate": 256, "moe_intermediate": 256, "heads": 4,
    "shards": 2,
}  # fmt: skip
WORDS = [word for name, size in SIZES.items() for word in (f"--{name.replace('_', '-')}", str(size))]


def layer(folder: Path) -> Path:
    """The compiled layer between programs and the C library."""
    compiled = folder / "calls.so"
    source = LAYER / "calls.c"
    command = ["cc", "-shared", "-fPIC", "-O2", "-o", str(compiled), str(source), "-ldl"]
    subprocess.run(command, check=True, capture_output=True)
    return compiled


def at_call(number: int, what: str, within: Path) -> dict[str, str]:
    """The variables by which the n-th call on a file within a folder is met, counted in each process.

    `what`: `kill` or `kill-all` (SIGKILL to the process or its group, before the call), `short` (half is written, and
    that much is told), `full` (half is written, from then on whatever takes room fails with ENOSPC), `broken` (from
    then on all fails with EIO), or the name of an error, for that call only.
    """
    said = str(getattr(errno, what)) if what.startswith("E") else what
    return {"DSCTL_TEST_WITHIN": str(within), "DSCTL_TEST_CALL": str(number), "DSCTL_TEST_WHAT": said}


@dataclass(frozen=True)
class Case:
    """A command, what it is run on and what it makes.

    `given` are the folders that each try gets a fresh copy of, by their names in the try's folder; `made` is the name
    of what the command makes, or mends.
    """

    name: str
    arguments: tuple[str, ...]
    given: dict[str, Path]
    made: str = "out"

    def words(self, folder: Path) -> list[str]:
        """The arguments; a word that begins with @ names a folder of the try."""
        return [str(folder / word[1:]) if word.startswith("@") else word for word in self.arguments]

    def ready(self, folder: Path) -> Path:
        """An empty try in a folder, of which nothing else is left."""
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        for name, source in self.given.items():
            shutil.copytree(source, folder / name)
        return folder

    @property
    def consumes(self) -> bool:
        return "--consume" in self.arguments


def cases(folder: Path, start: Launcher) -> dict[str, Case]:
    """Every verb that writes, on the smallest checkpoint, with what it starts from."""
    source, made = folder / "source", folder / "made"
    made.mkdir()
    start.good("tiny", "v3.2", source, *WORDS)
    start.good("convert", source, made / "bf16", "--bf16", "--workers", "1")
    start.good("shard", source, made / "ranks", "--tp", "2", "--workers", "1")
    for name in ("plain", "signed"):
        damaged(shutil.copytree(source if name == "plain" else made / "bf16", made / name))
    one, twice = ("--workers", "1"), ("--consume", "--consume")
    bf16, ranks = made / "bf16", made / "ranks"
    found = (
        Case("bf16", ("convert", "@in", "@out", "--bf16", *one), {"in": source}),
        Case("fp8", ("convert", "@in", "@out", "--fp8", *one), {"in": bf16}),
        Case("shard", ("shard", "@in", "@out", "--tp", "2", *one), {"in": source}),
        Case("merge", ("merge", "@in", "@out", *one), {"in": ranks}),
        Case("slice", ("slice", "@in", "@out", "--layers", "0-1", "--experts", "2", *one), {"in": source}),
        Case(
            "graft",
            ("graft", "@in", "@out", "--from", "@other", "*.experts.*,mtp", "--as", "base", *one),
            {"in": bf16, "other": source},
        ),
        Case("tiny", ("tiny", "v3.2", "@out", *WORDS), {}),
        Case("fix", ("verify", "@in", "--fix"), {"in": made / "plain"}, "in"),
        Case("fix signed", ("verify", "@in", "--fix"), {"in": made / "signed"}, "in"),
        Case("consume bf16", ("convert", "@in", "@out", "--bf16", *one, *twice), {"in": source}),
        Case("consume fp8", ("convert", "@in", "@out", "--fp8", *one, *twice), {"in": bf16}),
        Case("consume shard", ("shard", "@in", "@out", "--tp", "2", *one, *twice), {"in": source}),
        Case("consume merge", ("merge", "@in", "@out", *one, *twice), {"in": ranks}),
    )
    return {case.name: case for case in found}


def damaged(folder: Path) -> None:
    """Take out of a checkpoint what `--fix` puts back: a header's format, the index's total, part of config.json."""
    index = folder / "model.safetensors.index.json"
    said = json.loads(index.read_bytes())
    said["weight_map"].popitem()
    index.write_text(json.dumps(said))
    for file in sorted(folder.glob("*.safetensors")):
        raw = file.read_bytes()
        size = int.from_bytes(raw[:8], "little")
        header = json.loads(raw[8 : 8 + size])
        header.pop("__metadata__", None)
        text = json.dumps(header).encode()
        file.write_bytes(len(text).to_bytes(8, "little") + text + raw[8 + size :])
    signed = folder / "dsctl.json"
    if signed.exists():
        audit = json.loads(signed.read_bytes())
        # Versions with such entries made no statement.
        (folder / "dsctl.intoto.json").unlink(missing_ok=True)
        audit["files"].pop("dsctl.intoto.json", None)
        for name in audit["files"]:
            raw = (folder / name).read_bytes()
            audit["files"][name] = {"size": len(raw), "sha256": hashlib.sha256(raw).hexdigest()}
        signed.write_text(json.dumps(audit))


def settled(folder: Path) -> dict[str, str]:
    """The digest of every file of a folder.

    Of `dsctl.json` and the notes of consumed files only what does not tell of one copy of the source: a fresh copy has
    other inodes and times.
    """
    found = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name, raw = str(path.relative_to(folder)), path.read_bytes()
        if name == "dsctl.json":
            said = json.loads(raw)
            said["source"] = sorted(said.get("source", {}).get("files", ()))
            raw = json.dumps(said).replace(str(folder.parent), "").encode()
        elif name.startswith(".cache/dsctl/"):
            said = json.loads(raw)
            raw = json.dumps([said.get(key) for key in ("file", "size", "header")]).encode()
        found[name] = hashlib.sha256(raw).hexdigest()
    return found


def foreseen(done: Done, codes: tuple[int, ...], *words: str) -> None:
    """It ended with one of these codes, said why in one line with these words, and nobody saw a traceback."""
    assert done.code in codes, done.told()
    assert done.err.count("error: ") == 1 and "Traceback" not in done.err and "internal" not in done.err, done.told()
    assert all(word in done.err for word in words), (words, done.told())
