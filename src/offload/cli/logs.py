"""How the worker command logs, to standard error: lines for people, or JSON lines for machines."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime

LEVELS = ("debug", "info", "warning", "error")
COLOURS = {logging.DEBUG: "\033[2m", logging.WARNING: "\033[33m", logging.ERROR: "\033[31m", logging.CRITICAL: "\033[1;31m"}
PLAIN = "\033[0m"

_USUAL = frozenset({*logging.makeLogRecord({}).__dict__, "message", "asctime", "taskName"})
"""What every log record has; all else was given with `extra=`."""


def configure(level: str, *, json_lines: bool) -> None:
    """Set up logging for this process. Handlers that the app's own code sets up afterwards add to it or replace it."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines() if json_lines else Lines(coloured=sys.stderr.isatty()))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    logging.getLogger("watchfiles").setLevel(logging.WARNING)  # the supervisor itself says that files have changed


class Lines(logging.Formatter):
    """`12:00:01 WARNING text`; the logger's name only where it is not ours."""

    def __init__(self, *, coloured: bool) -> None:
        super().__init__(datefmt="%H:%M:%S")
        self._coloured = coloured

    def format(self, record: logging.LogRecord) -> str:
        name = "" if record.name.startswith("offload") else f"{record.name}: "
        text = f"{self.formatTime(record, self.datefmt)} {record.levelname:<7} {name}{record.getMessage()}"
        if record.exc_info:
            text += f"\n{self.formatException(record.exc_info)}"
        colour = COLOURS.get(record.levelno) if self._coloured else None
        return text if colour is None else f"{colour}{text}{PLAIN}"


class JsonLines(logging.Formatter):
    """One JSON object a line: time, level, logger, message, pid, what was given with `extra=`, and the exception."""

    def format(self, record: logging.LogRecord) -> str:
        event = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            "pid": record.process,
            **{name: value for name, value in record.__dict__.items() if name not in _USUAL},
        }
        if record.exc_info:
            event["exception"] = self.formatException(record.exc_info)
        return json.dumps(event, default=str, ensure_ascii=False)
