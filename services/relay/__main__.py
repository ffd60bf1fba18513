"""Wires the relay together."""

import ssl

from chassis.bus import Publisher
from chassis.clock import SystemClock
from chassis.rpc import own_identity
from chassis.run import App, run, wait_for
from chassis.settings import RpcSettings
from chassis.web import serve, server_tls
from contracts.topics import MEDIA_CHAIN, MEDIA_SERVED
from media.files import FileShelf

from services.relay.api import IngestApi, ViewApi
from services.relay.events import RelayAnnouncer
from services.relay.peers import EvidenceLink, StreamsLink
from services.relay.service import SYNC_EVERY_S, RelayService
from services.relay.settings import RelaySettings

# A pause between two rounds of a loop, also one that fails at once.
_PAUSE_S = 0.1
_ACCOUNT_S = 10.0


async def main(app: App[RelaySettings]) -> None:
    """Build the parts, inside out, and start them."""
    settings = app.settings
    await app.serve_health(settings.rpc.health_listen)
    publisher = Publisher(settings.kafka)
    app.resources.push_async_callback(publisher.close)
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    link = StreamsLink(settings.streams_target, settings.rpc, settings.replica, settings.ingest_url, settings.view_url)
    keeper = EvidenceLink(settings.evidence_target, settings.rpc, settings.replica)
    announcer = RelayAnnouncer(publisher, settings.replica)
    service = RelayService(FileShelf(settings.data_dir), link, announcer, SystemClock(), settings.reserve_mib * 2**20)
    await service.recover()
    await service.look_at_room()

    # After the servers have ended, which end what they show.
    app.resources.push_async_callback(link.tell_the_last)
    app.resources.push_async_callback(announcer.publish_the_last)
    trust_domain = own_identity(settings.rpc).trust_domain
    for listen, page, tls in (
        (settings.ingest_listen, IngestApi(service, trust_domain).app(), _camera_tls(settings.rpc)),
        (settings.view_listen, ViewApi(service).app(), server_tls(settings.view_cert_file, settings.view_key_file)),
    ):
        runner = await serve(page, listen, tls)
        app.resources.push_async_callback(runner.cleanup)

    app.resources.push_async_callback(link.drain)
    app.repeat("sync", SYNC_EVERY_S, service.sync)
    app.repeat("room", SYNC_EVERY_S, service.look_at_room)
    app.repeat("renewal", _PAUSE_S, lambda: link.renew(lambda: service.grants, service.revoke))
    app.repeat("what was served", _PAUSE_S, link.tell)
    app.repeat("revocations", _PAUSE_S, lambda: link.watch(service.revoke))
    app.repeat("accounts", _ACCOUNT_S, service.account)
    app.repeat("chain heads and accounts", _PAUSE_S, announcer.publish)
    app.repeat("retirement", settings.retire_s, lambda: service.retire(keeper))

    async def report() -> None:
        await link.report(service)

    await wait_for("the streams service", report)
    app.repeat("report", _PAUSE_S, report)
    await app.ready()
    await app.topics(settings.kafka, (MEDIA_CHAIN, MEDIA_SERVED))


def _camera_tls(rpc: RpcSettings) -> ssl.SSLContext:
    """Whoever sends must have a certificate of ours."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(rpc.ca_file))
    context.load_cert_chain(rpc.cert_file, rpc.key_file)
    context.verify_mode = ssl.CERT_REQUIRED
    return context


if __name__ == "__main__":
    run("relay", RelaySettings, main)
