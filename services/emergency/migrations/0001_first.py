"""Emergencies, presses, waiting cancels and what the activations came to."""

from alembic import op
from chassis.db import BASE_TABLES

revision = "emergency_0001"
down_revision = None


def upgrade() -> None:
    """Create the emergency service's tables."""
    op.execute(BASE_TABLES)
    op.execute("""
CREATE TABLE emergency (
    emergency_id uuid PRIMARY KEY,
    radio        text        NOT NULL,
    agency_id    text        NOT NULL,
    is_open      boolean     NOT NULL,
    version      bigint      NOT NULL,
    -- Raised by every change that a watcher sees, results of activations included.
    shown        bigint      NOT NULL DEFAULT 1,
    shown_at     timestamptz NOT NULL DEFAULT now(),
    document     jsonb       NOT NULL
);
-- One open emergency per radio, for each agency whose gateways heard it.
CREATE UNIQUE INDEX emergency_one_open_per_radio ON emergency (radio, agency_id) WHERE is_open;
CREATE INDEX emergency_by_radio ON emergency (radio, emergency_id DESC);
CREATE INDEX emergency_by_agency ON emergency (agency_id, emergency_id DESC);
CREATE INDEX emergency_open ON emergency (shown_at) WHERE is_open;
CREATE INDEX emergency_shown ON emergency (shown_at);
CREATE TABLE press (
    press_id     bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    key          text        NOT NULL,
    request_key  text        NOT NULL,
    request_id   text        NOT NULL,
    received_at  timestamptz NOT NULL,
    emergency_id uuid        NOT NULL REFERENCES emergency,
    version      bigint      NOT NULL,
    outcome      text        NOT NULL
);
CREATE INDEX press_by_key ON press (key, received_at DESC);
CREATE INDEX press_by_request_key ON press (request_key, received_at DESC);
CREATE INDEX press_by_request ON press (request_id);
CREATE TABLE pending_cancel (
    key  text PRIMARY KEY,
    at   timestamptz NOT NULL,
    fact jsonb       NOT NULL
);
CREATE TABLE activation (
    emergency_id uuid   NOT NULL,
    epoch        int    NOT NULL,
    camera_id    text   NOT NULL,
    version      bigint NOT NULL,
    result       bytea  NOT NULL,
    PRIMARY KEY (emergency_id, epoch, camera_id)
);
""")
