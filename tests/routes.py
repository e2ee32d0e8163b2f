"""Every route of the real application, with what it declares."""

from dataclasses import dataclass
from pathlib import Path

from server import config
from server.access import Access, declared_by
from server.app import create_app
from server.lifecycle import open_services


@dataclass(frozen=True)
class Route:
    """One verb on one path, without its optional last slash; `access` is None where it declares nothing."""

    method: str
    path: str
    access: Access | None

    def __str__(self) -> str:
        return f"{self.method} {self.path}"


async def routes_of_the_app(folder: Path) -> list[Route]:
    """Once each; HEAD only where it is not GET's shadow."""
    path = folder / "packhorse.toml"
    path.write_text("[dicom]\nenabled = false\n")
    found = {}
    async with open_services(config.load(path)) as (services, _tasks):
        for route in create_app(services).router.routes():
            assert route.resource is not None
            declared = declared_by(route.handler)
            access = declared if declared is None or isinstance(declared, Access) else declared.get(route.method)
            name = route.resource.canonical.rstrip("/")
            if route.method != "HEAD" or name.startswith("/files"):
                found[route.method, name] = Route(route.method, name, access)
    return list(found.values())
