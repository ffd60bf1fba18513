"""Decisions, activations and camera links."""

from alembic import op
from chassis.db import BASE_TABLES

revision = "streams_0001"
down_revision = None


def upgrade() -> None:
    """Create the streams service's tables."""
    op.execute(BASE_TABLES)
    op.execute("""
CREATE TABLE known_emergency (
    emergency_id uuid PRIMARY KEY,
    version      bigint  NOT NULL,
    epoch        int     NOT NULL,
    agency_id    text    NOT NULL,
    is_open      boolean NOT NULL,
    exercise     boolean NOT NULL
);
CREATE TABLE decision (
    emergency_id uuid NOT NULL,
    epoch        int  NOT NULL,
    agency_id    text NOT NULL,
    content      bytea NOT NULL,
    decided_by   text NOT NULL,
    accepted_at  timestamptz NOT NULL,
    -- The first decision wins, whoever brings it.
    PRIMARY KEY (emergency_id, epoch)
);
CREATE TABLE rejected_decision (
    emergency_id uuid NOT NULL,
    epoch        int  NOT NULL,
    decided_by   text NOT NULL,
    content_hash bytea NOT NULL,
    content      bytea NOT NULL,
    why          text NOT NULL,
    at           timestamptz NOT NULL,
    PRIMARY KEY (emergency_id, epoch, decided_by, content_hash)
);
CREATE TABLE activation (
    emergency_id     uuid NOT NULL,
    epoch            int  NOT NULL,
    camera_id        text NOT NULL,
    version          bigint NOT NULL,
    agency_id        text NOT NULL,
    officer_id       text NOT NULL,
    state            text NOT NULL,
    requested_at     timestamptz NOT NULL,
    expires_at       timestamptz NOT NULL,
    refusal_reason   text NOT NULL,
    no_camera_reason text NOT NULL,
    ordered_at       timestamptz,
    answered_at      timestamptz,
    device_time      timestamptz,
    traceparent      text NOT NULL,
    PRIMARY KEY (emergency_id, epoch, camera_id)
);
CREATE INDEX activation_by_camera ON activation (camera_id, agency_id, expires_at);
CREATE INDEX activation_requested ON activation (requested_at) WHERE state = 'REQUESTED';
CREATE TABLE replica (
    replica_id text PRIMARY KEY,
    seen_at    timestamptz NOT NULL
);
CREATE TABLE camera (
    agency_id      text NOT NULL,
    camera_id      text NOT NULL,
    orders_version bigint NOT NULL DEFAULT 1,
    link_id        uuid,
    replica_id     text,
    linked_at      timestamptz,
    boot_id        numeric,
    sequence       numeric,
    report         bytea,
    reported_at    timestamptz,
    -- With the agency: whoever connects first cannot take another agency's camera's place.
    PRIMARY KEY (agency_id, camera_id)
);
CREATE INDEX camera_by_replica ON camera (replica_id) WHERE link_id IS NOT NULL;
-- Orders that a camera says it handled and that nobody gave it.
CREATE TABLE unexpected_report (
    agency_id    text NOT NULL,
    camera_id    text NOT NULL,
    emergency_id uuid NOT NULL,
    epoch        int  NOT NULL,
    PRIMARY KEY (agency_id, camera_id, emergency_id, epoch)
);
""")
