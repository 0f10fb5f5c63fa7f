"""The presentation of results: text, Markdown, HTML pages, progress."""
