"""The published formulas, one short function each."""


def staleness(version: int, base_version: int) -> int:
    """Versions that passed between the one an update started from and the current one: tau."""
    if base_version > version:
        raise ValueError(f"base version {base_version} lies after version {version}")
    return version - base_version


def freshness(tau: int, exponent: float) -> float:
    """(1 + tau)^-exponent: 1 for a fresh update, less the staler it is.

    The polynomial staleness function of FedAsync (Xie et al., arXiv 1903.03934, section 5.2), which FedBuff takes over.
    """
    return float((1 + tau) ** -exponent)
