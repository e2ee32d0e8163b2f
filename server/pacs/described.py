"""Images, studies and deliveries as `/openapi.json` tells them."""

from typing import Any

from typing_extensions import TypedDict  # pydantic needs this one before Python 3.12

from server.describing import BYTES, TEXT, Answer, Described, Parameter, answered, cached_answer

BINARY: dict[str, Any] = {"type": "string", "format": "binary"}
NUMBER: dict[str, Any] = {"type": "integer", "minimum": 0}


class Image(TypedDict):
    """A stored object; `size` in bytes."""

    id: int
    kind: str
    sop_class_uid: str | None
    sop_instance_uid: str | None
    study_instance_uid: str | None
    series_instance_uid: str | None
    transfer_syntax_uid: str | None
    file_sha256: str
    dataset_sha256: str | None
    size: int
    instance_number: str | None
    number_of_frames: int | None
    orders: list[int | str]
    flags: list[str]
    superseded_by: int | None
    rejection_code: str | None
    rejected_at: str | None
    bytes: str
    stored_at: str
    door: str
    links: dict[str, str]


class ImageReceipt(TypedDict):
    """The server's signed word that it holds an image: a compact JWS, and where the keys are that verify it."""

    receipt: str
    jwks: str


class Series(TypedDict):
    """A series with its images."""

    series_instance_uid: str
    attributes: dict[str, Any]
    images: list[Image]


class Study(TypedDict):
    """A study as a tree."""

    study_instance_uid: str
    attributes: dict[str, Any]
    created_at: str
    links: dict[str, str]
    series: list[Series]


class StudyInList(TypedDict):
    """A study, with how much is in it."""

    study_instance_uid: str
    attributes: dict[str, Any]
    images: int
    series: int
    created_at: str
    links: dict[str, str]


class StudyList(TypedDict):
    """A page of studies."""

    results: list[StudyInList]
    next_cursor: str | None


class Delivery(TypedDict):
    """An image on its way to a destination."""

    delivery_id: int
    image_id: int
    destination: str
    status: str
    attempts: int
    last_status: str | None
    last_error: str | None
    created_at: str
    delivered_at: str | None


class Deliveries(TypedDict):
    """Every delivery."""

    results: list[Delivery]


REJECTED = Parameter("rejected", "true: the rejected images instead of those that are shown; for operators")
ACCEPT = Parameter("accept", "image/png or image/jpeg, where no Accept can be sent")
PICTURE = {
    200: Answer("A picture", BINARY, ("image/png", "image/jpeg"), {
        "ETag": "the version", "Packhorse-Frames": "how many frames there are",
        "Packhorse-Window": "the window shown: center,width"}),
    304: Answer("The client has this version: its ETag stood in If-None-Match")}
FILE = {
    200: Answer("The bytes", BINARY, ("application/dicom", BYTES)),
    206: Answer("The bytes that Range asked for", BINARY, ("application/dicom", BYTES, "multipart/byteranges")),
    304: Answer("Not modified"), 412: Answer("If-Match or If-Unmodified-Since does not hold"),
    416: Answer("Range names no bytes of it")}

DESCRIBED = {
    "image": Described(cached_answer(Image), refusals=("not_found", "invalid_field")),
    "file": Described(FILE, parameters=(Parameter("Range", "bytes=…", TEXT, place="header"),),
                      refusals=("not_found", "invalid_field", "bytes_damaged")),
    "rendered": Described(PICTURE, parameters=(
        Parameter("frame", "Counted from 1", NUMBER), Parameter("window", "center,width"), ACCEPT),
        refusals=("not_found", "invalid_field", "bytes_damaged", "render_failed")),
    "receipt": Described(answered(ImageReceipt), refusals=(
        "not_found", "invalid_field", "readback_failed", "readback_running")),
    "thumbnail": Described(PICTURE, parameters=(ACCEPT,), refusals=(
        "not_found", "invalid_field", "bytes_damaged", "render_failed")),
    "studies": Described(cached_answer(StudyList), parameters=(
        Parameter("limit", "At most so many, up to 500", NUMBER),
        Parameter("cursor", "The page after, as `next_cursor` said"), REJECTED), refusals=("invalid_field",)),
    "study": Described(cached_answer(Study), parameters=(REJECTED,), refusals=("not_found",)),
    "deliveries": Described(cached_answer(Deliveries)),
}
