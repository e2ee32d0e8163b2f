"""`packhorse webhook`: tries a receiver out."""

import asyncio
import json
import uuid
from typing import Annotated

import aiohttp
import typer
from pydantic import ValidationError

from server import config, settings
from server.commands.terminal import ConfigOption, out
from server.errors import AppError, ConfigurationError
from server.webhooks.service import TIMEOUT_S, Webhook, post
from server.wording import first_fault
from storage.records import timestamp

app = typer.Typer(no_args_is_help=True, help="Webhooks.")


@app.command("test")
def send_test(
    url: Annotated[str, typer.Argument(help="The receiver; its secret is taken from the configuration.")],
    config_file: ConfigOption = None,
    secret: Annotated[str | None, typer.Option(help="The secret of a receiver that is not configured.")] = None,
) -> None:
    """Send a signed test event and tell the answer; exit 1 unless it is taken."""
    known = {one.url: one.secret for one in config.load(config_file).webhooks}
    _check(url, secret)
    key = secret if secret is not None else known.get(url)
    if key is None:
        raise ConfigurationError(f"webhooks: {url} is not configured: give --secret")
    body = json.dumps({"type": "webhook.test", "timestamp": timestamp(), "data": {}}).encode()

    async def work() -> int:
        async with aiohttp.ClientSession() as session:
            return await post(session, Webhook(url, key, ("*",)), f"evt_test_{uuid.uuid4().hex}", body)

    try:
        status = asyncio.run(work())
    except ValueError as error:  # before the network is asked
        raise ConfigurationError(f"webhooks: {url} cannot be called: {error}") from error
    except TimeoutError as error:
        raise AppError(f"{url} does not answer within {TIMEOUT_S:g} s") from error
    except (aiohttp.ClientError, OSError) as error:
        raise AppError(f"{url} does not answer: {str(error) or type(error).__name__}") from error
    out.print(f"{url} answered {status}")
    raise typer.Exit(0 if 200 <= status < 300 else 1)


def _check(url: str, secret: str | None) -> None:
    """Whether they could stand in the configuration. ConfigurationError."""
    try:
        settings.Webhook(url=url, secret=secret or "")
    except ValidationError as error:
        key, _, why = first_fault(error, field="setting", thing="a table")
        raise ConfigurationError(f"{'--secret' if key == 'secret' else url}: {why}") from error
