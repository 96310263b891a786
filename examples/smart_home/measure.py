"""What the adapter is worth: the held-out commands put to the model, before, after and for the versions between.

It runs the model in this process; the federation's processes are not running meanwhile.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from base_model.evaluation import Score, losses
from base_model.examples import Example
from base_model.language_model import LanguageModel
from coordinator.registry import Registry
from examples.smart_home.outcome import HeldOutScore, Sample, VersionLoss
from schemas.adapter import Adapter, Layout
from schemas.messages import ReleaseReport
from simulation.scoring import intent_of

MOST_VERSIONS = 8
SAMPLES = 6


@dataclass(frozen=True)
class VersionAdapters:
    """What nodes trained from and what they served while this version was the newest."""

    version: int
    head: Adapter
    served: Adapter


def held_out_score(score: Score, examples: Sequence[Example]) -> HeldOutScore:
    """A score in the report's terms: an answer has the right intent when it names the expected one."""
    pairs = zip(score.answers, examples, strict=True)
    right = [intent_of(answer) == intent_of(example.completion) for answer, example in pairs]
    return HeldOutScore(
        loss=score.loss,
        intent_accuracy=sum(right) / len(right),
        exact_match=score.exact_match,
        examples=len(examples),
    )


def served_adapter(registry: Registry, layout: Layout, release: ReleaseReport) -> Adapter:
    """What nodes serve by this report."""
    return registry.adapter(release.version, layout, release.variant)


def adapters_to_measure(registry: Registry, layout: Layout) -> tuple[VersionAdapters, ...]:
    """All versions when they are few, else that many spread evenly; always the first and the last."""
    manifests, decisions = registry.versions(), registry.decisions()
    count = min(len(manifests), MOST_VERSIONS)
    chosen = dict.fromkeys(round((len(manifests) - 1) * index / max(1, count - 1)) for index in range(count))
    return tuple(
        VersionAdapters(
            version=manifest.version,
            head=registry.adapter(manifest.version, layout),
            served=served_adapter(registry, layout, decisions.get(manifest.version, manifest.release)),
        )
        for manifest in map(manifests.__getitem__, chosen)
    )


def losses_of(
    model: LanguageModel,
    versions: Sequence[VersionAdapters],
    examples: Sequence[Example],
    on_done: Callable[[int], None],
) -> tuple[VersionLoss, ...]:
    """Held-out loss of each version, on few examples and without answers: a second or two for each adapter."""
    known: dict[str, float] = {}
    measured = []
    for done, one in enumerate(versions, start=1):
        for adapter in (one.head, one.served):  # often the same, and often served for several versions
            if adapter.digest not in known:
                known[adapter.digest] = losses(model, adapter, examples)
        head, served = known[one.head.digest], known[one.served.digest]
        measured.append(VersionLoss(version=one.version, loss=served, head_loss=head, examples=len(examples)))
        on_done(done)
    return tuple(measured)


def samples_of(examples: Sequence[Example], before: Score, after: Score) -> tuple[Sample, ...]:
    """The first few held-out commands, which are of different intents, with both answers: chosen by nobody."""
    return tuple(
        Sample(prompt=example.prompt, expected=example.completion, before=old, after=new)
        for example, old, new in list(zip(examples, before.answers, after.answers, strict=True))[:SAMPLES]
    )
