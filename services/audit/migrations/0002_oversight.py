"""What oversight looks at, and what it has noticed."""

from alembic import op

revision = "audit_0002"
down_revision = "audit_0001"


def upgrade() -> None:
    """Create oversight's tables."""
    op.execute("""
-- How far each producer's records have come; `count` are its leaves.
CREATE TABLE producer (
    producer  text PRIMARY KEY,
    highest   bigint NOT NULL,
    count     bigint NOT NULL,
    newest_at timestamptz NOT NULL,
    heard_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
    gap_since timestamptz
);
INSERT INTO producer (producer, highest, count, newest_at)
SELECT producer, max(producer_seq), count(*), max(at) FROM leaf GROUP BY producer;
-- The first leaf that was not looked at yet, and the first whose observation was not judged yet.
CREATE TABLE progress (
    one      boolean PRIMARY KEY DEFAULT true CHECK (one),
    observed bigint NOT NULL DEFAULT 0,
    judged   bigint NOT NULL DEFAULT 0
);
INSERT INTO progress DEFAULT VALUES;
-- What of a leaf the rules look at: persons by the ids of their keys, officers and texts by names that only the master key can make.
CREATE TABLE observation (
    index        bigint PRIMARY KEY,
    at           timestamptz NOT NULL,
    agency_id    text NOT NULL,
    action       text NOT NULL,
    who          text NOT NULL,
    emergency_id text NOT NULL,
    grant_id     text NOT NULL,
    session_id   text NOT NULL,
    officer      text NOT NULL,
    text         text NOT NULL,
    disposition  text NOT NULL
);
CREATE INDEX observation_by_agency ON observation (agency_id, at);
CREATE INDEX observation_by_time ON observation (at);
-- A grant by its relay, by who gave it, and by the log.
CREATE TABLE account (
    grant_id       text PRIMARY KEY,
    served_bytes   bigint,
    last_byte_at   timestamptz,
    served_over    boolean NOT NULL DEFAULT false,
    served_since   timestamptz,
    version        bigint,
    agency_id      text,
    bytes          bigint,
    revoked_at     timestamptz,
    end_cause      text,
    ended_at       timestamptz,
    ended_since    timestamptz,
    issued_index   bigint,
    issued_by      text NOT NULL DEFAULT '',
    ended_index    bigint,
    recorded_bytes bigint NOT NULL DEFAULT 0,
    is_judged      boolean NOT NULL DEFAULT false,
    began_at       timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE INDEX account_open ON account (began_at) WHERE NOT is_judged;
CREATE INDEX account_by_time ON account (began_at);
CREATE TABLE alert (
    alert_id    uuid PRIMARY KEY,
    rule        text NOT NULL,
    key         text NOT NULL,
    agency_id   text NOT NULL,
    explanation text NOT NULL,
    evidence    bigint[] NOT NULL,
    concerns    text NOT NULL,
    raised_at   timestamptz NOT NULL,
    due_at      timestamptz NOT NULL,
    reviewer    text NOT NULL DEFAULT '',
    outcome     text,
    resolved_at timestamptz,
    resolved_by text NOT NULL DEFAULT '',
    UNIQUE (rule, key)
);
CREATE INDEX alert_by_agency ON alert (agency_id, alert_id);
CREATE TABLE reviewer (
    agency_id text NOT NULL,
    person    text NOT NULL,
    PRIMARY KEY (agency_id, person)
);
""")
