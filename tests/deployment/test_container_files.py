"""Dockerfile and compose files say what they must, without an engine; `make test-docker` runs them."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from broker.settings import BrokerSettings
from configuration import Configuration

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "docker"
COMPOSE = yaml.safe_load((DOCKER / "compose.yaml").read_text(encoding="utf-8"))
FILES = sorted(DOCKER.glob("compose*.yaml"))
OVERLAYS = [yaml.safe_load(path.read_text(encoding="utf-8")) for path in FILES if path.name != "compose.yaml"]
LONG_RUNNING = ("broker", "coordinator", "edge")
COMPOSE_PROGRAM = ["docker-compose"] if shutil.which("docker-compose") else ["docker", "compose"]

with_compose = pytest.mark.skipif(
    subprocess.run([*COMPOSE_PROGRAM, "version"], capture_output=True, check=False).returncode != 0
    if shutil.which(COMPOSE_PROGRAM[0])
    else True,
    reason="needs docker-compose",
)


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


def test_every_service_that_goes_on_has_a_health_check():
    services = [each for file in (COMPOSE, *OVERLAYS) for each in file["services"].items()]
    checked = {name for name, settings in services if "healthcheck" in settings}
    assert checked == {name for name, _ in services} - {"setup"}


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


def test_the_compose_specification_knows_every_word():
    program = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec"]
    checked = subprocess.run([*program, *FILES], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout


@with_compose
def test_with_an_outside_broker_nothing_is_let_in_and_every_password_is_a_file():
    services = merged("compose.external-broker.yaml", BROKER_HOST="broker.example.com", BROKER_USERNAME="plant")
    for service in LONG_RUNNING:
        environment = services[service]["environment"]
        assert environment["ALIGNFED_BROKER__HOST"] == "broker.example.com"
        assert "ALIGNFED_BROKER_PASSWORD" not in environment
        assert is_confined(services[service])


@with_compose
def test_on_a_gpu_only_the_coordinator_changes():
    services, before = merged("compose.gpu.yaml", GPU_PIP_ARGS="--extra-index-url cuda"), merged()
    assert {name for name in services if services[name] != before[name]} == {"coordinator"}
    assert services["coordinator"]["image"] != before["coordinator"]["image"]
    assert services["coordinator"]["build"]["args"]["PIP_ARGS"] == "--extra-index-url cuda"
    assert is_confined(services["coordinator"])


@with_compose
def test_a_recorder_is_confined_as_the_others_are_and_sees_the_observers_keys_alone():
    services = merged("compose.recorder.yaml")
    assert is_confined(services.pop("recorder"))
    assert services == merged()
    (alone,) = (overlay["services"] for overlay in OVERLAYS if "recorder" in overlay["services"])
    assert alone["recorder"]["volumes"] == ["broker:/keys/broker:ro", "recordings:/recordings"]


@pytest.mark.parametrize(("named", "said"), [("tests", True), ("tests/deployment", False)])
def test_only_a_run_of_everything_says_that_no_container_was_tested(named, said):
    collecting = ["-m", "pytest", "--collect-only", "--ignore-glob=tests/*", "-p", "no:cacheprovider", named]
    run = subprocess.run([sys.executable, *collecting], cwd=ROOT, capture_output=True, text=True, check=False)
    assert ("NOT TESTED HERE: images and compose stack" in run.stdout) == said


def merged(*overlays, **variables):
    """The services as compose reads these overlays on compose.yaml."""
    files = [word for name in ("compose.yaml", *overlays) for word in ("-f", DOCKER / name)]
    read = subprocess.run(
        [*COMPOSE_PROGRAM, *files, "config"],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        check=False,
    )
    assert read.returncode == 0, read.stderr
    services = yaml.safe_load(read.stdout)["services"]
    return {name: {**service, "volumes": sorted(map(str, service["volumes"]))} for name, service in services.items()}


def is_confined(service):
    return (
        service["read_only"]
        and service["cap_drop"] == ["ALL"]
        and service["security_opt"] == ["no-new-privileges:true"]
        and service["restart"] == "unless-stopped"
        and int(service["pids_limit"]) > 0
        and not service.get("privileged", False)
    )
