"""Earlier officers of an emergency who may be involved, and what of cameras' reports could not be right.

`unexpected_report` is not written any more: what cameras make up is counted, see `chassis.recent.Tally`. A later release drops it.
"""

from alembic import op

revision = "streams_0006"
down_revision = "streams_0005"


def upgrade() -> None:
    """Add what older code leaves alone."""
    op.execute("""
ALTER TABLE known_emergency ADD COLUMN involved text[] NOT NULL DEFAULT '{}';
CREATE TABLE camera_fault (
    agency_id text NOT NULL,
    camera_id text NOT NULL,
    field     text NOT NULL,
    value     text NOT NULL,
    first_at  timestamptz NOT NULL,
    PRIMARY KEY (agency_id, camera_id, field, value)
);
""")
