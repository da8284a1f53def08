"""WHIP in (RFC 9725) and WHEP out (draft 03).

Both protocols are one exchange: POST an offer, get 201 with the answer and a session URL to
PATCH candidates to and to DELETE. What differs is which offer fits and who is opened. The
server never trickles and does not restart ICE.
"""

import hashlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

from aiohttp import web

from server.errors import (
    MalformedError,
    NoPreconditionError,
    NotFoundError,
    StalePreconditionError,
    TooLargeError,
    UnprocessableError,
    UnsupportedTypeError,
)
from server.hub import FULL, RUNGS
from server.registry import Registry
from server.sdp_rules import parse_fragment, publish_offer, view_offer
from server.settings import Settings
from server.stream import ANNOTATED, VIEWS
from server.streams import Streams, check_name

SDP = "application/sdp"
FRAGMENT = "application/trickle-ice-sdpfrag"

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Hold = Callable[[web.Request, str, Callable[[str], None], str], None]


class Peer(Protocol):
    """What a session URL may do to its session."""

    id: str

    @property
    def remote_credentials(self) -> tuple[str, str]: ...

    async def add_candidates(self, lines: tuple[str, ...]) -> None: ...


class OfferTypeError(UnsupportedTypeError):
    """A POST that is no SDP; the answer names what is."""

    @property
    def headers(self) -> dict[str, str]:
        return {"Accept-Post": SDP}


class FragmentTypeError(UnsupportedTypeError):
    """A PATCH that is no SDP fragment; the answer names what is."""

    @property
    def headers(self) -> dict[str, str]:
        return {"Accept-Patch": FRAGMENT}


@dataclass(frozen=True, slots=True)
class Gateway:
    """The handlers. `hold` hears of every session that is opened, `ice_links` gives the Link
    headers for a caller."""

    settings: Settings
    registry: Registry
    streams: Streams
    hold: Hold
    ice_links: Callable[[web.Request], list[str]]

    def routes(self) -> list[web.AbstractRouteDef]:
        routes: list[web.AbstractRouteDef] = []
        for root, post, find in (
            ("/whip", self.publish, self._publisher),
            ("/whep", self.view, self._viewer),
        ):
            endpoint, session = root + "/{stream}", root + "/{stream}/{id}"
            routes += [
                web.post(endpoint, post),
                web.get(endpoint, self.discover),
                web.options(endpoint, self.options),
                web.patch(session, self._patching(find)),
                web.delete(session, self._ending(find)),
                web.options(session, self.options),
            ]
        return routes

    # --- endpoints ---

    async def publish(self, request: web.Request) -> web.Response:
        """`POST /whip/{stream}`: become the source of a stream."""
        name = request.match_info["stream"]
        check_name(name)
        offer = publish_offer(await self._text(request, SDP, OfferTypeError))
        answer = await self.registry.publish(offer, name)
        return self._created(request, answer.session.id, answer.session.end, answer.sdp)

    async def view(self, request: web.Request) -> web.Response:
        """`POST /whep/{stream}`: watch a stream.

        `?rung=low` in half its size; `?view=data` gets the source's own packets, with the boxes on
        the data channel, `?view=raw` those packets alone.
        """
        name = request.match_info["stream"]
        rung = request.query.get("rung", FULL)
        if rung not in RUNGS:
            raise MalformedError(f"rung: {rung[:20]!r} is not one of {', '.join(RUNGS)}")
        view = request.query.get("view", ANNOTATED)
        if view not in VIEWS:
            raise MalformedError(f"view: {view[:20]!r} is not one of {', '.join(VIEWS)}")
        if view != ANNOTATED and rung != FULL:
            raise MalformedError(f"rung: view={view} is as large as its source sends it")
        text = await self._text(request, SDP, OfferTypeError)
        # An unknown name is 404 whatever the offer is.
        stream = self.streams.get(name)
        codecs = self.settings.rtc.video_codecs
        if view != ANNOTATED:
            codecs = (stream.forwarded_codec,)
        offer = view_offer(text, codecs)
        answer = await self.registry.view(offer, name, rung, view)
        return self._created(request, answer.viewer.id, answer.viewer.end, answer.sdp)

    async def discover(self, request: web.Request) -> web.Response:
        """GET says that there is an endpoint; HEAD (WHEP) also of what kind."""
        if request.method == "HEAD":
            return web.Response(headers={"Content-Type": SDP, "Accept-Post": SDP})
        return web.Response(status=204, headers={"Accept-Post": SDP})

    async def options(self, request: web.Request) -> web.Response:
        """What may be posted or patched here; also the answer to a browser's preflight."""
        if "id" in request.match_info:
            return web.Response(headers={"Accept-Patch": FRAGMENT})
        return web.Response(headers={"Accept-Post": SDP})

    # --- session URLs ---

    def _patching(self, find: Callable[[web.Request], Peer]) -> Handler:
        async def patch(request: web.Request) -> web.Response:
            """Candidates that the peer found later; anything else is not served."""
            peer = find(request)
            text = await self._text(request, FRAGMENT, FragmentTypeError)
            self._check_precondition(request, peer)
            fragment = parse_fragment(text)
            wanted = zip(fragment.credentials, peer.remote_credentials, strict=True)
            if any(new and new != old for new, old in wanted):
                raise UnprocessableError("body: ICE is not restarted here; post a new offer")
            await peer.add_candidates(fragment.candidates)
            return web.Response(status=204)

        return patch

    def _ending(self, find: Callable[[web.Request], Peer]) -> Handler:
        async def delete(request: web.Request) -> web.Response:
            """End the session; nothing of it leaves after the answer."""
            await self.registry.end(find(request).id)
            return web.Response()

        return delete

    def _publisher(self, request: web.Request) -> Peer:
        session = self.registry.get(request.match_info["id"])
        if session.stream_name != request.match_info["stream"]:
            raise NotFoundError("session: not one of this stream")
        return session

    def _viewer(self, request: web.Request) -> Peer:
        viewer = self.registry.viewer(request.match_info["id"])
        if viewer.stream.name != request.match_info["stream"]:
            raise NotFoundError("session: not one of this stream")
        return viewer

    # --- small parts ---

    def _created(
        self, request: web.Request, session_id: str, end: Callable[[str], None], sdp: str
    ) -> web.Response:
        self.hold(request, session_id, end, request.match_info["stream"])
        response = web.Response(
            status=201,
            text=sdp,
            content_type=SDP,
            headers={
                "Location": f"{request.path}/{session_id}",
                "ETag": etag(session_id),
                "Accept-Patch": FRAGMENT,
            },
        )
        for link in self.ice_links(request):
            response.headers.add("Link", link)
        return response

    def _check_precondition(self, request: web.Request, peer: Peer) -> None:
        wanted = request.headers.get("If-Match")
        if wanted is None:
            raise NoPreconditionError("If-Match: wanted, with the ETag of the answer")
        if wanted != "*" and etag(peer.id) not in (part.strip() for part in wanted.split(",")):
            raise StalePreconditionError("If-Match: not the ETag of this session")

    async def _text(
        self, request: web.Request, content_type: str, wrong_type: type[UnsupportedTypeError]
    ) -> str:
        if request.content_type != content_type:
            raise wrong_type(f"Content-Type: {request.content_type[:60]} is not {content_type}")
        try:
            return await request.text()
        except web.HTTPRequestEntityTooLarge:
            raise TooLargeError(
                f"max_body_kib: the body is over {self.settings.server.max_body_kib} KiB"
            ) from None
        except (UnicodeDecodeError, LookupError):
            raise MalformedError("body: not text") from None


def etag(session_id: str) -> str:
    """Strong, and one for the life of a session: ICE is never restarted."""
    return f'"{hashlib.sha256(session_id.encode()).hexdigest()[:16]}"'


def link_header(server: dict[str, str]) -> str:
    """One ICE server as RFC 9725 section 4.6 writes it."""
    parts = [f"<{server['urls']}>", 'rel="ice-server"']
    if server.get("username"):
        parts += [
            f'username="{server["username"]}"',
            f'credential="{server["credential"]}"',
            'credential-type="password"',
        ]
    return "; ".join(parts)
