"""What a sum of privacy losses promises, in epsilon at delta, by the library dp-accounting.

A node's updates are counted one by one: nodes decide themselves when they take part, so nothing is gained by a chance
of not having been drawn. Gaussian mechanisms one after the other are one Gaussian mechanism, exactly.
"""

import math
from functools import lru_cache

MISSING = (
    "epsilon needs the library dp-accounting: pip install 'alignfed[privacy]', in a checkout "
    "pip install -c constraints.txt -e '.[privacy]'"
)


class AccountantMissing(RuntimeError):
    """The library that says what is promised is not installed."""


@lru_cache(maxsize=65536)
def epsilon(loss: float, delta: float) -> float | None:
    """Epsilon at `delta` of a sum of losses, as noise.losses counts them; None where nothing is promised.

    `loss` is the sum of 1 / m^2 over a node's versions, m being the noise multiplier that it had in each. Raises
    AccountantMissing.
    """
    if loss == 0:
        return 0.0
    if math.isinf(loss):
        return None
    try:
        from dp_accounting.gaussian_mechanism import get_epsilon_gaussian  # 100 MB; nobody else pays for it
    except ImportError:
        raise AccountantMissing(MISSING) from None
    bound: float = get_epsilon_gaussian(1 / math.sqrt(loss), delta)
    return bound
