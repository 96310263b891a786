"""How long runs will still take."""

from simulation.comparison.forecast import Expected, Forecast, Like

ASYNC, SYNC = Like("base", "fedbuff_2"), Like("base", "fedavg")


def test_before_anything_ran_estimates_are_all_there_is():
    assert Forecast().left([Expected(ASYNC, 60), Expected(SYNC, 60)], workers=2) == 60


def test_like_runs_are_expected_to_take_as_long_as_those_that_ended():
    forecast = Forecast()
    forecast.learn(ASYNC, estimate=60, seconds=90)
    forecast.learn(ASYNC, estimate=60, seconds=110)
    assert forecast.of(ASYNC, 60) == 100


def test_other_runs_are_corrected_by_how_wrong_the_estimates_were():
    forecast = Forecast()
    forecast.learn(ASYNC, estimate=60, seconds=120)
    assert forecast.of(SYNC, 30) == 60


def test_a_run_in_progress_counts_for_what_is_left_of_it():
    assert Forecast().left([Expected(ASYNC, 60, left=0.25)], workers=1) == 15


def test_more_workers_do_not_make_a_single_run_faster():
    assert Forecast().left([Expected(ASYNC, 100), Expected(SYNC, 20)], workers=8) == 100


def test_when_nothing_is_left_no_time_is():
    assert Forecast().left([], workers=2) == 0
