"""The store that contract suites run on."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from storage.backends import migrate, open_store
from storage.store import Store


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    """SQLite and files; another backend becomes a parameter here."""
    migrate(tmp_path / "p.db")
    opened = open_store(tmp_path / "p.db", tmp_path / "blobs")
    yield opened
    await opened.close()
