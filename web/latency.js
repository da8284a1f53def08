// How old the picture on the screen is: from the camera's capture to the display of the same
// frame with its boxes.
//
// What is measured and what is estimated
// - Shown: `expectedDisplayTime` of each returned frame (requestVideoFrameCallback): measured.
// - Which captured frame that was: RTP timestamps. The server keeps the source's media time,
//   so timestamps out and back differ by a constant, which `Pairing` finds by voting.
// - Captured: RTP timestamps of the way out run with the capture clock; `CaptureClock` finds
//   their offset to the page clock from the quickest arrivals at the server less this browser's
//   encode time and half a round trip (estimated), made exact by `captureTime` of the local
//   preview where the browser has it (measured).
// - Without a detector the server says nothing about single frames: the age is then the sum of
//   its parts (estimated).
// - Server's part: its own instants, brought to the page clock by ping/pong, good to half of
//   the quickest round trip.
// The screen's own delay after `expectedDisplayTime` and the camera's before `captureTime`
// are outside what a page can see.

/** @typedef {import('./peer.js').FrameMessage} FrameMessage */
/** @typedef {import('./clock.js').ServerClock} ServerClock */

const WINDOW_MS = 5_000;
const RTP_PER_MS = 90;
const RTP_WRAP = 2 ** 32;
const HALF_FRAME_MS = 16;
const VOTE_AFTER_MS = 150;

/**
 * @typedef {object} AgeSnapshot
 * @property {number} p50Ms NaN while unknown
 * @property {number} p95Ms
 * @property {number} count frames in the window
 * @property {'measured'|'estimated'|'unknown'} capture how the capture instant is known
 * @property {number} uplinkMs capture to server, median
 * @property {number} serverMs first packet in to last packet out, median
 * @property {number} downlinkMs server to display, median
 * @property {number} shownFps
 */

/** The last few seconds of (time, value); bounded by its window. */
export class Window {
  /** @type {{atMs: number, value: number}[]} */ #samples = [];
  #windowMs;

  constructor(windowMs = WINDOW_MS) {
    this.#windowMs = windowMs;
  }

  /** @param {number} atMs @param {number} value */
  add(atMs, value) {
    if (!Number.isFinite(value)) return;
    this.#samples.push({ atMs, value });
    this.#forget(atMs);
  }

  /**
   * @param {number} nowMs
   * @param {number[]} shares e.g. [0.5, 0.95]
   * @returns {number[]} NaN where there is nothing
   */
  percentiles(nowMs, shares) {
    this.#forget(nowMs);
    const sorted = this.#samples.map((sample) => sample.value).sort((a, b) => a - b);
    return shares.map((share) => {
      const index = Math.min(sorted.length - 1, Math.floor(share * sorted.length));
      return sorted[index] ?? NaN;
    });
  }

  /** @param {number} nowMs */
  median(nowMs) {
    return this.percentiles(nowMs, [0.5])[0] ?? NaN;
  }

  /** @param {number} nowMs */
  count(nowMs) {
    this.#forget(nowMs);
    return this.#samples.length;
  }

  /** @param {number} nowMs */
  #forget(nowMs) {
    const oldest = nowMs - this.#windowMs;
    let gone = 0;
    for (const sample of this.#samples) {
      if (sample.atMs >= oldest) break;
      gone += 1;
    }
    if (gone) this.#samples.splice(0, gone);
  }
}

/** @param {number} value @returns {number} 0 .. 2^32-1 */
function wrapped(value) {
  return ((value % RTP_WRAP) + RTP_WRAP) % RTP_WRAP;
}

/**
 * Finds the constant between RTP timestamps of returned frames and those of the messages
 * about them. Each frame votes with the message whose sending fits its arrival best; only the
 * true constant gets the same vote again and again.
 */
export class Pairing {
  /** @type {number[]} */ #votes = [];
  /** @type {number|null} */ #difference = null;

  /** @param {number} shownRtp @param {number} messageRtp */
  vote(shownRtp, messageRtp) {
    this.#votes.push(wrapped(shownRtp - messageRtp));
    if (this.#votes.length > 24) this.#votes.shift();
    /** @type {Map<number, number>} */
    const counts = new Map();
    for (const vote of this.#votes) counts.set(vote, (counts.get(vote) ?? 0) + 1);
    for (const [difference, count] of counts) {
      if (count >= 5 && count * 2 > this.#votes.length) this.#difference = difference;
    }
  }

  /** @param {number} shownRtp @returns {number|null} its timestamp on the way out */
  toMessageRtp(shownRtp) {
    return this.#difference === null ? null : wrapped(shownRtp - this.#difference);
  }
}

/** The least value of the last minute, kept as the least of each second. */
export class Floor {
  /** @type {{second: number, value: number}[]} */ #seconds = [];

  /** @param {number} atMs @param {number} value */
  add(atMs, value) {
    if (!Number.isFinite(value)) return;
    const second = Math.floor(atMs / 1_000);
    const last = this.#seconds.at(-1);
    if (last?.second === second) last.value = Math.min(last.value, value);
    else this.#seconds.push({ second, value });
    if (this.#seconds.length > 60) this.#seconds.shift();
  }

  /** @returns {number} Infinity before the first */
  get value() {
    return Math.min(...this.#seconds.map(({ value }) => value));
  }
}

/** Maps RTP timestamps of the way out to capture instants on the page clock. */
export class CaptureClock {
  /** @type {number|null} */ #lastRtp = null;
  #turns = 0;
  /** Offsets of media time, by frames that the preview showed as well. */
  #measured = new Window();
  /** The same by arrivals. Only the quickest count: queues and loss only ever add, and a wrong
   * offset would make the preview's frames be taken for their neighbours. */
  #arrivals = new Floor();
  /** Capture instants of the local preview, newest last. @type {number[]} */ #previews = [];

  /** @param {number} captureMs from the local preview */
  addPreview(captureMs) {
    this.#previews.push(captureMs);
    if (this.#previews.length > 90) this.#previews.shift();
  }

  /**
   * @param {number} rtp of a frame that arrived at the server
   * @param {number} receivedMs when, on the page clock
   * @param {number} uplinkMs best guess of its way from capture to server
   */
  addArrival(rtp, receivedMs, uplinkMs) {
    const mediaMs = this.#mediaMs(rtp);
    this.#turns = this.#turnsOf(rtp);
    this.#lastRtp = rtp;
    this.#arrivals.add(receivedMs, receivedMs - uplinkMs - mediaMs);
    const expected = mediaMs + this.#arrivals.value;
    let nearest = Infinity;
    for (const captureMs of this.#previews) {
      if (Math.abs(captureMs - expected) < Math.abs(nearest - expected)) nearest = captureMs;
    }
    // Farther than half a frame, it belongs to a frame the preview did not show.
    if (Math.abs(nearest - expected) <= HALF_FRAME_MS) {
      this.#measured.add(receivedMs, nearest - mediaMs);
    }
  }

  /**
   * @param {number} rtp
   * @param {number} nowMs
   * @returns {number} capture instant on the page clock; NaN before the first arrival
   */
  captureMs(rtp, nowMs) {
    if (this.#lastRtp === null) return NaN;
    const exact = this.measured(nowMs);
    return this.#mediaMs(rtp) + (exact ? this.#measured.median(nowMs) : this.#arrivals.value);
  }

  /** @param {number} nowMs */
  measured(nowMs) {
    return this.#measured.count(nowMs) >= 15;
  }

  /** A new source starts another sequence of timestamps. */
  reset() {
    this.#measured = new Window();
    this.#arrivals = new Floor();
    this.#previews = [];
  }

  /** Milliseconds of media time, carried over the wrap at 2^32. @param {number} rtp */
  #mediaMs(rtp) {
    return (this.#turnsOf(rtp) * RTP_WRAP + rtp) / RTP_PER_MS;
  }

  /** How often timestamps had wrapped at this one. @param {number} rtp */
  #turnsOf(rtp) {
    const last = this.#lastRtp ?? rtp;
    if (last - rtp > RTP_WRAP / 2) return this.#turns + 1;
    return rtp - last > RTP_WRAP / 2 ? this.#turns - 1 : this.#turns;
  }
}

/** Watches both pictures of one call and tells how old the shown one is. */
export class AgeMeter {
  #clock;
  #pairing = new Pairing();
  #captures = new CaptureClock();
  #ages = new Window();
  #uplinks = new Window();
  #servers = new Window();
  #shownFrames = new Window(2_000);
  /** @type {{rtp: number, receivedMs: number, sentMs: number}[]} */ #messages = [];
  /** Shown frames that have not voted yet. @type {{rtp: number, arrivedMs: number}[]} */
  #voters = [];
  #uplinkGuessMs = 5;
  #serverGuessMs = NaN;
  #paired = true;
  #signal;

  /**
   * @param {ServerClock} clock
   * @param {AbortSignal} signal ends the watching
   */
  constructor(clock, signal) {
    this.#clock = clock;
    this.#signal = signal;
  }

  /** @param {HTMLVideoElement} video the local preview */
  watchLocal(video) {
    this.#watch(video, (_, metadata) => {
      // Firefox gives none for local tracks; zero would be nonsense.
      if (metadata.captureTime) this.#captures.addPreview(metadata.captureTime);
    });
  }

  /** @param {HTMLVideoElement} video the returned picture */
  watchRemote(video) {
    this.#watch(video, (nowMs, metadata) => this.#shown(nowMs, metadata));
  }

  /** @param {number} uplinkMs encode time, sending and half a round trip */
  guessUplink(uplinkMs) {
    if (Number.isFinite(uplinkMs)) this.#uplinkGuessMs = uplinkMs;
  }

  /** For a server that says nothing about single frames. @param {number} serverMs */
  guessServer(serverMs) {
    this.#serverGuessMs = serverMs;
    this.#servers.add(performance.now(), serverMs);
    this.#uplinks.add(performance.now(), this.#uplinkGuessMs);
  }

  /** @param {FrameMessage} message */
  addMessage(message) {
    const { rtp_timestamp: rtp, received_server_ms: received } = message;
    const { server_ms: server, sent_server_ms: sent } = message;
    if (received === undefined || !this.#clock.known) return;
    const receivedMs = this.#clock.toPageMs(received);
    // The message may leave before its picture: `server_ms` is then the last picture's.
    const sentMs = receivedMs + (server ?? this.#clock.toPageMs(sent ?? NaN) - receivedMs);
    const nowMs = performance.now();
    this.#captures.addArrival(rtp, receivedMs, this.#uplinkGuessMs);
    this.#uplinks.add(nowMs, receivedMs - this.#captures.captureMs(rtp, nowMs));
    this.#servers.add(nowMs, sentMs - receivedMs);
    this.#messages.push({ rtp, receivedMs, sentMs });
    if (this.#messages.length > 64) this.#messages.shift();
  }

  sourceChanged() {
    this.#captures.reset();
  }

  /** @returns {AgeSnapshot} */
  snapshot() {
    const nowMs = performance.now();
    const [p50Ms = NaN, p95Ms = NaN] = this.#ages.percentiles(nowMs, [0.5, 0.95]);
    const uplinkMs = this.#uplinks.median(nowMs);
    const serverMs = this.#servers.median(nowMs);
    const known = Number.isFinite(p50Ms);
    return {
      p50Ms,
      p95Ms,
      count: this.#ages.count(nowMs),
      capture: !known
        ? 'unknown'
        : this.#paired && this.#captures.measured(nowMs)
          ? 'measured'
          : 'estimated',
      uplinkMs,
      serverMs,
      downlinkMs: Math.max(0, p50Ms - uplinkMs - serverMs),
      shownFps: this.#shownFrames.count(nowMs) / 2,
    };
  }

  /**
   * @param {number} nowMs
   * @param {VideoFrameCallbackMetadata} metadata
   */
  #shown(nowMs, metadata) {
    this.#shownFrames.add(nowMs, 1);
    const { expectedDisplayTime, presentationTime, receiveTime, rtpTimestamp } = metadata;
    const shownMs = Math.max(expectedDisplayTime, presentationTime);
    const arrivedMs = receiveTime || presentationTime;
    this.#paired = rtpTimestamp !== undefined && this.#messages.length > 0;
    if (!this.#messages.length) {
      // The sum of what is known about its parts.
      const downlinkMs = shownMs - arrivedMs + this.#clock.rttMs / 2;
      this.#ages.add(nowMs, this.#uplinkGuessMs + this.#serverGuessMs + downlinkMs);
      return;
    }
    if (rtpTimestamp === undefined) {
      // No way to tell which frame this is: the one whose sending fits best.
      const message = this.#sentNear(arrivedMs);
      if (message) this.#ages.add(nowMs, shownMs - message.receivedMs + this.#uplinkGuessMs);
      return;
    }
    this.#voters.push({ rtp: rtpTimestamp, arrivedMs });
    this.#letVote(nowMs);
    const rtp = this.#pairing.toMessageRtp(rtpTimestamp);
    if (rtp !== null) this.#ages.add(nowMs, shownMs - this.#captures.captureMs(rtp, nowMs));
  }

  /** A frame votes a little later: the message about it may come after it.
   * @param {number} nowMs */
  #letVote(nowMs) {
    while (this.#voters[0] && this.#voters[0].arrivedMs < nowMs - VOTE_AFTER_MS) {
      const { rtp, arrivedMs } = this.#voters[0];
      this.#voters.shift();
      const message = this.#sentNear(arrivedMs);
      if (message) this.#pairing.vote(rtp, message.rtp);
    }
  }

  /** The message whose frame, sent when it says, would arrive closest to this.
   * @param {number} arrivedMs */
  #sentNear(arrivedMs) {
    const targetMs = arrivedMs - this.#clock.rttMs / 2;
    let best = this.#messages.at(-1);
    for (const message of this.#messages) {
      const distance = Math.abs(message.sentMs - targetMs);
      if (best && distance <= Math.abs(best.sentMs - targetMs)) best = message;
    }
    return best;
  }

  /**
   * @param {HTMLVideoElement} video
   * @param {VideoFrameRequestCallback} seen
   */
  #watch(video, seen) {
    if (!('requestVideoFrameCallback' in video)) return;
    let handle = 0;
    /** @type {VideoFrameRequestCallback} */
    const next = (nowMs, metadata) => {
      seen(nowMs, metadata);
      handle = video.requestVideoFrameCallback(next);
    };
    handle = video.requestVideoFrameCallback(next);
    this.#signal.addEventListener('abort', () => video.cancelVideoFrameCallback(handle));
  }
}
