"""Who is handed to whom: the only file that knows every feature."""

from dataclasses import dataclass, replace
from datetime import timedelta

from aiohttp import web

from server.auditing.handlers import AuditHandlers
from server.auditing.head import AuditHead
from server.connections import Connections
from server.entrance.handlers import TokenHandlers
from server.entrance.login import LoginHandlers
from server.entrance.service import TokenService, deriving
from server.events.feed import Feed
from server.events.handlers import EventHandlers
from server.events.studies import Studies
from server.gate import Gate
from server.identity.attempts import Attempts
from server.identity.authenticator import Authenticator
from server.identity.oidc import Issuer
from server.identity.signatures import Signatures
from server.integrity.checking import Checker
from server.integrity.readback import Readback
from server.integrity.scrub import Scrubber
from server.keeping.rebuild import Rebuilder
from server.metrics.counts import Counts
from server.metrics.measured import MeasuredFiles
from server.metrics.sharing import Shared
from server.orders.announcing import name_order
from server.orders.handlers import OrderHandlers
from server.orders.inbox import Inbox
from server.orders.progress import Progress
from server.orders.service import OrderService
from server.pacs.arrivals import Arrivals
from server.pacs.callers import RefusedCallers
from server.pacs.destinations import DicomDestination
from server.pacs.dimse.listener import DicomListener, ListenerSettings, Peer
from server.pacs.forward import Forwarder
from server.pacs.handlers import ImageHandlers
from server.pacs.ingest import Ingester
from server.pacs.operator_handlers import OperatorHandlers
from server.pacs.presentation import image_json
from server.pacs.quarantine import Quarantine
from server.pacs.rejection import Rejection
from server.pacs.render import Renderer
from server.privacy import secret_at
from server.proxies import base_url_of
from server.reads import Reads
from server.seldom import Seldom
from server.sessions.completion import Completion
from server.sessions.handlers import SessionHandlers
from server.sessions.image_receipts import ImageReceipts
from server.sessions.intake import Intake
from server.sessions.limits import Limits
from server.sessions.receipts import Signer
from server.sessions.service import SessionService
from server.sessions.standing import UploadStanding
from server.settings import Settings, peer_networks
from server.tls import Certificate
from server.tus.appending import Appender
from server.tus.expiry import ExpirySweeper
from server.tus.finishing import Finisher
from server.tus.flushing import Flushes
from server.tus.gaps import Gaps
from server.tus.joining import Joiner
from server.tus.links import Links
from server.tus.locks import MachineLocks, UploadLocks
from server.tus.neighbours import Neighbours
from server.tus.pace import Pace
from server.tus.receiving import Receiver
from server.tus.resource import FilesResource
from server.tus.rows import UploadRows
from server.tus.rufh_handlers import RufhHandlers
from server.tus.tus_handlers import TusHandlers
from server.tus.upkeep import Upkeep
from server.tus.uploads import Uploads
from server.webhooks.handlers import WebhookHandlers
from server.webhooks.service import Webhook, Webhooks
from server.worker import Backoff, Tasks, Worker
from storage.store import Store


@dataclass(frozen=True, slots=True)
class Services:
    """Everything that runs, wired."""

    settings: Settings
    store: Store
    signer: Signer
    authenticator: Authenticator
    gate: Gate
    uploads: Uploads
    upkeep: Upkeep
    expiry: ExpirySweeper
    locks: UploadLocks
    connections: Connections
    renderer: Renderer
    worker: Worker
    webhooks: Webhooks
    scrubber: Scrubber
    audit_head: AuditHead
    feed: Feed
    studies: Studies
    listener: DicomListener | None
    certificate: Certificate
    counts: Counts
    shared: Shared
    routes: tuple[web.RouteDef, ...]


def wire(settings: Settings, store: Store, signer: Signer, tasks: Tasks) -> Services:
    """Make every service and hand it what it needs."""
    given = settings.uploads
    max_size_bytes, expires_after = given.max_size_bytes, timedelta(days=given.expires_after_days)
    base_url = base_url_of(settings.http)
    counts = Counts()
    url_key, attempts = secret_at(settings.data_path / "urls.secret"), Attempts()
    signatures = Signatures(url_key)
    issuer = Issuer(settings.auth.oidc) if settings.auth.oidc.issuer else None
    authenticator = Authenticator(store, settings.auth.mode, signatures, attempts, issuer)
    seldom = Seldom(store)
    gate = Gate(authenticator, base_url, seldom)
    renderer = Renderer()
    destinations = tuple(dict.fromkeys(rule.destination for rule in settings.forward.rules))
    quarantines = settings.orders.on_contradiction == "quarantine"
    filing = Ingester(
        store, renderer.same_content, destinations=destinations, accept_other=given.accept_other == "keep",
        quarantines=quarantines)
    ingester = MeasuredFiles(filing, counts)
    completion = Completion(
        store, ingester, signer, tasks, given.sync_wait_s,
        on_stored=(lambda: worker.wake("forward")) if destinations else lambda: None)
    limits = Limits(
        store, max_size_bytes=max_size_bytes, max_open=given.max_open_per_principal,
        max_staged_bytes=given.max_staged_bytes_per_principal)
    intake = Intake(store, completion, limits, name_order, expires_after)
    standing = UploadStanding(store, limits)
    locks = MachineLocks(settings.data_path)
    rows = UploadRows(store, standing, limits, expires_after)
    finisher = Finisher(store, standing, completion, rows, max_size_bytes)
    neighbours = Neighbours(settings.data_path, tasks)
    flushes = Flushes(store, rows, tasks, neighbours)
    gaps = Gaps(store, rows, flushes, neighbours)
    appender = Appender(
        store, standing, limits, rows, Receiver(store, rows), finisher, flushes, gaps, max_size_bytes)
    uploads = Uploads(
        store, intake, standing, locks, rows, appender, finisher, Joiner(store, standing, limits, rows), gaps, seldom)
    upkeep = Upkeep(store, standing, locks, rows, uploads, gaps)
    checker = Checker(store, locks)
    readback = Readback(store, checker, tasks)
    sessions = SessionService(store, intake, limits, readback, name_order)
    forwarder = Forwarder(store, {
        one.name: DicomDestination(one.name, one.ae_title, one.host, one.port, settings.dicom.ae_title)
        for one in settings.forward.destinations})
    webhooks = Webhooks(
        store, tuple(Webhook(one.url, one.secret, tuple(one.events)) for one in settings.webhooks),
        settings.http.public_url)
    calls = webhooks.job_kinds()
    worker = Worker(store, {"ingest": completion.run_job, "forward": forwarder.run_job,
                            **dict.fromkeys(calls, webhooks.run_job)},
                    at_once=calls, backoff=Backoff(first_s=settings.forward.first_retry_s))
    arrivals = Arrivals(store, ingester, on_stored=lambda: worker.wake("forward"), received=counts.received("dimse"))
    reads, feed = Reads(seldom), Feed(store, settings.events)
    links, pace = Links(base_url), Pace(given.progress_floor_bytes_per_s, given.progress_window_s)
    tus = TusHandlers(uploads, intake, links, replace(pace, received=counts.received("tus")), max_size_bytes)
    rufh = RufhHandlers(uploads, intake, links, replace(pace, received=counts.received("rufh")), max_size_bytes)
    routes = (
        *FilesResource(store, uploads, rows, tus, rufh, links, reads, max_size_bytes, expires_after).routes(),
        *SessionHandlers(store, sessions, uploads.complete, image_json, base_url, signatures.signed).routes(),
        *ImageHandlers(
            store, renderer, reads, ImageReceipts(store, signer, readback).receipt, base_url,
            signatures.signed).routes(),
        *OperatorHandlers(
            Rejection(store, on_restored=lambda: worker.wake("forward")),
            Quarantine(store, filing, readback.verify)).routes(),
        *OrderHandlers(
            store, OrderService(store, Progress(store), quarantines=quarantines), Inbox(store), image_json,
            base_url, signatures.signed).routes(),
        *WebhookHandlers(webhooks).routes(),
        *TokenHandlers(TokenService(store, deriving(url_key)), base_url).routes(),
        *LoginHandlers(store, attempts, authenticator.note_refusal, base_url).routes(),
        *AuditHandlers(store, seldom).routes(),
        *EventHandlers(feed, base_url, gate.still_lets_in).routes(),
    )
    return Services(
        settings, store, signer, authenticator, gate, uploads, upkeep,
        ExpirySweeper(store, upkeep.expire), locks, Connections(given.header_timeout_s), renderer, worker, webhooks,
        Scrubber(store, checker, mib_per_s=settings.integrity.scrub_mib_per_s,
                 every_days=settings.integrity.scrub_every_days),
        AuditHead(store, settings.audit_head_path, signer), feed,
        Studies(store, timedelta(seconds=settings.events.study_stable_s)),
        _listener(settings, arrivals, RefusedCallers(store)), Certificate(settings), counts,
        Shared(settings.data_path / "metrics", counts), routes)


def rebuilder_of(store: Store, renderer: Renderer) -> Rebuilder:
    """Who makes the index anew: nothing is forwarded again, and nothing that was taken once is refused."""
    return Rebuilder(store, Ingester(store, renderer.same_content))


def _listener(settings: Settings, arrivals: Arrivals, refused: RefusedCallers) -> DicomListener | None:
    dicom = settings.dicom
    if not dicom.enabled:
        return None
    return DicomListener(ListenerSettings(
        host=dicom.host, port=dicom.port, ae_title=dicom.ae_title, spool=settings.data_path / "spool",
        check_called_ae_title=dicom.check_called_ae_title, require_known_peers=settings.require_known_peers,
        peers=tuple(Peer(peer.ae_title, peer_networks(peer)) for peer in dicom.peers)
        if settings.require_known_peers else ()), arrivals.receive, refused.note)
