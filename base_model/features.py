"""What a model makes of a prompt, as one vector: the features that AlignFed compares between models.

Features are the last hidden state after the final norm, the mean over the prompt's tokens. It does not know what they
are compared with.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from base_model.forward import Pass, forward
from base_model.language_model import LanguageModel
from base_model.tokens import Batch, Encoded, by_length, collate, pooled

BATCH = 8


def prompt_features(model: LanguageModel, encoded: Sequence[Encoded]) -> Tensor:
    """Features (examples, hidden) of each example's prompt, in float32, under the adapter that is on the model."""
    features = [torch.empty(0)] * len(encoded)
    with torch.no_grad():
        for chosen in by_length([len(example) for example in encoded], BATCH):
            batch = collate([encoded[index] for index in chosen], model.padding)
            rows = pooled(hidden_states(model, batch).hidden, batch)
            for index, row in zip(chosen, rows, strict=True):
                features[index] = row
    return torch.stack(features)


def hidden_states(model: LanguageModel, batch: Batch) -> Pass:
    """A pass that makes no logits."""
    return forward(model, batch, torch.zeros_like(batch.predicting))
