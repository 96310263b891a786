"""What a federation promises its nodes about noise, and which strategies can keep the promise. Pure.

The bound is on one node's part in a step: the weights of its updates, which no delta decides, times the norm to which
every delta is shortened. Rules that look at deltas to weigh or to shorten them have no such bound and are left out.
"""

from pydantic import BaseModel, ConfigDict, Field

from coordinator.strategies import AlignFed, FedBuff, FedSALora, FFALora, Strategy


class PrivacyTerms(BaseModel):
    """The `[coordinator.privacy]` section: client-level differential privacy of the versions. Off without it."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    clip_norm: float = Field(
        gt=0, le=1e6, description="Euclidean norm of all of a delta's factors, to which nodes shorten longer ones"
    )
    noise_multiplier: float = Field(
        ge=0, le=1e6, description="noise for each version, in parts of the most that one node can move it; 0: none"
    )
    delta: float = Field(
        default=1e-5, gt=0, lt=1, description="chance with which epsilon may be exceeded, where it is shown"
    )


def fitted(strategy: Strategy) -> Strategy:
    """The strategy without what looks at deltas; ValueError for one whose step is no weighted sum of deltas.

    Of AlignFed that is clipping to the fleet's median, trust by cosines to the anchor, and alignment: a node's data
    would decide there on the weight or the length of another's. What nodes report of versions decides nothing either.
    """
    release = strategy.release.model_copy(update={"fall_back": None})
    match strategy:
        case AlignFed():
            without = {"norm_limit": None, "trust": None, "align": "none", "release": release}
            return strategy.model_copy(update=without)
        case FedBuff() | FFALora() | FedSALora():
            return strategy.model_copy(update={"release": release})
    raise ValueError(
        f"privacy needs a step that is a weighted sum of deltas, with weights that no delta decides; {strategy.name} "
        "makes another: choose alignfed, fedbuff, ffa_lora or fedsa_lora"
    )


def is_fitted(strategy: Strategy) -> bool:
    """Whether noise on this strategy's steps promises anything."""
    try:
        return fitted(strategy) == strategy
    except ValueError:
        return False
