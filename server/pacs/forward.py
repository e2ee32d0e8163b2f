"""Sends images on: one durable job per delivery, tried again with growing pauses, parked for a person when hopeless."""

from collections.abc import Mapping

import structlog
from sqlalchemy import Connection

from server.pacs.destinations import Delivery, DeliveryOutcome, Destination
from server.pacs.ingest import blob_path
from server.worker import Done, Later
from storage import audit, instances, jobs
from storage.records import AuditEntry, DeliveryRecord, DeliveryState, ImageRecord, JobRecord
from storage.store import Store

log = structlog.get_logger()


class Forwarder:
    """Runs the jobs of kind `forward`; a job's subject is the delivery's id."""

    def __init__(self, store: Store, destinations: Mapping[str, Destination]) -> None:
        self._store = store
        self._destinations = destinations

    async def run_job(self, job: JobRecord) -> Done | Later:
        """One try. The attempt is counted before it begins, so that a re-send after a crash is seen."""

        def begin(tx: Connection) -> tuple[DeliveryRecord, ImageRecord] | None:
            delivery = jobs.find_delivery(tx, int(job.subject))
            image = instances.find(tx, job.site, delivery.image_id) if delivery else None
            if delivery is None or image is None or delivery.state is DeliveryState.DELIVERED:
                jobs.done(tx, job)
                return None
            if not image.is_shown:  # rejected, or another took its place: until it comes back
                jobs.hold_delivery(tx, delivery.delivery_id)
                jobs.done(tx, job)
                return None
            jobs.begin_attempt(tx, delivery.delivery_id)
            return delivery, image

        begun = await self._store.write(begin)
        if begun is None:
            return Done()
        delivery, image = begun
        destination = self._destinations.get(delivery.destination)
        if destination is None:
            result = Delivery(DeliveryOutcome.PARKED, None, "no such destination is configured")
        else:
            assert image.sop_class_uid and image.transfer_syntax_uid, "only DICOM is forwarded"
            result = await destination.send(
                blob_path(self._store.blobs, image.site, image.blob_sha256), image.sop_class_uid,
                image.transfer_syntax_uid)
        return await self._end(job, delivery, result)

    async def _end(self, job: JobRecord, delivery: DeliveryRecord, result: Delivery) -> Done | Later:
        states = {DeliveryOutcome.DELIVERED: DeliveryState.DELIVERED, DeliveryOutcome.RETRY: DeliveryState.WAITING,
                  DeliveryOutcome.PARKED: DeliveryState.PARKED}
        status = f"{result.dimse_status:04X}" if result.dimse_status is not None else None

        def unit(tx: Connection) -> None:
            jobs.end_attempt(tx, delivery.delivery_id, states[result.outcome], status, result.detail or None)
            audit.append(tx, AuditEntry(
                job.site, "delivery.attempt", subject=f"image/{delivery.image_id}", outcome=result.outcome,
                detail={"destination": delivery.destination, "attempt": delivery.attempts + 1, "status": status}))
            if result.outcome is DeliveryOutcome.DELIVERED:
                jobs.done(tx, job)
            elif result.outcome is DeliveryOutcome.PARKED:
                jobs.failed(tx, job, result.detail)

        await self._store.write(unit)
        return Later(result.detail) if result.outcome is DeliveryOutcome.RETRY else Done()
