// <sightline-tile>: one live stream in any page, from one module without dependencies.
//
//   <script type="module" src="https://cam.example/tile.js"></script>
//   <sightline-tile stream="porch" token-url="/camera-token"></sightline-tile>
//
// Attributes: src (server, default: where this module came from), stream, label, token-url or
// token, view (annotated | raw | data), rung (auto | full | low), when-hidden (pause | low |
// play), detections, muted, bare. Events: sightline-state, sightline-detections.
// docs/embed.md has the whole contract.

/** @typedef {'idle'|'connecting'|'live'|'waiting'|'paused'|'refused'} TileState */
/** @typedef {'annotated'|'raw'|'data'} TileView */
/** @typedef {'full'|'low'} Rung */
/** @typedef {[number, number, number, number, number, number, number|null]} Box */

/**
 * What the server says about one frame; other keys are ignored.
 * @typedef {object} FrameMessage
 * @property {number} [seq]
 * @property {number} rtp_timestamp
 * @property {number} [received_server_ms]
 * @property {[number, number]} size
 * @property {Box[]} boxes
 */

/**
 * @typedef {object} TileStatistics
 * @property {TileState} state
 * @property {number|null} ageMs from arrival at the server to display; null while unknown
 * @property {number|null} fps shown
 * @property {Rung} rung
 * @property {TileView} view
 * @property {[number, number]} size of the picture as it comes
 * @property {number} connections made so far
 */

const VIEWS = /** @type {const} */ (['annotated', 'raw', 'data']);
const NTP_TO_UNIX_MS = 2_208_988_800_000;
const RTP_PER_MS = 90;
const RTP_WRAP = 2 ** 32;

const FIRST_PAUSE_MS = 500;
const LONGEST_PAUSE_MS = 15_000;
const REQUEST_MS = 8_000;
const LEAVE_MS = 1_000;
const GATHER_MS = 1_000;
const FIRST_PICTURE_MS = 12_000;
const DISCONNECTED_MS = 2_500;
/** The server repeats a picture every second at the least, so silence means that it is gone. */
const SILENT_MS = 6_000;
const AWAY_MS = 2_500;
const TICK_MS = 500;
const RUNG_REST_MS = 1_200;
const RUNG_AGAIN_MS = 20_000;
const MESSAGES_KEPT = 64;
/** Boxes may come this much after their picture; it waits for them in view `data`. */
const LONGEST_WAIT_MS = 160;
/** A picture that nobody looked for objects in shows the boxes of the one before, paler, so long. */
const HELD_MS = 300;
const HELD_ALPHA = 0.45;

/** As the server draws them. */
const HUES = [
  '#2ecc8f', '#ffb020', '#4895ff', '#ff5c7a', '#b278ff', '#00cfd6', '#ff7f3f', '#a4d63a',
  '#f062d1', '#7aa2f7', '#ffd652', '#dee4f0', '#e87950', '#8c8cff', '#78c85a', '#d656ff',
];

const STYLE = `
:host {
  display: block;
  position: relative;
  aspect-ratio: 16 / 9;
  overflow: hidden;
  container-type: size;
  border-radius: var(--sightline-radius, 12px);
  background: var(--sightline-stage, light-dark(#dedacd, #080d0f));
  color: light-dark(#17211f, #e9efed);
  font: 500 14px/1.35 var(--sightline-font, ui-sans-serif, system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif);
  -webkit-text-size-adjust: 100%;
}
:host([hidden]) { display: none; }
:host(:fullscreen) { border-radius: 0; background: #000; }
:host(:focus-visible) { outline: 2px solid light-dark(#0b6bcb, #7cc0ff); outline-offset: 2px; }
:host(:focus) { outline-offset: 2px; }
*, *::before { box-sizing: border-box; }
[hidden] { display: none !important; }
video, canvas { position: absolute; inset: 0; width: 100%; height: 100%; }
video { object-fit: contain; background: #080d0f; }
video[data-rest] { filter: saturate(0.35) brightness(0.62); }
canvas { pointer-events: none; }
.bar {
  position: absolute; inset: 0 0 auto; display: flex; align-items: center; gap: 8px;
  padding: 8px 10px 18px; pointer-events: none; color: #f2f6f5;
  background: linear-gradient(#06090ab8, #06090a70 55%, #06090a00);
  text-shadow: 0 0 3px #000a;
}
.name { min-width: 0; overflow: hidden; text-overflow: ellipsis; white-space: nowrap; font-weight: 600; }
.dot { flex: none; width: 9px; height: 9px; border-radius: 50%; background: #93a4a4; box-shadow: 0 0 0 2px #0006; }
[data-state='live'] .dot { background: #4fdc9b; }
[data-state='connecting'] .dot, [data-state='waiting'] .dot { background: #ffb84d; }
[data-state='refused'] .dot { background: #ff6b5e; }
.age {
  margin-left: auto; flex: none; padding: 1px 8px; border-radius: 99px; background: #06090a80;
  font-size: 12.5px; font-variant-numeric: tabular-nums; white-space: nowrap;
}
.age[data-late] { background: #b3380a; }
.tools {
  position: absolute; right: 8px; bottom: 8px; display: flex; gap: 6px; opacity: 0; transition: opacity 0.15s;
  pointer-events: none;
}
:host(:hover) .tools, :host(:focus-within) .tools, .tools:focus-within { opacity: 1; pointer-events: auto; }
button {
  display: grid; place-items: center; width: 34px; height: 34px; padding: 0; border: 0; border-radius: 10px;
  background: #0a1012b8; color: #e9efed; font: inherit; cursor: pointer;
}
button:hover { background: #253135; }
button[aria-pressed='false'] { color: #93a4a4; }
button:focus-visible { outline: 2px solid #7cc0ff; outline-offset: 1px; }
svg { width: 18px; height: 18px; fill: none; stroke: currentColor; stroke-width: 1.5; stroke-linecap: round; stroke-linejoin: round; }
.note {
  position: absolute; inset: 0; display: flex; flex-direction: column; align-items: center; justify-content: center;
  gap: 4px; padding: 30px 14px 12px; text-align: center; text-wrap: balance;
}
.bar + .note { color: inherit; }
.shows-picture .note { color: #f2f6f5; text-shadow: 0 0 4px #000; }
:not(.shows-picture) > .bar { background: none; color: inherit; text-shadow: none; }
:not(.shows-picture) > .bar .dot { box-shadow: none; }
.title { margin: 0; font-weight: 600; }
.why { margin: 0; max-width: 44ch; font-size: 13px; opacity: 0.8; overflow-wrap: anywhere; }
.again {
  width: auto; height: auto; min-height: 34px; margin-top: 6px; padding: 0 14px; font-weight: 600;
  background: light-dark(#17211f, #e9efed); color: light-dark(#fcfbf8, #10181b);
}
.again:hover { background: light-dark(#33423f, #fff); }
.sweep { width: 46px; height: 3px; margin-top: 8px; border-radius: 3px; overflow: hidden; background: #8888; }
.sweep::before { content: ''; display: block; width: 40%; height: 100%; border-radius: 3px; background: #ff8150; }
@media (prefers-reduced-motion: no-preference) {
  .sweep::before { animation: sweep 1.1s ease-in-out infinite alternate; }
}
@media (prefers-reduced-motion: reduce) { .tools { transition: none; } }
@keyframes sweep { to { transform: translateX(150%); } }
.unseen { position: absolute; width: 1px; height: 1px; margin: -1px; overflow: hidden; clip-path: inset(50%); white-space: nowrap; }
:host([bare]) .bar, :host([bare]) .tools { display: none; }
@container (max-width: 260px) or (max-height: 150px) {
  .bar { padding: 4px 6px 12px; gap: 6px; font-size: 12px; }
  .age { font-size: 11px; padding: 0 6px; }
  .note { padding: 20px 8px 4px; font-size: 12.5px; }
  .why { display: none; }
  .again { min-height: 26px; margin-top: 2px; padding: 0 10px; }
  .tools { right: 4px; bottom: 4px; gap: 4px; }
  .tools button { width: 28px; height: 28px; border-radius: 8px; }
}
@container (max-width: 150px) { .age { display: none; } .title { font-size: 12px; } }
@media (pointer: coarse) {
  .tools button { width: 44px; height: 44px; }
  .again { min-height: 44px; padding: 0 18px; }
}
@media (forced-colors: active) { .dot { forced-color-adjust: none; } button { border: 1px solid; } }
`;

/**
 * Pause before try number `attempt` (from 0); half of it is chance, so that a restarted server
 * is not met by everybody at once.
 * @param {number} attempt
 * @param {number} chance 0..1
 */
export function pauseMs(attempt, chance) {
  const full = Math.min(LONGEST_PAUSE_MS, FIRST_PAUSE_MS * 2 ** attempt);
  return full / 2 + (chance * full) / 2;
}

/** Ticks from b to a, the short way round the wrap at 2^32. @param {number} a @param {number} b */
export function ticksBetween(a, b) {
  const ahead = (((a - b) % RTP_WRAP) + RTP_WRAP) % RTP_WRAP;
  return ahead > RTP_WRAP / 2 ? ahead - RTP_WRAP : ahead;
}

/**
 * Which rung fits a tile that is so wide on the screen.
 * @param {number} wideDevicePx
 * @param {number} fullWidth of the stream, 0 while unknown
 * @param {Rung} now keeps the choice steady around the limit
 * @returns {Rung}
 */
export function fittingRung(wideDevicePx, fullWidth, now) {
  const full = fullWidth || 640;
  return wideDevicePx <= full * (now === 'low' ? 0.72 : 0.6) ? 'low' : 'full';
}

/** No picture for now. `final`: nothing will change by trying again. */
class Refusal extends Error {
  /**
   * @param {string} title
   * @param {string} why
   * @param {{final?: boolean, retryAfterS?: number, codec?: boolean}} [more]
   */
  constructor(title, why, more = {}) {
    super(title);
    this.title = title;
    this.why = why;
    this.final = more.final ?? false;
    this.retryAfterS = more.retryAfterS ?? 0;
    /** This browser cannot play what the source sends. */
    this.codec = more.codec ?? false;
  }
}

/** The server's clocks as seen from this page: pings give the difference, the quickest counts. */
class FarClock {
  /** @type {{rttMs: number, offsetMs: number, unixMs: number}[]} */ #seen = [];

  /** @param {any} pong @param {number} nowMs */
  add(pong, nowMs) {
    const rttMs = nowMs - pong.t;
    if (!(rttMs >= 0) || typeof pong.server_ms !== 'number') return;
    const unixMs = typeof pong.unix_ms === 'number' ? pong.unix_ms - pong.server_ms : NaN;
    this.#seen.push({ rttMs, offsetMs: pong.server_ms - (pong.t + nowMs) / 2, unixMs });
    if (this.#seen.length > 16) this.#seen.shift();
  }

  /** Page time of an instant of the server's monotonic clock; NaN before the first pong.
   * @param {number} serverMs */
  pageMs(serverMs) {
    return serverMs - (this.#best()?.offsetMs ?? NaN);
  }

  /** Page time of an instant of the server's wall clock. @param {number} unixMs */
  pageMsOfUnix(unixMs) {
    const best = this.#best();
    // A server that does not tell its wall clock: both machines are taken to agree.
    if (!best || Number.isNaN(best.unixMs)) return unixMs - performance.timeOrigin;
    return this.pageMs(unixMs - best.unixMs);
  }

  #best() {
    let best = this.#seen[0];
    for (const each of this.#seen) if (best && each.rttMs <= best.rttMs) best = each;
    return best;
  }
}

/** ICE servers by address of the server; asked for again after a while.
 * @type {Map<string, {untilMs: number, servers: Promise<RTCIceServer[]>}>} */
const iceServers = new Map();

/** @param {URL} server @param {string} token @returns {Promise<RTCIceServer[]>} */
function iceServersOf(server, token) {
  const key = `${server.href} ${token}`;
  const known = iceServers.get(key);
  if (known && known.untilMs > performance.now()) return known.servers;
  const servers = fetch(new URL('api/client-config', server), {
    cache: 'no-store',
    credentials: 'omit',
    headers: bearer(token),
    signal: AbortSignal.timeout(REQUEST_MS),
  })
    .then(async (reply) => (reply.ok ? ((await reply.json()).ice_servers ?? []) : []))
    .catch(() => []); // the offer itself will say what is wrong
  if (iceServers.size > 64) iceServers.clear();
  iceServers.set(key, { untilMs: performance.now() + 60_000, servers });
  return servers;
}

/** @param {string} token @returns {Record<string, string>} */
function bearer(token) {
  return token ? { Authorization: `Bearer ${token}` } : {};
}

/** One WHEP session, from its offer to `close`. */
class Playback {
  #peer;
  #abort = new AbortController();
  #location = '';
  #token = '';
  #pinger = 0;
  /** @type {RTCDataChannel|null} */ #channel = null;
  /** Raw, newest last: most are never looked at. @type {string[]} */ #texts = [];
  /** @type {Map<number, FrameMessage>} */ #messages = new Map();
  /** @type {(why: string) => void} */ #end = () => {};
  #eager;
  clock = new FarClock();
  /** Class names by id. @type {string[]} */ names = [];
  /** Eager playbacks only. @type {((message: FrameMessage) => void)|null} */ onmessage = null;
  /** @type {Promise<string>} */ ended;

  /**
   * @param {RTCIceServer[]} servers
   * @param {Rung} rung
   * @param {TileView} view
   * @param {boolean} eager every message is wanted at once
   */
  constructor(servers, rung, view, eager) {
    this.rung = rung;
    this.view = view;
    this.#eager = eager;
    this.ended = new Promise((resolve) => {
      this.#end = resolve;
    });
    this.#peer = new RTCPeerConnection({ iceServers: servers, bundlePolicy: 'max-bundle' });
    const transceiver = this.#peer.addTransceiver('video', { direction: 'recvonly' });
    this.receiver = transceiver.receiver;
    if (view !== 'data') this.delay(0);
    const knowsCapture = this.#negotiate(transceiver, view);
    // Where pictures bring their time of capture, messages about frames are only sent if wanted.
    const label = eager || !knowsCapture ? 'detections' : 'clock';
    this.#channel = this.#peer.createDataChannel(label, { ordered: false, maxRetransmits: 0 });
    this.video = document.createElement('video');
    this.video.autoplay = this.video.playsInline = true;
    this.video.tabIndex = -1;
    this.#listen();
  }

  /** How long pictures wait before they are shown. @param {number} ms */
  delay(ms) {
    const receiver = /** @type {any} */ (this.receiver);
    if ('jitterBufferTarget' in receiver) receiver.jitterBufferTarget = ms;
    else if ('playoutDelayHint' in receiver) receiver.playoutDelayHint = ms / 1_000;
  }

  /**
   * From the offer to the first picture.
   * @param {URL} endpoint
   * @param {string} token
   * @param {AbortSignal} outer
   */
  async start(endpoint, token, outer) {
    const signal = AbortSignal.any([outer, this.#abort.signal]);
    this.#token = token;
    await this.#peer.setLocalDescription();
    await this.#gathered(signal);
    const reply = await this.#post(endpoint, token, signal);
    this.#location = new URL(reply.headers.get('Location') ?? '', endpoint).href;
    const sdp = await reply.text();
    if (signal.aborted) {
      void this.#leave();
      signal.throwIfAborted();
    }
    await this.#peer.setRemoteDescription({ type: 'answer', sdp });
    await this.#firstPicture(signal);
  }

  /** The message about the picture with this timestamp. @param {number} rtp */
  messageOf(rtp) {
    this.#parseAll();
    return this.#messages.get(rtp) ?? null;
  }

  /** @returns {RTCRtpSynchronizationSource|undefined} what was played last */
  source() {
    /** @type {RTCRtpSynchronizationSource|undefined} */
    let newest;
    for (const each of this.receiver.getSynchronizationSources()) {
      if (!newest || each.timestamp > newest.timestamp) newest = each;
    }
    return newest;
  }

  /** Idempotent; tells the server. */
  close() {
    if (this.#abort.signal.aborted) return;
    this.#abort.abort();
    clearTimeout(this.#pinger);
    // The server first: one that saw the connection end knows no session to take leave from.
    void this.#leave().finally(() => this.#peer.close());
    this.video.srcObject = null;
    this.video.remove();
  }

  /** @param {RTCRtpTransceiver} transceiver @param {TileView} view @returns {boolean} */
  #negotiate(transceiver, view) {
    const asker = /** @type {any} */ (transceiver);
    if (!asker.getHeaderExtensionsToNegotiate) return false;
    const wanted = asker.getHeaderExtensionsToNegotiate();
    let known = false;
    for (const extension of wanted) {
      if (extension.uri.endsWith('abs-capture-time')) {
        extension.direction = 'sendrecv';
        known = true;
      }
      // The server's wish for no delay would overrule ours.
      if (view === 'data' && extension.uri.endsWith('playout-delay')) extension.direction = 'stopped';
    }
    try {
      asker.setHeaderExtensionsToNegotiate(wanted);
    } catch {
      return false;
    }
    return known;
  }

  #listen() {
    const { signal } = this.#abort;
    const peer = this.#peer;
    peer.addEventListener(
      'track',
      (event) => {
        this.video.srcObject = new MediaStream([event.track]);
        void this.video.play().catch(() => {}); // refused or replaced: there will be no picture
      },
      { signal },
    );
    let grace = 0;
    peer.addEventListener(
      'connectionstatechange',
      () => {
        clearTimeout(grace);
        const state = peer.connectionState;
        if (state === 'failed' || state === 'closed') this.#end('the connection broke');
        if (state === 'disconnected') {
          grace = setTimeout(() => this.#end('the connection broke'), DISCONNECTED_MS);
        }
      },
      { signal },
    );
    signal.addEventListener('abort', () => clearTimeout(grace));
    this.#channel?.addEventListener('open', () => this.#ping(0), { signal });
    this.#channel?.addEventListener(
      'close',
      () => {
        this.#location = ''; // nothing there any more to take leave from
        this.#end('the server ended it');
      },
      { signal },
    );
    this.#channel?.addEventListener('message', (event) => this.#heard(event.data), { signal });
  }

  /** @param {unknown} text */
  #heard(text) {
    if (typeof text !== 'string') return;
    const typed = text.startsWith('{"type"');
    if (!typed && !this.#eager) {
      this.#texts.push(text);
      if (this.#texts.length > MESSAGES_KEPT) this.#texts.shift();
      return;
    }
    const message = parsed(text);
    if (message?.type === 'pong') this.clock.add(message, performance.now());
    else if (message?.type === 'hello') this.names = Array.isArray(message.names) ? message.names : [];
    // Whoever takes over expects us then; spread, so that not all come at once.
    else if (message?.type === 'reconnect') setTimeout(() => this.#end('the server is stopping'), Number(message.after_ms) || 0);
    else this.#keep(message);
  }

  #parseAll() {
    for (const text of this.#texts) this.#keep(parsed(text));
    this.#texts = [];
  }

  /** @param {any} message */
  #keep(message) {
    if (!Array.isArray(message?.boxes) || typeof message.rtp_timestamp !== 'number') return;
    this.#messages.set(message.rtp_timestamp, message);
    for (const oldest of this.#messages.keys()) {
      if (this.#messages.size <= MESSAGES_KEPT) break;
      this.#messages.delete(oldest);
    }
    this.onmessage?.(message);
  }

  /** @param {number} count */
  #ping(count) {
    if (this.#channel?.readyState !== 'open') return;
    this.#channel.send(JSON.stringify({ type: 'ping', t: performance.now() }));
    this.#pinger = setTimeout(() => this.#ping(count + 1), count < 4 ? 150 : 2_000);
  }

  /** @param {URL} endpoint @param {string} token @param {AbortSignal} signal */
  async #post(endpoint, token, signal) {
    /** @type {Response} */
    let reply;
    try {
      reply = await fetch(endpoint, {
        method: 'POST',
        cache: 'no-store',
        credentials: 'omit',
        headers: { 'Content-Type': 'application/sdp', ...bearer(token) },
        body: this.#peer.localDescription?.sdp ?? '',
        signal: AbortSignal.any([signal, AbortSignal.timeout(REQUEST_MS)]),
      });
    } catch (cause) {
      if (signal.aborted) throw cause;
      // Browsers do not tell a page of another site more than this.
      throw new Refusal('No answer', 'The server is away, or does not allow this page.');
    }
    if (reply.status === 201) return reply;
    throw await refusalOf(reply);
  }

  /** @param {AbortSignal} signal @returns {Promise<void>} */
  #firstPicture(signal) {
    const { video } = this;
    return new Promise((resolve, reject) => {
      const ends = new AbortController();
      /** @param {() => void} settle */
      const finish = (settle) => {
        ends.abort();
        clearTimeout(deadline);
        settle();
      };
      const deadline = setTimeout(
        () => finish(() => reject(this.#silence())),
        FIRST_PICTURE_MS,
      );
      const done = () => finish(() => resolve(undefined));
      if (video.readyState >= 2) done();
      video.addEventListener('loadeddata', done, { signal: ends.signal });
      signal.addEventListener('abort', () => finish(() => reject(signal.reason)), { signal: ends.signal });
      void this.ended.then((why) => finish(() => reject(new Refusal('No picture', why))));
    });
  }

  /** Who is connected gets through: then nothing was sent. */
  #silence() {
    if (this.#peer.connectionState === 'connected') return new Refusal('No picture yet', 'The camera sends nothing.');
    return new Refusal('No picture', 'Video (UDP) does not get through.');
  }

  /** The server does not trickle. @param {AbortSignal} signal @returns {Promise<void>} */
  #gathered(signal) {
    const peer = this.#peer;
    return new Promise((resolve) => {
      const timer = setTimeout(resolve, GATHER_MS);
      const check = () => {
        if (peer.iceGatheringState !== 'complete') return;
        clearTimeout(timer);
        resolve();
      };
      peer.addEventListener('icegatheringstatechange', check, { signal });
      check();
    });
  }

  async #leave() {
    const location = this.#location;
    this.#location = '';
    if (!location) return;
    const signal = AbortSignal.timeout(LEAVE_MS);
    const init = /** @type {const} */ ({ method: 'DELETE', keepalive: true, credentials: 'omit', signal });
    await fetch(location, { ...init, headers: bearer(this.#token) }).catch(() => {}); // it notices
  }
}

/** @param {string} text @returns {any} */
function parsed(text) {
  try {
    return JSON.parse(text);
  } catch {
    return null;
  }
}

/**
 * A server that takes nobody in, in words for whoever looks: the setting that stands in front of
 * the reason says nothing to them.
 * @param {string} reason
 * @returns {[string, string]}
 */
export function crowded(reason) {
  const [, setting = '', said = reason] = /^(?:(\w+): )?(.*)$/s.exec(reason) ?? [];
  if (setting.startsWith('max_')) return ['Full', said];
  return ['The server is busy', setting ? 'It takes nobody new for a moment.' : said];
}

/** @param {Response} reply */
async function refusalOf(reply) {
  /** @type {any} */
  const problem = await reply.json().catch(() => ({}));
  const why = String(problem?.detail ?? problem?.title ?? reply.status).slice(0, 200);
  const retryAfterS = Math.min(Number(reply.headers.get('Retry-After') ?? 0) || 0, 120);
  if (reply.status === 401) return new Refusal('Not allowed', why, { final: true });
  if (reply.status === 403) return new Refusal('Not allowed', why, { final: true });
  if (reply.status === 404) return new Refusal('No such stream', 'Waiting for it to begin.');
  if (reply.status === 406) return new Refusal('Cannot be played here', why, { final: true, codec: true });
  if (reply.status === 409) return new Refusal('The camera is away', 'Waiting for it.', { retryAfterS });
  if (reply.status === 429 || reply.status === 503) return new Refusal(...crowded(why), { retryAfterS });
  if (reply.status < 500) return new Refusal('Refused', why, { final: true });
  return new Refusal('The server failed', why);
}

/**
 * @template {keyof HTMLElementTagNameMap} K
 * @param {K} name
 * @param {Record<string, string>} attributes
 * @param {...(Node|string)} children
 * @returns {HTMLElementTagNameMap[K]}
 */
function make(name, attributes, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

/** @param {string} label @param {string} path */
function toolButton(label, path) {
  const svg = document.createElementNS('http://www.w3.org/2000/svg', 'svg');
  svg.setAttribute('viewBox', '0 0 20 20');
  svg.setAttribute('aria-hidden', 'true');
  const line = document.createElementNS('http://www.w3.org/2000/svg', 'path');
  line.setAttribute('d', path);
  svg.append(line);
  const button = make('button', { type: 'button', 'aria-label': label, title: label });
  button.append(svg);
  return button;
}

/** Where this module came from is the server, unless `src` names another. */
const HOME = new URL(import.meta.url.endsWith('/web/tile.js') ? '..' : '.', import.meta.url);

/** Tiles on this page share one timer. @type {Set<SightlineTile>} */
const ticking = new Set();
let ticker = 0;

/** @param {SightlineTile} tile @param {boolean} on */
function tick(tile, on) {
  if (on) ticking.add(tile);
  else ticking.delete(tile);
  clearInterval(ticker);
  if (ticking.size) ticker = setInterval(() => ticking.forEach((each) => each.tick()), TICK_MS);
}

export class SightlineTile extends HTMLElement {
  static observedAttributes = [
    'src', 'stream', 'label', 'token-url', 'token', 'view', 'rung', 'when-hidden', 'detections', 'muted',
  ];

  /** Gives a token before each try; stronger than the attributes. @type {(() => Promise<string>)|null} */
  tokenSource = null;

  #root;
  #frame = make('div', { class: 'frame', part: 'frame' });
  #name = make('span', { class: 'name', part: 'name' });
  #age = make('span', { class: 'age', part: 'age', title: 'Age of the picture: from its arrival at the server to this screen' });
  #note = make('div', { class: 'note', part: 'note' });
  #title = make('p', { class: 'title' });
  #why = make('p', { class: 'why' });
  #again = make('button', { class: 'again', type: 'button' }, 'Try now');
  #sweep = make('div', { class: 'sweep' });
  #spoken = make('div', { class: 'unseen', role: 'status', 'aria-live': 'polite' });
  #canvas = make('canvas', { 'aria-hidden': 'true' });
  #boxes = toolButton('Boxes', 'M3.5 7V4.5a1 1 0 0 1 1-1H7M13 3.5h2.5a1 1 0 0 1 1 1V7M16.5 13v2.5a1 1 0 0 1-1 1H13M7 16.5H4.5a1 1 0 0 1-1-1V13M8 8h4v4H8z');
  #shot = toolButton('Save a picture', 'M3 7.5A1.5 1.5 0 0 1 4.5 6h2l1-2h5l1 2h2A1.5 1.5 0 0 1 17 7.5v7a1.5 1.5 0 0 1-1.5 1.5h-11A1.5 1.5 0 0 1 3 14.5zM10 13.5a2.7 2.7 0 1 0 0-5.4 2.7 2.7 0 0 0 0 5.4z');
  #full = toolButton('Full screen', 'M3.5 7.5v-4h4M12.5 3.5h4v4M16.5 12.5v4h-4M7.5 16.5h-4v-4');

  /** @type {TileState} */ #state = 'idle';
  /** @type {AbortController|null} */ #run = null;
  /** @type {Playback|null} */ #playback = null;
  /** Ends the wait or the pause there is. @type {() => void} */ #wake = () => {};
  #connections = 0;
  #visible = true;
  #awayTimer = 0;
  #isAway = false;
  #rungTimer = 0;
  #rungFailedMs = -Infinity;
  #wide = 0;
  #fullWidth = 0;
  #drawsBoxes = true;
  #token = '';
  #waitEndsMs = 0;
  /** @type {number[]} */ #ages = [];
  #fps = NaN;
  #seenMs = 0;
  #asked = false;
  /** @type {{frames: number, atMs: number}|null} */ #counted = null;
  /** How late messages come after their pictures, in view `data`. @type {number[]} */ #lateness = [];
  #delayMs = 0;
  /** The picture on the screen. @type {{rtp: number, atMs: number}|null} */ #shown = null;
  #drawn = { hits: 0, late: 0, alone: 0 };
  /** Pictures that are gone without boxes of their own, newest last. @type {number[]} */ #alone = [];
  /** Boxes that were on a picture last. @type {FrameMessage|null} */ #held = null;
  #fallsBack = false;

  #sizes = new ResizeObserver((entries) => {
    const wide = entries.at(-1)?.contentRect.width ?? 0;
    this.#wide = wide * devicePixelRatio;
    this.#considerRung();
    if (this.#shown) this.#draw(this.#shown.rtp);
  });
  #sight = new IntersectionObserver((entries) => {
    this.#visible = entries.at(-1)?.isIntersecting ?? true;
    this.#considerAway();
  }, { rootMargin: '120px' });
  #onVisibility = () => this.#considerAway();
  #onOnline = () => this.#wake();
  #onLeave = () => this.#playback?.close();

  constructor() {
    super();
    this.#root = this.attachShadow({ mode: 'open' });
    // Not stopped by a page's policy against inline styles.
    const sheet = new CSSStyleSheet();
    sheet.replaceSync(STYLE);
    this.#root.adoptedStyleSheets = [sheet];
    const bar = make('div', { class: 'bar', part: 'bar' }, make('span', { class: 'dot', 'aria-hidden': 'true' }), this.#name, this.#age);
    this.#note.append(this.#title, this.#why, this.#again, this.#sweep);
    const tools = make('div', { class: 'tools', part: 'tools' }, this.#boxes, this.#shot, this.#full);
    this.#frame.append(this.#canvas, bar, this.#note, tools, this.#spoken);
    this.#root.append(this.#frame);
    this.#again.addEventListener('click', () => this.retry());
    this.#shot.addEventListener('click', () => void this.#saveShot());
    this.#full.addEventListener('click', () => void this.#toggleFull());
    this.#boxes.addEventListener('click', () => this.#toggleBoxes());
    this.addEventListener('keydown', (event) => this.#onKey(event));
  }

  // --- what embedders use ---

  /** @returns {TileState} */
  get state() {
    return this.#state;
  }

  /** A key or token that does not stand in the document. @param {string} token */
  set token(token) {
    this.#token = token;
    this.#restart();
  }

  /** @returns {TileStatistics} */
  statistics() {
    const age = median(this.#ages);
    const video = this.#playback?.video;
    return {
      state: this.#state,
      ageMs: Number.isFinite(age) ? Math.round(age) : null,
      fps: Number.isFinite(this.#fps) ? Math.round(this.#fps * 10) / 10 : null,
      rung: this.#playback?.rung ?? 'full',
      view: this.#view(),
      size: [video?.videoWidth ?? 0, video?.videoHeight ?? 0],
      connections: this.#connections,
    };
  }

  /** In view `data`: pictures shown with their own boxes, those whose boxes came too late, and
   * those that have none because the detector left them out. */
  get pairing() {
    return { ...this.#drawn, delayMs: this.#delayMs };
  }

  /** Try again at once. */
  retry() {
    if (this.#state === 'refused') this.#restart();
    else this.#wake();
  }

  /** The picture as it is shown, boxes and all. @returns {Promise<Blob|null>} */
  async snapshot() {
    const video = this.#playback?.video;
    if (!video?.videoWidth) return null;
    const canvas = make('canvas', {});
    canvas.width = video.videoWidth;
    canvas.height = video.videoHeight;
    const context = canvas.getContext('2d');
    context?.drawImage(video, 0, 0);
    const message = this.#shown && this.#playback?.messageOf(this.#shown.rtp);
    if (context && message && this.#view() === 'data' && this.#drawsBoxes) {
      paint(context, message, this.#playback?.names ?? [], [0, 0, canvas.width, canvas.height], 1);
    }
    return new Promise((resolve) => canvas.toBlob(resolve, 'image/png'));
  }

  // --- the element's life ---

  connectedCallback() {
    if (!this.hasAttribute('tabindex')) this.tabIndex = 0;
    if (!this.hasAttribute('role')) this.setAttribute('role', 'group');
    this.#sizes.observe(this);
    this.#sight.observe(this);
    document.addEventListener('visibilitychange', this.#onVisibility);
    addEventListener('online', this.#onOnline);
    addEventListener('pagehide', this.#onLeave);
    tick(this, true);
    this.#showName();
    // Moved within the page, it goes on.
    if (!this.#run) this.#restart();
  }

  disconnectedCallback() {
    // It may be on its way to another place in the page.
    queueMicrotask(() => {
      if (this.isConnected) return;
      this.#sizes.disconnect();
      this.#sight.disconnect();
      document.removeEventListener('visibilitychange', this.#onVisibility);
      removeEventListener('online', this.#onOnline);
      removeEventListener('pagehide', this.#onLeave);
      clearTimeout(this.#awayTimer);
      clearTimeout(this.#rungTimer);
      tick(this, false);
      this.#stop();
      this.#show('idle');
    });
  }

  /** For `moveBefore`, which keeps the element as it is. */
  connectedMoveCallback() {}

  /** @param {string} name @param {string|null} before @param {string|null} now */
  attributeChangedCallback(name, before, now) {
    if (before === now || !this.isConnected) return;
    if (name === 'label') this.#showName();
    else if (name === 'muted') this.#setMuted(this.#playback?.video);
    else if (name === 'rung') this.#considerRung();
    else if (name === 'when-hidden') this.#considerAway();
    else this.#restart();
  }

  #stop() {
    this.#run?.abort();
    this.#run = null;
    this.#playback?.close();
    this.#playback = null;
    this.#forget();
  }

  #restart() {
    if (!this.isConnected) return;
    this.#showName();
    // Several attributes may change in one go.
    this.#run?.abort();
    const run = (this.#run = new AbortController());
    queueMicrotask(() => {
      if (run.signal.aborted) return;
      this.#playback?.close();
      this.#playback = null;
      this.#fullWidth = 0;
      this.#fallsBack = false;
      this.#forget();
      if (!this.getAttribute('stream')) this.#show('idle', 'No stream chosen');
      else void this.#live(run.signal);
    });
  }

  // --- the story of one tile ---

  /** Connect, show, connect again, until told to stop. @param {AbortSignal} signal */
  async #live(signal) {
    let attempt = 0;
    while (!signal.aborted) {
      if (this.#pauses()) {
        this.#show('paused');
        await this.#woken(Infinity, signal);
        continue;
      }
      this.#show('connecting');
      try {
        await this.#open(this.#wantedRung(), signal);
        attempt = 0;
        this.#show('live');
        await this.#watch(signal);
        if (this.#pauses()) continue;
        throw new Refusal('The connection broke', 'It is made again.');
      } catch (error) {
        if (signal.aborted) return;
        if (!(error instanceof Refusal)) throw error;
        this.#rest();
        if (error.codec && this.#view() !== 'annotated') {
          // The server encodes its annotated picture in what this browser plays.
          this.#fallsBack = true;
          continue;
        }
        if (error.final && !this.#renews()) {
          this.#show('refused', error.title, error.why);
          return;
        }
        const waitMs = Math.max(error.retryAfterS * 1_000, pauseMs(attempt, Math.random()));
        attempt += 1;
        this.#waitEndsMs = performance.now() + waitMs;
        this.#show('waiting', error.title, error.why);
        await this.#woken(waitMs, signal);
      }
    }
  }

  /**
   * A picture in place of the one there is, which stays until then.
   * @param {Rung} rung
   * @param {AbortSignal} signal
   */
  async #open(rung, signal) {
    const server = this.#server();
    const token = await this.#freshToken(signal);
    const view = this.#view();
    const eager = view === 'data' || this.hasAttribute('detections');
    const playback = new Playback(await iceServersOf(server, token), rung, view, eager);
    signal.addEventListener('abort', () => playback.close(), { once: true });
    try {
      signal.throwIfAborted();
      this.#setMuted(playback.video);
      playback.video.hidden = true;
      this.#frame.insertBefore(playback.video, this.#canvas);
      await playback.start(this.#endpoint(server, rung, view), token, signal);
      signal.throwIfAborted();
    } catch (error) {
      playback.close();
      throw error;
    }
    const before = this.#playback;
    this.#playback = playback;
    playback.video.hidden = false;
    before?.close();
    this.#forget();
    this.#connections += 1;
    this.#seenMs = performance.now();
    this.#fullWidth = playback.video.videoWidth * (rung === 'low' ? 2 : 1);
    this.#follow(playback);
  }

  /** Until the picture is over, or to be paused. @param {AbortSignal} signal */
  async #watch(signal) {
    for (;;) {
      const playback = this.#playback;
      if (!playback || signal.aborted) return;
      // While another size was opened, nobody listened.
      if (this.#pauses()) {
        this.#rest();
        return;
      }
      const over = playback.ended.then(() => 'over');
      const woken = this.#woken(Infinity, signal).then(() => 'woken');
      const what = await Promise.race([over, woken]);
      if (signal.aborted) return;
      if (this.#pauses()) continue;
      if (what === 'over') return;
      const wanted = this.#wantedRung();
      if (wanted === this.#playback?.rung) {
        if (this.#silent()) return;
        continue;
      }
      try {
        await this.#open(wanted, signal);
        this.#show('live');
      } catch (error) {
        if (signal.aborted) return;
        if (!(error instanceof Refusal)) throw error;
        // What there is stays; asked again later.
        this.#rungFailedMs = performance.now();
      }
    }
  }

  /** Frees the connection and leaves its last picture standing. */
  #rest() {
    const playback = this.#playback;
    if (!playback) return;
    const { video } = playback;
    if (video.videoWidth) {
      const still = /** @type {HTMLCanvasElement} */ (this.#root.querySelector('.still') ?? make('canvas', { class: 'still' }));
      still.width = video.videoWidth;
      still.height = video.videoHeight;
      still.getContext('2d')?.drawImage(video, 0, 0);
      still.style.objectFit = 'contain';
      still.style.filter = 'saturate(0.4) brightness(0.6)';
      this.#frame.prepend(still);
    }
    playback.close();
    this.#playback = null;
    this.#forget();
  }

  /** @param {number} waitMs @param {AbortSignal} signal @returns {Promise<void>} */
  #woken(waitMs, signal) {
    return new Promise((resolve) => {
      const timer = waitMs === Infinity ? 0 : setTimeout(() => done(), waitMs);
      const done = () => {
        clearTimeout(timer);
        signal.removeEventListener('abort', done);
        resolve();
      };
      signal.addEventListener('abort', done);
      this.#wake = done;
    });
  }

  // --- what is wanted ---

  #server() {
    const src = this.getAttribute('src');
    if (!src) return HOME;
    try {
      const url = new URL(src, document.baseURI);
      if (!url.pathname.endsWith('/')) url.pathname += '/';
      return url;
    } catch {
      throw new Refusal('Not set up', 'src is no address.', { final: true });
    }
  }

  /** @returns {TileView} */
  #view() {
    const wanted = this.#fallsBack ? 'annotated' : this.getAttribute('view');
    return VIEWS.find((view) => view === wanted) ?? 'annotated';
  }

  /** @param {URL} server @param {Rung} rung @param {TileView} view */
  #endpoint(server, rung, view) {
    const url = new URL(`whep/${encodeURIComponent(this.getAttribute('stream') ?? '')}`, server);
    if (view !== 'annotated') url.searchParams.set('view', view);
    else if (rung === 'low') url.searchParams.set('rung', rung);
    return url;
  }

  /** Whether each try brings another token. */
  #renews() {
    return this.tokenSource !== null || this.hasAttribute('token-url');
  }

  /** @param {AbortSignal} signal @returns {Promise<string>} */
  async #freshToken(signal) {
    const url = this.getAttribute('token-url');
    try {
      if (this.tokenSource) return await this.tokenSource();
      if (!url) return this.#token || (this.getAttribute('token') ?? '');
      const reply = await fetch(new URL(url, document.baseURI), {
        cache: 'no-store',
        headers: { Accept: 'application/json, text/plain' },
        signal: AbortSignal.any([signal, AbortSignal.timeout(REQUEST_MS)]),
      });
      if (!reply.ok) throw new Error(`${reply.status} from token-url`);
      const text = (await reply.text()).trim();
      const token = text.startsWith('{') ? parsed(text)?.token : text;
      if (typeof token !== 'string' || !/^[\x21-\x7e]{1,8192}$/.test(token)) throw new Error('no token in the answer of token-url');
      return token;
    } catch (error) {
      if (signal.aborted) throw error;
      throw new Refusal('No token', error instanceof Error ? error.message : 'token-url failed');
    }
  }

  #considerAway() {
    const away = !this.#visible || document.visibilityState === 'hidden';
    clearTimeout(this.#awayTimer);
    if (away === this.#isAway) return;
    if (!away) this.#setAway(false);
    else this.#awayTimer = setTimeout(() => this.#setAway(true), AWAY_MS);
  }

  /** @param {boolean} away */
  #setAway(away) {
    this.#isAway = away;
    this.#seenMs = performance.now();
    if (this.#state === 'live' || this.#state === 'paused') this.#wake();
  }

  /** Nobody can see it. */
  #pauses() {
    const does = this.getAttribute('when-hidden') ?? 'pause';
    return this.#isAway && does !== 'low' && does !== 'play';
  }

  /** @returns {Rung} */
  #wantedRung() {
    const asked = this.getAttribute('rung');
    if (this.#view() !== 'annotated') return 'full';
    if (this.#isAway && this.getAttribute('when-hidden') === 'low') return 'low';
    if (asked === 'full' || asked === 'low') return asked;
    return this.#wide ? fittingRung(this.#wide, this.#fullWidth, this.#playback?.rung ?? 'full') : 'full';
  }

  /** Once the size has come to rest. */
  #considerRung() {
    clearTimeout(this.#rungTimer);
    if (!this.#playback || this.#wantedRung() === this.#playback.rung) return;
    const waitMs = Math.max(RUNG_REST_MS, this.#rungFailedMs + RUNG_AGAIN_MS - performance.now());
    this.#rungTimer = setTimeout(() => {
      if (this.#state === 'live') this.#wake();
    }, waitMs);
  }

  /** @param {HTMLVideoElement|undefined} video */
  #setMuted(video) {
    // Pictures start by themselves only without sound.
    if (video) video.muted = this.getAttribute('muted') !== 'false';
  }

  // --- every half second ---

  /** By the page's one timer for all tiles. */
  tick() {
    if (this.#state === 'waiting') this.#showCountdown();
    const playback = this.#playback;
    if (this.#state !== 'live' || !playback) return;
    this.#sample(playback);
    this.#considerRung2();
    this.#showAge();
    if (this.#silent()) this.#wake();
  }

  /** A picture that grew or shrank at its source. */
  #considerRung2() {
    const playback = this.#playback;
    if (!playback) return;
    const full = playback.video.videoWidth * (playback.rung === 'low' ? 2 : 1);
    if (full && full !== this.#fullWidth) {
      this.#fullWidth = full;
      this.#considerRung();
    }
  }

  #silent() {
    return !this.#isAway && this.#visible && performance.now() - this.#seenMs > SILENT_MS;
  }

  /** One picture is looked at. @param {Playback} playback */
  #sample(playback) {
    const { video } = playback;
    if (!('requestVideoFrameCallback' in video)) {
      void this.#sampleStats(playback);
      return;
    }
    if (this.#asked) return;
    this.#asked = true;
    /** @type {HTMLVideoElement} */ (video).requestVideoFrameCallback((_, metadata) => {
      this.#asked = false;
      if (this.#playback !== playback) return;
      this.#seenMs = performance.now();
      this.#count(metadata.presentedFrames);
      const shownMs = Math.max(metadata.expectedDisplayTime, metadata.presentationTime);
      this.#addAge(ageOf(playback, metadata.rtpTimestamp, shownMs));
    });
  }

  /** For browsers without a callback per frame. @param {Playback} playback */
  async #sampleStats(playback) {
    const source = playback.source();
    const nowMs = performance.now();
    if (source && source.timestamp - performance.timeOrigin > nowMs - 2 * TICK_MS) this.#seenMs = nowMs;
    if (source) this.#addAge(ageOf(playback, source.rtpTimestamp, source.timestamp - performance.timeOrigin));
    this.#count(playback.video.getVideoPlaybackQuality().totalVideoFrames);
  }

  /** @param {number} frames so far */
  #count(frames) {
    const atMs = performance.now();
    const before = this.#counted;
    if (!before || frames < before.frames) this.#counted = { frames, atMs };
    else if (atMs - before.atMs >= 1_000) {
      this.#fps = (1_000 * (frames - before.frames)) / (atMs - before.atMs);
      this.#counted = { frames, atMs };
    }
  }

  /** @param {number} ageMs */
  #addAge(ageMs) {
    if (!Number.isFinite(ageMs) || ageMs < -50 || ageMs > 600_000) return;
    this.#ages.push(Math.max(0, ageMs));
    if (this.#ages.length > 5) this.#ages.shift();
  }

  #forget() {
    this.#ages = [];
    this.#fps = NaN;
    this.#counted = null;
    this.#asked = false;
    this.#shown = null;
    this.#held = null;
    this.#lateness = [];
    this.#canvas.getContext('2d')?.clearRect(0, 0, this.#canvas.width, this.#canvas.height);
    this.#showAge();
  }

  // --- boxes ---

  /** Messages of this playback to whoever listens, and in view `data` onto their pictures.
   * @param {Playback} playback */
  #follow(playback) {
    const draws = playback.view === 'data';
    playback.onmessage = (message) => {
      if (this.#playback !== playback) return;
      if (draws) this.#messageCame(message);
      else this.#tell(playback, message);
    };
    if (!draws || !('requestVideoFrameCallback' in playback.video)) return;
    /** @type {VideoFrameRequestCallback} */
    const next = (_, metadata) => {
      if (this.#playback !== playback) return;
      playback.video.requestVideoFrameCallback(next);
      const rtp = metadata.rtpTimestamp ?? playback.source()?.rtpTimestamp;
      if (rtp !== undefined) this.#pictureShown(playback, rtp);
    };
    playback.video.requestVideoFrameCallback(next);
  }

  /** @param {Playback} playback @param {number} rtp */
  #pictureShown(playback, rtp) {
    const before = this.#shown;
    if (before && !playback.messageOf(before.rtp)) {
      this.#drawn.alone += 1;
      this.#alone.push(before.rtp);
      if (this.#alone.length > MESSAGES_KEPT) this.#alone.shift();
    }
    this.#shown = { rtp, atMs: performance.now() };
    const message = this.#draw(rtp);
    if (!message) return;
    this.#drawn.hits += 1;
    this.#noteLateness(0);
    this.#tell(playback, message);
  }

  /** @param {FrameMessage} message */
  #messageCame(message) {
    const shown = this.#shown;
    const playback = this.#playback;
    if (!shown || !playback) return;
    const behind = ticksBetween(shown.rtp, message.rtp_timestamp) / RTP_PER_MS;
    if (behind < 0) return; // in time: its picture is still to come
    const at = this.#alone.indexOf(message.rtp_timestamp);
    if (at >= 0) {
      this.#alone.splice(at, 1);
      this.#drawn.alone -= 1;
      this.#drawn.late += 1;
    }
    const lateMs = behind + performance.now() - shown.atMs;
    this.#noteLateness(lateMs);
    if (behind === 0) {
      this.#drawn.hits += 1;
      this.#draw(shown.rtp);
      this.#tell(playback, message);
    }
  }

  /** Pictures wait as long as nearly all boxes need, no longer. @param {number} lateMs */
  #noteLateness(lateMs) {
    this.#lateness.push(lateMs);
    if (lateMs > 0 && this.#delayMs < LONGEST_WAIT_MS) {
      this.#setDelay(Math.min(LONGEST_WAIT_MS, this.#delayMs + Math.max(8, Math.min(lateMs, 40))));
    }
    if (this.#lateness.length < 200) return;
    // A quiet while: come nearer again, a little at a time.
    if (this.#lateness.every((ms) => ms === 0)) this.#setDelay(Math.max(0, this.#delayMs - 6));
    this.#lateness = [];
  }

  /** @param {number} ms */
  #setDelay(ms) {
    this.#delayMs = Math.round(ms);
    this.#playback?.delay(this.#delayMs);
  }

  /** @param {Playback} playback @param {FrameMessage} message */
  #tell(playback, message) {
    this.#emit('sightline-detections', {
      stream: this.getAttribute('stream'),
      seq: message.seq,
      rtpTimestamp: message.rtp_timestamp,
      size: message.size,
      boxes: message.boxes.map(([x1, y1, x2, y2, classId, confidence, trackId]) => ({
        xyxy: [x1, y1, x2, y2],
        classId,
        name: playback.names[classId] ?? String(classId),
        confidence,
        trackId,
      })),
    });
  }

  /** The boxes of exactly this picture, if they are known; those of the one before paler.
   * @param {number} rtp @returns {FrameMessage|null} its own */
  #draw(rtp) {
    const playback = this.#playback;
    const canvas = this.#canvas;
    const context = canvas.getContext('2d');
    if (!context || !playback || playback.view !== 'data') return null;
    const scale = devicePixelRatio;
    const width = Math.round(this.clientWidth * scale);
    const height = Math.round(this.clientHeight * scale);
    if (canvas.width !== width || canvas.height !== height) {
      canvas.width = width;
      canvas.height = height;
    } else context.clearRect(0, 0, width, height);
    const own = playback.messageOf(rtp);
    if (own) this.#held = own;
    const message = own ?? this.#heldFor(rtp);
    if (message && this.#drawsBoxes) {
      const { videoWidth, videoHeight } = playback.video;
      const fit = Math.min(width / (videoWidth || 1), height / (videoHeight || 1));
      const [w, h] = [videoWidth * fit, videoHeight * fit];
      context.globalAlpha = own ? 1 : HELD_ALPHA;
      paint(context, message, playback.names, [(width - w) / 2, (height - h) / 2, w, h], scale);
      context.globalAlpha = 1;
    }
    return own;
  }

  /** @param {number} rtp */
  #heldFor(rtp) {
    const sinceMs = this.#held ? ticksBetween(rtp, this.#held.rtp_timestamp) / RTP_PER_MS : Infinity;
    return sinceMs >= 0 && sinceMs <= HELD_MS ? this.#held : null;
  }

  // --- the screen ---

  /** @param {TileState} state @param {string} [title] @param {string} [why] */
  #show(state, title = '', why = '') {
    const before = this.#state;
    this.#state = state;
    this.#frame.dataset['state'] = state;
    if (state === 'live') this.#root.querySelector('.still')?.remove();
    const picture = Boolean(this.#playback || this.#root.querySelector('.still'));
    this.#frame.classList.toggle('shows-picture', picture);
    // The next of many tries is no news: what is wrong stays written.
    const again = state === 'connecting' && before === 'waiting';
    if (again) [title, why] = [this.#title.textContent ?? '', this.#why.textContent ?? ''];
    const titles = { idle: title, connecting: again ? title : picture ? '' : 'Connecting', live: '', waiting: title, paused: picture ? '' : 'Paused', refused: title };
    this.#title.textContent = titles[state];
    this.#why.textContent = why;
    this.#note.hidden = !titles[state] && state !== 'connecting';
    this.#again.hidden = state !== 'waiting' && state !== 'refused';
    this.#sweep.hidden = state !== 'connecting';
    this.#boxes.hidden = this.#view() !== 'data';
    this.#shot.disabled = state !== 'live';
    if (state === 'waiting') this.#showCountdown();
    this.#showAge();
    this.#describe();
    const words = { idle: '', connecting: '', live: 'live', waiting: `not live: ${title}`, paused: '', refused: `not live: ${title}` };
    // Many tiles that begin are no news; one that is gone is, and that it is there again.
    const isNews = state !== 'live' || this.#spoken.textContent !== '';
    if (before !== state && words[state] && isNews) this.#spoken.textContent = `${this.#label()} ${words[state]}`;
    const waitMs = state === 'waiting' ? Math.round(this.#waitEndsMs - performance.now()) : null;
    this.#emit('sightline-state', { state, title, why, waitMs, stream: this.getAttribute('stream'), view: this.#view(), rung: this.#playback?.rung ?? null });
  }

  #showCountdown() {
    const seconds = Math.ceil((this.#waitEndsMs - performance.now()) / 1_000);
    this.#again.textContent = seconds > 0 ? `Try now (${seconds} s)` : 'Trying…';
  }

  #showAge() {
    const age = median(this.#ages);
    const known = this.#state === 'live' && Number.isFinite(age);
    const text = { idle: '', connecting: '', live: '', waiting: '', paused: 'paused', refused: '' }[this.#state];
    const shown = known ? ageText(age) : text;
    this.#age.hidden = !shown;
    if (this.#age.textContent !== shown) this.#age.textContent = shown;
    this.#age.toggleAttribute('data-late', known && age > 1_000);
    if (known && !this.hasAttribute('aria-description')) this.setAttribute('aria-description', 'Keys: F full screen, S save a picture');
  }

  #label() {
    return this.getAttribute('label') || this.getAttribute('stream') || 'Stream';
  }

  #showName() {
    this.#name.textContent = this.#label();
    this.#name.title = this.#label();
    this.#describe();
  }

  #describe() {
    const words = { idle: 'no stream', connecting: 'connecting', live: 'live', waiting: 'not live, trying again', paused: 'paused', refused: 'not allowed' };
    this.setAttribute('aria-label', `${this.#label()}, ${words[this.#state]}`);
    this.setAttribute('state', this.#state);
  }

  #toggleBoxes() {
    this.#drawsBoxes = !this.#drawsBoxes;
    this.#boxes.setAttribute('aria-pressed', String(this.#drawsBoxes));
    if (this.#shown) this.#draw(this.#shown.rtp);
  }

  async #toggleFull() {
    try {
      if (document.fullscreenElement === this) await document.exitFullscreen();
      else await this.requestFullscreen();
    } catch {
      // Not granted in this frame; the button then does nothing, as elsewhere on such pages.
    }
  }

  async #saveShot() {
    const blob = await this.snapshot();
    if (!blob) return;
    const url = URL.createObjectURL(blob);
    const stamp = new Date().toISOString().replace(/[:.]/g, '-');
    const link = make('a', { href: url, download: `${this.getAttribute('stream')}-${stamp}.png` });
    link.click();
    setTimeout(() => URL.revokeObjectURL(url), 10_000);
  }

  /** @param {KeyboardEvent} event */
  #onKey(event) {
    if (event.defaultPrevented || event.ctrlKey || event.metaKey || event.altKey) return;
    const key = event.key.toLowerCase();
    if (key === 'f') void this.#toggleFull();
    else if (key === 's') void this.#saveShot();
    else if (key === 'b' && this.#view() === 'data') this.#toggleBoxes();
    else return;
    event.preventDefault();
  }

  /** @param {string} name @param {object} detail */
  #emit(name, detail) {
    this.dispatchEvent(new CustomEvent(name, { detail, bubbles: true, composed: true }));
  }
}

/**
 * From the picture's arrival at the server to its display; NaN while unknown.
 * @param {Playback} playback
 * @param {number|undefined} rtp of the picture; undefined where the browser does not tell
 * @param {number} shownMs page time
 */
function ageOf(playback, rtp, shownMs) {
  const source = playback.source();
  const wanted = rtp ?? source?.rtpTimestamp;
  const captured = /** @type {any} */ (source)?.captureTimestamp;
  if (source && captured && wanted !== undefined) {
    // The source may already tell about a later picture than the one shown.
    const sinceMs = ticksBetween(source.rtpTimestamp, wanted) / RTP_PER_MS;
    const capturedMs = playback.clock.pageMsOfUnix(captured - NTP_TO_UNIX_MS) - sinceMs;
    return shownMs - capturedMs;
  }
  const message = wanted === undefined ? null : playback.messageOf(wanted);
  return message?.received_server_ms === undefined ? NaN : shownMs - playback.clock.pageMs(message.received_server_ms);
}

/**
 * Boxes and their labels.
 * @param {CanvasRenderingContext2D} context
 * @param {FrameMessage} message
 * @param {string[]} names
 * @param {[number, number, number, number]} place x, y, width, height of the picture
 * @param {number} scale device pixels of a line
 */
function paint(context, message, names, [left, top, width, height], scale) {
  const [w, h] = message.size;
  if (!(w > 0 && h > 0)) return;
  const size = Math.round(Math.max(11, Math.min(15, height / (26 * scale))) * scale);
  context.font = `600 ${size}px ui-sans-serif, system-ui, sans-serif`;
  context.textBaseline = 'middle';
  context.lineWidth = 2 * scale;
  for (const [x1, y1, x2, y2, classId, confidence, trackId] of message.boxes) {
    const hue = HUES[classId % HUES.length] ?? '#ff7a45';
    const x = left + (x1 / w) * width;
    const y = top + (y1 / h) * height;
    const wide = ((x2 - x1) / w) * width;
    const high = ((y2 - y1) / h) * height;
    context.strokeStyle = hue;
    context.strokeRect(x, y, wide, high);
    const name = names[classId] ?? String(classId);
    const track = trackId === null || trackId === undefined ? '' : ` #${trackId}`;
    const text = `${name}${track} ${Math.round(confidence * 100)}`;
    const room = context.measureText(text).width + 8 * scale;
    const tall = size + 6 * scale;
    const up = y - tall >= top ? y - tall : y;
    context.fillStyle = hue;
    context.fillRect(x - scale, up, room, tall);
    context.fillStyle = '#10181b';
    context.fillText(text, x + 3 * scale, up + tall / 2);
  }
}

/** @param {number} ms */
function ageText(ms) {
  return ms < 1_000 ? `${Math.round(ms)} ms` : `${(ms / 1_000).toFixed(1)} s`;
}

/** @param {number[]} values NaN for none */
function median(values) {
  const sorted = [...values].sort((a, b) => a - b);
  return sorted[Math.floor(sorted.length / 2)] ?? NaN;
}

if (!customElements.get('sightline-tile')) customElements.define('sightline-tile', SightlineTile);
