"""A campaign of what the OpenAPI document allows, and of what it forbids: every answer is one that it tells of."""

import random
from pathlib import Path
from typing import Any

import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import seed as with_seed
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.checks import load_all_checks
from schemathesis.specs.openapi import checks

from tests import builders
from tests.campaigns.hostile import ALLOWED_5XX
from tests.campaigns.soundness import sound
from tests.server import Server, create, patch, upload_url

CHECKS = [
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_schema_conformance,
    checks.response_headers_conformance,
]
REAL = 2
"""One case in so many names things that are there."""


def documented_answers(folder: Path, seed: int, count: int) -> int:
    """Calls that schemathesis makes from `/openapi.json`: no 5xx but 501, 503, 507, and no answer that it hides."""
    load_all_checks()
    server = Server(folder, extra="[uploads]\nsync_wait_s = 1\nprogress_window_s = 1\n").start()
    ran = 0
    try:
        names = things(server, random.Random(seed))
        schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
        operations = [one.ok() for one in schema.get_all_operations()]
        for number, operation in enumerate(operations):
            share = count // len(operations) + (number < count % len(operations))
            forbidden = operation.as_strategy(generation_mode=GenerationMode.NEGATIVE)
            allowed = operation.as_strategy(generation_mode=GenerationMode.POSITIVE)
            negative = _sent(server, forbidden, names, seed, share // 2)
            ran += negative + _sent(server, allowed, names, seed, share - negative)
        sound(server)
    finally:
        server.stop()
    return ran


def things(server: Server, dice: random.Random) -> dict[str, list[str]]:
    """Sessions, uploads, images and studies in several states, by the name that paths give their ids."""
    sessions, uploads = [], []
    for number in range(4):
        content = dice.randbytes(1000)
        session = create(server, content, file_name="a.bin", radiology_order_id=number)
        sessions.append(session["session_id"])
        if number:
            uploads.append(upload_url(server, session["session_id"]))
        if number > 1:
            patch(server, uploads[-1], content[: 500 * (number - 1)])
    path = builders.ct(server.folder / "made.dcm", seed=dice.randrange(2**32))
    session = create(server, path.read_bytes())
    patch(server, upload_url(server, session["session_id"]), path.read_bytes())
    image = server.api("GET", f"/upload-sessions/{session['session_id']}/").json()["images"][0]
    return {
        "session_id": [*sessions, session["session_id"]],
        "upload_id": [url.rpartition("/")[2] for url in uploads],
        "image_id": [str(image["id"])],
        "study_instance_uid": [image["study_instance_uid"]],
        "visit_id": ["77"],
        "radiology_order_id": ["123"],
    }


def _sent(server: Server, cases: Any, names: dict[str, list[str]], seed: int, count: int) -> int:
    sent = 0
    @with_seed(seed)
    @settings(
        max_examples=max(1, count),
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
        print_blob=False,
    )
    @given(case=cases, chosen=st.integers(0, 1000))
    def send(case: Any, chosen: int) -> None:
        nonlocal sent
        for name in case.path_parameters or {}:
            if name in names and chosen % REAL == 0:
                case.path_parameters[name] = names[name][chosen // REAL % len(names[name])]
        sent += 1
        headers = dict(server.auth)
        if "text/event-stream" in str(case.operation.definition.raw["responses"]):
            headers["Accept"] = "application/json"  # a stream has no end to wait for
        answer = case.call(base_url=server.url, headers=headers, timeout=60)
        assert answer.status_code < 500 or answer.status_code in ALLOWED_5XX, (seed, case.as_curl_command())
        case.validate_response(answer, checks=CHECKS)

    while sent < count:  # where few cases differ, hypothesis stops early
        try:
            send()
        except Unsatisfiable:  # a call without any input cannot be made wrongly
            break
    return min(sent, count)
