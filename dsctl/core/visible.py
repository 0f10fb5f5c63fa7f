"""Text from files, hubs and arguments made harmless where a person reads it: control characters are spelled out.

Anybody may have written a name or a value: it must not steer a terminal, end a line or turn the direction of writing.
"""

from __future__ import annotations

LONGEST = 2000


def visible(text: str) -> str:
    """Text in one line, its control characters spelled out as Python escapes them; cut where it is absurdly long."""
    if len(text) > LONGEST:
        text = f"{text[:LONGEST]}... ({len(text) - LONGEST:,} characters more)"
    return spelled(text)


def spelled(text: str) -> str:
    """Text with everything spelled out that `str.isprintable` refuses.

    Those are control characters (also DEL and C1), marks of direction and others without a shape, separators of lines
    and paragraphs, halves of surrogate pairs, and white space other than U+0020.
    """
    return text if text.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def spelled_lines(text: str) -> str:
    """The same for text of several lines, whose line feeds stay."""
    return "\n".join(map(spelled, text.split("\n")))


def spelled_json(text: str, ascii_only: bool = False) -> str:
    r"""JSON in which the same characters stand as JSON's own escapes (\u202e); its line feeds stay.

    Outside of strings JSON is ASCII, so whatever is escaped here lies within one.
    """

    def stays(part: str) -> bool:
        return part.isprintable() and (part.isascii() or not ascii_only)

    def escaped(character: str) -> str:
        units = character.encode("utf-16-be", "surrogatepass").hex()
        return "".join(f"\\u{units[at : at + 4]}" for at in range(0, len(units), 4))

    return "\n".join(
        line if stays(line) else "".join(c if stays(c) else escaped(c) for c in line) for line in text.split("\n")
    )
