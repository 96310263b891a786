"""How every process speaks: lines for people on a terminal, JSON for programs elsewhere. The one place that says so.

Packages log by the standard library and know nothing of this. What a line is about goes into `extra`, under the names
`node`, `update` and `version`, and comes out as fields of their own.
"""

import json
import logging
import sys
from datetime import UTC, datetime

ABOUT = ("node", "update", "version")


def set_up(level: str, **always: str) -> None:
    """Log from this level on to standard error; `always` is said in every line, for instance which node it is."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_for_people() if sys.stderr.isatty() else _ForPrograms(always))
    logging.basicConfig(handlers=[handler], level=level.upper(), force=True)


class _ForPrograms(logging.Formatter):
    """One JSON object a line."""

    def __init__(self, always: dict[str, str]) -> None:
        super().__init__()
        self._always = always

    def format(self, record: logging.LogRecord) -> str:
        said = {
            **self._always,
            "message": record.getMessage(),
            "level": record.levelname.lower(),
            "logger": record.name,
            **{name: vars(record)[name] for name in ABOUT if name in vars(record)},
            "timestamp": datetime.fromtimestamp(record.created, UTC).isoformat().replace("+00:00", "Z"),
        }
        if record.exc_info:
            said["exception"] = self.formatException(record.exc_info)
        if record.stack_info:
            said["stack"] = self.formatStack(record.stack_info)
        return json.dumps(said, default=str)


def _for_people() -> logging.Formatter:
    import structlog  # megabytes, for colours that no service needs

    return structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=[
            structlog.stdlib.add_log_level,
            structlog.stdlib.add_logger_name,
            structlog.processors.TimeStamper(fmt="%Y-%m-%d %H:%M:%S", utc=False),
        ],
        processors=[
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            # what a line is about is in its words already
            structlog.dev.ConsoleRenderer(pad_event_to=0),
        ],
    )
