"""The calibration set: the coordinator's own labelled examples, cut into folds that share no prompt. No PyTorch.

The anchor fold is trained on, the gate fold decides what is served, and neither is ever a measure of quality: for that
there is the held-out fold.
"""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from base_model.examples import Example, InvalidExamples, load_examples
from coordinator.questions import Fold


@dataclass(frozen=True)
class CalibrationSet:
    """Three disjoint folds of examples."""

    anchor: tuple[Example, ...]
    gate: tuple[Example, ...]
    held_out: tuple[Example, ...] = ()

    @classmethod
    def load(cls, path: Path, anchor_examples: int, gate_examples: int) -> Self:
        """Read JSON lines and cut them; a file that is too small for both folds raises InvalidExamples."""
        examples = load_examples(path)
        wanted = anchor_examples + gate_examples
        if (count := len({example.prompt for example in examples})) < wanted:
            raise InvalidExamples(
                f"{path} has {count} different prompts, but the anchor fold takes {anchor_examples} and the gate fold "
                f"{gate_examples}: add examples, or lower anchor_examples and gate_examples"
            )
        return cls.cut(examples, anchor_examples, gate_examples)

    @classmethod
    def cut(cls, examples: Iterable[Example], anchor_examples: int, gate_examples: int) -> Self:
        """Cut examples into folds by the hash of their prompts: their order and repetitions change nothing."""
        by_prompt = {example.prompt: example for example in sorted(examples, key=lambda e: e.completion)}
        drawn = [by_prompt[prompt] for prompt in sorted(by_prompt, key=_hash)]
        gate_end = anchor_examples + gate_examples
        return cls(tuple(drawn[:anchor_examples]), tuple(drawn[anchor_examples:gate_end]), tuple(drawn[gate_end:]))

    @property
    def folds(self) -> Mapping[Fold, int]:
        """How many examples the folds have that a strategy may ask about."""
        return {"anchor": len(self.anchor), "gate": len(self.gate)}

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of the anchor and the gate fold: two coordinators with equal digests ask the same."""
        content = "".join(
            f"{fold} {example.model_dump_json()}\n"
            for fold, examples in (("anchor", self.anchor), ("gate", self.gate))
            for example in examples
        )
        return hashlib.sha256(content.encode()).hexdigest()


def _hash(prompt: str) -> bytes:
    return hashlib.sha256(prompt.encode()).digest()
