"""Compressed representations (contract §5): what came over the wire becomes the file, within bounds. Knows no upload.

Fact: four bytes of zstd can stand for 128 KiB, so a decoder is fed 1 KiB at a time: 32 MiB at most come back.
"""

import asyncio
import zlib
from collections.abc import AsyncIterable, AsyncIterator, Iterator

import zstandard

from server.errors import RequestError, SessionFailure

CODINGS = ("zstd", "gzip")
PIECE_BYTES = 1024
BATCH_BYTES = 1024 * 1024
WINDOW_BYTES = 8 * 1024 * 1024
"""The largest window of zstd that a sender may ask for (RFC 9659 §3): a decoder holds that much."""
FREE_FRAMES = 4096
FRAME_BYTES = 1024
"""Beyond `FREE_FRAMES` a frame stands for at least this much on average: empty ones cost time and bring nothing."""
FREE_BYTES = 64 * 1024 * 1024
MOST_RATIO = 1200
"""Beyond `FREE_BYTES` nothing may expand more than this: deflate cannot pass 1,032, and no image comes near it."""


def parse_coding(text: str) -> str | None:
    """A content coding of ours; None for none. RequestError `unsupported_media_type` (RFC 9110 §8.4)."""
    coding = text.strip().lower()
    if coding in ("", "identity"):
        return None
    if coding not in CODINGS:
        raise RequestError("unsupported_media_type", f"content codings taken: {', '.join(CODINGS)}")
    return coding


class _Decoder:
    """Frames of zstd or members of gzip, one after another."""

    def __init__(self, coding: str, limit_bytes: int) -> None:
        self._coding = coding
        self._limit_bytes = limit_bytes
        self._zstd = zstandard.ZstdDecompressor(max_window_size=WINDOW_BYTES)
        self._frames = 0
        self._frame = self._new_frame()
        self._fresh = True
        self._came = self._gave = 0

    def _new_frame(self) -> "zlib._Decompress | zstandard.ZstdDecompressionObj":
        self._frames += 1
        if self._coding == "gzip":
            return zlib.decompressobj(wbits=31)
        return self._zstd.decompressobj()

    def expand(self, chunk: bytes) -> Iterator[bytes]:
        """What `chunk` stands for, in bounded pieces."""
        for start in range(0, len(chunk), PIECE_BYTES):
            piece = chunk[start : start + PIECE_BYTES]
            self._came += len(piece)
            while piece:
                if self._frame.eof:
                    self._frame, self._fresh = self._new_frame(), True
                try:
                    content, self._fresh = self._frame.decompress(piece), False
                except (zlib.error, zstandard.ZstdError) as error:
                    if "too much memory" in str(error):
                        raise SessionFailure(
                            "POLICY_REJECTED", f"its window is larger than {WINDOW_BYTES} bytes") from error
                    raise SessionFailure("CHECKSUM_MISMATCH", f"the {self._coding} data is damaged") from error
                piece = self._frame.unused_data if self._frame.eof else b""
                self._gave += len(content)
                self._check()
                yield content

    def _check(self) -> None:
        if self._gave > self._limit_bytes:
            raise SessionFailure("SIZE_MISMATCH", f"the decoded file has more than {self._limit_bytes} bytes")
        if self._gave > max(FREE_BYTES, MOST_RATIO * self._came):
            raise SessionFailure("POLICY_REJECTED", f"it expands more than {MOST_RATIO} times")
        if self._frames > FREE_FRAMES + self._gave // FRAME_BYTES:
            raise SessionFailure("POLICY_REJECTED", "it is cut into too many frames")

    def finish(self) -> None:
        """SessionFailure unless the last frame is whole."""
        if self._fresh or not self._frame.eof:
            raise SessionFailure("CHECKSUM_MISMATCH", f"the {self._coding} data ends too early")


def _batch(pieces: Iterator[bytes]) -> bytes:
    content: list[bytes] = []
    size = 0
    for piece in pieces:
        content.append(piece)
        size += len(piece)
        if size >= BATCH_BYTES:
            break
    return b"".join(content)


async def decoded(coding: str, chunks: AsyncIterable[bytes], limit_bytes: int) -> AsyncIterator[bytes]:
    """The file's bytes, at most `limit_bytes`.

    SessionFailure: CHECKSUM_MISMATCH for what is damaged or cut short, SIZE_MISMATCH past the limit,
    POLICY_REJECTED past any honest ratio.
    """
    decoder = _Decoder(coding, limit_bytes)
    async for chunk in chunks:
        pieces = decoder.expand(chunk)
        while content := await asyncio.to_thread(_batch, pieces):
            yield content
    decoder.finish()
