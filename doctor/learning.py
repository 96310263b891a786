"""Whether there is what models are made of: the base model, private examples, the coordinator's own."""

from pathlib import Path

from base_model.examples import InvalidExamples
from base_model.reference import ResolvedModel, resolve
from base_model.wheel import BaseModelError
from coordinator.calibration import CalibrationSet
from coordinator.settings import CalibrationSettings
from doctor.check import Check
from edge_node.data.local_data import LocalData
from edge_node.settings import EdgeSettings


def check_examples(settings: EdgeSettings) -> Check:
    """Whether the node's private examples can be read, without changing what it keeps."""
    try:
        data = LocalData.look(settings.data, settings.data_dir, settings.local_data)
        data.refresh()
    except InvalidExamples as error:
        return Check("examples", "fail", str(error), "mend the file, or name another: --data or [edge] data")
    summary = data.summary()
    found, refused = f"{summary.examples} private examples", sum(tally.lines for tally in summary.refused)
    if refused:
        return Check("examples", "warn", f"{found}; {refused} lines are none", "alignfed edge data says which, and why")
    if not summary.examples:
        return Check("examples", "warn", "no private examples yet", "the node trains as soon as it has some")
    return Check("examples", "ok", found)


def check_calibration(settings: CalibrationSettings) -> Check:
    """Whether the coordinator's own examples can be read and are enough."""
    try:
        found = CalibrationSet.load(settings.data, settings.anchor_examples, settings.gate_examples)
    except (InvalidExamples, OSError) as fault:
        return Check("calibration set", "fail", str(fault), "mend the file, or lower anchor_examples or gate_examples")
    parts = ", ".join(f"{count} for the {fold}" for fold, count in found.folds.items())
    return Check("calibration set", "ok", f"{parts} in {settings.data}")


def check_base_model(name: str, cache: Path) -> tuple[Check, ResolvedModel | None]:
    """Whether the base model can be had; from now on it is here."""
    try:
        model = resolve(name, cache)
    except (BaseModelError, OSError) as error:
        return Check("base model", "fail", str(error), "set name in [base_model]"), None
    return Check("base model", "ok", f"{name} is in {model.path}, digest {model.digest[:16]}"), model
