"""For the site: links to files beside the documents become the files' names, decisions list themselves, and the
page of promises is PROMISES.md.

A link to a file that is not there stops the build.
"""

import re
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError

ROOT = Path(__file__).parents[1]
LINK = re.compile(r"\[([^\]]+)\]\(((?:\.\./)+[^)#\s]+)(?:#[^)\s]*)?\)")


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """The page with every link that leads out of docs/ as plain text."""
    folder = Path(page.file.abs_src_path).parent

    def plain(link: re.Match[str]) -> str:
        target = (folder / link[2]).resolve()
        if not target.is_relative_to(ROOT) or not target.exists():
            raise PluginError(f"{page.file.src_path}: {link[2]} is not there")
        if target.is_relative_to(ROOT / "docs"):
            return link[0]
        return f"{link[1]} (`{target.relative_to(ROOT)}`)"

    if page.file.src_path == "promises.md":
        markdown = (ROOT / "PROMISES.md").read_text(encoding="utf-8").replace("](docs/", "](")
    text = LINK.sub(plain, markdown)
    return text + _decisions(folder) if page.file.src_path == "decisions/index.md" else text


def _decisions(folder: Path) -> str:
    """A list of the decisions by their titles, so that a new one needs no change elsewhere."""
    titles = {path.name: path.read_text(encoding="utf-8").splitlines()[0] for path in sorted(folder.glob("0*.md"))}
    return "".join(f"\n- [{title.lstrip('# ')}]({name})" for name, title in titles.items()) + "\n"
