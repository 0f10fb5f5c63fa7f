"""Other tools read what dsctl writes: model-signing signs and verifies a folder, in-toto's library reads the statement.

Everything is offline, with a key of this test.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from google.protobuf import json_format
from in_toto_attestation.predicates.provenance.v1 import provenance_pb2
from in_toto_attestation.v1 import statement_pb2
from in_toto_attestation.v1.resource_descriptor import ResourceDescriptor
from in_toto_attestation.v1.statement import Statement
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from tests.support.checkpoints import smaller
from tests.support.command import call, dsctl

STATEMENT = "dsctl.intoto.json"


class Keys:
    """A new pair of EC keys in files."""

    def __init__(self, folder: Path) -> None:
        key = ec.generate_private_key(ec.SECP256R1())
        pem = serialization.Encoding.PEM
        self.private, self.public = folder / "key.pem", folder / "key.pub.pem"
        self.private.write_bytes(
            key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        )
        self.public.write_bytes(key.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo))

    def sign(self, folder: Path) -> subprocess.CompletedProcess[str]:
        return model_signing("sign", folder, "--private_key", self.private)

    def verify(self, folder: Path, *more: str) -> subprocess.CompletedProcess[str]:
        return model_signing("verify", folder, "--public_key", self.public, *more)


def model_signing(what: str, folder: Path, *options: object) -> subprocess.CompletedProcess[str]:
    words = [what, "key", folder, "--signature", folder / "model.sig", *options]
    command = [sys.executable, "-m", "model_signing", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made") / "bf16"
    dsctl("convert", smaller(tmp_path_factory, "v3.2", aligned=True), folder, "--bf16", "--digest", "sha256")
    return folder


@pytest.fixture
def signed(made: Path, tmp_path: Path) -> tuple[Path, Keys]:
    folder, keys = Path(shutil.copytree(made, tmp_path / "copy")), Keys(tmp_path)
    done = keys.sign(folder)
    assert done.returncode == 0, done.stderr
    return folder, keys


def test_a_signed_folder_verifies(signed: tuple[Path, Keys]) -> None:
    folder, keys = signed
    done = keys.verify(folder)
    assert done.returncode == 0, done.stderr
    said = dsctl("verify", folder, "--deep")
    assert "no problems found" in said and "model.sig: is not in dsctl.json: it was added later" in said


@pytest.mark.parametrize("file", ["model-00001-of-000004.safetensors", STATEMENT, "dsctl.json"])
def test_a_flipped_bit_fails(signed: tuple[Path, Keys], file: str) -> None:
    folder, keys = signed
    with open(folder / file, "r+b") as opened:
        opened.seek(-9, 2)
        one = opened.read(1)
        opened.seek(-1, 1)
        opened.write(bytes([one[0] ^ 1]))
    assert keys.verify(folder).returncode != 0


def test_a_file_added_later_fails_unless_it_is_allowed(signed: tuple[Path, Keys]) -> None:
    folder, keys = signed
    (folder / "card.md").write_text(dsctl("card", folder))
    assert keys.verify(folder).returncode != 0
    assert keys.verify(folder, "--ignore_unsigned_files").returncode == 0


def test_a_conversion_of_a_signed_folder_is_not_signed(signed: tuple[Path, Keys], tmp_path: Path) -> None:
    folder, keys = signed
    dsctl("convert", folder, tmp_path / "fp8", "--fp8")
    assert not (tmp_path / "fp8" / "model.sig").exists()
    assert keys.sign(tmp_path / "fp8").returncode == 0 and keys.verify(tmp_path / "fp8").returncode == 0


def test_the_published_schema_reads_the_statement(made: Path) -> None:
    """in-toto publishes its schema as protocol buffers: a field that they do not know is an error here."""
    said = json.loads((made / STATEMENT).read_text())
    found = json_format.ParseDict(said, statement_pb2.Statement())
    Statement.copy_from_pb(found).validate()
    provenance = json_format.ParseDict(said["predicate"], provenance_pb2.Provenance())
    definition = provenance.build_definition
    assert definition.build_type and provenance.run_details.builder.id
    for one in (*definition.resolved_dependencies, *provenance.run_details.byproducts):
        ResourceDescriptor.copy_from_pb(one).validate()
        # Stricter than the library, as the text of the specification is.
        assert one.uri or one.digest or one.content
    assert all("sha256" in one.digest for one in found.subject)


def test_loaders_ignore_it(made: Path) -> None:
    assert (made / STATEMENT).exists()
    assert AutoConfig.from_pretrained(made).model_type == "deepseek_v32"
    assert AutoTokenizer.from_pretrained(made)("a")["input_ids"]
    _, told = AutoModelForCausalLM.from_pretrained(made, output_loading_info=True)
    assert not told["missing_keys"] and not told["mismatched_keys"]


def test_a_broken_statement_does_not_stop_a_conversion(made: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(made, tmp_path / "copy"))
    (folder / STATEMENT).write_text("{")
    assert call("convert", folder, tmp_path / "fp8", "--fp8").returncode == 0
