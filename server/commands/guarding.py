"""What `packhorse fsck` says of triggers; with `--repair` it makes ours anew and takes others away, audited.

Whoever opened the lock may have changed history while it was open: the chain is walked first, and what that came to is
part of the audit row, as is what stood in a trigger's place. The triggers are made also where the chain is bad, for
without them it only gets worse.
"""

from sqlalchemy import Connection

from server.commands.audit import ACTOR, fault_of_chain
from server.commands.terminal import out, with_store
from server.settings import Settings
from storage import audit
from storage.records import DEFAULT_SITE, AuditEntry
from storage.triggers import FOREIGN, make_missing, missing_triggers, said_of

MOST_CHARACTERS = 2000
"""Of what stood in a trigger's place, in the audit row."""


def tell_triggers(settings: Settings, *, mend: bool) -> bool:
    """Name each that is gone or not ours; `mend` puts them right. Gives whether all is well: they and the chain."""
    gone = with_store(settings, lambda store: store.read(missing_triggers))
    if not gone:
        return True
    if not mend:
        for name in gone:
            remedy = "it is taken away" if name.startswith(FOREIGN) else "it is made anew"
            out.print(f"{said_of(name)}: find out who it was; {remedy} (with --repair)")
        return False
    fault = fault_of_chain(settings)

    def unit(tx: Connection) -> list[str]:
        made = make_missing(tx)
        if made:
            stood = {name: statement[:MOST_CHARACTERS] for name, statement in made.items() if statement}
            audit.append(tx, AuditEntry(
                DEFAULT_SITE, "audit.triggers_made", ACTOR, outcome="chain_bad" if fault else "ok",
                detail={"triggers": list(made), "stood": stood, "chain": fault or "whole"}))
        return list(made)

    for name in with_store(settings, lambda store: store.write(unit)):
        out.print(f"{said_of(name)}: done")
    if fault:
        out.print(f"the audit chain is bad: {fault}")
    return fault is None
