"""How results look: text, Markdown, HTML pages, progress."""
