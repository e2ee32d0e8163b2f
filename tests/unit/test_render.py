"""Pictures by the child process: right values, clear refusals, and a server that lives through its deaths."""

import asyncio
import io
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydicom import dcmread
from pydicom.pixels import pixel_array

from server.errors import RenderFailed
from server.pacs.render import Renderer, RenderLimits, Window
from tests import builders
from tests.samples import BASE

CT = BASE / "test_files" / "CT_small.dcm"


@pytest.fixture
async def renderer() -> AsyncIterator[Renderer]:
    made = Renderer()
    yield made
    await made.close()


def pixels(content: bytes) -> "np.ndarray[tuple[int, ...], np.dtype[np.uint8]]":
    return np.asarray(Image.open(io.BytesIO(content)))


async def test_a_window_gives_the_values_of_the_standard(renderer: Renderer) -> None:
    picture = await renderer.render(CT, window=Window(40, 400))
    dataset = dcmread(CT)
    values = pixel_array(dataset) * float(dataset.RescaleSlope) + float(dataset.RescaleIntercept)
    # PS3.3 C.11.2.1.2.1, LINEAR
    expected = np.clip(((values - (40 - 0.5)) / (400 - 1) + 0.5) * 255, 0, 255)
    shown = pixels(picture.content)
    assert shown.shape == (128, 128) and picture.window_center == 40
    assert np.abs(shown - expected).max() <= 1


async def test_without_a_window_the_whole_range_is_shown(renderer: Renderer) -> None:
    shown = pixels((await renderer.render(CT)).content)
    assert (shown.min(), shown.max()) == (0, 255)


async def test_monochrome1_is_inverted(renderer: Renderer, tmp_path: Path) -> None:
    dark = builders.ct(tmp_path / "a.dcm")
    light = builders.ct(tmp_path / "b.dcm", PhotometricInterpretation="MONOCHROME1")
    pictures = [pixels((await renderer.render(path)).content) for path in (dark, light)]
    assert np.array_equal(pictures[0], 255 - pictures[1])


@pytest.mark.parametrize(
    "name", ["examples_palette.dcm", "SC_rgb.dcm", "examples_ybr_color.dcm", "SC_ybr_full_422.dcm"]
)
async def test_colour_is_shown_in_colour(renderer: Renderer, name: str) -> None:
    path = next((path for path in BASE.rglob(name)), None)
    if path is None:
        path = next(BASE.rglob("SC_rgb_small_odd.dcm"))
    assert pixels((await renderer.render(path)).content).shape[2] == 3


async def test_jpeg_and_thumbnails_come_in_their_size(renderer: Renderer, tmp_path: Path) -> None:
    path = builders.ct(tmp_path / "a.dcm", rows=300, columns=600)
    picture = await renderer.render(path, size_px=256, media_type="image/jpeg")
    assert picture.content.startswith(b"\xff\xd8") and (picture.width_px, picture.height_px) == (256, 128)


async def test_what_cannot_be_shown_is_refused_without_a_word_of_the_patient(renderer: Renderer) -> None:
    for name, words in {"rtplan.dcm": "no pixels", "JPGExtended.dcm": "cannot be decoded"}.items():
        with pytest.raises(RenderFailed, match=words) as refusal:
            await renderer.render(BASE / "test_files" / name)
        assert "/" not in refusal.value.detail
    with pytest.raises(RenderFailed, match="there are 1 frames"):
        await renderer.render(CT, frame=2)


async def test_a_dead_child_is_one_refusal_and_the_next_picture_is_made(renderer: Renderer) -> None:
    await renderer.render(CT)
    child = renderer._idle.get_nowait()
    assert child is not None
    renderer._idle.put_nowait(child)
    os.kill(child.pid, signal.SIGKILL)
    try:
        await renderer.render(CT)
    except RenderFailed:
        assert (await renderer.render(CT)).width_px == 128


async def test_too_slow_and_too_large_are_refused_and_the_next_picture_is_made(tmp_path: Path) -> None:
    large = builders.ct(tmp_path / "large.dcm", rows=6000, columns=6000)
    hasty = Renderer(RenderLimits(time_s=0.05))
    with pytest.raises(RenderFailed, match="longer than"):
        await hasty.render(large)
    await hasty.close()
    poor = Renderer(RenderLimits(memory_bytes=700 * 1024 * 1024))
    with pytest.raises(RenderFailed, match=r"memory|than is allowed|cannot be decoded"):
        await poor.render(large)
    assert (await poor.render(CT)).width_px == 128
    await poor.close()


async def test_an_asker_that_leaves_spoils_no_later_answer(renderer: Renderer, tmp_path: Path) -> None:
    large = builders.ct(tmp_path / "large.dcm", rows=3000, columns=3000)
    await renderer.render(CT)
    asking = asyncio.ensure_future(renderer.render(large))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    assert (await renderer.render(CT)).width_px == 128
