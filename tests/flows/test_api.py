"""`import dsctl`: the same as the command line, as calls."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import dsctl
from dsctl import releases
from dsctl.core.errors import UsageError
from dsctl.look.compare import pair
from dsctl.plan.request import Request
from dsctl.stores import store_at
from tests.support.checkpoints import smaller
from tests.support.command import dsctl as command


@pytest.fixture
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return smaller(tmp_path_factory, "v3.2", layers=2, experts=2)


def digests(folder: Path) -> dict[str, dict[str, str]]:
    found: dict[str, dict[str, str]] = json.loads((folder / "dsctl.json").read_text())["files"]
    assert all(file.keys() & {"tree", "blake3"} for file in found.values())
    return found


def test_a_conversion_is_the_command_lines(small: Path, tmp_path: Path) -> None:
    command("convert", small, tmp_path / "theirs", "--bf16", "--no-mtp", "--shard-size", "8MB")
    events: list[object] = []
    conversion = dsctl.open(small).to("bf16", mtp=False, shard_size=8_000_000)
    assert not (tmp_path / "ours").exists() and conversion.plan.bytes_out > 0
    audit = conversion.run(tmp_path / "ours", report=events.append)
    assert digests(tmp_path / "ours") == digests(tmp_path / "theirs")
    assert audit == json.loads((tmp_path / "ours" / "dsctl.json").read_text())
    assert events
    assert conversion.run(tmp_path / "ours") == audit, "what is complete is not done again"


def test_a_recipe_is_the_command_lines(small: Path, tmp_path: Path) -> None:
    command("convert", small, tmp_path / "theirs", "--recipe", "int4-experts")
    dsctl.open(str(small)).to(recipe="int4-experts").run(tmp_path / "ours")
    assert digests(tmp_path / "ours") == digests(tmp_path / "theirs")


def test_looking_is_the_command_lines(small: Path) -> None:
    source = dsctl.open(small)
    assert {total.name for total in source.inspect().roles} >= {"attention", "indexer", "routed experts"}
    assert source.diff("v3.2").differs and not source.diff(source).differs
    assert source.compare(source).total.same
    assert not [finding for finding in source.verify().findings if finding.severity == "error"]
    assert source.verify(against=dsctl.open("v3")).findings


def test_a_release_is_described_offline() -> None:
    assert dsctl.open("v3").inspect().description.values == 684_489_845_504


def test_what_cannot_be_is_told() -> None:
    with pytest.raises(dsctl.DsctlError, match="nowhere"):
        _ = dsctl.open("nowhere").checkpoint
    with pytest.raises(dsctl.DsctlError, match="fp3"):
        dsctl.open("v3").to("fp3")
    with pytest.raises(dsctl.DsctlError, match="both"):
        dsctl.open("v3").to("bf16", recipe="int8")
    with pytest.raises(UsageError, match="unknown layout 'vlm'"):
        dsctl.open("v3").to("bf16", layout="vlm")
    with pytest.raises(UsageError, match="ranks"):
        dsctl.open("v3").shard("bf16")


def test_importing_it_loads_nothing_heavy() -> None:
    heavy = "torch numpy typer rich huggingface_hub"
    work = "import sys, dsctl; dsctl.open('v3').diff('v3.2').verdict"
    script = f"{work}; print([name for name in '{heavy}'.split() if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_notebooks_show_tables(small: Path) -> None:
    shown = dsctl.open("v3").diff("v3.2")._repr_html_()
    assert "indexer.wq_b.weight</td>" in shown and "684,489,845,504" in shown and "<h4>Removed" not in shown
    assert shown.count("<table>") == shown.count("</table>") == 3
    assert "routed experts" in dsctl.open(small).inspect()._repr_html_()


def test_names_in_notebooks_are_text(small: Path, tmp_path: Path) -> None:
    (tmp_path / "<b>").symlink_to(small)
    assert "&lt;b&gt;" in dsctl.open(tmp_path / "<b>").inspect()._repr_html_()


def test_a_string_is_one_glob(small: Path) -> None:
    """Taken letter by letter, "*" among them, it would select everything."""
    glob = "model.layers.0.*"
    source = dsctl.open(small)
    for words in ({"only": glob}, {"skip": glob}):
        (name,) = words
        one, listed = source.to("bf16", **words), source.to("bf16", **{name: [glob]})
        assert one.request == listed.request and getattr(one.request, name) == (glob,)
        assert one.plan.counts == listed.plan.counts != source.to("bf16").plan.counts
        compared = [one.name for one in source.compare(source, **words).compared]
        assert all(parameter.startswith("model.layers.0.") == (name == "only") for parameter in compared)
    assert Request(to="bf16", only=glob).only == (glob,)
    paired = pair(store_at(small), store_at(small), glob).pairs
    assert paired and all(one.param.name.startswith("model.layers.0.") for one in paired)
    estimated = [dsctl.open("v3").plan(to=to, gpu=gpu) for to, gpu in (("bf16", "h200"), (["bf16"], ["h200"]))]
    assert estimated[0] == estimated[1] and {one.format for one in estimated[0].choices} == {"as stored", "bf16"}


@pytest.mark.parametrize(
    "words", [{"ranks": "0-1"}, {"ranks": 1}, {"ranks": ["0"]}, {"only": 1}, {"skip": [1]}, {"only": None}]
)
def test_what_is_no_sequence_of_its_kind_is_refused(small: Path, words: dict[str, object]) -> None:
    with pytest.raises(UsageError, match=next(iter(words))):
        dsctl.open(small).to("bf16", tp=2, **words)


@pytest.mark.parametrize("name", ["layers", "experts", "ranks"])
def test_numbers_of_a_request_are_numbers(name: str) -> None:
    assert getattr(Request(to="bf16", **{name: range(2)}), name) == (0, 1)
    with pytest.raises(UsageError, match=name):
        Request(to="bf16", **{name: "01"})


def test_what_python_shows_is_short_and_what_it_prints_is_a_table(small: Path, tmp_path: Path) -> None:
    source = dsctl.open(small)
    conversion = source.to("bf16")
    result = conversion.run(tmp_path / "made")
    seen, report, compared = source.inspect(), source.verify(), source.compare(str(tmp_path / "made"))
    estimate = source.plan(tp=2)
    for one in (source, source.checkpoint, seen.description, releases.find("v3"), dsctl.open("x" * 5000)):
        assert "\n" not in repr(one) and 10 < len(repr(one)) < 200
    for one, printed in (
        (seen, "routed experts"), (report, "0 errors"), (conversion, "dequantized"), (conversion.plan, "dequantized"),
        (result, "dequantized"), (compared, "routed experts"), (estimate, "cache per rank"),
    ):  # fmt: skip
        assert "\n" not in repr(one) and 10 < len(repr(one)) < 200
        assert printed in str(one) and printed in one._repr_html_()
    assert "<script" not in dsctl.open("<script>")._repr_html_()


def test_a_report_prints_its_findings(small: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(small, broken)
    (broken / "config.json").unlink()
    report = dsctl.open(broken).verify()
    assert not report.ok and "no-config" in str(report) and "no-config</td>" in report._repr_html_()
    assert dsctl.open(small).verify().ok


def test_a_result_is_typed_and_still_the_audit(small: Path, tmp_path: Path) -> None:
    result = dsctl.open(small).to("bf16", only="model.layers.0.*").run(tmp_path / "made")
    audit = json.loads((tmp_path / "made" / "dsctl.json").read_text())
    assert isinstance(result, dsctl.Result) and result.ok and result.target == str(tmp_path / "made")
    assert result == audit and result.as_dict() == audit and result["audit"]["unexplained"] == result.unexplained == 0
    assert result.counts["dequantized"] and "not in --only" in result.partial
    assert result.files["config.json"] == (tmp_path / "made" / "config.json").stat().st_size
    wrong = dsctl.Result("x", audit | {"audit": audit["audit"] | {"values_infinite": 1}})
    assert not wrong.ok and "not ok" in repr(wrong)


def test_slices_and_shards_are_the_command_lines(small: Path, tmp_path: Path) -> None:
    command("slice", small, tmp_path / "theirs", "--layers", "0,mtp", "--experts", 2, "--bf16")
    sliced = dsctl.open(small).slice(layers=[0], mtp=True, experts=2, to="bf16")
    assert sliced.run(tmp_path / "ours").ok
    assert digests(tmp_path / "ours") == digests(tmp_path / "theirs")
    command("shard", small, tmp_path / "their ranks", "--tp", 2, "--layout", "deepseek")
    assert dsctl.open(small).shard(tp=2, layout="deepseek").run(tmp_path / "our ranks").ok
    assert digests(tmp_path / "our ranks") == digests(tmp_path / "their ranks")


def test_a_slice_keeps_the_mtp_layer_with_all_layers_or_if_asked(small: Path) -> None:
    source = dsctl.open(small)
    kept = [source.slice(layers=layers, mtp=mtp) for layers in (None, [0, 1]) for mtp in (None, True, False)]
    assert [any("layers.2." in step.name for step in one.plan.steps) for one in kept] == [
        True, True, False, False, True, False,
    ]  # fmt: skip
    assert source.slice(experts=2).plan.counts == source.slice(experts=[0, 1]).plan.counts
    for wrong in ({"experts": 0}, {"layers": "01"}, {"to": "fp3"}):
        with pytest.raises(UsageError):
            source.slice(**wrong)


def test_an_estimate_is_the_command_lines() -> None:
    told = json.loads(command("plan", "v3.2", "--tp", 8, "--batch", 4, "--to", "bf16", "--gpu", "h200", "--json"))
    found = dsctl.open("v3.2").plan(tp=8, batch=4, to="bf16", gpu="h200")
    for one in found.choices:
        facts = told["formats"][one.format]
        assert one.disk == facts["disk_bytes"] and one.possible
        assert (one.weights, one.cache) == (facts["ranks"][0]["weights_bytes"], facts["ranks"][0]["cache_bytes"])
        assert bool(one.fits) == told["accelerators"][0]["formats"][one.format]["fits"]
    assert not dsctl.open("v3.2").plan(tp=3).choices[0].possible
    for wrong in ({"tp": 0}, {"gpu": "h2000"}, {"to": "fp3"}, {"kv": "fp3"}, {"context": 1.5}):
        with pytest.raises(UsageError):
            dsctl.open("v3.2").plan(**wrong)
