"""What config.json says of a base model: sizes, or why it can be neither served nor trained on its blocks.

It knows Llama and the models that differ from it only by sizes and biases. It reads no weights.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from base_model.wheel import BaseModelError

SERVED = ("llama", "mistral", "qwen2")
MOST_CONTEXT = 8192  # tokens: what the tables of rotations are made for


@dataclass(frozen=True)
class Architecture:
    """The sizes of a Llama-like decoder."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    context: int  # tokens of prompt and answer together
    epsilon: float  # of the root-mean-square norms
    rope_theta: float
    tied: bool  # the output layer is the embedding


def read_architecture(folder: Path) -> Architecture:
    """The sizes in a model folder's config.json; BaseModelError, with what to do, for a model of another kind."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if reason := _unlike_llama(config):
        raise BaseModelError(
            f"{folder} cannot be served: {reason}. Serving knows {', '.join(SERVED)} with plain rotary positions; "
            "choose such a base model, or run this node without --http: it trains any model"
        )
    heads = config["num_attention_heads"]
    return Architecture(
        layers=config["num_hidden_layers"],
        hidden=config["hidden_size"],
        heads=heads,
        kv_heads=config.get("num_key_value_heads") or heads,
        head_dim=config.get("head_dim") or config["hidden_size"] // heads,
        vocabulary=config["vocab_size"],
        context=min(config["max_position_embeddings"], MOST_CONTEXT),
        epsilon=config["rms_norm_eps"],
        rope_theta=_rope(config).get("rope_theta", config.get("rope_theta", 10_000.0)),
        tied=config.get("tie_word_embeddings", False),
    )


def _unlike_llama(config: dict[str, Any]) -> str | None:
    """In which way the model is not like Llama; None when it is."""
    kind, activation, rope = config.get("model_type"), config.get("hidden_act", "silu"), _rope(config)
    if kind not in SERVED:
        return f"its architecture is {kind}"
    if activation != "silu":
        return f"its activation is {activation}, not silu"
    if rope.get("rope_type", rope.get("type", "default")) != "default":
        return f"its rotary positions are scaled ({rope.get('rope_type', rope.get('type'))})"
    if config.get("use_sliding_window", kind == "mistral") and config.get("sliding_window"):
        return "its attention sees a sliding window only"
    return None


def _rope(config: dict[str, Any]) -> dict[str, Any]:
    # transformers 5 writes rope_parameters, older files have rope_scaling, null or not
    return config.get("rope_parameters") or config.get("rope_scaling") or {}
