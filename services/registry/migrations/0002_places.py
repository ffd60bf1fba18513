"""Vehicles, fixed cameras, and who alone may see where an officer is."""

from alembic import op

revision = "registry_0002"
down_revision = "registry_0001"


def upgrade() -> None:
    """Add what older code leaves alone."""
    op.execute("""
ALTER TABLE radio_hold ADD COLUMN visible_to text NOT NULL DEFAULT '';
CREATE TABLE vehicle (
    vehicle_id   text PRIMARY KEY,
    agency_id    text   NOT NULL REFERENCES agency,
    display_name text   NOT NULL,
    unit_id      text   NOT NULL,
    version      bigint NOT NULL DEFAULT 1
);
CREATE TABLE fixed_camera (
    camera_id    text PRIMARY KEY,
    agency_id    text             NOT NULL REFERENCES agency,
    display_name text             NOT NULL,
    latitude     double precision NOT NULL,
    longitude    double precision NOT NULL,
    version      bigint           NOT NULL DEFAULT 1
);
""")
