"""The last seconds of one stream as they were encoded, and the clip that goes on. On the loop."""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from server.clock import NS_PER_MS, NS_PER_S, now_ns, s_to_ns, unix_ms
from server.rtc.bitrate import Allowance
from server.rtc.fanout import Fanout
from server.rtc.picture_source import SharedPicture
from server.settings import ClipSettings

# A clip can begin at a key frame only; while nobody else asks for one, the recorder does.
KEYFRAME_EVERY_NS = 3 * NS_PER_S

# A picture, and when it came: one that is shown again while the source is silent is an old one.
Taken = tuple[int, SharedPicture]


@dataclass(slots=True)
class OpenClip:
    """A clip that goes on."""

    event_id: str
    started_unix_ms: int
    until_ns: int
    event_at_ns: int
    pictures: list[Taken]
    size: int
    going_on: set[str] = field(default_factory=set)
    """Ids of events that have not ended."""


class Reel:
    """The last seconds of one stream, and the clip that goes on; a viewer of its encoding."""

    def __init__(
        self,
        fanout: Fanout,
        settings: ClipSettings,
        rates: tuple[int, int],
        on_size: Callable[[int], bool],
        on_clip: Callable[[OpenClip], None],
    ) -> None:
        self._fanout = fanout
        self._settings = settings
        self._rates = rates
        self._on_size = on_size
        self._on_clip = on_clip
        self._ring: deque[Taken] = deque()
        self._keyframe_at_ns = 0
        self._wished_at_ns = 0
        self.open: OpenClip | None = None
        fanout.join(self)

    def close(self, *, lost: bool = False) -> None:
        """No more pictures; a clip that goes on ends here, and counts unless `lost`."""
        self._fanout.leave(self)
        if lost and self.open is not None:
            self._on_size(-self.open.size)
            self.open = None
        self.pause()

    def pause(self) -> None:
        """Nothing comes: an open clip ends here, and the next one begins with what is new."""
        self._finish()
        self._drop(len(self._ring))

    # --- as a viewer ---

    def allowance(self) -> Allowance:
        """It takes whatever the picture can make use of."""
        return Allowance(1.0, None, *self._rates)

    def send_picture(self, picture: SharedPicture) -> None:
        at_ns = now_ns()
        if picture.keyframe:
            self._keyframe_at_ns = at_ns
        elif at_ns - max(self._keyframe_at_ns, self._wished_at_ns) > KEYFRAME_EVERY_NS:
            self._wished_at_ns = at_ns
            self._fanout.wish_keyframe()
        has_room = self._on_size(picture.size)
        if self._ring or picture.keyframe:
            self._ring.append((at_ns, picture))
        else:
            self._on_size(-picture.size)
        self._trim(at_ns, has_room)
        clip = self.open
        if clip is None:
            return
        if clip.pictures or picture.keyframe:
            # The bytes are those of the ring for as long as they are in it; counted again, so
            # that what leaves the ring stays counted.
            self._on_size(picture.size)
            clip.pictures.append((at_ns, picture))
            clip.size += picture.size
        lasted_ns = at_ns - (clip.pictures[0][0] if clip.pictures else at_ns)
        over = at_ns > clip.until_ns and not clip.going_on
        if over or lasted_ns > s_to_ns(self._settings.clip_at_most_s) or not has_room:
            self._finish()

    # --- clips ---

    def event(self, event_id: str, *, ends: bool, lasts: bool) -> None:
        """An event began, or ended."""
        at_ns = now_ns()
        until_ns = at_ns + s_to_ns(self._settings.clip_after_s)
        clip = self.open
        if clip is None:
            if ends:
                return
            pictures = list(self._ring)
            size = sum(picture.size for _, picture in pictures)
            self._on_size(size)
            first_ns = pictures[0][0] if pictures else at_ns
            started_unix_ms = round(unix_ms()) - (at_ns - first_ns) // NS_PER_MS
            clip = self.open = OpenClip(event_id, started_unix_ms, until_ns, at_ns, pictures, size)
            if not pictures:
                self._fanout.wish_keyframe()
        clip.until_ns = max(clip.until_ns, until_ns)
        if lasts:
            clip.going_on.add(event_id)
        else:
            clip.going_on.discard(event_id)

    def _finish(self) -> None:
        clip, self.open = self.open, None
        if clip is not None:
            self._on_clip(clip)

    def _trim(self, at_ns: int, has_room: bool) -> None:
        """Drop whole groups of pictures from the front, as far as the next one is old enough, or
        all but the last where there is no room."""
        before_ns = at_ns - s_to_ns(self._settings.clip_before_s)
        keyframes = [index for index, (_, picture) in enumerate(self._ring) if picture.keyframe]
        for index in reversed(keyframes[1:]):
            if not has_room or self._ring[index][0] <= before_ns:
                self._drop(index)
                break

    def _drop(self, count: int) -> None:
        for _ in range(count):
            _, picture = self._ring.popleft()
            self._on_size(-picture.size)
