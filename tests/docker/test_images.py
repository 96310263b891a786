"""The images: small, without a compiler, for a user who may do nothing, and quickly made again."""

import json
import subprocess
import time

import pytest

IMAGES = ("alignfed-coordinator", "alignfed-edge")
MOST_BYTES = 1_500_000_000


@pytest.mark.parametrize("image", IMAGES)
def test_an_image_is_under_one_and_a_half_gigabytes(image, built, inspect, figures):
    size = int(inspect(image, "{{.Size}}"))
    figures[f"image `{image}`, unpacked"] = f"{size / 1e9:.2f} GB"
    assert size < MOST_BYTES


@pytest.mark.parametrize("image", IMAGES)
def test_an_image_has_no_compiler_and_an_ordinary_user(image, built, inspect):
    assert inspect(image, "{{.Config.User}}") == "10001:10001"
    found = in_image(image, "for program in gcc cc clang ld make; do command -v $program; done")
    assert found == ""


@pytest.mark.parametrize("image", IMAGES)
def test_the_program_is_there_and_its_code_cannot_be_changed_from_inside(image, built):
    assert in_image(image, "alignfed --version").startswith("alignfed ")
    assert in_image(image, "test -w /opt/code/alignfed.py || echo read-only") == "read-only"


def test_both_images_share_all_that_is_large(built, layers):
    edge, coordinator = layers("alignfed-edge"), layers("alignfed-coordinator")
    assert edge[:-1] == coordinator[:-1]


def test_a_change_of_code_installs_no_dependency_again(built, layers, figures):
    before = layers("alignfed-edge")
    with (built.checkout / "doctor" / "check.py").open("a") as file:
        file.write("# changed\n")
    begun = time.monotonic()
    built.compose(["docker/compose.yaml"], "build")
    figures["both images again after a change of code"] = f"{time.monotonic() - begun:.0f} s"
    after = layers("alignfed-edge")
    assert before[-1] != after[-1]
    assert before[:-1] == after[:-1]


@pytest.fixture
def layers(inspect):
    """layers(image): the digests of its layers, the last one last."""
    return lambda image: json.loads(inspect(image, "{{json .RootFS.Layers}}"))


def in_image(image, command):
    shell = ["docker", "run", "--rm", "--entrypoint", "sh", image, "-c", command]
    return subprocess.run(shell, capture_output=True, text=True, check=False).stdout.strip()
