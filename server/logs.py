"""Where the log goes: one line per event on stderr. Never a patient's name, a token, a file's name, a path or content.

Facts: libraries put into their messages what they were given: SQLAlchemy its parameters, pydicom the values that it
finds odd, the operating system paths. So of an exception its type and its frames are told; its words only where they
are our own, which hold none of that. asyncio tells what was lost with the objects themselves: its first words will do.
And pydicom and pynetdicom say nothing at all.
"""

import logging
import re
import sys
import traceback
import warnings
from collections.abc import Iterator

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from server.errors import AppError
from storage.errors import StorageError

SILENT = ("pydicom", "pynetdicom")
OUR_OWN = (AppError, StorageError)


def log_to_stderr(form: str = "json") -> None:
    """Set up structlog, and logging for the libraries that use it. `form`: json, or text for people."""
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars, structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True), without_foreign_words]
    shown: Processor = structlog.processors.JSONRenderer() if form == "json" else as_text
    structlog.configure(processors=[*shared, shown], logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    handler = logging.StreamHandler(sys.stderr)
    formatter = structlog.stdlib.ProcessorFormatter
    handler.setFormatter(formatter(
        processors=[formatter.remove_processors_meta, shown], foreign_pre_chain=[*shared, without_objects]))
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    # it logs a traceback with a part of every request that cannot be read; what our own code raises is logged by us
    logging.getLogger("aiohttp.server").setLevel(logging.CRITICAL)
    for library in SILENT:
        logging.getLogger(library).setLevel(logging.CRITICAL + 1)
        warnings.filterwarnings("ignore", module=library)


def without_foreign_words(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """A processor: `exc_info` becomes `exception`, the frames and the types of what was raised."""
    given = event.pop("exc_info", None)
    error = sys.exc_info()[1] if given is True else given[1] if isinstance(given, tuple) else given
    if isinstance(error, BaseException):
        event["exception"] = "\n".join(_told(error))
    return event


def without_objects(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """A processor for the lines of libraries: of asyncio's, what happened without what it happened to."""
    if event["_record"].name == "asyncio":
        event["event"] = re.split(r"[\n(]", str(event["event"]))[0]
    return event


def _told(error: BaseException) -> Iterator[str]:
    cause = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    if cause is not None:
        yield from _told(cause)
    yield "Traceback (most recent call last):"
    yield "".join(traceback.format_tb(error.__traceback__)).rstrip("\n")
    words = f": {error}" if isinstance(error, OUR_OWN) else ""
    yield f"{type(error).__module__}.{type(error).__qualname__}{words}"


def as_text(_logger: WrappedLogger, _method: str, event: EventDict) -> str:
    """A processor: one line for people, `time level event key=value …`; what was raised is told below it."""
    raised = event.pop("exception", None)
    head = f"{event.pop('timestamp', '')} {str(event.pop('level', '')).upper():<8} {event.pop('event', '')}"
    line = " ".join([head, *(f"{key}={_plain(value)}" for key, value in sorted(event.items()))])
    return f"{line}\n{raised}" if raised else line


def _plain(value: object) -> str:
    """A value on one line, whatever it holds: nobody writes a second line of the log by what they send."""
    text = str(value)
    return repr(text) if not text.isprintable() or " " in text or not text else text
