"""`packhorse webhook`: tries a receiver out."""

import asyncio
import json
import uuid
from typing import Annotated

import aiohttp
import typer

from server import config
from server.commands.terminal import ConfigOption, out
from server.errors import AppError, ConfigurationError
from server.webhooks.service import Webhook, post
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
    key = secret if secret is not None else known.get(url)
    if key is None:
        raise ConfigurationError(f"webhooks: {url} is not configured: give --secret")
    body = json.dumps({"type": "webhook.test", "timestamp": timestamp(), "data": {}}).encode()

    async def work() -> int:
        async with aiohttp.ClientSession() as session:
            return await post(session, Webhook(url, key, ("*",)), f"evt_test_{uuid.uuid4().hex}", body)

    try:
        status = asyncio.run(work())
    except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
        raise AppError(f"{url} does not answer: {error or type(error).__name__}") from error
    out.print(f"{url} answered {status}")
    raise typer.Exit(0 if 200 <= status < 300 else 1)
