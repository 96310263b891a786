"""How every process speaks: lines for people on a terminal, JSON for programs elsewhere. The one place that says so.

Packages log by the standard library and know nothing of this. What a line is about goes into `extra`, under the names
`node`, `update` and `version`, and comes out as fields of their own.
"""

import logging
import sys

import structlog
from structlog.typing import EventDict, WrappedLogger

ABOUT = ("node", "update", "version")


def set_up(level: str, **always: str) -> None:
    """Log from this level on to standard error; `always` is said in every line, for instance which node it is."""
    is_seen = sys.stderr.isatty()
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_for_people() if is_seen else _for_programs(always))
    logging.basicConfig(handlers=[handler], level=level.upper(), force=True)


def _for_people() -> logging.Formatter:
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


def _for_programs(always: dict[str, str]) -> logging.Formatter:
    def with_always(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
        return {**always, **event}

    return structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=[
            structlog.stdlib.add_log_level,
            structlog.stdlib.add_logger_name,
            structlog.stdlib.ExtraAdder(allow=ABOUT),
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
        ],
        processors=[
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            with_always,
            structlog.processors.EventRenamer("message"),
            structlog.processors.JSONRenderer(),
        ],
    )
