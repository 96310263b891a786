"""Parts of documents that a benchmark writes: between `<!-- measured: NAME -->` and the next `<!-- end -->`."""

from pathlib import Path


def put(document: Path, name: str, text: str) -> None:
    """Put the text between the document's markers of this name, in place of what is there."""
    marker = f"<!-- measured: {name} -->"
    before, begin, rest = document.read_text(encoding="utf-8").partition(marker)
    _, end, after = rest.partition("<!-- end -->")
    if not begin or not end:
        raise ValueError(f"{document} has no part '{marker}'")
    document.write_text(f"{before}{begin}\n\n{text}\n\n{end}{after}", encoding="utf-8")
