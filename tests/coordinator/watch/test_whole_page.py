"""The page is written in parts and served as one text that loads nothing."""

import base64
import hashlib
import re

import pytest

from coordinator.watch.whole_page import PARTS, policy, whole_page


def test_every_part_of_the_page_is_in_it_and_none_is_loaded() -> None:
    page = whole_page()
    assert [path.name for path in PARTS.iterdir() if path.read_text(encoding="utf-8") not in page] == ["page.html"]
    assert "src=" not in page and re.findall('href="([^"]+)"', page) == ["data:,", "#fleet"]


def test_the_policy_lets_run_what_is_in_the_page_and_nothing_that_is_put_into_it() -> None:
    page = whole_page()
    allowed = policy(page)
    for tag in ("script", "style"):
        for text in re.findall(f"<{tag}>(.*?)</{tag}>", page, re.DOTALL):
            assert base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() in allowed
    assert "unsafe" not in allowed and "default-src 'none'" in allowed
    assert policy(page.replace("let newest = null;", "let newest = 1;")) != allowed


def test_a_page_without_a_script_has_no_policy() -> None:
    with pytest.raises(ValueError, match="no <script>"):
        policy("<style></style>")
