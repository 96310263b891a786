"""The images: small, without a compiler, for a user who may do nothing, and quickly made again."""

import subprocess
import time

import pytest

IMAGES = ("alignfed-coordinator", "alignfed-edge")
MOST_BYTES = 1_500_000_000


@pytest.mark.parametrize("image", IMAGES)
def test_an_image_is_under_one_and_a_half_gigabytes(image, built, inspect):
    assert int(inspect(image, "{{.Size}}")) < MOST_BYTES


@pytest.mark.parametrize("image", IMAGES)
def test_an_image_has_no_compiler_and_an_ordinary_user(image, built, inspect):
    assert inspect(image, "{{.Config.User}}") == "10001:10001"
    found = in_image(image, "for program in gcc cc clang ld make; do command -v $program; done")
    assert found == ""


@pytest.mark.parametrize("image", IMAGES)
def test_the_program_is_there_and_its_code_cannot_be_changed_from_inside(image, built):
    assert in_image(image, "alignfed --version").startswith("alignfed ")
    assert in_image(image, "test -w /opt/code/alignfed.py || echo read-only") == "read-only"


def test_a_change_of_code_installs_no_dependency_again(built, inspect, capsys):
    before = inspect("alignfed-edge", "{{json .RootFS.Layers}}")
    with (built.checkout / "doctor.py").open("a") as file:
        file.write("# changed\n")
    begun = time.monotonic()
    built.compose("build")
    with capsys.disabled():
        print(f" [both images built again in {time.monotonic() - begun:.1f} s]", end="")
    after = inspect("alignfed-edge", "{{json .RootFS.Layers}}")
    assert before != after
    assert before.split(",")[:-1] == after.split(",")[:-1]


def in_image(image, command):
    shell = ["docker", "run", "--rm", "--entrypoint", "sh", image, "-c", command]
    return subprocess.run(shell, capture_output=True, text=True, check=False).stdout.strip()
