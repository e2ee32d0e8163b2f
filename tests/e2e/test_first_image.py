"""The main job on real input: metadata first, bytes, verified, seen, acknowledged."""

from tests.server import Server, create, patch, upload_url


def test_a_ct_goes_in_is_seen_and_its_copy_may_be_deleted(server: Server, ct: bytes) -> None:
    session = create(server, ct)
    assert session["status"] == "QUEUED" and session["visit_id"] == 77 and session["radiology_order_id"] == 123
    root = f"/visits/77/radiology/upload-sessions/{session['session_id']}"
    url = upload_url(server, session["session_id"])
    answer = patch(server, url, ct)
    assert (answer.status_code, answer.headers["Packhorse-Status"]) == (204, "SYNCED"), answer.text
    session = server.api("GET", f"{root}/").json()
    assert session["status"] == "SYNCED" and session["safe_to_delete_local"] is False
    image = session["images"][0]
    assert image["id"] == session["server_image_id"] and image["orders"] == [123]
    shown = server.api("GET", f"/images/{image['id']}/rendered")
    assert shown.content.startswith(b"\x89PNG")
    assert server.api("GET", f"/images/{image['id']}/file").content == ct
    acknowledged = server.api("POST", f"{root}/acknowledge/", {"server_image_id": image["id"]})
    assert acknowledged.status_code == 200, acknowledged.text
    assert acknowledged.json()["safe_to_delete_local"] is True
    receipt = server.folder / "receipt.jws"
    receipt.write_text(acknowledged.json()["receipt"])
    assert server.command("receipt", "verify", str(receipt)).returncode == 0
    assert server.command("audit", "verify", "--receipt", str(receipt)).returncode == 0
    assert server.command("fsck").returncode == 0
    assert server.stop() == 0
