"""Events, their pictures, and clips."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

SEARCHED = ("class_name", "zone", "kind", "acknowledged_unix_ms")


def upgrade() -> None:
    op.create_table(
        "events",
        sa.Column("id", sa.String(40), primary_key=True),
        sa.Column("node", sa.String(255), nullable=False),
        sa.Column("stream", sa.String(64), nullable=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("class_name", sa.String(255), nullable=False),
        sa.Column("track_id", sa.Integer),
        sa.Column("zone", sa.String(32), nullable=False),
        sa.Column("direction", sa.String(16), nullable=False),
        sa.Column("started_unix_ms", sa.BigInteger, nullable=False),
        sa.Column("ended_unix_ms", sa.BigInteger),
        sa.Column("interrupted", sa.Boolean, nullable=False),
        sa.Column("score", sa.Float, nullable=False),
        sa.Column("box", sa.String(120)),
        sa.Column("acknowledged_unix_ms", sa.BigInteger),
        sa.Column("acknowledged_by", sa.String(255)),
        sa.Column("snapshot_bytes", sa.Integer, nullable=False),
    )
    op.create_index("events_by_time", "events", ["started_unix_ms", "id", "stream", *SEARCHED])
    op.create_index("events_by_stream", "events", ["stream", "started_unix_ms", "id", *SEARCHED])
    op.create_table(
        "snapshots",
        sa.Column(
            "event_id",
            sa.String(40),
            sa.ForeignKey("events.id", ondelete="CASCADE"),
            primary_key=True,
        ),
        sa.Column("jpeg", sa.LargeBinary, nullable=False),
    )
    op.create_table(
        "clips",
        sa.Column("id", sa.String(40), primary_key=True),
        sa.Column("node", sa.String(255), nullable=False),
        sa.Column("stream", sa.String(64), nullable=False),
        sa.Column("event_id", sa.String(40)),
        sa.Column("started_unix_ms", sa.BigInteger, nullable=False),
        sa.Column("duration_ms", sa.Integer, nullable=False),
        sa.Column("bytes", sa.BigInteger, nullable=False),
        sa.Column("width", sa.Integer, nullable=False),
        sa.Column("height", sa.Integer, nullable=False),
        sa.Column("thumbnail", sa.LargeBinary),
    )
    op.create_index("clips_by_stream", "clips", ["stream", "started_unix_ms", "id"])
    op.create_index("clips_by_time", "clips", ["started_unix_ms", "id"])


def downgrade() -> None:
    op.drop_table("clips")
    op.drop_table("snapshots")
    op.drop_table("events")
