"""Dockerfile and compose files say what they must, without an engine; `make test-docker` runs them."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml

from broker.settings import BrokerSettings
from configuration import Configuration

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "docker"
COMPOSE = yaml.safe_load((DOCKER / "compose.yaml").read_text(encoding="utf-8"))
OVERLAYS = [yaml.safe_load(path.read_text(encoding="utf-8")) for path in sorted(DOCKER.glob("compose.*.yaml"))]
LONG_RUNNING = ("broker", "coordinator", "edge")


def copied() -> set[str]:
    """What the Dockerfile copies from the build context, by the first word of each source."""
    lines = re.findall(
        r"^COPY (?!--from)(.+)$", (DOCKER / "Dockerfile").read_text(encoding="utf-8"), flags=re.MULTILINE
    )
    return {source for line in lines for source in line.split()[:-1]}


def test_the_image_has_every_package_that_the_wheel_has():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    included = project["tool"]["hatch"]["build"]["targets"]["wheel"]["include"]
    assert {pattern.removesuffix("/**") for pattern in included} <= copied()


def test_the_build_context_holds_what_is_copied_and_little_else():
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert "*" in lines
    assert {line[1:] for line in lines if line.startswith("!")} == copied()


@pytest.mark.parametrize("service", LONG_RUNNING)
def test_a_service_is_bounded_watched_and_started_again(service):
    settings = COMPOSE["services"][service]
    assert settings["read_only"] and settings["init"]
    assert settings["cap_drop"] == ["ALL"]
    assert settings["restart"] == "unless-stopped"
    assert settings["stop_grace_period"] == "10s"
    assert settings["healthcheck"]["test"][0] == "CMD"
    assert {"mem_limit", "cpus", "pids_limit"} <= settings.keys()
    assert all(port.startswith("127.0.0.1:") for port in settings.get("ports", ()))  # none of it asks for a login


def test_all_that_is_written_is_in_named_volumes():
    for settings in COMPOSE["services"].values():
        sources = {volume.partition(":")[0] for volume in settings["volumes"] if not volume.endswith(":ro")}
        assert sources <= COMPOSE["volumes"].keys()


def test_the_variables_of_every_file_are_settings():
    sections = {name: field.annotation for name, field in Configuration.model_fields.items()}
    for file in (COMPOSE, *OVERLAYS):
        for settings in file["services"].values():
            for variable in settings.get("environment", {}):
                section, *keys = variable.removeprefix("ALIGNFED_").lower().split("__")
                assert section in sections
                if sections[section] is BrokerSettings:
                    assert keys[0] in BrokerSettings.model_fields


def test_only_what_both_versions_of_compose_know_is_used():
    for file in (COMPOSE, *OVERLAYS):
        assert not {"version", "name", "include", "secrets", "configs"} & file.keys()
        for settings in file["services"].values():
            assert not {"develop", "profiles", "pull_policy", "attach", "post_start"} & settings.keys()
