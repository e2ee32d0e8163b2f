"""Images and studies as JSON (contract §4). Shows only links that exist."""

from collections.abc import Callable
from typing import Any

from sqlalchemy import Connection

from server.identifiers import shown
from server.linking import flags_of
from storage import blob_rows, orders
from storage.records import ImageRecord

Sign = Callable[[str], str]
"""A path as one that proves by itself, for minutes, that it may be read: for `<img>` and `EventSource`."""


def image_json(tx: Connection, image: ImageRecord, base_url: str, sign: Sign) -> dict[str, Any]:
    """An image; `size` in bytes, `bytes` says where they are; the flag `damaged`: an integrity alarm is open."""
    linked = orders.of_image(tx, image.id)
    damaged = ["damaged"] if blob_rows.is_doubted(tx, image.site, image.blob_sha256) else []
    path = f"/api/v1/images/{image.id}"
    root = base_url + path
    links = {"self": f"{root}/", "file": f"{root}/file", "receipt": f"{root}/receipt"}
    if image.kind == "dicom":
        links.update(rendered=base_url + sign(f"{path}/rendered"), thumbnail=base_url + sign(f"{path}/thumbnail"),
                     study=f"{base_url}/api/v1/studies/{image.study_instance_uid}/")
    return {
        "id": image.id, "kind": image.kind, "sop_class_uid": image.sop_class_uid,
        "sop_instance_uid": image.sop_instance_uid, "study_instance_uid": image.study_instance_uid,
        "series_instance_uid": image.series_instance_uid, "transfer_syntax_uid": image.transfer_syntax_uid,
        "file_sha256": image.blob_sha256, "dataset_sha256": image.dataset_sha256, "size": image.size_bytes,
        "instance_number": image.instance_number, "number_of_frames": image.number_of_frames,
        "orders": [shown(order, "radiology_order_id") for order in linked],
        "flags": flags_of(image, linked) + damaged,
        "superseded_by": image.superseded_by, "rejection_code": image.rejection_code, "rejected_at": image.rejected_at,
        "bytes": "here", "stored_at": image.stored_at, "door": image.door, "links": links,
    }


def study_links(study_instance_uid: str, base_url: str, sign: Sign) -> dict[str, str]:
    """Where a study is, and where what happens to it is told."""
    return {"self": f"{base_url}/api/v1/studies/{study_instance_uid}/",
            "events": base_url + sign(f"/api/v1/events?study_instance_uid={study_instance_uid}")}


def study_json(
    tx: Connection, study: dict[str, Any], series: list[dict[str, Any]], base_url: str, sign: Sign
) -> dict[str, Any]:
    """A study as a tree: attributes, its series, their images."""
    return {
        "study_instance_uid": study["study_instance_uid"], "attributes": study["attributes"],
        "created_at": study["created_at"], "links": study_links(study["study_instance_uid"], base_url, sign),
        "series": [{
            "series_instance_uid": row["series_instance_uid"], "attributes": row["attributes"],
            "images": [image_json(tx, image, base_url, sign) for image in row["images"]]} for row in series]}
