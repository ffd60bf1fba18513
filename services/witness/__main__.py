"""Wires the witness together."""

from chassis.clock import SystemClock
from chassis.errors import Misconfigured
from chassis.files import read_ed25519
from chassis.run import App, run
from chassis.web import serve, server_tls
from tlog.note import COSIGNATURE, NoteError, Signer, Verifier

from services.witness.api import WitnessApi
from services.witness.service import WitnessService
from services.witness.settings import WitnessSettings
from services.witness.store import Seen


async def main(app: App[WitnessSettings]) -> None:
    """Build the parts and start them."""
    settings = app.settings
    await app.serve_health(settings.health_listen)
    try:
        keys = [Verifier.parse(line.strip()) for line in settings.logs_file.read_text().splitlines() if line.strip()]
    except NoteError as error:
        raise Misconfigured(f"{settings.logs_file}: {error}") from error
    signer = Signer(settings.name, read_ed25519(settings.key_file), COSIGNATURE)
    service = WitnessService({key.name: key for key in keys}, signer, Seen(settings.state_dir), SystemClock())
    runner = await serve(WitnessApi(service).app(), settings.listen, server_tls(settings.cert_file, settings.private_key_file))
    app.resources.push_async_callback(runner.cleanup)
    await app.ready()


if __name__ == "__main__":
    run("witness", WitnessSettings, main)
