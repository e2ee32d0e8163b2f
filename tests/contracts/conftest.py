"""The store that contract suites run on."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from storage import tokens
from storage.backends import migrate, open_store
from storage.store import Store


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    """SQLite and files; another backend becomes a parameter here."""
    migrate(tmp_path / "p.db")
    opened = open_store(tmp_path / "p.db", tmp_path / "blobs")
    # as a server's first start does
    await opened.write(lambda tx: tokens.publish(tx, "default", [{"kid": "kid"}]))
    yield opened
    await opened.close()
