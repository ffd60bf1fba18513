"""Relays, stream sessions and viewer grants."""

from alembic import op

revision = "streams_0003"
down_revision = "streams_0002"


def upgrade() -> None:
    """Create tables that older code knows nothing of."""
    op.execute("""
CREATE TABLE relay (
    relay_id   text PRIMARY KEY,
    ingest_url text NOT NULL,
    view_url   text NOT NULL,
    draining   boolean NOT NULL,
    seen_at    timestamptz NOT NULL
);
CREATE TABLE session (
    session_id    uuid PRIMARY KEY,
    version       bigint NOT NULL,
    agency_id     text NOT NULL,
    camera_id     text NOT NULL,
    officer_id    text NOT NULL,
    emergency_id  uuid NOT NULL,
    epoch         int  NOT NULL,
    relay_id      text NOT NULL,
    state         text NOT NULL,
    degraded      boolean NOT NULL,
    created_at    timestamptz NOT NULL,
    live_at       timestamptz,
    last_media_at timestamptz,
    ended_at      timestamptz,
    end_cause     text NOT NULL,
    gaps          tstzrange[] NOT NULL,
    token         text NOT NULL,
    traceparent   text NOT NULL
);
-- A camera streams once, however many emergencies want it.
CREATE UNIQUE INDEX session_of_camera ON session (agency_id, camera_id) WHERE state <> 'ENDED';
CREATE INDEX session_by_camera ON session (agency_id, camera_id, created_at);
CREATE UNIQUE INDEX session_of_emergency ON session (emergency_id, epoch, camera_id);
CREATE TABLE viewer_grant (
    grant_id         uuid PRIMARY KEY,
    version          bigint NOT NULL,
    session_id       uuid NOT NULL,
    camera_id        text NOT NULL,
    emergency_id     uuid NOT NULL,
    agency_id        text NOT NULL,
    viewer           text NOT NULL,
    relay_id         text NOT NULL,
    token_hash       bytea NOT NULL UNIQUE,
    token_expires_at timestamptz NOT NULL,
    issued_at        timestamptz NOT NULL,
    expires_at       timestamptz NOT NULL,
    redeemed_at      timestamptz,
    lease_until      timestamptz,
    revoked_at       timestamptz,
    end_cause        text NOT NULL,
    ended_at         timestamptz,
    last_byte_at     timestamptz,
    bytes            bigint NOT NULL,
    skipped          bigint NOT NULL
);
CREATE INDEX viewer_grant_open ON viewer_grant (session_id) WHERE ended_at IS NULL;
CREATE INDEX viewer_grant_of_emergency ON viewer_grant (emergency_id) WHERE ended_at IS NULL;
""")
