"""What `reconcile` compares, and what of a decision is acted on."""

from alembic import op

revision = "streams_0002"
down_revision = "streams_0001"


def upgrade() -> None:
    """Add columns that older code leaves alone."""
    op.execute("""
ALTER TABLE known_emergency ADD COLUMN officer_id text;
CREATE INDEX known_emergency_open ON known_emergency (emergency_id) WHERE is_open;
ALTER TABLE decision ADD COLUMN answer bytea;
-- When the orders or the link changed: replicas look only at what changed lately.
ALTER TABLE camera ADD COLUMN changed_at timestamptz NOT NULL DEFAULT now();
CREATE INDEX camera_changed ON camera (changed_at);
""")
