import pytest

from coordinator.equations import freshness, staleness


def test_staleness_counts_the_versions_that_passed() -> None:
    assert staleness(version=7, base_version=7) == 0
    assert staleness(version=7, base_version=4) == 3


def test_an_update_from_the_future_has_no_staleness() -> None:
    with pytest.raises(ValueError, match="lies after"):
        staleness(version=1, base_version=2)


def test_a_fresh_update_counts_in_full_and_one_three_versions_old_by_half() -> None:
    assert freshness(0, exponent=0.5) == 1
    assert freshness(3, exponent=0.5) == 0.5
    assert freshness(1, exponent=1) == 0.5


def test_with_exponent_zero_age_does_not_matter() -> None:
    assert freshness(1000, exponent=0) == 1
