"""What viewers and others have to know of a session: the microphone is off, there was no room for its media."""

from alembic import op

revision = "streams_0004"
down_revision = "streams_0003"


def upgrade() -> None:
    """Add columns that older code leaves alone."""
    op.execute("""
ALTER TABLE camera ADD COLUMN audio_muted boolean NOT NULL DEFAULT false;
ALTER TABLE session ADD COLUMN audio_muted boolean NOT NULL DEFAULT false;
ALTER TABLE session ADD COLUMN not_kept_at timestamptz;
-- A camera that comes back after it was given up streams again.
DROP INDEX session_of_emergency;
CREATE UNIQUE INDEX session_of_emergency ON session (emergency_id, epoch, camera_id) WHERE end_cause <> 'CAMERA_LOST';
ALTER TABLE relay ADD COLUMN is_full boolean NOT NULL DEFAULT false;
""")
