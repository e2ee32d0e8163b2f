"""Logging a browser in and out: a one-time code for an HttpOnly cookie, and the page that opens with such a code."""

import base64
import hashlib
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from typing import Annotated, Any, ClassVar

from aiohttp import hdrs, web
from pydantic import Field
from sqlalchemy import Connection

from server.access import ANYBODY, allows, is_open
from server.auth import Principal, principal_of
from server.bodies import Body, json_body, parse
from server.describing import TEXT, UNREADABLE, Answer, Described, answered
from server.entrance.described import Caller
from server.entrance.service import is_live
from server.errors import RequestError
from server.identity import cookies
from server.identity.attempts import Attempts
from server.identity.cookies import BaseUrl
from server.identity.secrets import fingerprint, new_secret
from storage import audit, logins, tokens
from storage.records import AuditEntry, BrowserRecord, TokenRecord, now, timestamp
from storage.store import Store

NoteRefusal = Callable[[str | None, str], Awaitable[None]]
"""(address, why): audits a refused login, once per address and minute."""
LOGGED_IN_FOR = timedelta(hours=12)
SCRIPT = """
const told = document.querySelector("p"), code = new URLSearchParams(location.hash.slice(1)).get("code");
history.replaceState(null, "", location.pathname);
const body = code ? {method: "POST", headers: {"Content-Type": "application/json"}, body: JSON.stringify({code})} : {};
fetch("/api/v1/login", body).then(async (answer) => {
  const said = await answer.json();
  const until = answer.ok && new Date(said.expires_at).toLocaleString();
  told.textContent = answer.ok ? `Signed in as ${said.role}, until ${until}.` : code ? said.detail : "Not signed in.";
  document.querySelector("small").hidden = answer.ok;
}, () => { told.textContent = "The server does not answer."; });
"""
PAGE = ("<!doctype html><html lang=en><meta charset=utf-8><title>Packhorse: sign in</title><h1>Packhorse</h1>"
        "<p role=status>One moment…</p><p><small hidden>A link that signs in is made by "
        "<code>packhorse token code ID</code>, and printed when the server starts at a terminal.</small></p>"
        f'<p><a href="/docs">Every call of this server</a></p><script>{SCRIPT}</script></html>')
POLICY = ("default-src 'none'; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
          f"script-src 'sha256-{base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()}'")


class Login(Body):
    """`POST login`."""

    code: Annotated[str, Field(min_length=1, max_length=200)]


class LoginHandlers:
    """One method per call."""

    described: ClassVar = {
        "log_in": Described(
            answered(Caller, "The cookie is set"), Login,
            refusals=(*UNREADABLE, "csrf_refused", "unauthorized", "too_many_attempts")),
        "show": Described(answered(Caller, "Who calls")),
        "log_out": Described({204: Answer("The cookie is good no more")}),
        "page": Described({200: Answer("A page", TEXT, ("text/html",))})}

    def __init__(self, store: Store, attempts: Attempts, note_refusal: NoteRefusal, base_url: BaseUrl) -> None:
        self._store = store
        self._note_refusal = note_refusal
        self._attempts = attempts
        self._base_url = base_url

    def routes(self) -> list[web.RouteDef]:
        """Every route, with and without the trailing slash."""
        calls = [("POST", "/api/v1/login", self.log_in), ("GET", "/api/v1/login", self.show),
                 ("POST", "/api/v1/logout", self.log_out), ("GET", "/login", self.page)]
        return [web.route(verb, path, handler) for verb, name, handler in calls for path in (name, f"{name}/")]

    @is_open
    async def log_in(self, request: web.Request) -> web.Response:
        """A one-time code for a cookie.

        RequestError `unauthorized` for a code that is not good, or not any more.
        """
        base_url = self._base_url(request)
        cookies.check_own_page(request, base_url)  # else another site's page could log its own user in here
        code = parse(Login, await json_body(request)).code
        cookie, before = new_secret(), cookies.cookie_of(request, base_url)

        def unit(tx: Connection) -> tuple[TokenRecord, BrowserRecord] | None:
            used = logins.use_code(tx, fingerprint(code))
            record = tokens.find(tx, used.token_id) if used is not None else None
            if used is None or record is None or not is_live(record):
                return None
            if before is not None:
                logins.end_browser(tx, fingerprint(before))
            ends_at = timestamp(now() + LOGGED_IN_FOR)
            browser = BrowserRecord(fingerprint(cookie), record.site, record.token_id, timestamp(),
                                    min(ends_at, record.expires_at or ends_at, used.maker_expires_at or ends_at),
                                    maker=used.maker)
            logins.add_browser(tx, browser)
            audit.append(tx, AuditEntry(record.site, "login.accepted", record.token_id, f"token/{record.token_id}",
                                        request.remote, detail={"maker": used.maker} if used.maker else None))
            return record, browser

        good = await self._store.read(lambda tx: logins.code_is_good(tx, fingerprint(code)))
        made = await self._store.write(unit) if good else None
        if made is None:
            self._attempts.failed(request.remote)
            why = "the code is not known, was used, or its five minutes are over"
            await self._note_refusal(request.remote, why)
            raise RequestError("unauthorized", why)
        record, browser = made
        response = _answer({
            **_scopes(record), "token_id": record.token_id, "expires_at": browser.expires_at,
            "csrf_token": cookies.csrf_token(cookie)})
        seconds = (datetime.fromisoformat(browser.expires_at) - now()).total_seconds()
        cookies.hand_out(response, base_url, cookie, max(1, int(seconds)))
        return response

    @allows(*ANYBODY, heeds_scope=True)
    async def show(self, request: web.Request) -> web.Response:
        """Who calls; to a browser also what it must send beside its cookie."""
        who, cookie = principal_of(request), cookies.cookie_of(request, self._base_url(request))
        told = {**_scopes(who), "token_id": who.name, "expires_at": who.expires_at}
        if cookie is not None and hdrs.AUTHORIZATION not in request.headers:
            browser = await self._store.read(lambda tx: logins.find_browser(tx, fingerprint(cookie)))
            if browser is not None:
                told |= {"expires_at": browser.expires_at, "csrf_token": cookies.csrf_token(cookie)}
        return _answer(told)

    @allows(*ANYBODY, heeds_scope=True)
    async def log_out(self, request: web.Request) -> web.Response:
        """The cookie is good no more, within a second; its token goes on. Again: no change."""
        base_url, who = self._base_url(request), principal_of(request)
        cookie = cookies.cookie_of(request, base_url)

        def unit(tx: Connection) -> None:
            if cookie is not None and logins.end_browser(tx, fingerprint(cookie)):
                audit.append(tx, AuditEntry(who.site, "login.ended", who.name, f"token/{who.name}", request.remote))

        await self._store.write(unit)
        response = web.Response(status=204, headers={hdrs.CACHE_CONTROL: "no-store"})
        cookies.take_back(response, base_url)
        return response

    @is_open
    async def page(self, _request: web.Request) -> web.Response:
        """Takes the code out of the fragment, and logs in."""
        return web.Response(text=PAGE, content_type="text/html", headers={
            "Content-Security-Policy": POLICY, "Referrer-Policy": "no-referrer", hdrs.CACHE_CONTROL: "no-store",
            "X-Content-Type-Options": "nosniff"})


def _scopes(one: Principal | TokenRecord) -> dict[str, Any]:
    return {name: getattr(one, name) for name in ("role", "site", "visit_id", "radiology_order_id", "created_by_id")}


def _answer(body: dict[str, Any]) -> web.Response:
    return web.json_response(body, headers={hdrs.CACHE_CONTROL: "no-store"})
