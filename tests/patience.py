"""How long a test waits for what must come: no test waits for it to be late, so only a failure takes as long."""

PATIENCE_S = 240
