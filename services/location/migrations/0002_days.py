"""Days are those of UTC, also where the server's are not; two replicas may look for due ones at once."""

from alembic import op

revision = "location_0002"
down_revision = "location_0001"


def upgrade() -> None:
    """Replace the functions that make and drop days."""
    op.execute("""
CREATE OR REPLACE FUNCTION make_day(day date) RETURNS void LANGUAGE plpgsql SECURITY DEFINER SET search_path = location, pg_temp AS $$
DECLARE
    today date := (now() AT TIME ZONE 'UTC')::date;
BEGIN
    IF day < today OR day > today + 400 THEN
        RAISE EXCEPTION 'no points are kept until %', day;
    END IF;
    PERFORM pg_advisory_xact_lock(hashtext('location/days'));
    EXECUTE format('CREATE TABLE IF NOT EXISTS %I PARTITION OF position FOR VALUES FROM (%L) TO (%L)',
                   'position_' || to_char(day, 'YYYYMMDD'), day, day + 1);
END $$;
CREATE OR REPLACE FUNCTION drop_days() RETURNS SETOF date LANGUAGE plpgsql SECURITY DEFINER SET search_path = location, pg_temp AS $$
DECLARE
    name text;
    day  date;
BEGIN
    IF NOT pg_try_advisory_xact_lock(hashtext('location/days')) THEN
        RETURN;  -- somebody is at it; there is a next time
    END IF;
    FOR name IN SELECT c.relname FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
                 WHERE i.inhparent = 'position'::regclass ORDER BY c.relname LOOP
        day := to_date(right(name, 8), 'YYYYMMDD');
        IF day <= (now() AT TIME ZONE 'UTC')::date THEN
            EXECUTE format('DROP TABLE IF EXISTS %I', name);
            RETURN NEXT day;
        END IF;
    END LOOP;
END $$;
""")
