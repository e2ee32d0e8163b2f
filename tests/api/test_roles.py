"""Each route with each role, scope and site, by real requests: who may call gets in, who may not gets 403 or 404."""

import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import requests

from server.auth import IMPLIED, Role
from tests.builders import ct
from tests.routes import Route, routes_of_the_app
from tests.server import Server, patch, sha256, upload_metadata

SITES, VISITS = ("default", "south"), ("77", "78")
ABSENT = {"delivery_id": "999999999", "quarantine_id": "999999999", "code": "not_found"}
"""What cannot be there in this test: who may call is told 404 by the handler, who may not 403 by the gate."""
LAST = ("retry", "cancel", "report_failure", "DELETE", "logout", "reject")


@dataclass(frozen=True)
class Caller:
    """A token: its site, role, and the visit or order that narrows it."""

    site: str
    role: Role
    visit: str | None
    order: str | None
    token: str

    @property
    def is_narrowed(self) -> bool:
        return self.visit is not None or self.order is not None


@dataclass
class Target:
    """What is there of one visit in one site: ids for the parameters of paths."""

    site: str
    visit: str
    order: str
    ids: dict[str, str] = field(default_factory=dict)


class World:
    """One server, two sites, two visits in each."""

    def __init__(self, server: Server, folder: Path) -> None:
        self.server, self._folder = server, folder
        south = server.command("token", "create", "--role", "admin", "--site", "south").stdout.strip()
        self.admins = {"default": server.token, "south": south}
        self.callers: list[Caller] = []
        for site in SITES:
            for role in Role:
                self._add(site, role)
                for visit in VISITS:
                    self._add(site, role, visit_id=visit)
                self._add(site, role, radiology_order_id="o77")
        self.makers = {one.site: one for one in self.callers if one.role is Role.UPLOADER and not one.is_narrowed}

    def mint(self, site: str, **fields: Any) -> dict[str, Any]:
        answer = self.server.api("POST", "/tokens/", fields, token=self.admins[site])
        assert answer.status_code == 201, answer.text
        return dict(answer.json())

    def _add(self, site: str, role: Role, **scopes: str) -> None:
        token = self.mint(site, role=role, **scopes)["token"]
        self.callers.append(Caller(site, role, scopes.get("visit_id"), scopes.get("radiology_order_id"), token))

    def target(self, site: str, visit: str) -> Target:
        """A stored image with its session and its upload, and a token: fresh ones."""
        found, maker = Target(site, visit, f"o{visit}"), self.makers[site].token
        path = ct(self._folder / f"{uuid.uuid4().hex}.dcm")
        content = path.read_bytes()
        body = {"file_name": "a.dcm", "file_size": len(content), "checksum_sha256": sha256(content)}
        body |= {"radiology_order_id": found.order}
        made = self._api(maker, "POST", f"/visits/{visit}/radiology/upload-sessions/create_session/", body)
        root = f"/upload-sessions/{made['session_id']}"
        self._api(maker, "POST", f"{root}/upload_metadata/", {})
        upload = self._api(maker, "POST", f"{root}/upload_binary/", {"resume_from": 0})["upload_url"]
        bearer = {"Authorization": f"Bearer {maker}"}
        assert patch(self.server, upload, content, **bearer).headers["Packhorse-Status"] == "SYNCED"
        stored = self._api(maker, "GET", f"{root}/")
        found.ids |= {
            "upload_id": upload.rsplit("/", 1)[1],
            "session_id": made["session_id"],
            "visit_id": visit,
            "image_id": str(stored["server_image_id"]),
            "radiology_order_id": found.order,
            "study_instance_uid": stored["images"][0]["study_instance_uid"],
            "token_id": self.mint(site, role="viewer", visit_id=visit, radiology_order_id=found.order)["token_id"],
        }
        return found

    def _api(self, token: str, method: str, path: str, body: Any = None) -> dict[str, Any]:
        answer = self.server.api(method, path, body, token=token)
        assert answer.status_code < 300, answer.text
        return dict(answer.json())

    def call(self, route: Route, target: Target, who: Caller) -> requests.Response:
        """The request that a client would send there."""
        path = route.path
        for name, value in {**target.ids, **ABSENT}.items():
            path = path.replace("{" + name + "}", value)
        assert "{" not in path, f"{route}: say in this test what stands for its parameter"
        headers = {"Authorization": f"Bearer {who.token}"}
        if path.endswith("/events"):
            path += "?after=0"  # as plain JSON: a stream would not end
        if path.startswith("/files"):
            headers |= {"Tus-Resumable": "1.0.0"}
        if route.path == "/files/{upload_id}" and route.method in ("PATCH", "POST"):
            headers |= {"Upload-Offset": "0", "Content-Type": "application/offset+octet-stream"}
            headers |= {"X-HTTP-Method-Override": "PATCH"} if route.method == "POST" else {}
        if route.path == "/files":
            named = upload_metadata(radiology_order_id=target.order, visit_id=target.visit)
            headers |= {"Upload-Length": "5", "Upload-Metadata": named}
        return requests.request(
            route.method, self.server.url + path, headers=headers, json=self._body(route, target), timeout=30
        )

    def _body(self, route: Route, target: Target) -> Any:
        new = {"file_name": "a.bin", "file_size": 5, "checksum_sha256": sha256(uuid.uuid4().bytes)}
        new |= {"radiology_order_id": target.order}
        bodies: dict[str, Any] = {
            "create_session": new,
            "batch": {"sessions": [new]},
            "tokens": {"role": "viewer"},
            "login": {"code": "x"},
            "{token_id}": {"reason": "a test"},
            "resend": {"reason": "a test"},
            "cancel": {"reason": "a test"},
            "link": {"radiology_order_id": target.order, "reason": "a test"},
            "unlink": {"radiology_order_id": "nobodys", "reason": "a test"},
            "reject": {"reason": "a test", "code": "113001"},
            "restore": {"reason": "a test"},
            "accept": {"reason": "a test"},
            "acknowledge": {"server_image_id": int(target.ids["image_id"])},
            "{radiology_order_id}": {"visit_id": target.visit},
            "report_failure": {"error_code": "LOCAL_READ_ERROR"},
        }
        return bodies.get(route.path.rsplit("/", 1)[1]) if route.method in ("POST", "PUT", "DELETE") else None


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("roles")
    server = Server(folder / "server").start()
    yield World(server, folder)
    server.stop()


OF_ONE = ("session_id", "upload_id", "image_id", "study_instance_uid", "token_id")
PRIVATE = ("session_id", "upload_id", "study_instance_uid", "token_id")


def is_within(who: Caller, target: Target) -> bool:
    """Whether visit and order are the caller's, in its own site."""
    return who.visit in (None, target.visit) and who.order in (None, target.order)


def is_of_one(route: Route) -> bool:
    """Whether the path names something that is there for some and not for others."""
    order = route.method == "GET" and "{radiology_order_id}" in route.path
    return order or any("{" + name + "}" in route.path for name in OF_ONE)


def check(route: Route, target: Target, who: Caller, answer: requests.Response) -> None:
    """Fails, naming the case, unless the answer is the one that role, visit and site ask for."""
    access = route.access
    assert access is not None, f"{route} declares no role: see server/access.py"
    case = f"{route} of {target.site}/{target.visit} by {who}: {answer.status_code} {answer.text[:200]}"
    status, covers = answer.status_code, who.site == target.site and is_within(who, target)
    if route.path == "/metrics":  # lets addresses in too, so it looks at its callers itself
        assert (status == 200) == (Role.OPERATOR in IMPLIED[who.role] and not who.is_narrowed), case
    elif access.open:
        assert status != 403, case
    elif not IMPLIED[who.role] & access.roles or (who.is_narrowed and not access.heeds_scope):
        assert status == 403, case
    elif "{radiology_order_id}" in route.path and who.site != target.site and status == 200:
        told = answer.json()  # its own site's order of that name
        assert not told.get("images") and not told.get("results"), case
    elif route.path.endswith("/tokens/{token_id}/code") and covers and who.role is not Role.ADMIN:
        assert status == 403, case  # it lets in as another: for oneself and what one minted
    elif is_of_one(route):
        assert (status not in (401, 403, 404)) if covers else status == 404, case
    elif route.path.endswith(("create_session", "batch", "/files")) and not is_within(who, target):
        results = answer.json().get("results", []) if route.path.endswith("batch") else []
        assert (results[0]["status"] if results else status) == 403, case
    else:
        assert status not in (401, 403), case
    if not covers:
        assert not [name for name in PRIVATE if target.ids[name] in answer.text], case


@pytest.mark.slow
async def test_each_route_lets_in_whom_it_declares_and_shows_nobody_what_is_anothers(
    world: World, tmp_path: Path
) -> None:
    routes = await routes_of_the_app(tmp_path)
    routes.sort(key=lambda one: any(word in str(one) for word in LAST))
    targets = [world.target("default", "77"), world.target("default", "78")]
    outside = [one for one in world.callers if one.site == "south"]
    inside = [one for one in world.callers if one.site == "default"]
    count = 0
    for route in routes:
        if route.method == "OPTIONS":
            continue
        for target in targets:
            for who in (*outside, *inside):
                check(route, target, who, world.call(route, target, who))
                count += 1
    print(f"{count} requests")
    assert count >= len(routes) * len(world.callers)
