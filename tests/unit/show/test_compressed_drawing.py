"""V4 in block diagrams: every parameter in a part of its own, nothing on top of another, both sides at one height."""

from __future__ import annotations

from itertools import combinations, pairwise

import pytest

from dsctl.checkpoint.groups import folded
from dsctl.look.diff import Diff
from dsctl.look.source import describe
from dsctl.show.drawing.architecture import keyed, last_name
from dsctl.show.drawing.diagram import diagrams
from dsctl.show.drawing.pieces import LEFT, Drawn
from dsctl.show.drawing.sheet import WIDTH, Rectangle, Sheet

NAMES = ("v4-flash", "v4-flash-base", "v4-pro-0813", "v4-flash-vision-exp", "v4.1-flash")


def drawn(name: str) -> Sheet:
    one = describe(name)
    return diagrams(Diff(one, one))[0]


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_has_a_part_of_its_own(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    left: list[str] = []
    rest = Drawn.rest

    def noted(self: Drawn, y: float) -> float:
        left.extend(self.left)
        return rest(self, y)

    monkeypatch.setattr(Drawn, "rest", noted)
    hints = "\n".join(box.hint for box in drawn(name).boxes)
    assert not left
    for group in describe(name).groups:
        family = group.family
        template = folded(family.template)[0] if family.role == "vision" else family.template
        assert f"{keyed(template, family.variant)} [" in hints


@pytest.mark.parametrize("name", NAMES)
def test_boxes_lie_within_frames_and_not_on_each_other(name: str) -> None:
    boxes = drawn(name).boxes
    inner = [box for box in boxes if box.shape != "frame"]
    assert all(box.x >= 0 and box.x + box.width <= WIDTH and box.height > 0 for box in boxes)
    assert not [(a.lines, b.lines) for a, b in combinations(inner, 2) if overlap(a, b)]
    for frame in boxes:
        if frame.shape == "frame":
            across = [box for box in inner if overlap(frame, box) and not within(frame, box)]
            assert not [(frame.lines, box.lines) for box in across]


def overlap(a: Rectangle, b: Rectangle) -> bool:
    across = a.x < b.x + b.width and b.x < a.x + a.width
    return across and a.y < b.y + b.height and b.y < a.y + a.height


def within(frame: Rectangle, box: Rectangle) -> bool:
    across = frame.x <= box.x and box.x + box.width <= frame.x + frame.width
    return across and frame.y <= box.y and box.y + box.height <= frame.y + frame.height


def test_parts_are_drawn_as_what_they_are() -> None:
    said = texts(drawn("v4-flash-0731"))
    for text in (
        "copied to 4 residual streams",
        "hyper-connection: 4 streams → 1, F32",
        "mixes the 4 streams and adds the output",
        "Compressor",
        "4 tokens → 1",
        "128 tokens → 1",
        "Lightning",
        "indexer",
        "4 tokens → 1 key",
        "Attention, 64 heads, each with a sink",
        "a query attends to the 128 tokens before it",
        "in 21 layers also to the top 512 of the 4-token entries",
        "in 20 layers also to every one of the 128-token entries",
        "8 groups, each 4,096 → 1,024 FP8 E8M0",
        "129,280 → 6 I64",
        "Block drafter x 3",
        "stages 0-2",
        "Markov head: the token before",
        "the main model's head",
    ):
        assert any(text in one for one in said), text


def test_residual_streams_run_from_the_embedding_to_the_head() -> None:
    """Four lines with hyper-connections and one without; every block reads it, and adds to it in a node of its own."""
    for name, kind, many in (("v4-flash", "stream", 4), ("v3.2", "trunk", 1)):
        sheet = drawn(name)
        frames = {
            box.lines[0].text.partition(" x ")[0]: box for box in sheet.boxes if box.shape == "frame" and box.lines
        }
        flow = [arrow for arrow in sheet.arrows if arrow.kind == kind]
        assert len({arrow.points[0][0] for arrow in flow if arrow.points[0][0] < LEFT}) == many
        columns: dict[float, list[tuple[float, float]]] = {}
        for arrow in flow:
            for (x0, y0), (x1, y1) in pairwise(arrow.points):
                if x0 == x1 < LEFT:
                    columns.setdefault(x0, []).append((y0, y1))
        top, bottom = frames["Embedding"].y + frames["Embedding"].height, frames["Head"].y
        for runs in columns.values():
            reached = top
            for start, end in sorted(runs):
                reached = end if start <= reached + 0.01 else reached
                if reached >= bottom:
                    break
            assert reached >= bottom
        nodes = [box for box in sheet.boxes if box.shape == "node"]
        layers = [frame for name, frame in frames.items() if "layers" in name or "prediction" in name]
        assert len(nodes) == 2 * len(layers)
        assert all(sum(within(frame, node) for node in nodes) == 2 for frame in layers)


def test_the_rope_key_is_drawn_and_cached() -> None:
    lines = texts(drawn("v3.2"))
    said = " ".join(lines)
    assert "RoPE: rope key k_pe, 64 values, one for all heads" in said
    assert "cached per token: latent 512, rope key 64" in said and {"rope key,", "64"} <= lines
    compressed = " ".join(texts(drawn("v4-flash")))
    assert "RoPE on the last 64 of 512: the rope key" in compressed and "cached: the last 128 tokens" in compressed


def test_a_base_has_its_own_embedding_and_head_in_its_prediction_layer() -> None:
    said = texts(drawn("v4-flash-base"))
    assert any("tok_emb" in one for one in said)
    assert "the main model's head" not in said and any("Multi-token prediction x 1" in one for one in said)


def texts(sheet: Sheet) -> set[str]:
    """Labels, and the lines of each box as one text."""
    labels = {label.text for label in sheet.labels}
    return labels | {" ".join(line.text for line in box.lines) for box in sheet.boxes}


def test_layers_that_share_caches_are_drawn_as_what_they_are() -> None:
    said = texts(drawn("v4.1-flash"))
    for text in (
        "2 x the window alone: 0-1",
        "4 x own cache and choice of entries: 2-20 by 6",
        "4 x earlier cache, own choice: 24-36 by 4",
        "30 x earlier cache and choice: the others",
        "a prompt passes 0-19, generated tokens all",
        "Engram, in layers 1, 14",
        "n-grams of 2 to 4 tokens, hashed to 24 rows",
        "384,006,168 → 256",
        "384,016,682 → 256",
        "in layer 14",
        "gate: each stream against its key",
        "2 tokens → 1; layer 20: each token",
        "cached, for later layers too",
        "hyper-connection: 4 streams → 1, for the next one",
        "4 streams → 1, as the last layer computed",
        "in 38 layers also to the top 512 entries of the last cache before it, of layers 2, 8, 14, 20",
        "scores every entry (after layer 20: 16,384), keeps the top 512",
        "32 blocks",
        "128 routed experts, 3 per token",
        "384 routed experts, 6 per token",
        "Block drafter x 3",
        "states of layers 37, 38, 39 side by side",
    ):
        assert any(text in one for one in said), text
    assert not any("every one of the 2-token entries" in one for one in said)


def test_compressors_of_both_ratios_are_compared_with_their_like() -> None:
    for sheet in diagrams(Diff(describe("v4-flash"), describe("v4-pro"))):
        marks = [line.text for box in sheet.boxes for line in box.lines if line.kind == "mark"]
        assert "~ 43 → 61 layers" in marks and not any("1 → 1" in mark for mark in marks)
        assert not any(mark.startswith(("+", "\N{MINUS SIGN}")) for mark in marks)


@pytest.mark.parametrize(("before", "after"), [("v4-flash", "v4-flash-0731"), ("v4-flash", "v4.1-flash")])
def test_both_sides_stand_side_by_side(before: str, after: str) -> None:
    a, b = diagrams(Diff(describe(before), describe(after)))
    assert a.cuts == b.cuts and a.height == b.height
    tops = [
        {(part.title, box.hint.split("[")[0]): box.y for part in sheet.slices for box in part.boxes if box.hint}
        for sheet in (a, b)
    ]
    # The table of experts by token, which only one side may have, is between the router's parts.
    both = {one for one in tops[0].keys() & tops[1].keys() if ".gate." not in one[1]}
    assert len(both) > 30 and all(tops[0][name] == tops[1][name] for name in both)


def test_nothing_is_said_of_attention_that_is_of_another_kind() -> None:
    for sheet in diagrams(Diff(describe("v3.2"), describe("v4-pro"))):
        assert not any("earlier token → " in text or "→ every earlier token" in text for text in texts(sheet))


@pytest.mark.parametrize(
    ("template", "name"),
    [
        ("layers.{layer}.attn.compressor.wkv.weight", "compressor.wkv"),
        ("layers.{layer}.attn.compressor.ape", "compressor.ape"),
        ("layers.{layer}.attn.wkv.weight", "wkv"),
        ("aligner.w1.bias", "w1.bias"),
        ("norm.weight", "norm"),
    ],
)
def test_last_names_tell_compressors_apart(template: str, name: str) -> None:
    assert last_name(template) == name
