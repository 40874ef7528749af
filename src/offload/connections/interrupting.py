"""Stops the statement that another thread waits for on a driver's connection: nothing else ends that thread's wait."""

from __future__ import annotations

import logging
from typing import Any

log = logging.getLogger("offload.worker")

ACTIVE = 1
"""PQTRANS_ACTIVE: what libpq says of a connection whose statement has not ended."""
CANCEL_WITHIN = 5.0
"""Seconds for the server to take the request."""


def under_way(driver: Any) -> bool:
    """Whether a statement is; of PostgreSQL's drivers only, for SQLite's do not tell."""
    info = getattr(driver, "info", None)
    return info is not None and info.transaction_status == ACTIVE


def interrupt(driver: Any) -> None:
    """Have the statement fail that is under way, if one is; from any thread. On PostgreSQL the server ends it."""
    try:
        if hasattr(driver, "interrupt"):  # sqlite3, apsw
            driver.interrupt()
        elif under_way(driver):
            if hasattr(driver, "cancel_safe"):  # psycopg
                driver.cancel_safe(timeout=CANCEL_WITHIN)
            else:  # psycopg2
                driver.cancel()
    except Exception as error:  # noqa: BLE001 - of any driver: it is asked again as long as the attempt does not end
        log.debug("a statement could not be stopped: %r", error)
