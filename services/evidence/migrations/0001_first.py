"""Recordings, segments, holds, and what is known of emergencies."""

from alembic import op
from chassis.db import BASE_TABLES

revision = "evidence_0001"
down_revision = None


def upgrade() -> None:
    """Create the evidence service's tables."""
    op.execute(BASE_TABLES)
    op.execute("""
CREATE TABLE recording (
    recording_id uuid PRIMARY KEY,
    version      bigint NOT NULL,
    agency_id    text NOT NULL,
    camera_id    text NOT NULL,
    officer_id   text NOT NULL,
    emergency_id uuid NOT NULL,
    began_at     timestamptz NOT NULL,
    ended_at     timestamptz,
    state        text NOT NULL,
    retain_until timestamptz NOT NULL,
    -- Said here too, so that a lock on this row is a lock on its holds.
    held         boolean NOT NULL,
    delete_after timestamptz,
    deleted_at   timestamptz
);
CREATE INDEX recording_by_agency ON recording (agency_id, recording_id);
CREATE INDEX recording_by_camera ON recording (agency_id, camera_id, began_at);
CREATE INDEX recording_by_emergency ON recording (emergency_id);
CREATE INDEX recording_kept ON recording (retain_until) WHERE state = 'KEPT' AND NOT held AND ended_at IS NOT NULL;
CREATE INDEX recording_marked ON recording (delete_after) WHERE state = 'MARKED';
CREATE INDEX recording_deleting ON recording (recording_id) WHERE state = 'DELETING';
CREATE TABLE segment (
    recording_id   uuid NOT NULL,
    segment_id     text NOT NULL,
    relay_id       text NOT NULL,
    pieces         bigint NOT NULL,
    size           bigint NOT NULL,
    chain          bytea NOT NULL,
    received_at    timestamptz NOT NULL,
    captured_from  timestamptz,
    captured_until timestamptz,
    deleted_at     timestamptz,
    missing        boolean NOT NULL DEFAULT false,
    PRIMARY KEY (recording_id, segment_id, relay_id)
);
CREATE TABLE hold (
    hold_id      uuid PRIMARY KEY,
    recording_id uuid NOT NULL REFERENCES recording,
    reason       text NOT NULL,
    note         text NOT NULL,
    emergency_id uuid,
    placed_by    bytea NOT NULL,
    placed_at    timestamptz NOT NULL,
    released_by  bytea,
    released_at  timestamptz,
    release_note text NOT NULL,
    lapsed       boolean NOT NULL
);
CREATE UNIQUE INDEX hold_of_recording ON hold (recording_id, emergency_id) WHERE NOT lapsed;
CREATE INDEX hold_by_recording ON hold (recording_id);
CREATE INDEX hold_by_emergency ON hold (emergency_id) WHERE released_at IS NULL;
CREATE TABLE known_emergency (
    emergency_id uuid PRIMARY KEY,
    version      bigint NOT NULL,
    agency_id    text NOT NULL,
    cleared_at   timestamptz,
    spares       boolean NOT NULL
);
CREATE TABLE activated (
    emergency_id uuid NOT NULL,
    agency_id    text NOT NULL,
    camera_id    text NOT NULL,
    officer_id   text NOT NULL,
    since        timestamptz NOT NULL,
    PRIMARY KEY (emergency_id, agency_id, camera_id, officer_id)
);
CREATE INDEX activated_by_camera ON activated (agency_id, camera_id, since);
CREATE TABLE retention (
    agency_id text PRIMARY KEY,
    days      int NOT NULL CHECK (days > 0)
);
""")
