"""Tracks by the day of their deletion, each device's newest fix, and agencies' wishes."""

from alembic import op
from chassis.db import BASE_TABLES

revision = "location_0001"
down_revision = None


def upgrade() -> None:
    """Create the location service's tables."""
    op.execute(BASE_TABLES)
    op.execute("""
CREATE TABLE unit (
    unit_key  int GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    agency_id text     NOT NULL,
    kind      smallint NOT NULL,
    unit_id   text     NOT NULL,
    UNIQUE (agency_id, kind, unit_id)
);
CREATE TABLE position (
    unit_key      int              NOT NULL,
    fixed_at      timestamptz      NOT NULL,
    source        smallint         NOT NULL,
    taken_at      timestamptz      NOT NULL,
    latitude      double precision NOT NULL,
    longitude     double precision NOT NULL,
    accuracy_m    real,
    speed_mps     real,
    course_deg    real,
    coarse        boolean NOT NULL,
    clock_suspect boolean NOT NULL,
    emergency_id  text    NOT NULL,
    visible_to    text    NOT NULL,
    delete_on     date    NOT NULL,
    -- The same fix twice is one point.
    PRIMARY KEY (unit_key, fixed_at, source, delete_on)
) PARTITION BY RANGE (delete_on);
CREATE TABLE latest (
    device   bytea PRIMARY KEY,
    fixed_at timestamptz NOT NULL,
    record   bytea       NOT NULL
) WITH (fillfactor = 50);
CREATE TABLE flushed (
    one boolean PRIMARY KEY DEFAULT true CHECK (one),
    at  timestamptz NOT NULL
);
INSERT INTO flushed (at) VALUES ('epoch');
CREATE TABLE privacy (
    agency_id       text PRIMARY KEY,
    idle_resolution int NOT NULL,
    keep_days       int NOT NULL,
    keep_idle_days  int NOT NULL
);
""")
    # The role that runs the service may make and drop days, and nothing else of the schema.
    op.execute("""
CREATE FUNCTION make_day(day date) RETURNS void LANGUAGE plpgsql SECURITY DEFINER SET search_path = location, pg_temp AS $$
BEGIN
    IF day < current_date OR day > current_date + 400 THEN
        RAISE EXCEPTION 'no points are kept until %', day;
    END IF;
    EXECUTE format('CREATE TABLE IF NOT EXISTS %I PARTITION OF position FOR VALUES FROM (%L) TO (%L)',
                   'position_' || to_char(day, 'YYYYMMDD'), day, day + 1);
END $$;
CREATE FUNCTION drop_days() RETURNS SETOF date LANGUAGE plpgsql SECURITY DEFINER SET search_path = location, pg_temp AS $$
DECLARE
    name text;
    day  date;
BEGIN
    FOR name IN SELECT c.relname FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
                 WHERE i.inhparent = 'position'::regclass ORDER BY c.relname LOOP
        day := to_date(right(name, 8), 'YYYYMMDD');
        IF day <= current_date THEN
            EXECUTE format('DROP TABLE %I', name);
            RETURN NEXT day;
        END IF;
    END LOOP;
END $$;
""")
