"""Make text from files, hubs and arguments harmless to read: control characters are spelled out.

Anyone may have written a name or a value: it must not control a terminal, end a line or change the writing direction.
"""

from __future__ import annotations

LONGEST = 2000


def visible(text: str) -> str:
    """Text in one line, with control characters spelled out as Python escapes them; absurdly long text is cut."""
    return spelled(clipped(text))


def clipped(text: str) -> str:
    """Text of at most `LONGEST` characters, and the number of characters that were cut."""
    return f"{text[:LONGEST]}... ({len(text) - LONGEST:,} characters more)" if len(text) > LONGEST else text


def shortened(text: str, most: int = 80) -> str:
    """Text for a line that must stay short: visible, and at most this many characters, cut in the middle."""
    text = visible(text)
    return text if len(text) <= most else f"{text[: most // 2 - 2]}...{text[len(text) - most // 2 + 1 :]}"


def spelled(text: str) -> str:
    """Text with everything spelled out that `str.isprintable` refuses.

    These are control characters (including DEL and C1), invisible and direction marks, line and paragraph separators,
    halves of surrogate pairs, and white space other than U+0020.
    """
    return text if text.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def spelled_lines(text: str) -> str:
    """The same for text of several lines; line feeds stay."""
    return "\n".join(map(spelled, text.split("\n")))


def spelled_json(text: str, ascii_only: bool = False) -> str:
    r"""JSON in which the same characters are written as JSON's own escapes (\u202e); line feeds stay.

    Outside strings JSON is ASCII, so every escaped character lies within a string.
    """

    def stays(part: str) -> bool:
        return part.isprintable() and (part.isascii() or not ascii_only)

    def escaped(character: str) -> str:
        units = character.encode("utf-16-be", "surrogatepass").hex()
        return "".join(f"\\u{units[at : at + 4]}" for at in range(0, len(units), 4))

    return "\n".join(
        line if stays(line) else "".join(c if stays(c) else escaped(c) for c in line) for line in text.split("\n")
    )
