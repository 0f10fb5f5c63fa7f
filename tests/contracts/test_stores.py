"""What every store promises, over the whole table: a new entry is tested unasked."""

from __future__ import annotations

import dataclasses
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dsctl.core.errors import FormatError, SourceError
from dsctl.stores import STORES, Store, store_at
from tests.cloud.server import Objects
from tests.hub.server import Hub
from tests.support.checkpoints import smaller


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return smaller(tmp_path_factory, "v3")


@pytest.fixture(scope="module")
def hub(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    """A hub on loopback that this process takes for the only one."""
    cache, hub = tmp_path_factory.mktemp("cache"), Hub()
    hub.publish("acme/small", folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("huggingface_hub.constants.ENDPOINT", hub.endpoint)
        patch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
        patch.setattr("huggingface_hub.utils._cache_assets.HF_ASSETS_CACHE", str(cache / "assets"))
        yield hub
    hub.close()


@pytest.fixture(scope="module")
def objects(folder: Path) -> Iterator[Objects]:
    """An object store on loopback that this process takes for the only one."""
    objects = Objects()
    objects.publish(folder, "acme/small")
    with objects.known():
        yield objects
    objects.close()


SOURCES: dict[str, Callable[[Path], str]] = {
    "local": str,
    "hub": lambda folder: "hf://acme/small",
    "objects": lambda folder: "s3://weights/acme/small",
}


@pytest.fixture(scope="module", params=sorted(STORES))
def store(request: pytest.FixtureRequest, folder: Path, hub: Hub, objects: Objects) -> Store:
    found = store_at(SOURCES[request.param](folder))
    assert isinstance(found, STORES[request.param])
    return found


def test_it_lists_every_file_with_its_size(store: Store, folder: Path) -> None:
    assert store.files() == {path.name: path.stat().st_size for path in sorted(folder.iterdir())}


def test_it_is_frozen_and_can_be_sent_to_a_worker(store: Store, folder: Path) -> None:
    name = min(store.files())
    there = pickle.loads(pickle.dumps(store))
    assert there == store and there.read(name, 0, 1) == (folder / name).read_bytes()[:1]
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(store, dataclasses.fields(store)[0].name, "")  # type: ignore[arg-type]


@given(data=st.data())
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_range_is_the_file_s(store: Store, folder: Path, data: st.DataObject) -> None:
    file, size = data.draw(st.sampled_from(sorted(store.files().items())))
    begin = data.draw(st.integers(0, size))
    end = data.draw(st.integers(begin, min(size, begin + 100_000)))
    expected = (folder / file).read_bytes()[begin:end]
    buffer = bytearray(end - begin)
    store.read_into(file, begin, memoryview(buffer))
    assert store.read(file, begin, end) == expected == bytes(buffer)


def test_a_head_is_the_length_and_the_header(store: Store, folder: Path) -> None:
    for file, size in store.files().items():
        if file.endswith(".safetensors"):
            data = (folder / file).read_bytes()
            for _ in range(2):
                assert store.head(file, size) == data[: 8 + int.from_bytes(data[:8], "little")]


def test_a_head_that_is_none_is_refused(store: Store) -> None:
    file = "config.json"
    with pytest.raises(FormatError):
        store.head(file, store.files()[file])


@pytest.mark.parametrize("name", ["absent.safetensors", "../outside", "/etc/hostname", ""])
def test_what_is_not_there_is_a_source_error(store: Store, name: str) -> None:
    with pytest.raises(SourceError):
        store.read(name, 0, 1)


def test_a_file_that_ends_too_soon_is_a_source_error(store: Store) -> None:
    file, size = min(store.files().items())
    with pytest.raises(SourceError):
        store.read(file, size - 1, size + 1)


def test_what_costs_a_round_trip_is_pinned(store: Store) -> None:
    assert bool(store.revision) == store.remote
    assert store.place
