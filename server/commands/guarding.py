"""What `packhorse fsck` says of triggers that are gone or changed; with `--repair` it makes them anew, audited.

Whoever opened the lock may have changed history while it was open: the chain is walked first, and what that came to is
part of the audit row. The triggers are made also where the chain is bad, for without them it only gets worse.
"""

from sqlalchemy import Connection

from server.commands.audit import ACTOR, fault_of_chain
from server.commands.terminal import out, with_store
from server.settings import Settings
from storage import audit
from storage.records import DEFAULT_SITE, AuditEntry
from storage.triggers import make_missing, missing_triggers


def tell_triggers(settings: Settings, *, mend: bool) -> bool:
    """Name each that is gone; `mend` makes them anew. Gives whether all is well: they and the chain."""
    gone = with_store(settings, lambda store: store.read(missing_triggers))
    if not gone:
        return True
    if not mend:
        for name in gone:
            out.print(f"trigger gone or changed: {name}: find out who it was; it is made anew (with --repair)")
        return False
    fault = fault_of_chain(settings)

    def unit(tx: Connection) -> list[str]:
        made = make_missing(tx)
        if made:
            audit.append(tx, AuditEntry(
                DEFAULT_SITE, "audit.triggers_made", ACTOR, outcome="chain_bad" if fault else "ok",
                detail={"triggers": made, "chain": fault or "whole"}))
        return made

    for name in with_store(settings, lambda store: store.write(unit)):
        out.print(f"trigger gone or changed: {name}: done")
    if fault:
        out.print(f"the audit chain is bad: {fault}")
    return fault is None
