"""tuspy and aiotus as they come, against a real server and through a proxy that cuts."""

import asyncio
import io
import uuid

import aiotus
import pytest
from tusclient.client import TusClient

from tests.clients.conftest import BadLine
from tests.server import Server, sha256
from tests.tus.speaking_tus import MIB, random_bytes


def assert_stored(server: Server, session_id: str, content: bytes) -> None:
    view = server.api("GET", f"/upload-sessions/{session_id}/").json()
    assert (view["status"], view["checksum_sha256"]) == ("SYNCED", sha256(content)), view


@pytest.mark.parametrize("checksum", [False, True])
def test_tuspy_uploads_in_chunks_through_a_line_that_is_cut(bad_line: BadLine, checksum: bool) -> None:
    content, session_id = random_bytes(3 * MIB, 61), str(uuid.uuid4())
    client = TusClient(f"{bad_line.url}/files", headers=bad_line.server.auth)
    uploader = client.uploader(
        file_stream=io.BytesIO(content),
        chunk_size=300_000,
        metadata={"filename": "a.bin", "session_id": session_id},
        upload_checksum=checksum,
        retries=20,
        retry_delay=0,
    )
    uploader.upload()
    assert bad_line.proxy is not None and bad_line.proxy.cut_count > 0
    assert_stored(bad_line.server, session_id, content)


def test_tuspy_resumes_from_a_url_that_it_kept(shared_server: Server) -> None:
    content, session_id = random_bytes(MIB, 62), str(uuid.uuid4())
    client = TusClient(f"{shared_server.url}/files", headers=shared_server.auth)
    metadata = {"filename": "a.bin", "session_id": session_id}
    first = client.uploader(file_stream=io.BytesIO(content), chunk_size=100_000, metadata=metadata)
    first.upload_chunk()
    second = client.uploader(file_stream=io.BytesIO(content), chunk_size=400_000, url=first.url)
    assert second.offset == 100_000
    second.upload()
    assert_stored(shared_server, session_id, content)


async def test_aiotus_uploads_a_file(shared_server: Server) -> None:
    content, session_id = random_bytes(2 * MIB, 63), str(uuid.uuid4())
    location = await aiotus.upload(
        f"{shared_server.url}/files",
        io.BytesIO(content),
        {"filename": b"a.bin", "session_id": session_id.encode()},
        headers=shared_server.auth,
        chunksize=300_000,
    )
    assert location is not None
    assert_stored(shared_server, session_id, content)
    metadata = await aiotus.metadata(location, headers=shared_server.auth)
    assert metadata is not None and metadata["filename"] == b"a.bin"


async def test_aiotus_uploads_parts_and_joins_them(shared_server: Server) -> None:
    content, session_id = random_bytes(MIB, 64), str(uuid.uuid4())
    parts = [io.BytesIO(content[:400_000]), io.BytesIO(content[400_000:])]
    location = await aiotus.upload_multiple(
        f"{shared_server.url}/files",
        parts,
        {"filename": b"a.bin", "session_id": session_id.encode()},
        headers=shared_server.auth,
    )
    assert location is not None
    assert_stored(shared_server, session_id, content)


async def test_aiotus_survives_a_line_that_is_cut(bad_line: BadLine) -> None:
    content, session_id = random_bytes(2 * MIB, 65), str(uuid.uuid4())
    async with asyncio.timeout(60):
        location = await aiotus.upload(
            f"{bad_line.url}/files",
            io.BytesIO(content),
            {"filename": b"a.bin", "session_id": session_id.encode()},
            headers=bad_line.server.auth,
            chunksize=500_000,
            config=aiotus.RetryConfiguration(retry_attempts=10, max_retry_period_seconds=0.1),
        )
    assert location is not None
    assert bad_line.proxy is not None and bad_line.proxy.cut_count > 0
    assert_stored(bad_line.server, session_id, content)
