// One RTCPeerConnection from offer to end. Video goes out and comes back on one m-line; the
// data channel brings detections and is pinged, for the clock and as proof of life.

import { Failure } from './failures.js';
import { postOffer, deleteSession } from './signaling.js';

/** @typedef {import('./camera.js').Source} Source */
/** @typedef {import('./signaling.js').Answer} Answer */
/** @typedef {import('./signaling.js').Options} Options */

/**
 * One message of the data channel about one frame. Receivers ignore keys they don't know.
 * @typedef {object} FrameMessage
 * @property {number} seq
 * @property {number} rtp_timestamp
 * @property {[number, number]} size
 * @property {[number, number, number, number, number, number, number|null][]} boxes
 * @property {Record<string, number>} stages_ms
 * @property {number} [server_ms]
 * @property {number} [received_server_ms]
 * @property {number} [sent_server_ms]
 * @property {number} [fps_in]
 * @property {number} [fps_out]
 * @property {Record<string, number>} [dropped]
 */

/**
 * @typedef {object} Hello
 * @property {string[]} [names]
 * @property {import('./signaling.js').Model|null} [model]
 * @property {string} [codec]
 * @property {string} [encoder]
 */

/**
 * @typedef {object} PeerEvents
 * @property {(stream: MediaStream) => void} picture the annotated picture is coming
 * @property {(hello: Hello) => void} hello
 * @property {(message: FrameMessage) => void} frame
 * @property {(sentMs: number, serverMs: number) => void} pong
 */

const GATHER_MS = 1_000;
const CONNECT_MS = 10_000;
const DISCONNECTED_MS = 3_000;
const PING_MS = 1_000;
const FIRST_PING_MS = 100;
const FIRST_PINGS = 6;
const PONG_SILENCE_MS = 6_000;

/** Highest bit rate worth sending, by the picture's height. @param {number} height */
function bitrateFor(height) {
  if (height <= 360) return 1_200_000;
  if (height <= 540) return 2_000_000;
  return height <= 800 ? 4_000_000 : 6_000_000;
}

/**
 * Chromium begins at 300 kbit/s and needs half a minute to a clear picture; this hint in the
 * answer lets it begin higher. Who does not know it ignores it, and a narrow network still
 * brings the rate down within a second.
 * @param {string} sdp
 * @param {number} kbps
 */
export function withStartBitrate(sdp, kbps) {
  const hint = `x-google-start-bitrate=${Math.round(kbps)}`;
  for (const [line, type] of sdp.matchAll(/^a=rtpmap:(\d+) (?:H264|VP8|VP9|AV1)\/90000/gim)) {
    const parameters = new RegExp(`^a=fmtp:${type} .*?(?=\\r?$)`, 'm');
    sdp = parameters.test(sdp)
      ? sdp.replace(parameters, `$&;${hint}`)
      : sdp.replace(line, `${line}\r\na=fmtp:${type} ${hint}`);
  }
  return sdp;
}

export class Peer {
  #connection;
  #channel;
  #events;
  #abort = new AbortController();
  /** @type {RTCRtpSender} */ #sender;
  /** @type {RTCRtpReceiver} */ #receiver;
  #session = '';
  #pings = 0;
  #lastPongMs = 0;
  #lastPingMs = -Infinity;
  #pinger = 0;
  #leaving = 0;
  /** @type {(failure: Failure) => void} */ #end = () => {};

  /** Resolves with the reason when a call that stood is over. @type {Promise<Failure>} */
  ended;

  /**
   * @param {Source} source
   * @param {RTCIceServer[]} iceServers
   * @param {PeerEvents} events
   */
  constructor(source, iceServers, events) {
    if (typeof RTCPeerConnection === 'undefined') throw new Failure('unsupported');
    this.#events = events;
    this.ended = new Promise((resolve) => {
      this.#end = resolve;
    });
    this.#connection = new RTCPeerConnection({ iceServers, bundlePolicy: 'max-bundle' });
    const transceiver = this.#connection.addTransceiver(source.track, {
      direction: 'sendrecv',
      streams: [source.stream],
    });
    this.#sender = transceiver.sender;
    this.#receiver = transceiver.receiver;
    // Show a frame when it is there; the default waits to even out network jitter.
    if ('jitterBufferTarget' in this.#receiver) this.#receiver.jitterBufferTarget = 0;
    else if ('playoutDelayHint' in this.#receiver) {
      /** @type {any} */ (this.#receiver).playoutDelayHint = 0;
    }
    // Detections are only worth something while new: a lost one is not sent again.
    this.#channel = this.#connection.createDataChannel('detections', {
      ordered: false,
      maxRetransmits: 0,
    });
    this.#listen();
  }

  get session() {
    return this.#session;
  }

  /**
   * From offer to "connected".
   * @param {Source} source
   * @param {Options} options
   * @param {AbortSignal} signal
   * @returns {Promise<Answer>}
   */
  async connect(source, options, signal) {
    signal = AbortSignal.any([signal, this.#abort.signal]);
    await this.#connection.setLocalDescription();
    await this.#gathered(signal);
    const sdp = this.#connection.localDescription?.sdp ?? '';
    const answer = await postOffer(sdp, options, signal);
    this.#session = answer.session;
    try {
      signal.throwIfAborted();
      const heightNow = source.track.getSettings().height ?? 480;
      const sdp = withStartBitrate(answer.sdp, bitrateFor(heightNow) / 2_000);
      await this.#connection.setRemoteDescription({ type: 'answer', sdp });
    } catch (cause) {
      if (signal.aborted) throw cause;
      throw new Failure('server-error', { reason: 'its answer does not fit the offer', cause });
    }
    await this.#limit(source);
    await this.#connected(signal);
    return answer;
  }

  /** Another camera, size or file in the running call. @param {Source} source */
  async replace(source) {
    await this.#sender.replaceTrack(source.track);
    await this.#limit(source);
  }

  /** @returns {Promise<RTCStatsReport>} */
  getStats() {
    return this.#connection.getStats();
  }

  close() {
    if (this.#abort.signal.aborted) return;
    this.#abort.abort();
    clearTimeout(this.#pinger);
    clearTimeout(this.#leaving);
    if (this.#session) void this.#takeLeave();
    else this.#connection.close();
  }

  /** Says goodbye first: a closed connection ends the session, and there is none to delete. */
  async #takeLeave() {
    await deleteSession(this.#session);
    this.#connection.close();
  }

  #listen() {
    const { signal } = this.#abort;
    this.#connection.addEventListener(
      'track',
      (event) => this.#events.picture(event.streams[0] ?? new MediaStream([event.track])),
      { signal },
    );
    this.#channel.addEventListener('message', (event) => this.#onMessage(event.data), { signal });
    this.#channel.addEventListener('open', () => this.#ping(), { signal });
    this.#channel.addEventListener('close', () => this.#lost(), { signal });
    let grace = 0;
    this.#connection.addEventListener(
      'connectionstatechange',
      () => {
        clearTimeout(grace);
        const state = this.#connection.connectionState;
        if (state === 'failed' || state === 'closed') this.#lost();
        // Often heals by itself within a second or two.
        if (state === 'disconnected') grace = setTimeout(() => this.#lost(), DISCONNECTED_MS);
      },
      { signal },
    );
    signal.addEventListener('abort', () => clearTimeout(grace));
  }

  #lost() {
    this.#end(new Failure(navigator.onLine ? 'connection-lost' : 'offline'));
  }

  /** @param {unknown} data */
  #onMessage(data) {
    if (typeof data !== 'string') return;
    let message;
    try {
      message = JSON.parse(data);
    } catch {
      return; // not ours; the channel may carry more in later versions
    }
    if (message?.type === 'hello') this.#events.hello(message);
    else if (message?.type === 'pong') {
      this.#lastPongMs = performance.now();
      this.#events.pong(message.t, message.server_ms);
    } else if (message?.type === 'reconnect') {
      // The server is about to stop, and says when whoever takes over expects us.
      clearTimeout(this.#leaving);
      this.#leaving = setTimeout(() => this.#lost(), Number(message.after_ms) || 0);
    } else if (Array.isArray(message?.boxes)) this.#events.frame(message);
  }

  #ping() {
    if (this.#channel.readyState !== 'open') return;
    const nowMs = performance.now();
    // A page that was asleep sent no pings: the silence counts from its waking.
    if (nowMs - this.#lastPingMs > PONG_SILENCE_MS / 2) this.#lastPongMs = nowMs;
    // Single losses are normal on this channel; a row of them is a dead server, noticed
    // sooner than by the browser's own timers.
    if (nowMs - this.#lastPongMs > PONG_SILENCE_MS) {
      this.#lost();
      return;
    }
    this.#pings += 1;
    this.#lastPingMs = nowMs;
    this.#channel.send(JSON.stringify({ type: 'ping', t: nowMs }));
    const wait = this.#pings < FIRST_PINGS ? FIRST_PING_MS : PING_MS;
    this.#pinger = setTimeout(() => this.#ping(), wait);
  }

  /** @param {Source} source */
  async #limit(source) {
    const parameters = this.#sender.getParameters();
    const encoding = parameters.encodings?.[0];
    if (!encoding) return;
    const height = source.track.getSettings().height ?? source.maxHeight ?? 480;
    const scale = source.maxHeight ? Math.max(1, height / source.maxHeight) : 1;
    encoding.scaleResolutionDownBy = scale;
    encoding.maxBitrate = bitrateFor(height / scale);
    try {
      await this.#sender.setParameters(parameters);
    } catch {
      // Some browsers refuse parameters while negotiating; the call works without limits.
    }
  }

  /** The server does not trickle: the offer carries what was gathered in time.
   * @param {AbortSignal} signal */
  #gathered(signal) {
    const connection = this.#connection;
    return new Promise((resolve) => {
      const done = () => {
        if (connection.iceGatheringState === 'complete') resolve(undefined);
      };
      connection.addEventListener('icegatheringstatechange', done, { signal });
      setTimeout(resolve, GATHER_MS);
      done();
    });
  }

  /** @param {AbortSignal} signal */
  #connected(signal) {
    const connection = this.#connection;
    return new Promise((resolve, reject) => {
      const check = () => {
        const state = connection.connectionState;
        if (state === 'connected') finish(resolve);
        if (state === 'failed' || state === 'closed') fail();
      };
      const fail = () => finish(() => reject(new Failure('no-path')));
      const deadline = setTimeout(fail, CONNECT_MS);
      /** @param {(value: any) => void} settle */
      const finish = (settle) => {
        clearTimeout(deadline);
        settle(undefined);
      };
      connection.addEventListener('connectionstatechange', check, { signal });
      signal.addEventListener('abort', () => finish(() => reject(signal.reason)));
      check();
    });
  }
}
