"""`packhorse doctor`: is everything there that a server needs, and what to do where it is not."""

import asyncio
from dataclasses import asdict
from functools import partial
from typing import Annotated

import typer

from server import config
from server.auditing.head import fault_of
from server.commands.terminal import ConfigOption, out
from server.keeping.doctor import Doctor
from server.keeping.findings import Verdict, is_well
from server.keeping.manifest import KEYS
from server.pacs.dimse.echo import echo
from server.sessions.receipts import Signer

SIGNS = {Verdict.FINE: "  ok   ", Verdict.WARNING: "  look ", Verdict.WRONG: "  WRONG"}


def doctor(
    config_file: ConfigOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="For machines.")] = False,
) -> None:
    """Examine disk, database, keys, ports, peers, beside a running server or without one; exit 1 if something is wrong.
    """
    settings = config.load(config_file)
    config.check_places(settings)
    signer = Signer(settings.data_path / KEYS)
    examiner = Doctor(settings, partial(echo, settings.dicom.ae_title),
                      partial(fault_of, path=settings.audit_head_path, signer=signer))
    findings = [*examiner.examine(), *asyncio.run(examiner.peers())]
    if as_json:
        out.print_json(data={"well": is_well(findings), "findings": [asdict(one) for one in findings]})
    else:
        for one in findings:
            out.print(f"{SIGNS[one.verdict]} {one.check}: {one.what}")
            for line in one.remedy.splitlines():
                out.print(f"          {line}")
    raise typer.Exit(0 if is_well(findings) else 1)
