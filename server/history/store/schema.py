"""The tables as they are now. A change here needs a step in `versions/`; a test compares both."""

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
)

METADATA = MetaData()

EVENTS = Table(
    "events",
    METADATA,
    Column("id", String(40), primary_key=True),
    # Which server wrote it: after a crash it closes what it had left open.
    Column("node", String(255), nullable=False),
    Column("stream", String(64), nullable=False),
    Column("kind", String(16), nullable=False),
    Column("class_name", String(255), nullable=False),
    Column("track_id", Integer),
    Column("zone", String(32), nullable=False),
    Column("direction", String(16), nullable=False),
    Column("started_unix_ms", BigInteger, nullable=False),
    Column("ended_unix_ms", BigInteger),
    Column("interrupted", Boolean, nullable=False),
    Column("score", Float, nullable=False),
    # Corners in shares of the picture, as JSON.
    Column("box", String(120)),
    Column("acknowledged_unix_ms", BigInteger),
    Column("acknowledged_by", String(255)),
    Column("snapshot_bytes", Integer, nullable=False),
    # Searches walk through one of these in the order of time and look at nothing else.
    Index(
        "events_by_time",
        "started_unix_ms",
        "id",
        "stream",
        "class_name",
        "zone",
        "kind",
        "acknowledged_unix_ms",
    ),
    Index(
        "events_by_stream",
        "stream",
        "started_unix_ms",
        "id",
        "class_name",
        "zone",
        "kind",
        "acknowledged_unix_ms",
    ),
)

# Apart from the events, so that searches do not read pictures.
SNAPSHOTS = Table(
    "snapshots",
    METADATA,
    Column("event_id", String(40), ForeignKey("events.id", ondelete="CASCADE"), primary_key=True),
    Column("jpeg", LargeBinary, nullable=False),
)

CLIPS = Table(
    "clips",
    METADATA,
    Column("id", String(40), primary_key=True),
    Column("node", String(255), nullable=False),
    Column("stream", String(64), nullable=False),
    Column("event_id", String(40)),
    Column("started_unix_ms", BigInteger, nullable=False),
    Column("duration_ms", Integer, nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Column("width", Integer, nullable=False),
    Column("height", Integer, nullable=False),
    Column("thumbnail", LargeBinary),
    Index("clips_by_stream", "stream", "started_unix_ms", "id"),
    Index("clips_by_time", "started_unix_ms", "id"),
)
