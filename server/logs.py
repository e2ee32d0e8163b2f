"""Where the log goes: one line of JSON per event, on stderr. Never a patient's name, a token or content."""

import logging
import sys

import structlog


def log_to_stderr() -> None:
    """Set up structlog, and logging for the libraries that use it."""
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars, structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True), structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer()],
        logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
    # it logs a traceback with a part of every request that cannot be read; what our own code raises is logged by us
    logging.getLogger("aiohttp.server").setLevel(logging.CRITICAL)
