"""What a route asks of its caller when its handler does not say."""

from aiohttp import web

from server.access import ANYBODY, access_to, allows, is_open
from server.auth import Role


async def handler(_request: web.Request) -> web.Response:
    """A handler that declares nothing."""
    return web.Response()


def test_a_route_that_declares_nothing_is_for_admins_only_and_not_for_narrowed_tokens_or_signed_urls() -> None:
    access = access_to(handler, "GET")
    assert access.roles == {Role.ADMIN}
    assert not (access.open or access.heeds_scope or access.by_url)


def test_a_route_is_for_whom_it_declares() -> None:
    @allows(*ANYBODY, heeds_scope=True)
    async def declared(_request: web.Request) -> web.Response:
        return web.Response()

    assert access_to(declared, "GET").roles == set(Role) and access_to(declared, "GET").heeds_scope
    assert access_to(is_open(handler), "GET").open
    del handler.declared_access  # type: ignore[attr-defined]  # the mark is an attribute of the function
