"""The page as one text that loads nothing: its parts joined, and a policy by which nothing but these parts runs."""

import base64
import hashlib
import re
from pathlib import Path

PARTS = Path(__file__).with_name("page")
_STYLE = re.compile(r'<link rel="stylesheet" href="(\w+\.css)">')
_SCRIPT = re.compile(r'<script src="(\w+\.js)"></script>')


def whole_page() -> str:
    """page.html with the style and the scripts that it names in their places."""
    page = _STYLE.sub(lambda named: f"<style>\n{_part(named[1])}</style>", _part("page.html"))
    return _SCRIPT.sub(lambda named: f"<script>\n{_part(named[1])}</script>", page)


def policy(page: str) -> str:
    """A content security policy by which the page's own scripts and style run, and nothing else whatever."""
    return (
        f"default-src 'none'; script-src {_hashes(page, 'script')}; style-src {_hashes(page, 'style')}; "
        "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


def _part(name: str) -> str:
    return (PARTS / name).read_text(encoding="utf-8")


def _hashes(page: str, tag: str) -> str:
    contents = re.findall(f"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
    if not contents:
        raise ValueError(f"the page has no <{tag}>")
    return " ".join(f"'sha256-{_sha256(text)}'" for text in contents)


def _sha256(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
