"""Which runs a comparison consists of, and which of them compute the same."""

from pathlib import Path

import pytest

from coordinator.strategies import AlignFed, FedAvg
from simulation.comparison.matrix import Choice, Data, ImpossibleComparison, deciding, plan
from simulation.comparison.presets import ABLATIONS, FULL, PRESETS
from simulation.comparison.regimes import REGIMES
from simulation.methods import METHODS, strategy_of


def test_every_preset_names_methods_and_regimes_that_exist():
    for preset in PRESETS.values():
        assert preset.meetings.keys() <= REGIMES.keys()
        entries = [entry for meeting in preset.meetings.values() for entry in meeting]
        assert {method for entry in entries for method in entry.methods} <= METHODS.keys()


def test_fresh_seeds_are_none_of_those_that_methods_were_tuned_on():
    assert len(FULL.seeds) >= 5
    assert min(FULL.seeds) >= 10


def test_a_plan_is_every_chosen_method_in_every_chosen_regime_over_every_seed():
    runs = plan(Choice("ci", ("alignfed", "fedbuff_2"), (3, 4), ("base", "iid")))
    assert [run.name for run in runs[:3]] == ["ci-base-alignfed-3", "ci-base-fedbuff_2-3", "ci-base-alignfed-4"]
    assert len(runs) == 8
    assert len({run.name for run in runs}) == 8


def test_some_methods_meet_a_regime_over_the_first_seeds_alone():
    [base] = [[entry for entry in FULL.meetings["base"] if "calibration_only" in entry.methods]]
    runs = [run.config for run in plan(Choice("full")) if run.config.regime == "base"]
    control = [config.seed for config in runs if config.method == "calibration_only"]
    assert control == list(FULL.seeds[: base[0].seeds])
    assert [config.seed for config in runs if config.method == "alignfed"] == list(FULL.seeds)


def test_who_is_compared_is_looked_at_equally_often():
    runs = [run.config for run in plan(Choice("full", regimes=("base",)))]
    assert {run.measuring.every for run in runs if run.method not in ("fedasync", "fedavg")} == {1}
    # a version of every update in place of every fourth
    assert {run.measuring.every for run in runs if run.method == "fedasync"} == {4}


def test_targets_are_set_before_the_runs_but_not_for_data_of_ones_own(tmp_path: Path):
    [ours] = plan(Choice("full", ("alignfed",), (10,), ("base",)))
    assert ours.config.targets == REGIMES["base"].targets
    [own] = plan(Choice("full", ("alignfed",), (10,), data=Data(tmp_path, nodes=3)))
    assert own.config.targets == ()


def test_a_name_that_there_is_not_is_answered_with_those_there_are():
    with pytest.raises(ImpossibleComparison, match="no method 'fedbuf'; choose from alignfed, "):
        plan(Choice("ci", ("fedbuf",)))
    with pytest.raises(ImpossibleComparison, match="no regime 'bas'; choose from base, "):
        plan(Choice("ci", regimes=("bas",)))


def test_a_method_that_never_asks_the_base_model_is_computed_once_for_all_kinds_of_calibration():
    regimes = ("base", "calibration-missing-intents", "calibration-8", "calibration-unlabelled")
    baseline = plan(Choice("full", ("fedbuff_ema",), (10,), regimes))
    ours = plan(Choice("full", ("alignfed",), (10,), regimes))
    assert len({run.computation for run in baseline}) == 1
    assert len({run.computation for run in ours}) == 4


def test_runs_of_different_methods_seeds_or_fleets_never_compute_the_same():
    runs = plan(Choice("full", ("fedbuff_1", "fedbuff_2"), (10, 11), ("base", "iid", "wide-speed")))
    assert len({run.computation for run in runs}) == len(runs)


def test_rounds_of_all_nodes_wait_for_all_nodes():
    [run] = plan(Choice("full", ("fedavg",), (10,), ("high-staleness",)))
    assert isinstance(run.config.strategy, FedAvg)
    assert run.config.strategy.nodes_per_round == 64


def test_data_of_ones_own_meet_only_regimes_that_are_not_about_generated_data(tmp_path: Path):
    own = Data(tmp_path, nodes=3)
    [run] = plan(Choice("ci", ("alignfed",), (0,), data=own))
    assert (run.config.regime, run.task) == ("base", tmp_path)
    with pytest.raises(ImpossibleComparison, match="iid is about generated data"):
        plan(Choice("ci", ("alignfed",), (0,), ("iid",), own))


def test_an_ablation_has_the_default_on_one_side_and_one_stage_of_difference():
    default = AlignFed().model_dump()
    for ablation in ABLATIONS:
        other = ablation.absent if ablation.is_default else ablation.present
        settings = strategy_of(other, 16)
        assert settings is not None
        common = {"buffer_size", "timeout_s", "max_staleness"}
        changed = {key for key, value in settings.model_dump().items() if key not in common and value != default[key]}
        assert len(changed) == 1, (other, changed)


def test_a_setting_that_came_later_and_is_off_makes_no_other_run_and_one_that_is_on_does():
    [run] = plan(Choice("ci", methods=("fedbuff_ema",), seeds=(10,), regimes=("base",)))
    now = run.config.model_dump(mode="json")
    before = {name: value for name, value in now.items() if name != "privacy"}
    before["strategy"] = dict(
        now["strategy"], release={k: v for k, v in now["strategy"]["release"].items() if k != "guard"}
    )
    assert before != now and deciding(before) == deciding(now)
    guarded = dict(now, strategy=dict(now["strategy"], release=now["strategy"]["release"] | {"guard": {"rise": 0.05}}))
    assert deciding(guarded) != deciding(now)
