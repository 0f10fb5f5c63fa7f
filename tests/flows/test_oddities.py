"""What real checkpoints have that is odd and right: it is a note at most, and every way back gives it back, byte for
byte.

DeepSeek-V3's own index counts values at two bytes each; DeepSeek's `fp8_cast_bf16.py` writes an index with empty
metadata and files without `__metadata__`. No loader needs `total_size`, and transformers 5 loads all of these.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from dsctl.stores.local import LocalFolder
from dsctl.verify import verify
from dsctl.verify.findings import Report
from tests.flows.planted import INDEX, Folder
from tests.support.checkpoints import tiny
from tests.support.command import call, dsctl
from tests.support.folders import contents

SMALL = {
    "layers": 2, "experts": 4, "hidden": 256, "heads": 4, "vocab": 256, "intermediate": 256, "moe_intermediate": 256,
}  # fmt: skip


def metadata(**fields: Any) -> Callable[[Folder], None]:
    return lambda folder: folder.index(lambda index: index["metadata"].update(fields))


def no_total(folder: Folder) -> None:
    folder.index(lambda index: index["metadata"].pop("total_size"))


def reversed_map(folder: Folder) -> None:
    folder.index(lambda index: index.update(weight_map=dict(reversed(index["weight_map"].items()))))


def headers(change: Callable[[dict[str, Any]], Any]) -> Callable[[Folder], None]:
    def spoil(folder: Folder) -> None:
        for path in sorted(folder.path.glob("model-*.safetensors")):
            folder.reheader(path, change)

    return spoil


# What is odd, the codes of the notes that it gives, and how it comes about.
ODDITIES: dict[str, tuple[set[str], Callable[[Folder], Any]]] = {
    "values at two bytes each": ({"total-size"}, lambda folder: None),
    "a true total": (set(), lambda folder: folder.reindex()),
    "a wrong total": ({"total-size"}, metadata(total_size=7)),
    "a total that is a fraction": ({"total-size"}, metadata(total_size=1.5)),
    "more metadata": ({"total-size"}, metadata(total_parameters=12)),
    "no total": ({"total-size"}, no_total),
    "empty metadata": ({"total-size"}, lambda folder: folder.index(lambda index: index.update(metadata={}))),
    "metadata that is null": ({"total-size"}, lambda folder: folder.index(lambda index: index.update(metadata=None))),
    "no metadata": ({"total-size"}, lambda folder: folder.index(lambda index: index.pop("metadata"))),
    "names in another order": ({"total-size"}, reversed_map),
    "headers without metadata": ({"total-size", "no-format-pt"}, headers(lambda header: header.pop("__metadata__"))),
    "headers without a format": (
        {"total-size", "no-format-pt"},
        headers(lambda header: header.update({"__metadata__": {"made": "elsewhere"}})),
    ),
}


@pytest.fixture(scope="module")
def v3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny(tmp_path_factory, "v3", **SMALL)


@pytest.fixture(params=ODDITIES)
def odd(request: pytest.FixtureRequest, v3: Path, tmp_path: Path) -> tuple[set[str], Folder]:
    codes, spoil = ODDITIES[request.param]
    folder = Folder(Path(shutil.copytree(v3, tmp_path / "odd")))
    spoil(folder)
    return codes, folder


def check(folder: Path) -> Report:
    return verify(LocalFolder.at(folder))


def test_it_is_a_note_and_no_verb_refuses_it(odd: tuple[set[str], Folder], tmp_path: Path) -> None:
    codes, folder = odd
    report = check(folder.path)
    assert {finding.code for finding in report.findings} - {"missing-code"} == codes
    assert {finding.severity for finding in report.findings} <= {"note"}
    done = call("verify", folder.path, "--strict", "--deep", "--json")
    assert done.returncode == 0 and json.loads(done.stdout)["ok"]
    for words in (["inspect", folder.path], ["diff", folder.path, folder.path], ["plan", folder.path]):
        assert call(*words).returncode == 0, words
    for code in codes:
        ignored = json.loads(dsctl("verify", folder.path, "--ignore", code, "--json"))
        assert code not in {finding["code"] for finding in ignored["findings"]}


def test_shard_and_merge_give_it_back(odd: tuple[set[str], Folder], tmp_path: Path) -> None:
    folder = odd[1].path
    dsctl("shard", folder, tmp_path / "ranks", "--tp", 2, "-q")
    dsctl("merge", tmp_path / "ranks", tmp_path / "back", "-q")
    assert contents(tmp_path / "back") == contents(folder)


def test_another_format_and_the_way_back_give_it_back(odd: tuple[set[str], Folder], tmp_path: Path) -> None:
    folder = odd[1].path
    dsctl("convert", folder, tmp_path / "bf16", "--bf16", "-q")
    assert {finding.code for finding in check(tmp_path / "bf16").findings} <= {"twin-equal", "missing-code"}
    dsctl("convert", tmp_path / "bf16", tmp_path / "back", "--fp8", "-q")
    assert contents(tmp_path / "back") == contents(folder)


def test_what_dsctl_writes_itself_has_the_true_total(odd: tuple[set[str], Folder], tmp_path: Path) -> None:
    folder = odd[1].path
    dsctl("convert", folder, tmp_path / "bf16", "--bf16", "-q")
    dsctl("shard", folder, tmp_path / "ranks", "--tp", 2, "-q")
    dsctl("merge", tmp_path / "ranks", tmp_path / "less", "--no-mtp", "-q")
    for made in (tmp_path / "bf16", tmp_path / "less", tmp_path / "ranks" / "rank-00000"):
        tensors = [tensor for path in made.glob("*.safetensors") for tensor in load_file(path).values()]
        total = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        assert json.loads((made / INDEX).read_text())["metadata"] == {"total_size": total}


def test_only_a_total_that_no_release_would_have_is_mended(odd: tuple[set[str], Folder]) -> None:
    codes, folder = odd
    before = (folder.path / INDEX).read_bytes()
    counts = json.loads(before).get("metadata") or {}
    published = counts.get("total_size") == 2 * sum(tensor.numel() for tensor in tensors_of(folder.path))
    dsctl("verify", folder.path, "--fix", "-q")
    assert ((folder.path / INDEX).read_bytes() == before) == (published or not codes)
    left = {finding.code for finding in check(folder.path).findings} - {"missing-code"}
    assert left == ({"total-size"} if published else set())


def tensors_of(folder: Path) -> list[Any]:
    return [tensor for path in folder.glob("*.safetensors") for tensor in load_file(path).values()]


def test_the_note_says_what_the_total_counts(v3: Path, tmp_path: Path) -> None:
    said = dsctl("verify", v3)
    assert "counts two bytes per value, as DeepSeek-V3's own index does" in said and "no problems" in said
    folder = Folder(Path(shutil.copytree(v3, tmp_path / "wrong")))
    metadata(total_size=7)(folder)
    assert "no loader needs it" in dsctl("verify", folder.path)
    no_total(folder)
    headers(lambda header: header.pop("__metadata__"))(folder)
    said = dsctl("verify", folder.path)
    assert "has no total_size" in said and "transformers 5 loads it, older than 5 refuses" in said


def test_one_file_with_an_index_gets_it_back(v3: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(v3, tmp_path / "one"))
    held = {name: tensor for path in sorted(v3.glob("*.safetensors")) for name, tensor in load_file(path).items()}
    for path in folder.glob("*.safetensors"):
        path.unlink()
    save_file(held, folder / "model.safetensors")
    (folder / "model.safetensors").chmod(0o644)
    index = {"metadata": {}, "weight_map": dict.fromkeys(held, "model.safetensors")}
    (folder / INDEX).write_text(json.dumps(index))
    test_shard_and_merge_give_it_back((set(), Folder(folder)), tmp_path)
    (folder / INDEX).unlink()
    shutil.rmtree(tmp_path / "ranks")
    shutil.rmtree(tmp_path / "back")
    test_shard_and_merge_give_it_back((set(), Folder(folder)), tmp_path)
