"""What Prometheus' own tool says of metrics and alert rules: each alert fires when it should, and only then."""

import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

RULES = Path(__file__).parents[3] / "docker" / "prometheus" / "alerts.yaml"
STORIES = Path(__file__).parent / "alerts_test.yaml"
WAITING = {
    rule["alert"]: rule.get("for", "0s")
    for group in yaml.safe_load(RULES.read_text())["groups"]
    for rule in group["rules"]
}
CHANGES = [{"expr": "vector(0) == 1"}, {"expr": "vector(1)"}, {"for": "0s"}, {"for": "3h"}]
CHANGED = [(alert, change) for alert, wait in WAITING.items() for change in CHANGES if change != {"for": wait}]


@pytest.fixture(scope="session")
def promtool() -> str:
    """The program's path; without it the test is skipped loudly, and fails where CI is set."""
    program = shutil.which("promtool")
    if program is None and os.environ.get("CI"):
        pytest.fail("promtool is not installed, and in CI it must be: apt-get install prometheus")
    if program is None:
        pytest.skip("PROMTOOL IS NOT INSTALLED: this does not run (apt install prometheus)")
    return program


def run(program: str, *words: str, page: bytes = b"") -> tuple[int, str]:
    """The exit code, and all that was said."""
    done = subprocess.run([program, *words], input=page, capture_output=True, check=False, timeout=60)
    return done.returncode, (done.stdout + done.stderr).decode()


def test_prometheus_finds_nothing_to_say_of_our_metrics(
    promtool: str, coordinator_page: bytes, node_page: bytes
) -> None:
    for page in (coordinator_page, node_page):
        assert run(promtool, "check", "metrics", page=page) == (0, "")


def test_it_would_say_so_of_a_name_that_is_there_twice(promtool: str, coordinator_page: bytes) -> None:
    code, said = run(promtool, "check", "metrics", page=coordinator_page + b"# HELP alignfed_epoch Again.\n")
    assert code != 0 and "alignfed_epoch" in said


def test_prometheus_takes_the_alert_rules(promtool: str) -> None:
    code, said = run(promtool, "check", "rules", str(RULES))
    assert code == 0 and f"{len(WAITING)} rules found" in said


def test_each_alert_fires_when_it_should_and_only_then(promtool: str) -> None:
    assert run(promtool, "test", "rules", str(STORIES))[0] == 0


def test_of_each_alert_it_is_told_when_it_fires_and_when_it_does_not() -> None:
    told = [case for story in yaml.safe_load(STORIES.read_text())["tests"] for case in story["alert_rule_test"]]
    for fires in (True, False):
        assert {case["alertname"] for case in told if bool(case.get("exp_alerts")) is fires} == WAITING.keys()


@pytest.mark.parametrize(("alert", "change"), CHANGED)
def test_an_alert_that_was_changed_is_found_out(
    promtool: str, alert: str, change: Mapping[str, Any], tmp_path: Path
) -> None:
    rules, stories = yaml.safe_load(RULES.read_text()), yaml.safe_load(STORIES.read_text())
    [rule] = [rule for group in rules["groups"] for rule in group["rules"] if rule["alert"] == alert]
    rule |= change
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(rules))
    (tmp_path / "stories.yaml").write_text(yaml.safe_dump(stories | {"rule_files": ["rules.yaml"]}))
    code, said = run(promtool, "test", "rules", str(tmp_path / "stories.yaml"))
    assert code != 0 and alert in said
