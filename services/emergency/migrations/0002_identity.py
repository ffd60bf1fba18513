"""What tells presses apart."""

from alembic import op

revision = "emergency_0002"
down_revision = "emergency_0001"


def upgrade() -> None:
    """Add what older code leaves alone."""
    op.execute("""
ALTER TABLE press ADD COLUMN identity text;
CREATE INDEX press_by_identity ON press (identity, press_id DESC) WHERE identity IS NOT NULL;
""")
