"""What users rely on is in the docs: settings, codes, routes, commands, conformance rows, links."""

import re
import tomllib
from functools import reduce
from pathlib import Path

import pytest
from pydantic import BaseModel

from server import config
from server.auth import Role
from server.errors import REQUEST_ERRORS, RETRYABLE_FROM_ZERO, SESSION_FAILURES
from server.sessions.handlers import SessionHandlers
from server.settings import Settings
from tests.campaigns.table import CAMPAIGNS
from tests.routes import routes_of_the_app

ROOT = Path(__file__).parents[2]
EXAMPLE = (ROOT / "config.example.toml").read_text()


def settings(model: type[BaseModel], prefix: str = "") -> dict[str, object]:
    """Every scalar setting with its default."""
    found: dict[str, object] = {}
    for name, field in model.model_fields.items():
        default = field.get_default(call_default_factory=True)
        if isinstance(default, BaseModel):
            found |= settings(type(default), f"{prefix}{name}.")
        else:
            found[prefix + name] = default
    return found


def test_the_example_documents_every_setting_with_its_default() -> None:
    documented = tomllib.loads(EXAMPLE)
    for key, default in settings(Settings).items():
        table, _, name = key.rpartition(".")
        if key == "dicom.require_known_peers":
            continue  # it has no default of its own
        if key in ("webhooks", "dicom.peers", "forward.destinations", "forward.rules"):
            assert f"[[{key}]]" in EXAMPLE
            continue
        assert reduce(lambda found, word: found[word], table.split("."), documented)[name] == default, key
    assert "# require_known_peers" in EXAMPLE


def test_the_example_as_it_is_sends_nothing_to_anybody(tmp_path: Path) -> None:
    path = tmp_path / "packhorse.toml"
    path.write_text(EXAMPLE)
    found = config.load(path)
    assert not (found.webhooks or found.forward.destinations or found.forward.rules or found.dicom.peers)
    assert config.warnings_of(found) == [] and "whsec_" not in re.sub("#.*", "", EXAMPLE)


def test_the_example_is_usable_with_its_blocks(tmp_path: Path) -> None:
    path = tmp_path / "packhorse.toml"
    path.write_text(re.sub(r"^# (?=\[\[|[a-z_]+ = )", "", EXAMPLE, flags=re.MULTILINE))
    found = config.load(path)
    assert found.forward.destinations[0].name == found.forward.rules[0].destination == "main-pacs"
    assert found.webhooks[0].url == "https://emr.example/hooks" and found.dicom.peers[0].ae_title == "MODALITY1"


def rows(page: str) -> dict[str, list[str]]:
    return {
        cells[0].strip("`"): cells
        for line in page.splitlines()
        if line.startswith("| `")
        if (cells := [cell.strip() for cell in line.strip("|").split("|")])
    }


def test_the_list_of_errors_is_closed() -> None:
    listed = rows((ROOT / "docs/errors.md").read_text())
    assert sorted(listed) == sorted([*REQUEST_ERRORS, *SESSION_FAILURES])
    for code, meaning in {**REQUEST_ERRORS, **SESSION_FAILURES}.items():
        cells = listed[code]
        assert (cells[1], cells[2], cells[-1]) == (
            str(meaning.status),
            "yes" if meaning.retryable else "no",
            meaning.title,
        )
        if code in SESSION_FAILURES:
            expected = "from 0" if code in RETRYABLE_FROM_ZERO else "kept" if meaning.retryable else "–"
            assert cells[3] == expected, code


def test_every_error_code_in_the_code_is_in_the_list() -> None:
    for path in [*ROOT.glob("server/**/*.py")]:
        for code in re.findall(r"(?:RequestError|SessionFailure)\(\s*\"(\w+)\"", path.read_text()):
            assert code in REQUEST_ERRORS or code in SESSION_FAILURES, (path, code)


def test_every_session_call_is_documented() -> None:
    page = (ROOT / "docs/sessions.md").read_text()
    handlers = SessionHandlers.__new__(SessionHandlers)
    for route in handlers.routes():
        last = route.path.rstrip("/").rsplit("/", 1)[1]
        assert last in page, route.path


async def test_every_route_is_documented_with_the_role_that_it_declares(tmp_path: Path) -> None:
    rows = [line for line in (ROOT / "docs/api.md").read_text().splitlines() if line.startswith("| `")]
    for route in await routes_of_the_app(tmp_path):
        assert route.access is not None, f"{route} declares no role: see server/access.py"
        path = route.path.rstrip("/").replace("/visits/{visit_id}/radiology", "")
        head, _, last = path.rpartition("/")
        own = [row for row in rows if f"`{route.method} {path}`" in row]
        row = own or [row for row in rows if f"`{route.method} {head}" in row and f"`/{last}`" in row]
        assert row, f"{route} is not in docs/api.md"
        told = row[0].rstrip(" |").rpartition("|")[2]
        declared = route.access
        words = set(re.findall("[a-z]+", re.sub(r"\(.*?\)|;.*", "", told)))
        expected = {"open"} if declared.open else {"any"} if declared.roles == set(Role) else set(declared.roles)
        assert words == expected, (str(route), told)
        assert declared.open or ("narrowed" in told) == declared.heeds_scope, (str(route), told)
        assert ("signed URL" in told) == declared.by_url, (str(route), told)


def test_every_command_is_documented() -> None:
    from server.cli import app

    page = (ROOT / "README.md").read_text()
    for command in app.registered_commands:
        assert command.callback is not None
        assert f"packhorse {command.name or command.callback.__name__}" in page
    for group in app.registered_groups:
        assert group.typer_instance is not None
        for command in group.typer_instance.registered_commands:
            assert f"packhorse {group.name} {command.name}" in page


@pytest.mark.parametrize("page", ["tus-conformance.md", "rufh-conformance.md", "dicom-conformance.md"])
def test_each_row_of_a_conformance_page_names_a_test_that_exists(page: str) -> None:
    found: dict[str, list[str]] = {}
    for path in (ROOT / "tests").rglob("test_*.py"):
        text = path.read_text()
        for name in re.findall(r"def (test_\w+)", text):
            found.setdefault(name, []).append(text)
    table = [
        line
        for line in (ROOT / "docs" / page).read_text().splitlines()
        if line.startswith("| ") and not line.startswith(("| rule", "| service", "|---"))
    ]
    assert table
    for line in table:
        named = re.findall(r"`(test_\w+)(?:\[([^\]]+)\])?`", line)
        assert named or "not offered" in line, line
        for name, case in named:
            assert len(found.get(name, [])) == 1, (name, line)  # one name, one test
            assert not case or f'"{case}"' in found[name][0], (case, line)


def test_links_between_pages_lead_somewhere() -> None:
    for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]:
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", path.read_text()):
            assert (path.parent / target).exists(), (path.name, target)


def test_locks_hold_hashes_and_no_host() -> None:
    for name in ("run", "dev", "tools"):
        lock = (ROOT / f"requirements/{name}.txt").read_text()
        assert "--hash=sha256:" in lock and "://" not in lock


def test_each_file_says_what_it_owns_and_packages_hold_a_docstring_only() -> None:
    for path in [*ROOT.glob("server/**/*.py"), *ROOT.glob("storage/**/*.py")]:
        text = path.read_text()
        assert text.startswith('"""'), path
        if path.name == "__init__.py":
            assert len(text.strip().splitlines()) == 1, path


def test_every_section_of_the_contract_that_code_cites_is_there() -> None:
    headings = set(re.findall(r"^## (\d+) ", (ROOT / "docs" / "contract.md").read_text(), re.MULTILINE))
    cited = {
        number
        for room in ("server", "storage", "tests", "docs")
        for path in (ROOT / room).rglob("*")
        if path.suffix in (".py", ".md") and "node_modules" not in path.parts
        for number in re.findall(r"contract §(\d+)", path.read_text())
    }
    assert cited and cited <= headings


def test_every_metric_and_every_fault_is_documented() -> None:
    page = (ROOT / "docs/operations.md").read_text()
    counted = (ROOT / "server/metrics/counts.py").read_text() + (ROOT / "server/metrics/exposition.py").read_text()
    for name in set(re.findall(r'"(packhorse_\w+)"', counted)):
        assert f"`{name}" in page, name
    for code in re.findall(r'Fault\(\s*"(\w+)"', (ROOT / "server/health.py").read_text()):
        assert f"| `{code}` |" in page, code


def test_each_row_of_the_threat_model_names_what_shows_it() -> None:
    text = (ROOT / "docs" / "threat-model.md").read_text()
    rows = re.findall(r"^\| .*\|$", text[text.index("|---") :], re.MULTILINE)
    assert len(rows) > 20
    for row in rows:
        shown = row.split("|")[-2]
        tests, campaigns = re.findall(r"`(tests/\S+)`", shown), re.findall(r"campaign `(\w+)`", shown)
        assert tests or campaigns, row
        assert all((ROOT / path).exists() for path in tests), row
        assert {*campaigns} <= {one.__name__ for one in CAMPAIGNS}, row
