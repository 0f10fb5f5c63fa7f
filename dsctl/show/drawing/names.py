"""The names of V4's and V4.1's parameters, by their place in a block diagram. Pure."""

from __future__ import annotations

from typing import NamedTuple

from dsctl.show.drawing import parts


def named(prefix: str, text: str) -> tuple[str, ...]:
    """Names below a prefix, from words with spaces between."""
    return tuple(prefix + name for name in text.split())


class Layer(NamedTuple):
    """The names of a layer's parameters, below a prefix."""

    prefix: str

    def site(self, what: str) -> tuple[str, ...]:
        """The hyper-connection of a site (attn, ffn, head)."""
        return tuple(f"{self.prefix}hc_{what}_{part}" for part in ("fn", "base", "scale"))

    @property
    def keys(self) -> tuple[str, ...]:
        return named(self.prefix, "attn.wkv.weight attn.kv_norm.weight")

    @property
    def queries(self) -> tuple[str, ...]:
        return named(self.prefix, "attn.wq_a.weight attn.q_norm.weight attn.wq_b.weight")

    def compressor(self, module: str) -> tuple[str, ...]:
        return named(f"{self.prefix}{module}compressor.", "ape wkv.weight wgate.weight norm.weight")

    @property
    def chooses(self) -> tuple[str, ...]:
        return named(f"{self.prefix}attn.indexer.", "wq_b.weight weights_proj.weight")

    @property
    def shared_keys(self) -> tuple[str, ...]:
        """The keys of an indexer that are made of shared entries."""
        return named(f"{self.prefix}attn.indexer.", "wk.weight k_norm.weight")

    @property
    def sink(self) -> str:
        return f"{self.prefix}attn.attn_sink"

    @property
    def output(self) -> tuple[str, ...]:
        return named(f"{self.prefix}attn.", "wo_a.weight wo_b.weight")

    @property
    def norms(self) -> tuple[str, ...]:
        return named(self.prefix, "attn_norm.weight ffn_norm.weight")

    @property
    def bank(self) -> parts.Bank:
        gated, ffn = "w1.weight w3.weight w2.weight", f"{self.prefix}ffn."
        router = named(f"{ffn}gate.", "weight tid2eid bias bias_vl")
        return parts.Bank(router, named(f"{ffn}experts.{{expert}}.", gated), named(f"{ffn}shared_experts.", gated))

    @property
    def attending(self) -> tuple[str, ...]:
        compressors = (*self.compressor("attn."), *self.chooses, *self.compressor("attn.indexer."), *self.shared_keys)
        return (*self.keys, *self.queries, *compressors, self.sink, *self.output)

    @property
    def end(self) -> tuple[str, ...]:
        """The head of the streams, the last norm and the head."""
        return (*self.site("head"), *named(self.prefix, "norm.weight head.weight"))

    @property
    def everything(self) -> tuple[str, ...]:
        bank = (name for names in self.bank for name in names)
        return (*self.site("attn"), *self.site("ffn"), *self.norms, *self.attending, *bank)


MAIN, DRAFT, LAST = Layer("layers.{layer}."), Layer("mtp.{layer}."), Layer("")
EMBEDDING = "embed.weight"
