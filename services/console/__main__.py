"""Wires the console together."""

import ssl

from chassis.rpc import connect
from chassis.run import App, run
from chassis.web import serve

from services.console.api import ConsoleApi
from services.console.peers import Streams
from services.console.settings import ConsoleSettings


async def main(app: App[ConsoleSettings]) -> None:
    """Build the parts and start them."""
    settings = app.settings
    await app.serve_health(settings.rpc.health_listen)
    streams = Streams(connect(settings.streams_target, settings.rpc))
    runner = await serve(ConsoleApi(streams, settings.view_sources).app(), settings.page_listen, _tls(settings))
    app.resources.push_async_callback(runner.cleanup)
    await app.ready()


def _tls(settings: ConsoleSettings) -> ssl.SSLContext | None:
    """None: something before the console ends TLS."""
    if settings.page_cert_file is None:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(settings.page_cert_file, settings.page_key_file)
    return context


if __name__ == "__main__":
    run("console", ConsoleSettings, main)
