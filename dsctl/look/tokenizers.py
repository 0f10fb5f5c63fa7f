"""tokenizer.json, as far as two of them are compared: vocabulary, added tokens and the steps around them. Pure."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

from dsctl.core.errors import FormatError
from dsctl.stores import Store

TOKENIZER = "tokenizer.json"
# The largest of the family's has 20 MB.
MOST_TOKENIZER = 48 << 20

Number = Annotated[int, msgspec.Meta(ge=0, lt=1 << 32)]
# A section is kept as it is written until it is compared.
_NOTHING = msgspec.Raw(b"null")


class AddedToken(msgspec.Struct, frozen=True):
    """A token beside the vocabulary: its number, its text, and whether decoding can skip it."""

    id: Number
    content: str
    special: bool = False


class Model(msgspec.Struct, frozen=True):
    """The model of a tokenizer: a vocabulary as token to number, or as a list in order with scores."""

    vocab: dict[str, Number] | list[tuple[str, float]] = {}
    merges: msgspec.Raw = _NOTHING

    @property
    def vocabulary(self) -> dict[str, int]:
        if isinstance(self.vocab, dict):
            return self.vocab
        return {token: number for number, (token, _) in enumerate(self.vocab)}


class Tokenizer(msgspec.Struct, frozen=True):
    """A tokenizer.json."""

    model: Model
    added_tokens: tuple[AddedToken, ...] = ()
    normalizer: msgspec.Raw = _NOTHING
    pre_tokenizer: msgspec.Raw = _NOTHING
    post_processor: msgspec.Raw = _NOTHING
    decoder: msgspec.Raw = _NOTHING
    truncation: msgspec.Raw = _NOTHING
    padding: msgspec.Raw = _NOTHING

    def sections(self) -> dict[str, Any]:
        """The other steps of tokenization by name, None if the file does not have one.

        Raises:
            RecursionError: it is nested too deep.
        """
        names = ("normalizer", "pre_tokenizer", "post_processor", "decoder", "truncation", "padding")
        read = {name: msgspec.json.decode(getattr(self, name)) for name in names}
        merges = msgspec.json.decode(self.model.merges)
        if isinstance(merges, list):
            # Older files have "a b" where newer ones have ["a", "b"].
            merges = [one.split(" ") if isinstance(one, str) else one for one in merges]
        return read | {"merges": merges}


def read_tokenizer(store: Store, size: int) -> Tokenizer:
    """The tokenizer.json of a store, of `size` bytes.

    Raises:
        FormatError: it is not a tokenizer, or has more than `MOST_TOKENIZER` bytes. SourceError: it cannot be read.
        RecursionError: it is nested too deep.
    """
    if size > MOST_TOKENIZER:
        raise FormatError(f"{TOKENIZER}: it has more than {MOST_TOKENIZER:,} bytes")
    try:
        return msgspec.json.decode(store.read(TOKENIZER, 0, size), type=Tokenizer)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise FormatError(f"{TOKENIZER}: it is not a tokenizer in JSON: {error}") from None
