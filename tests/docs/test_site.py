"""The documentation builds as a site, and no link in it leads nowhere; what it quotes is what the program says."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def build(tmp_path):
    """build(folder): make the site of the documents in this folder, strictly."""

    def run(docs):
        settings = tmp_path / "mkdocs.yml"
        written = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
        settings.write_text(written.replace("docs_dir: docs", f"docs_dir: {docs}").replace("[docs/", f"[{ROOT}/docs/"))
        command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-f", settings, "-d", tmp_path / "site"]
        environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    return run


def test_every_page_is_in_the_navigation_and_every_link_leads_somewhere(build, docs, tmp_path):
    done = build(docs)
    assert done.returncode == 0, done.stderr
    decisions = (tmp_path / "site" / "decisions" / "index.html").read_text(encoding="utf-8")
    assert all(f'href="{path.stem}.html"' in decisions for path in (docs / "decisions").glob("0*.md"))


def test_a_link_to_nowhere_stops_the_build(build, docs, tmp_path):
    broken = tmp_path / "docs"
    shutil.copytree(docs, broken)
    with (broken / "operate.md").open("a", encoding="utf-8") as page:
        page.write("\n[nothing](no-such-page.md)\n")
    done = build(broken)
    assert done.returncode != 0
    assert "no-such-page.md" in done.stderr


def test_the_page_on_troubles_has_every_check_of_the_doctor(docs):
    page = (docs / "troubleshooting.md").read_text(encoding="utf-8")
    _, _, table = page.partition("## What the doctor looks at\n")
    listed = set(re.findall(r"`([^`]+)`", "".join(re.findall(r"^\| (.+?) \|", table, flags=re.MULTILINE))))
    code = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "doctor").glob("*.py"))
    named = set(
        re.findall(r'(?:Check\(|_judged\(|_ability\(|name = |^        )"([a-z\' ]+)"[,:\n]', code, flags=re.MULTILINE)
    )
    assert len(named) > 20
    assert named <= listed


def test_what_the_page_on_troubles_quotes_is_what_the_program_says(docs):
    page = (docs / "troubleshooting.md").read_text(encoding="utf-8")
    quoted = re.findall(r"^\| `([^`]+)` \|", page, flags=re.MULTILINE)
    folders = ("base_model", "broker", "coordinator", "doctor", "edge_node")
    code = "".join(path.read_text(encoding="utf-8") for folder in folders for path in (ROOT / folder).rglob("*.py"))
    joined = re.sub(r'"\s+f?"', "", code)
    assert len(quoted) > 10
    assert [sentence for sentence in quoted if sentence not in joined] == []
