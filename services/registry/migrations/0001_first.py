"""Agencies, officers, radios, cameras and dated holds."""

from alembic import op
from chassis.db import BASE_TABLES

revision = "registry_0001"
down_revision = None


def upgrade() -> None:
    """Create the registry's tables."""
    op.execute(BASE_TABLES)
    op.execute("""
CREATE TABLE agency (
    agency_id    text PRIMARY KEY,
    display_name text NOT NULL
);
CREATE TABLE officer (
    officer_key  bigint GENERATED ALWAYS AS IDENTITY UNIQUE,
    officer_id   text PRIMARY KEY,
    agency_id    text NOT NULL REFERENCES agency,
    display_name text NOT NULL
);
CREATE INDEX officer_by_agency ON officer (agency_id, officer_id);
CREATE TABLE radio (
    radio_key    bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    wacn         int NOT NULL,
    system_id    int NOT NULL,
    unit_id      int NOT NULL,
    agency_id    text NOT NULL REFERENCES agency,
    alias        text NOT NULL,
    duty_version bigint NOT NULL DEFAULT 1,
    trickled_at  timestamptz NOT NULL DEFAULT now(),
    UNIQUE (wacn, system_id, unit_id)
);
CREATE INDEX radio_by_trickle ON radio (trickled_at);
CREATE TABLE camera (
    camera_key   bigint GENERATED ALWAYS AS IDENTITY UNIQUE,
    camera_id    text PRIMARY KEY,
    agency_id    text NOT NULL REFERENCES agency,
    model        text NOT NULL
);
""")
    # One holder at a time is a rule of the database: no two overlapping spans of one thing. Ranges over integer
    # keys do without the btree_gist extension, which not every PostgreSQL has.
    for table, item, key in (
        ("radio_hold", "radio", "radio_key"),
        ("camera_hold", "camera", "camera_key"),
    ):
        op.execute(f"""
CREATE TABLE {table} (
    hold_id     bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    {key}       bigint    NOT NULL REFERENCES {item} ({key}),
    officer_key bigint    NOT NULL REFERENCES officer (officer_key),
    held        tstzrange NOT NULL CHECK (NOT isempty(held)),
    CONSTRAINT {table}_one_holder EXCLUDE USING gist (int8range({key}, {key}, '[]') WITH &&, held WITH &&)
);
CREATE INDEX {table}_by_officer ON {table} (officer_key);
""")
    op.execute("""
CREATE TABLE unit_hold (
    hold_id     bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    unit_id     text      NOT NULL,
    officer_key bigint    NOT NULL REFERENCES officer (officer_key),
    held        tstzrange NOT NULL CHECK (NOT isempty(held)),
    CONSTRAINT unit_hold_one_unit EXCLUDE USING gist (int8range(officer_key, officer_key, '[]') WITH &&, held WITH &&)
);
""")
