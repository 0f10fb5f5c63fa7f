"""A run begun by an older version is resumed: the fingerprint of a request and what its jobs write are as they were.

The digests are those of version 8c35db4, which planned the same files.
"""

from __future__ import annotations

import hashlib

import pytest

from dsctl.checkpoint.checkpoint import Checkpoint
from dsctl.checkpoint.slice import cut_of, sliced
from dsctl.plan import recipes
from dsctl.plan.plan import fingerprint
from dsctl.plan.planner import make_plan
from dsctl.plan.request import Request
from dsctl.run.marks import work_of
from tests.support.headers import bf16, fp8, lay_out, opened


def _rules(name: str) -> tuple[tuple[str, str, str], ...]:
    return tuple(map(tuple, recipes.ready()[name].rules))  # type: ignore[arg-type]


# What the sources' headers and texts are.
SOURCES = {
    "fp8": "232664467cae693fd13226ee1b333d078d675953ab88380d31091d9a4cf08ae0",
    "bf16": "cdb5593f11de3f5c614a923fed77f3f42709e85a55aa4ece0172c045b1de3ee3",
    "decoded": "a0bfd08b6e2cd0812c0f35ee3605d014f206c0a87d017ac5a80841ac719d2e2d",
    "ranks": "eb800f6d0deeb80d008b7442b979d074cc562212ac25c89c181e0696f3705232",
}
# By name: the source, the request, its fingerprint and its work.
REQUESTS: dict[str, tuple[str, Request, str, str]] = {
    "bf16": (
        "fp8", Request("bf16"),
        "001110e4998c5be9ba75be09c7ea1a09f5ffff203cc200dc02217cfb3fbfff6c",
        "b6e73ed3ccc91ab258f5ef6d2f95e9acbbc174215032b4ca2eae1d1e0c680179",
    ),
    "fp8-block": (
        "bf16", Request("fp8-block"),
        "6b9b93b04dcfc2d7ff2e6c6c4e6164ab4baf9d928d289ee1714d302d491300ed",
        "dcc65477e67d27e07dee9b968b5151b2b6b4ddad3b2aa10c408dab5b726117a0",
    ),
    "fp8-block, float32 scales": (
        "bf16", Request("fp8-block", scale_fmt="float32"),
        "e377165d411d92d75ba6d26f25255fa3fecfa6e3e1563938bcd705f804a6facc",
        "dcc65477e67d27e07dee9b968b5151b2b6b4ddad3b2aa10c408dab5b726117a0",
    ),
    "fp8-block of kept scales": (
        "decoded", Request("fp8-block"),
        "c79809a6a7863912399ad1e4182ccad672dada82c704550a0fccdcc6da4edf0f",
        "dcc65477e67d27e07dee9b968b5151b2b6b4ddad3b2aa10c408dab5b726117a0",
    ),
    "tp 2": (
        "fp8", Request("keep", tp=2),
        "23e76c346f3e20656dcd5d3ff17b0c373969701ee2168ea4ff9ade26dfba81ad",
        "53c5f81f5a23f9c51f80a78746492e8ecb4263a82c9c17c1d9b7082670ab7219",
    ),
    "tp 2, ep 4, pp 2": (
        "fp8", Request("keep", tp=2, ep=4, pp=2),
        "cbbcebdaa33ebc11442b5a380039a191c80f32cddb90094e695a06c3c90db621",
        "739e5f20535005e7a8019546c908f935fd539e9ffdd6fd7c5bdf37d221e890c7",
    ),
    "layout deepseek": (
        "fp8", Request("keep", layout="deepseek", tp=2, ep=2, mtp="drop"),
        "997141f03efceaeac8e92bd2e8557bf1869570460739205f302f1ae5f35748e7",
        "b108b4d244202f45253aed50b060b716a1032f4685b1b987845a5eab9cadb5b6",
    ),
    "int4-experts": (
        "fp8", Request("recipe", rules=_rules("int4-experts")),
        "26b56eed46d6e6d9bd1a69e9b0235dfdbac96f4b92bb2b926f01639538c68a49",
        "278fdf19df08fcf94560d620cfc962c7e4d6a9de4b4440ade109a1e4ced50e0f",
    ),
    "nvfp4-experts": (
        "fp8", Request("recipe", rules=_rules("nvfp4-experts")),
        "844f216b67b1c8ec8877a3ef99205f02308e3fa17bb6b8e73ac0edf0405e64b2",
        "963f792bcbc7b035da2ed1035e9679420114b6fcc41498fa64a7a621d958e501",
    ),
    "fp8-block-ct": (
        "fp8", Request("fp8-block-ct"),
        "85978d3b2c9eecdadad1caa6db575e465a4b7dac51e1b0acfd22cb21ad9fadc0",
        "651c878a61448972009be110d9aa763667fa5e668ad9ef524c03e718bba86d46",
    ),
    "int8-block": (
        "bf16", Request("int8-block"),
        "f085c4ef7ae4112a88708ecfa9232936f43a6c526511225024534208f9302d65",
        "1daae590682c992a61a24e568723b361d31abdb8b9118ed4b223068cf6e59abe",
    ),
    "only": (
        "fp8", Request("bf16", only=("model.layers.1.*",)),
        "451858883eea84bc92eb74ed596d7ccee226b7084eb5766a59a401fe7c9e75bd",
        "8e00dc16a9afb22d94fcaeb969f2e83832b73e099cc442868a3d29a24612e469",
    ),
    "without mtp": (
        "fp8", Request("bf16", mtp="drop"),
        "878191ae54c0dda65e1163f8379e56470d9101b4b248ae32bf28add1d2a26214",
        "9ee1dbe0cbd1fb7923e6c2a1dec6c593eff0004cbac42f3d3e98fe0611f17bf9",
    ),
    "slice": (
        "slice", Request("keep", slice="layers 0,1; experts 1,3"),
        "79365fba26cbb809eb835b3bf441e2ec7df169904cc8d8bdf5280ec4abb1dfa2",
        "64d32f8b06c11702c31b7ac42a5ad006745dc70245165e1c8c80a6fe8fd295cd",
    ),
    "merged": (
        "ranks", Request("keep"),
        "4c111ab3cf6f36b28927d84e58136711d20a1e7f802faf3038e7a812f12fcece",
        "ea073be7b10f8fb4653593845844d86fa1820407dbc8ec0552b7f532ed934cb2",
    ),
    "stacked": (
        "fp8", Request("keep", layout="stacked"),
        "56cc570b77dc3450cb929fcfd2210751e0129ebcddd07ca4bad377504f7afa1f",
        "abc73d62a32810e3f4039d50bdccf41324df471769a76b5729407c5b1a481448",
    ),
    "small files": (
        "fp8", Request("bf16", shard_size=500_000),
        "5fe71b2abde9cb008e300a727b879d9fc2b21c2ed62c0abe555ebd2feff84eef",
        "36571d9c93fd6145f3f1990656699c5b520ac2779af736675b02d168fc405b3f",
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Checkpoint]:
    root = tmp_path_factory.mktemp("sources")
    published = fp8(root / "fp8")
    return {
        "fp8": published,
        "bf16": bf16(root / "bf16"),
        "decoded": opened(lay_out(make_plan(published, Request("bf16")), root / "decoded")),
        "ranks": opened(lay_out(make_plan(published, Request("keep", tp=2)), root / "ranks")),
        "slice": sliced(published, cut_of(published, (0, 1), False, (1, 3))),
    }


@pytest.mark.parametrize("name", REQUESTS)
def test_an_older_run_is_recognised(sources: dict[str, Checkpoint], name: str) -> None:
    source, request, known, _ = REQUESTS[name]
    assert fingerprint(sources[source], request) == known


@pytest.mark.parametrize("name", REQUESTS)
def test_the_jobs_of_an_older_run_write_the_same_bytes(sources: dict[str, Checkpoint], name: str) -> None:
    source, request, known, work = REQUESTS[name]
    plan = make_plan(sources[source], request)
    assert (plan.fingerprint, work_of(plan)) == (known, work)


@pytest.mark.parametrize("name", SOURCES)
def test_the_sources_are_what_the_digests_are_of(sources: dict[str, Checkpoint], name: str) -> None:
    """If this one fails, the files of the test have changed, and the digests above say nothing."""
    digest, checkpoint = hashlib.sha256(), sources[name]
    for file, header in sorted(checkpoint.headers.items()):
        digest.update(file.encode() + header.raw)
    for file in sorted(checkpoint.files):
        if file.endswith(".json"):
            digest.update(file.encode() + checkpoint.store.read(file, 0, checkpoint.files[file]))
    assert digest.hexdigest() == SOURCES[name]


def test_a_request_names_the_layout_as_older_versions_do() -> None:
    assert Request("keep").json()["layout"] == "hf"
    assert Request("keep", layout="hf") == Request("keep", layout="published")
    assert Request("keep", layout="deepseek").json()["layout"] == "deepseek"
