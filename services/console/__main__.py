"""Wires the console together."""

from chassis.rpc import connect
from chassis.run import App, run
from chassis.web import serve, server_tls

from services.console.api import ConsoleApi
from services.console.peers import Streams
from services.console.settings import ConsoleSettings


async def main(app: App[ConsoleSettings]) -> None:
    """Build the parts and start them."""
    settings = app.settings
    await app.serve_health(settings.rpc.health_listen)
    streams = Streams(connect(settings.streams_target, settings.rpc))
    tls = server_tls(settings.page_cert_file, settings.page_key_file)
    runner = await serve(ConsoleApi(streams, settings.view_sources).app(), settings.page_listen, tls)
    app.resources.push_async_callback(runner.cleanup)
    await app.ready()


if __name__ == "__main__":
    run("console", ConsoleSettings, main)
