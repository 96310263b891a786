"""Time that passes only when the world says so: one clock that never goes back, and a wall clock of each actor."""

START_NS = 1_700_000_000 * 10**9
NS_PER_S = 10**9


class Clock:
    """Seconds since the world began; each actor's wall clock may be off, and may jump."""

    def __init__(self) -> None:
        self.now_ns = 0
        self.offsets_ns: dict[str, int] = {}

    @property
    def monotonic_s(self) -> float:
        """For all actors the same: the clock that decisions of nodes are taken by."""
        return self.now_ns / NS_PER_S

    def wall_ns(self, actor: str) -> int:
        """What an actor takes for the time of day, in ns since 1970."""
        return START_NS + self.now_ns + self.offsets_ns.get(actor, 0)

    def pass_s(self, seconds: float) -> None:
        """Let time pass."""
        self.now_ns += max(1, round(seconds * NS_PER_S))
