"""What the adapter is worth: the held-out commands put to the model, before, after and for the versions between.

It runs the model in this process; the federation's processes are not running meanwhile.
"""

from collections.abc import Callable, Mapping, Sequence

import torch

from base_model.evaluation import Score
from base_model.examples import Example
from base_model.language_model import LanguageModel
from base_model.tokens import collate, encode
from base_model.training import answer_losses
from examples.smart_home.commands import intent_of
from examples.smart_home.outcome import HeldOutScore, Sample, VersionLoss
from schemas.adapter import Adapter

MOST_VERSIONS = 8
BATCH = 8  # logits over the whole vocabulary: about 50 MB at this size
SAMPLES = 6


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


def losses_of(
    model: LanguageModel, adapters: Mapping[int, Adapter], examples: Sequence[Example], on_done: Callable[[int], None]
) -> tuple[VersionLoss, ...]:
    """Held-out loss of each version, on few examples and without answers: a second or two for each."""
    encoded = [encode(model.tokenizer, example) for example in examples]
    batches = [collate(encoded[start : start + BATCH], model.padding) for start in range(0, len(encoded), BATCH)]
    losses = []
    for done, (version, adapter) in enumerate(adapters.items(), start=1):
        model.apply(adapter)
        with torch.inference_mode():
            loss = float(torch.cat([answer_losses(model, batch) for batch in batches]).double().mean())
        losses.append(VersionLoss(version=version, loss=loss, examples=len(examples)))
        on_done(done)
    return tuple(losses)


def versions_to_measure(last: int) -> tuple[int, ...]:
    """All versions when they are few, else that many spread evenly; always the first and the last."""
    count = min(last + 1, MOST_VERSIONS)
    return tuple(dict.fromkeys(round(last * index / max(1, count - 1)) for index in range(count)))


def samples_of(examples: Sequence[Example], before: Score, after: Score) -> tuple[Sample, ...]:
    """The first few held-out commands, which are of different intents, with both answers: chosen by nobody."""
    return tuple(
        Sample(prompt=example.prompt, expected=example.completion, before=old, after=new)
        for example, old, new in list(zip(examples, before.answers, after.answers, strict=True))[:SAMPLES]
    )
