"""`--json` of every verb is what its schema says: no field missing, none that is not described."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.support import changed
from tests.support.checkpoints import smaller
from tests.support.command import call, dsctl
from tests.support.schemas import ERROR, FOLDER, STATEMENT, VERBS, faults, validator
from tests.tools.reference import commands

# Schema, then a command run where `small`, `plain`, `other` and `broken` are checkpoints.
PRINTED = (
    ("inspect", "inspect small"),
    ("inspect", "inspect small --tensors"),
    ("inspect", "inspect small --tensors *.indexer.* --fold"),
    ("inspect", "inspect broken"),
    ("inspect", "inspect v3.2 --tensors --fold"),
    ("inspect", "inspect small/model-00001-of-000004.safetensors"),
    ("diff", "diff v3 v3.2"),
    ("diff", "diff v2 glm-5 --tensors"),
    ("diff", "diff small plain"),
    ("diff", "diff broken small"),
    ("diff", "diff v3 v3.1 --only config"),
    ("diff", "diff v3 v3.2 --only tensors"),
    ("diff", "diff v3 v3.2 --only totals"),
    ("compare", "compare small plain"),
    ("compare", "compare small other"),
    ("verify", "verify small --deep"),
    ("verify", "verify broken"),
    ("verify", "verify plain --against v3"),
    ("verify", "verify plain --against small"),
    ("verify", "verify other --against small --sample 5%"),
    ("verify", "verify broken --fix --dry-run"),
    ("convert", "convert small made --to int8-channel --no-mtp"),
    ("convert", "slice small cut --layers 0-1 --experts 2"),
    ("convert", "shard small made --tp 2 --ep 2"),
    ("convert", "graft small made --from small mtp"),
    ("convert-plan", "graft small made --from small mtp --dry-run"),
    ("convert-plan", "shard small made --tp 2 --dry-run"),
    ("convert-plan", "convert small made --recipe int4-experts-fp8 --dry-run"),
    ("convert-plan", "slice small cut --layers 0-1 --dry-run"),
    ("shard-plan", "shard v3.2 made --tp 32 --recode --dry-run"),
    ("release-plan", "convert v3.2 made --recipe int4-experts --dry-run"),
    ("delta-plan", "delta make small changed made --dry-run"),
    ("delta", "delta make small changed made"),
    ("delta-verify", "delta verify delta"),
    ("delta-verify", "delta verify delta --base small"),
    ("convert", "delta apply small delta made"),
    ("convert-plan", "delta apply small delta made --dry-run"),
    ("delta-in-place-plan", "delta apply small delta --in-place --dry-run"),
    ("delta-fold", "delta fold delta later made"),
    ("delta-fold", "delta fold delta later made --dry-run"),
    ("plan", "plan v3.2 --tp 32"),
    ("plan", "plan v3.2 --tp 8 --gpu h200"),
    ("plan", "plan small --to bf16 --ep 4"),
    ("plan", "plan small --recipe int8"),
    ("plan", "plan v3.2 --tp 3 --gpu mycard=96.5 --reserve 4GiB"),
    ("plan", "plan v4-flash --must-fit h100x1 --must-fit h200x8 --must-fit mycard=96x8"),
    ("models", "models"),
    ("formats", "formats"),
    ("tiny", "tiny v3 made --layers 2 --experts 2"),
    ("doctor", "doctor . --no-hub"),
)


@pytest.fixture
def folder(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "small").symlink_to(smaller(tmp_path_factory, "v3.2", layers=2, experts=4))
    (tmp_path / "plain").symlink_to(smaller(tmp_path_factory, "v3.2", layers=2, experts=4, bf16=True))
    (tmp_path / "other").symlink_to(smaller(tmp_path_factory, "v3", layers=2, experts=2))
    shutil.copytree(tmp_path / "small", tmp_path / "broken")
    (tmp_path / "broken" / "model-00002-of-000004.safetensors").unlink()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def deltas(folder: Path, tmp_path: Path) -> None:
    """Another state of the small checkpoint, the delta to it, and the one back."""
    changed.make((folder / "small").resolve(), folder / "changed", changed.last_bits(0.02))
    dsctl("delta", "make", "small", "changed", "delta")
    dsctl("delta", "make", "changed", "small", "later", "--version", "2")


@pytest.mark.parametrize(("schema", "line"), PRINTED, ids=[line for _, line in PRINTED])
def test_what_is_printed_is_what_the_schema_says(
    schema: str, line: str, folder: Path, request: pytest.FixtureRequest
) -> None:
    if line.startswith("delta "):
        request.getfixturevalue("deltas")
    done = call(*line.split(), "--json")
    assert faults(schema, json.loads(done.stdout)) == [], done.stderr


def test_the_signed_file_is_what_the_schema_says(folder: Path) -> None:
    dsctl("convert", "plain", "made", "--fp8")
    assert faults("convert", json.loads((folder / "made" / "dsctl.json").read_text())) == []
    assert faults(STATEMENT, json.loads((folder / "made" / "dsctl.intoto.json").read_text())) == []
    assert faults("card", json.loads(dsctl("card", "made", "--json"))) == []


@pytest.mark.parametrize(
    ("line", "kind", "code"),
    [
        ("convert small", "UsageError", 2),
        ("convert small made --bff", "UsageError", 2),
        ("konvert", "UsageError", 2),
        ("shard small made --tp x", "UsageError", 2),
        ("shard small made --tp 2 --layout nothing", "UsageError", 2),
        ("inspect nowhere", "SourceError", 10),
        ("convert broken made --bf16", "FormatError", 20),
        ("convert small small --bf16", "PlanError", 30),
        ("verify broken", "VerifyFailed", 50),
        ("compare small plain --fail-under 1000", "VerifyFailed", 50),
    ],
)
def test_an_error_is_the_last_line_of_stderr(line: str, kind: str, code: int, folder: Path) -> None:
    done = call(*line.split(), "--json")
    *_, last = done.stderr.splitlines()
    said = json.loads(last)
    assert faults(ERROR, said) == [] and done.returncode == code, done.stderr
    assert (said["error"]["kind"], said["error"]["exit_code"]) == (kind, code)
    text = call(*line.split()).stderr
    assert said["error"]["message"] in text and (said["error"]["hint"] or "") in text
    assert bool(done.stdout) == (kind == "VerifyFailed")


def test_a_traceback_comes_before_the_error(folder: Path) -> None:
    done = call("inspect", "nowhere", "--json", "--debug")
    assert done.returncode == 10 and done.stderr.startswith("Traceback")
    assert faults(ERROR, json.loads(done.stderr.splitlines()[-1])) == []


def test_every_verb_has_its_schemas_and_none_is_left_over() -> None:
    printing = {verb for verb, command in commands().items() if any(param.name == "json" for param in command.params)}
    assert set(VERBS) == printing
    named = {name for names in VERBS.values() for name in names}
    assert {path.stem for path in FOLDER.iterdir()} == {ERROR, STATEMENT} | named


@pytest.mark.parametrize("path", sorted(FOLDER.iterdir()), ids=lambda path: path.stem)
def test_a_schema_allows_nothing_that_it_does_not_describe(path: Path) -> None:
    schema = validator(path.stem).schema
    body = schema["items"] if schema["type"] == "array" else schema
    assert body["additionalProperties"] is False and schema["title"].startswith("dsctl ")
