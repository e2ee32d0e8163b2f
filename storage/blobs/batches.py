"""Gathers a stream into pieces that are worth a visit of a thread each: 512 KiB is fastest. Writes nothing."""

import asyncio
from collections.abc import AsyncIterable, AsyncIterator

BATCH_BYTES = 512 * 1024


async def batches(chunks: AsyncIterable[bytes]) -> AsyncIterator[bytes]:
    """`chunks` in pieces that are worth a write each; what came before a failure is given out before it."""
    batch: list[bytes] = []
    batched = 0
    failure: BaseException | None = None
    try:
        async for chunk in chunks:
            batch.append(chunk)
            batched += len(chunk)
            if batched >= BATCH_BYTES:
                yield batch[0] if len(batch) == 1 else b"".join(batch)
                batch, batched = [], 0
    except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001 - raised again below, after what arrived
        failure = error
    if batch:
        yield b"".join(batch)
    if failure is not None:
        raise failure
