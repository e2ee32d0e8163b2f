"""Opens the store and the services in order and closes them in reverse."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import structlog

from server.auth import Role
from server.folder_lock import StartFailed
from server.identity.secrets import new_token
from server.keeping.restore import MARK
from server.privacy import keep_private
from server.private_files import replace_durably
from server.services import Services, wire
from server.sessions.receipts import open_signer
from server.settings import Settings
from server.worker import Tasks
from storage import tokens
from storage.backends import migrate, open_store
from storage.records import DEFAULT_SITE
from storage.store import Store

log = structlog.get_logger()


@asynccontextmanager
async def open_services(settings: Settings) -> AsyncIterator[tuple[Services, Tasks]]:
    """The store private, migrated and open, the key published, every service wired."""
    if (settings.data_path / MARK).exists():
        raise StartFailed(f"{settings.data_path} holds half of a backup: run packhorse restore again")
    for path in keep_private(settings):
        log.warning("data.others_may_read", path=str(path), why="it belongs to another user of this machine")
    copy = migrate(settings.database_path)
    if copy is not None:
        log.info("database.migrated", copy=str(copy))
    store = open_store(settings.database_path, settings.blobs_path, settings.uploads.reserve_bytes)
    try:
        signer = open_signer(settings.data_path / "keys")
        await store.write(lambda tx: tokens.publish(tx, DEFAULT_SITE, signer.public_jwks()))
        async with Tasks() as tasks:
            services = wire(settings, store, signer, tasks)
            try:
                yield services, tasks
            finally:
                await services.renderer.close()
                tasks.cancel()
    finally:
        await store.close()


async def first_token(store: Store, data_path: Path) -> tuple[Path, str | None]:
    """The admin token of the very first start, in a file of mode 0600: (path, the token if it is new)."""
    path = data_path / "admin-token"
    if await store.read(tokens.count):
        return path, None
    text, record = new_token(Role.ADMIN, label="first start")
    replace_durably(path, f"{text}\n".encode())
    await store.write(lambda tx: tokens.add(tx, record))
    return path, text
