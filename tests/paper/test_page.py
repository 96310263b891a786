"""docs/paper.md names every function of the method and no other, and its links lead somewhere."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "paper.md"


@pytest.fixture
def page() -> str:
    return PAGE.read_text(encoding="utf-8")


def public_functions(file: str) -> set[str]:
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef) and not node.name.startswith("_")}


@pytest.mark.parametrize("file", ["coordinator/equations.py", "schemas/products.py"])
def test_the_page_names_the_functions_that_exist(page: str, file: str) -> None:
    assert set(re.findall(rf"`{Path(file).stem}\.(\w+)`", page)) == public_functions(file)


def test_every_link_leads_to_a_file(page: str) -> None:
    links = re.findall(r"\]\(([^)#]+)\)", page)
    assert links
    assert [link for link in links if not (PAGE.parent / link).is_file()] == []


def test_every_test_of_the_paper_is_on_the_page(page: str) -> None:
    tests = {path.name for path in (ROOT / "tests" / "paper").glob("test_*.py")} - {Path(__file__).name}
    assert tests <= set(re.findall(r"\[(test_\w+\.py)\]", page))


def test_every_link_to_a_test_says_its_name(page: str) -> None:
    assert all(Path(link).name == name for name, link in re.findall(r"\[(test_\w+\.py)\]\(([^)]+)\)", page))


def test_an_equation_has_a_row_and_the_row_a_function_and_a_test(page: str) -> None:
    rows = {found[1]: row for row in page.splitlines() if (found := re.match(r"\| \*\*\((\d)\)\*\*", row))}
    assert sorted(rows) == ["3", "4", "5", "6", "7", "8"]
    for number, row in rows.items():
        assert f"test_equation_{number}.py" in row
        assert "`equations." in row
