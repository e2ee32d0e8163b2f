"""The process that decodes pixels: limited in memory and time, killed without regret. Never part of the server.

It renders frames, and tells whether two files hold the same object in two encodings.

Protocol: a 4-byte length and JSON in on stdin; two 4-byte lengths, JSON and a picture out on what was stdout.
"""

import io
import json
import os
import resource
import struct
import sys
from typing import Any, BinaryIO

import numpy as np
from PIL import Image
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.pixels import apply_color_lut, apply_modality_lut, apply_voi_lut, convert_color_space, pixel_array
from pydicom.pixels.processing import apply_windowing

LOSSLESS = frozenset({
    "1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.2", "1.2.840.10008.1.2.5",
    "1.2.840.10008.1.2.4.57", "1.2.840.10008.1.2.4.70", "1.2.840.10008.1.2.4.80", "1.2.840.10008.1.2.4.90",
})
PIXELS = "PixelData"
ENCODING = frozenset({0x00280006, 0xFFFCFFFC})
"""Planar Configuration and Data Set Trailing Padding say how, not what."""
MAX_FRAME_SAMPLES = 256 * 1024 * 1024


class Refused(Exception):
    """Why there is no picture, in words for people and without anything of the patient."""


def render(request: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
    """One frame as an 8-bit picture: modality LUT, VOI LUT or window, presentation (PS3.4 §N.2)."""
    dataset = dcmread(request["path"], force=False)
    if not any(keyword in dataset for keyword in ("PixelData", "FloatPixelData", "DoubleFloatPixelData")):
        raise Refused("this object has no pixels")
    frames = int(dataset.get("NumberOfFrames") or 1)
    if not 1 <= request["frame"] <= frames:
        raise Refused(f"there are {frames} frames")
    samples = int(dataset.Rows) * int(dataset.Columns) * int(dataset.get("SamplesPerPixel", 1))
    if samples > MAX_FRAME_SAMPLES:
        raise Refused("the frame is larger than is shown here")
    pixels = pixel_array(dataset, index=request["frame"] - 1, raw=True)
    window: tuple[float, float] | None = None
    if pixels.ndim == 3:
        shown = _colour(dataset, pixels)
    elif dataset.PhotometricInterpretation == "PALETTE COLOR":
        shown = _eight_bits(apply_color_lut(pixels, dataset))
    else:
        shown, window = _grey(dataset, pixels, request["window"])
    picture = Image.fromarray(shown)
    if request["size_px"]:
        picture.thumbnail((request["size_px"], request["size_px"]))
    content = io.BytesIO()
    picture.save(content, "JPEG" if request["media_type"] == "image/jpeg" else "PNG")
    facts = {"width_px": picture.width, "height_px": picture.height, "frames": frames,
             "window_center": window[0] if window else None, "window_width": window[1] if window else None}
    return facts, content.getvalue()


def same_content(request: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
    """Whether two files hold one object: every attribute equal, and pixels equal once decoded (lossless only)."""
    one, two = (dcmread(path) for path in request["paths"])
    return {"same": _same_attributes(one, two) and _same_pixels(one, two)}, b""


def _same_attributes(one: Dataset, two: Dataset) -> bool:
    # iterating a Dataset gives its elements, parsed; here only their tags are wanted; element 0 is a group's length
    tags = [sorted(tag for tag in dataset.keys() if tag.element and tag not in ENCODING)  # noqa: SIM118
            for dataset in (one, two)]
    if tags[0] != tags[1]:
        return False
    for tag in tags[0]:
        first, second = one[tag], two[tag]
        if first.keyword == PIXELS:
            continue
        if first.VR == "SQ" and second.VR == "SQ":
            pairs = list(zip(first.value, second.value, strict=False))
            if len(first.value) != len(second.value) or not all(_same_attributes(*pair) for pair in pairs):
                return False
        elif first.value != second.value:
            return False
    return True


def _same_pixels(one: Dataset, two: Dataset) -> bool:
    if PIXELS not in one:
        return True
    syntaxes = [dataset.file_meta.TransferSyntaxUID for dataset in (one, two)]
    if syntaxes[0] == syntaxes[1] and one.PixelData == two.PixelData:
        return True
    if not LOSSLESS.issuperset(syntaxes):
        return False
    return bool(np.array_equal(pixel_array(one, raw=True), pixel_array(two, raw=True)))


def _colour(dataset: Dataset, pixels: Any) -> Any:  # numpy arrays, whose types are known only when they are there
    space = str(dataset.PhotometricInterpretation)
    if space.startswith("YBR_FULL"):
        pixels = convert_color_space(pixels, space, "RGB")
    return _eight_bits(pixels[..., :3])


def _eight_bits(pixels: Any) -> Any:  # as above
    if pixels.dtype == np.uint8:
        return pixels
    most = float(np.iinfo(pixels.dtype).max) if pixels.dtype.kind in "iu" else float(pixels.max() or 1)
    return (pixels.astype(np.float32) * (255.0 / most)).astype(np.uint8)


def _grey(dataset: Dataset, pixels: Any, asked: list[float] | None) -> tuple[Any, tuple[float, float]]:  # as above
    values = apply_modality_lut(pixels, dataset).astype(np.float64)
    if asked is None and "WindowCenter" not in dataset and "VOILUTSequence" in dataset:
        values = apply_voi_lut(values.astype(np.int64), dataset).astype(np.float64)
    window = tuple(asked) if asked else _own_window(dataset) or _full_range(dataset, pixels, values)
    one = Dataset()
    one.WindowCenter, one.WindowWidth = window
    one.BitsStored, one.PixelRepresentation = 16, 1
    one.PhotometricInterpretation = "MONOCHROME2"
    one.VOILUTFunction = dataset.get("VOILUTFunction") or "LINEAR"
    if window[1] < 1 and one.VOILUTFunction == "LINEAR":
        one.VOILUTFunction = "LINEAR_EXACT"  # LINEAR needs a width of at least 1 (PS3.3 §C.11.2.1.2.1)
    shown = apply_windowing(values, one)
    least, most = -32768.0, 32767.0  # the output range that BitsStored and PixelRepresentation say
    shown = np.clip((shown - least) * (255.0 / (most - least)), 0, 255).round().astype(np.uint8)
    inverted = dataset.PhotometricInterpretation == "MONOCHROME1"
    return (255 - shown if inverted else shown), (float(window[0]), float(window[1]))


def _own_window(dataset: Dataset) -> tuple[float, float] | None:
    """The first window of the object, if it has a usable one."""
    center, width = dataset.get("WindowCenter"), dataset.get("WindowWidth")
    try:
        first = (float(_first(center)), float(_first(width)))
    except (TypeError, ValueError):
        return None
    return first if first[1] > 0 else None


def _first(value: Any) -> Any:  # DS values, one or several
    return value[0] if isinstance(value, (list, tuple)) or hasattr(value, "append") else value


def _full_range(dataset: Dataset, pixels: Any, values: Any) -> tuple[float, float]:  # as above
    """From the least to the most value of the frame, padding left out (PS3.3 §C.7.5.1.1.2)."""
    padding = dataset.get("PixelPaddingValue")
    kept = values[pixels != padding] if padding is not None else values
    kept = kept[np.isfinite(kept)]
    if kept.size == 0:
        return 0.5, 1.0
    least, most = float(kept.min()), float(kept.max())
    return (least + most) / 2 + 0.5, max(most - least + 1, 1e-6)


def _limit(memory_bytes: int) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _read_exactly(stream: BinaryIO, count: int) -> bytes:
    content = stream.read(count)
    if len(content) < count:
        sys.exit(0)  # the server is gone
    return content


def main() -> None:
    """Answer until stdin ends."""
    _limit(int(sys.argv[1]))
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what C libraries print must not land between answers
    requests = sys.stdin.buffer
    while True:
        (length,) = struct.unpack(">I", _read_exactly(requests, 4))
        try:
            request = json.loads(_read_exactly(requests, length))
            facts, picture = same_content(request) if "paths" in request else render(request)
        except Refused as reason:
            facts, picture = {"error": str(reason)}, b""
        except MemoryError:
            facts, picture = {"error": "showing this image needs more memory than is allowed"}, b""
        except Exception as error:  # noqa: BLE001 - the rim of the child: whatever a decoder raises is one refusal
            facts, picture = {"error": f"the pixels cannot be decoded ({type(error).__name__})"}, b""
        header = json.dumps(facts).encode()
        answers.write(struct.pack(">II", len(header), len(picture)) + header + picture)
        answers.flush()


if __name__ == "__main__":
    main()
