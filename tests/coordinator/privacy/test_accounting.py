"""What is promised, against the library's own ledger of single events."""

import pytest

from coordinator.privacy.accounting import epsilon

DELTA = 1e-5


@pytest.mark.parametrize("multipliers", [(1.0,) * 5, (2.0, 3.0, 0.5, 8.0)])
def test_the_sum_of_losses_is_what_the_library_composes_of_the_single_versions(multipliers: tuple[float, ...]) -> None:
    from dp_accounting import GaussianDpEvent
    from dp_accounting.pld import PLDAccountant

    ledger = PLDAccountant()
    for multiplier in multipliers:
        ledger.compose(GaussianDpEvent(multiplier))
    said = epsilon(sum(multiplier**-2 for multiplier in multipliers), DELTA)
    assert said == pytest.approx(ledger.get_epsilon(DELTA), rel=1e-3)


def test_no_participation_is_made_light_of_because_others_might_have_been_drawn() -> None:
    from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent
    from dp_accounting.rdp import RdpAccountant

    drawn = RdpAccountant()
    drawn.compose(PoissonSampledDpEvent(0.1, GaussianDpEvent(2.0)), 20)
    said = epsilon(20 / 2.0**2, DELTA)
    assert said is not None and said > drawn.get_epsilon(DELTA)


def test_who_had_no_part_lost_nothing_and_without_noise_nothing_is_promised() -> None:
    assert epsilon(0.0, DELTA) == 0
    assert epsilon(float("inf"), DELTA) is None
