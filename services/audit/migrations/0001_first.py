"""Leaves, the tree's nodes, checkpoints, and the keys of what is personal."""

from alembic import op
from chassis.db import BASE_TABLES

revision = "audit_0001"
down_revision = None


def upgrade() -> None:
    """Create the audit service's tables."""
    op.execute(BASE_TABLES)
    op.execute("""
CREATE TABLE leaf (
    index        bigint PRIMARY KEY,
    record_id    uuid NOT NULL UNIQUE,
    producer     text NOT NULL,
    producer_seq bigint NOT NULL,
    action       text NOT NULL,
    agency_id    text NOT NULL,
    emergency_id text NOT NULL,
    at           timestamptz NOT NULL,
    leaf         bytea NOT NULL,
    key_id       uuid NOT NULL,
    -- By a name that only the master key can make.
    target       bytea NOT NULL,
    sealed       bytea NOT NULL,
    UNIQUE (producer, producer_seq)
);
CREATE INDEX leaf_by_agency ON leaf (agency_id, index);
CREATE INDEX leaf_by_key ON leaf (key_id, index);
CREATE INDEX leaf_by_target ON leaf (target, index);
CREATE INDEX leaf_by_emergency ON leaf (emergency_id, index) WHERE emergency_id <> '';
-- Hashes of complete subtrees; level 0 are the leaves'.
CREATE TABLE node (
    level int NOT NULL,
    index bigint NOT NULL,
    hash  bytea NOT NULL,
    PRIMARY KEY (level, index)
);
CREATE TABLE checkpoint (
    size bigint PRIMARY KEY,
    root bytea NOT NULL,
    note text NOT NULL
);
-- A line of a note: what a witness said of a checkpoint.
CREATE TABLE cosignature (
    size    bigint NOT NULL REFERENCES checkpoint,
    witness text NOT NULL,
    line    text NOT NULL,
    PRIMARY KEY (size, witness)
);
-- What seals an actor's personal parts. Forgetting is deleting the row: who comes back after that gets another key.
CREATE TABLE subject_key (
    key_id  uuid PRIMARY KEY,
    subject bytea NOT NULL UNIQUE,
    wrapped bytea NOT NULL
);
COMMENT ON TABLE subject_key IS 'never changed';
-- Keys that were forgotten, each with a name that only the master key can make: a key that is just gone is not forgotten.
CREATE TABLE forgotten (
    key_id uuid PRIMARY KEY,
    mark   bytea NOT NULL
);
""")
    for table in ("leaf", "node", "checkpoint", "cosignature", "forgotten"):
        op.execute(f"COMMENT ON TABLE {table} IS 'append-only'")
