"""What the world has been told of cameras."""

from alembic import op

revision = "streams_0005"
down_revision = "streams_0004"


def upgrade() -> None:
    """Add columns that older code leaves alone."""
    op.execute("""
ALTER TABLE camera ADD COLUMN told_at timestamptz, ADD COLUMN told_version bigint NOT NULL DEFAULT 0,
    ADD COLUMN told_linked boolean NOT NULL DEFAULT false, ADD COLUMN told_boot_id numeric, ADD COLUMN told_sequence numeric;
""")
