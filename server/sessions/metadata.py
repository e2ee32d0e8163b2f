"""How Upload-Metadata is read as the wish for a session (contract §5). Pure."""

from server.admission import NewUpload
from server.bodies import parse
from server.errors import RequestError
from server.identifiers import OutsideId, parse_text_id
from server.sessions.schema import CreateSession, NewSession

KEYS = ("filename", "name", "filetype", "type", "relativePath", "session_id", "visit_id", "radiology_order_id",
        "checksum_sha256", "sha256", "local_file_uuid", "device_id", "created_by_id", "priority", "content_encoding")
"""What is read of Upload-Metadata (contract §5); other keys are kept with the upload, unread."""


def texts_of(new: NewUpload) -> dict[str, str]:
    """The known keys as text; RequestError `invalid_metadata` for bytes that are not UTF-8."""
    texts = {}
    for key in KEYS:
        if value := new.metadata.get(key):
            try:
                texts[key] = value.decode()
            except UnicodeDecodeError as error:
                raise RequestError("invalid_metadata", f"{key} is not UTF-8", field=key) from error
    return texts


def wanted_session(new: NewUpload, texts: dict[str, str]) -> NewSession:
    """The session that an upload with these `texts` asks for. RequestError for a value that cannot be."""
    checksum = texts.get("checksum_sha256") or texts.get("sha256") or new.checksum_sha256
    is_whole = new.content_encoding is None  # else the length is that of a compressed representation
    body = parse(CreateSession, {
        "file_name": _name(texts), "file_size": new.length_bytes or 0, "checksum_sha256": checksum or "0" * 64,
        "content_type": texts.get("filetype") or texts.get("type"), "session_id": texts.get("session_id"),
        "local_file_uuid": texts.get("local_file_uuid"), "priority": texts.get("priority", "ROUTINE")})

    def outside(key: str) -> OutsideId | None:
        return parse_text_id(texts[key], key) if key in texts else None

    return NewSession(
        file_name=body.file_name, file_size=new.length_bytes if is_whole else None, content_type=body.content_type,
        checksum_sha256=body.checksum_sha256 if checksum else None, session_id=body.session_id,
        local_file_uuid=body.local_file_uuid, priority=body.priority, visit_id=outside("visit_id"),
        radiology_order_id=outside("radiology_order_id"), created_by_id=outside("created_by_id"),
        device_id=outside("device_id"), metadata={})


def _name(texts: dict[str, str]) -> str:
    """A file name fit to show: the last part of a path, no control characters, at most 255 characters."""
    name = texts.get("filename") or texts.get("name") or texts.get("relativePath") or "upload"
    last = name.replace("\\", "/").rsplit("/", 1)[-1]
    return "".join(character for character in last if character.isprintable())[:255] or "upload"
