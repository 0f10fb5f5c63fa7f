"""Deltas between places in an object store: both sides, the delta, the result."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.cloud.server import BUCKET, Objects
from tests.support import changed
from tests.support.command import call, dsctl, reports
from tests.support.little_deltas import Little, contents, little
from tests.support.raw_tensors import places_of

NAMED = ("dsctl.json", "dsctl.intoto.json")


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Little:
    return little(tmp_path_factory.mktemp("little"))


def without_places(found: dict[str, bytes]) -> dict[str, bytes]:
    """What does not name its source."""
    return {name: data for name, data in found.items() if name not in NAMED}


def test_everything_may_be_in_a_store(objects: Objects, good: Little, tmp_path: Path, staging: Path) -> None:
    old, other = objects.publish(good.old, "old"), objects.publish(good.other, "other")
    delta, url = f"s3://{BUCKET}/delta", f"s3://{BUCKET}/applied"
    dsctl("delta", "make", old, other, delta, "--anyway")
    assert without_places(objects.contents("delta")) == without_places(contents(good.deltas["own"]))
    dsctl("delta", "verify", delta, "--base", old)
    dsctl("delta", "apply", old, delta, url)
    assert without_places(objects.contents("applied")) == without_places(contents(good.other))
    dsctl("delta", "apply", old, delta, tmp_path / "here")
    assert without_places(contents(tmp_path / "here")) == without_places(contents(good.other))
    again = call("delta", "apply", old, delta, url)
    assert again.returncode == 0 and "already complete" in again.stdout + again.stderr
    assert not [path for path in staging.rglob("*") if path.is_file() and path.suffix == ".safetensors"]


def test_another_base_or_a_damaged_delta_leaves_nothing_there(objects: Objects, good: Little, tmp_path: Path) -> None:
    base = Path(shutil.copytree(good.old, tmp_path / "base"))
    place = places_of(base)["d"]
    place.write(changed.shuffled(place, place.read(), __import__("numpy").random.default_rng(1)))
    url, delta = objects.publish(base, "another"), objects.publish(good.deltas["xor"], "damaged")
    done = call("delta", "apply", url, delta, f"s3://{BUCKET}/refused")
    assert done.returncode == 30 and "is not the base of the delta" in done.stderr
    name = "damaged/x.safetensors"
    data = objects.client.get_object(Bucket=BUCKET, Key=name)["Body"].read()
    objects.client.put_object(Bucket=BUCKET, Key=name, Body=data[:-1] + bytes([data[-1] ^ 1]))
    done = call("delta", "apply", objects.publish(good.old, "old"), delta, f"s3://{BUCKET}/refused")
    assert done.returncode == 20 and "differs from dsctl.json" in done.stderr
    assert objects.contents("refused") == {}


def test_an_interrupted_upload_goes_on_and_a_changed_side_is_noticed(
    objects: Objects, good: Little, tmp_path: Path
) -> None:
    new = Path(shutil.copytree(good.new, tmp_path / "new"))
    line = ("delta", "make", good.old, new, f"s3://{BUCKET}/cut", "--anyway")

    def refuse(method: str, path: str) -> int | None:
        return 403 if method == "PUT" and path.endswith("y.safetensors") else None

    with objects.disturbed(refuse):
        done = call(*line)
    assert done.returncode == 41 and len(reports(done.stderr)) == 1, done.stderr
    assert "dsctl.json" not in objects.contents("cut")
    dsctl(*line)
    assert without_places(objects.contents("cut")) == without_places(contents(good.deltas["xor"]))
    place = places_of(new)["b"]
    place.write(place.read() ^ 1)
    done = call(*line)
    assert done.returncode == 40 and "changed" in done.stderr, done.stderr
    dsctl(*line, "--force")
    assert json.loads(objects.contents("cut")["dsctl.json"])["audit"]["tensors_changed"] == 3


@pytest.mark.parametrize("target", ["applied", "made"])
def test_a_killed_run_goes_on(
    objects: Objects, good: Little, tmp_path: Path, target: str, launcher, settings: dict[str, str]
) -> None:
    url = f"s3://{BUCKET}/killed-{target}"
    made = ("make", good.old, good.new, url, "--anyway")
    line = ("delta", *(made if target == "made" else ("apply", good.old, good.deltas["xor"], url)))

    def kill(method: str, path: str) -> None:
        if method == "PUT" and path.endswith("y.safetensors"):
            process.kill("driver")

    with objects.disturbed(kill):
        process = launcher.start(*line, environment=settings)
        process.wait(60)
    assert "dsctl.json" not in objects.contents(f"killed-{target}")
    dsctl(*line)
    expected = contents(good.deltas["xor"] if target == "made" else good.new)
    assert without_places(objects.contents(f"killed-{target}")) == without_places(expected)
