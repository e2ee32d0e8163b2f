"""What the durable queue promises: of what is due, the most urgent goes first."""

from sqlalchemy import Connection

from server.linking import BY_OPERATOR, link
from storage import instances, jobs, orders
from storage.records import ImageRecord, OrderRecord
from storage.store import Store

FIELDS = {"site": "default", "kind": "attachment", "size_bytes": 1, "flags": "", "door": "tus"}


def waiting(tx: Connection, sha256: str, priority: str | None = None) -> ImageRecord:
    """An image on its way to a destination."""
    image = instances.add(tx, blob_sha256=sha256, **FIELDS)
    jobs.add_delivery(tx, "default", image.id, "far", priority)
    return image


def claimed(tx: Connection) -> int | None:
    """The image whose delivery is taken next."""
    job = jobs.claim(tx, ("forward",), 60)
    delivery = jobs.find_delivery(tx, int(job.subject)) if job else None
    return delivery.image_id if delivery else None


async def test_deliveries_go_out_by_priority_then_by_age(store: Store) -> None:
    def unit(tx: Connection) -> tuple[list[int], list[int | None]]:
        one, two, urgent, raised = (waiting(tx, name, priority) for name, priority in (
            ("1", None), ("2", "ROUTINE"), ("3", "URGENT"), ("4", None)))
        jobs.raise_deliveries(tx, "default", raised.id, "STAT")
        jobs.raise_deliveries(tx, "default", urgent.id, "ROUTINE")  # nothing falls
        jobs.raise_deliveries(tx, "other", one.id, "STAT")  # nor does another site's word count
        return [raised.id, urgent.id, one.id, two.id], [claimed(tx) for _ in range(5)]

    expected, taken = await store.write(unit)
    assert taken == [*expected, None]


async def test_an_image_of_an_urgent_order_goes_first(store: Store) -> None:
    def order(tx: Connection, name: str, priority: str) -> OrderRecord:
        return orders.put(tx, "default", name, visit_id=None, accession_number=None, verified=True,
                          attributes={"priority": priority})

    def unit(tx: Connection) -> tuple[list[int], list[int | None]]:
        first, second = waiting(tx, "1"), waiting(tx, "2")
        for image, name, priority in ((first, "a", "ROUTINE"), (second, "b", "STAT")):
            link(tx, image, order(tx, name, priority), BY_OPERATOR, "somebody")
        return [second.id, first.id], [claimed(tx), claimed(tx)]

    expected, taken = await store.write(unit)
    assert taken == expected
