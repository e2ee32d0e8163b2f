"""`make demo`: the story of one CT over a bad line, told in the terminal in under a minute. Everything is real."""

import hashlib
import io
import shutil
import struct
import sys
import tempfile
import time
from pathlib import Path

import requests
from pydicom import dcmread
from pydicom.data import get_testdata_file
from pydicom.pixels import pixel_array
from rich.console import Console
from tusclient.client import TusClient
from tusclient.exceptions import TusCommunicationError

from server.pacs.dicom import dataset_sha256, read_header
from tests.dcmtk import Sink
from tests.proxy import CuttingProxy
from tests.server import Server, create, upload_url
from tests.starting import ROOT

out = Console(highlight=False, soft_wrap=True)
OUTPUT = ROOT / "demo-out"


def main() -> int:
    """Tell the story; 0 when it ends well."""
    if not all(map(shutil.which, ("storescp",))):
        out.print("DCMTK is missing: run make setup-peers, or install your system's package dcmtk")
        return 1
    path = get_testdata_file("CT_small.dcm")
    assert isinstance(path, str), "it comes with pydicom"
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        sink = Sink(Path(folder) / "archive").start()
        server = Server(
            Path(folder) / "server",
            extra=(
                f'[[forward.destinations]]\nname = "archive"\nkind = "dicom"\nae_title = "SINK"\nhost = "127.0.0.1"\n'
                f'port = {sink.port}\n[[forward.rules]]\ndestination = "archive"\n'
            ),
        ).start()
        try:
            good = _story(server, sink, Path(path))
        finally:
            server.stop()
            sink.stop()
    out.print(f"[dim]{time.monotonic() - began:.0f} s[/dim]")
    return 0 if good else 1


def _story(server: Server, sink: Sink, path: Path) -> bool:
    content = path.read_bytes()
    out.print(f"[bold]A server[/bold] on {server.url}, an archive (DCMTK storescp) on port {sink.port}.")
    session = create(server, content, file_name=path.name, content_type="application/dicom")
    url = upload_url(server, session["session_id"])
    out.print(f"[bold]Metadata first:[/bold] session {session['session_id']} for {path.name}, {len(content)} bytes.")
    _send_over_a_bad_line(server, url, content)
    session = server.api("GET", f"/upload-sessions/{session['session_id']}/").json()
    out.print(
        f"[bold]{session['status']}[/bold]: {session['status_text']}; "
        f"SHA-256 {session['checksum_sha256'][:16]}… verified."
    )
    _tell_history(server, session["session_id"])
    image = session["images"][0]
    _show(server, image["id"])
    good = _compare(server, sink, path, image["id"])
    answer = server.api(
        "POST", f"/upload-sessions/{session['session_id']}/acknowledge/", {"server_image_id": image["id"]}
    ).json()
    out.print(
        f"[bold]May the clinic delete its copy?[/bold] safe_to_delete_local = {answer['safe_to_delete_local']}, "
        f"receipt {answer['receipt'][:24]}…"
    )
    return good and bool(answer["safe_to_delete_local"])


def _send_over_a_bad_line(server: Server, url: str, content: bytes) -> None:
    proxy = CuttingProxy(int(server.url.rsplit(":", 1)[1]), [len(content) // 2])
    client = TusClient(f"{server.url}/files", headers=server.auth)
    through = url.replace(server.url, f"http://127.0.0.1:{proxy.port}")
    try:
        while True:
            uploader = client.uploader(file_stream=io.BytesIO(content), url=through, chunk_size=len(content))
            uploader.offset = uploader.get_offset()
            out.print(f"[bold]tuspy[/bold] sends from byte {uploader.offset} …")
            try:
                uploader.upload()
                return
            except (TusCommunicationError, requests.exceptions.RequestException):
                out.print("  … the line is cut.")
    finally:
        proxy.close()


def _tell_history(server: Server, session_id: str) -> None:
    out.print("[bold]What the audit says:[/bold]")
    for row in server.api("GET", f"/upload-sessions/{session_id}/history/").json()["results"]:
        detail, told = row["detail"], ""
        if row["action"] == "session.status":
            told = f"{detail['from']} → {detail['to']}"
        elif row["action"] == "upload.transfer":
            told = f"bytes {detail['offset_before']} → {detail['offset_after']}, {row['outcome']}"
        out.print(f"  {row['seq']:>3}  {row['at']}  {row['action']:<18} {told}")


def _show(server: Server, image_id: int) -> None:
    picture = server.api("GET", f"/images/{image_id}/rendered")
    OUTPUT.mkdir(exist_ok=True)
    target = OUTPUT / "ct.png"
    target.write_bytes(picture.content)
    width, height = struct.unpack(">II", picture.content[16:24])  # the IHDR chunk of a PNG
    out.print(
        f"[bold]Seen:[/bold] {target.relative_to(ROOT)}, {width} × {height} pixels, "
        f"window {picture.headers['Packhorse-Window']}"
    )


def _compare(server: Server, sink: Sink, path: Path, image_id: int) -> bool:
    deadline = time.monotonic() + 20
    while True:
        rows = server.api("GET", "/forward/deliveries/").json()["results"]
        if rows and rows[0]["status"] == "delivered":
            break
        if time.monotonic() > deadline:
            out.print(f"[red]not delivered: {rows}[/red]")
            return False
        time.sleep(0.1)
    far = next(iter(sink.folder.iterdir()))
    near_digest, far_digest = (dataset_sha256(file, read_header(file)) for file in (path, far))
    near, distant = (hashlib.sha256(pixel_array(dcmread(file)).tobytes()).hexdigest() for file in (path, far))
    out.print(
        f"[bold]Forwarded[/bold] as image {image_id} by C-STORE after {rows[0]['attempts']} send(s): dataset digest "
        f"{'equal' if near_digest == far_digest else 'DIFFERENT'}, decoded pixels "
        f"{'equal' if near == distant else 'DIFFERENT'}."
    )
    return near_digest == far_digest and near == distant


if __name__ == "__main__":
    sys.exit(main())
