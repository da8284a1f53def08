// One call, from "start" to its end: opens the source, connects, reconnects with growing,
// jittered pauses, and ends with everything it started.

import { openSource } from './camera.js';
import { ServerClock } from './clock.js';
import { Failure } from './failures.js';
import { AgeMeter } from './latency.js';
import { Peer } from './peer.js';
import { getConfig, getSession, patchSession } from './signaling.js';
import { LinkStats } from './stats.js';
import { TelemetryLog } from './telemetry.js';

/** @typedef {import('./camera.js').Source} Source */
/** @typedef {import('./peer.js').FrameMessage} FrameMessage */
/** @typedef {import('./peer.js').Hello} Hello */
/** @typedef {import('./settings.js').Settings} Settings */
/** @typedef {import('./signaling.js').Options} Options */
/** @typedef {import('./telemetry.js').Telemetry} Telemetry */

/**
 * @typedef {{kind: 'asking'}
 *   | {kind: 'connecting'}
 *   | {kind: 'live'}
 *   | {kind: 'waiting', failure: Failure, untilMs: number, again: () => void}} CallState
 */

/**
 * @typedef {object} CallEvents
 * @property {(state: CallState) => void} state
 * @property {(source: Source) => void} source a local picture to show
 * @property {(stream: MediaStream) => void} picture the annotated picture
 * @property {(message: FrameMessage) => void} frame what was found in one frame
 * @property {(hello: Hello) => void} hello what runs on the server
 * @property {(telemetry: Telemetry) => void} telemetry four times a second
 * @property {(text: string) => void} notice one sentence for the status line
 */

const FIRST_PAUSE_MS = 500;
const LONGEST_PAUSE_MS = 15_000;
const TELEMETRY_MS = 250;
const STATS_EVERY = 4;
const DEBOUNCE_MS = 120;

/**
 * Pause before try number `attempt` (from 0). Half of it is left to chance, so that a
 * restarted server is not met by everybody at once.
 * @param {number} attempt
 * @param {number} chance 0..1
 */
export function pauseMs(attempt, chance) {
  const full = Math.min(LONGEST_PAUSE_MS, FIRST_PAUSE_MS * 2 ** attempt);
  return full / 2 + (chance * full) / 2;
}

export class Call {
  #settings;
  #file;
  #events;
  #videos;
  #abort = new AbortController();
  /** @type {Source|null} */ #source = null;
  /** @type {Peer|null} */ #peer = null;
  /** @type {AgeMeter|null} */ #age = null;
  #live = false;
  #optionsTimer = 0;

  /**
   * @param {Settings} settings
   * @param {File|null} file
   * @param {{local: HTMLVideoElement, remote: HTMLVideoElement}} videos to measure
   * @param {CallEvents} events
   */
  constructor(settings, file, videos, events) {
    this.#settings = settings;
    this.#file = file;
    this.#videos = videos;
    this.#events = events;
  }

  /**
   * The whole call. Returns null when it was closed, or the failure that only the person can
   * help with; everything is freed either way.
   * @returns {Promise<Failure|null>}
   */
  async run() {
    const { signal } = this.#abort;
    try {
      this.#events.state({ kind: 'asking' });
      await this.#open();
      let attempt = 0;
      for (;;) {
        this.#events.state({ kind: 'connecting' });
        const { failure, stood } = await this.#attempt(signal);
        if (stood) attempt = 0;
        await this.#pause(failure, attempt, signal);
        attempt += 1;
      }
    } catch (error) {
      if (signal.aborted && !(signal.reason instanceof Failure)) return null;
      const reason = signal.aborted ? signal.reason : error;
      if (reason instanceof Failure) return reason;
      throw reason;
    } finally {
      this.close();
    }
  }

  /** Options changed; the newest are sent once the person's hand rests.
   * @param {Settings} settings */
  changeOptions(settings) {
    this.#settings = settings;
    clearTimeout(this.#optionsTimer);
    this.#optionsTimer = setTimeout(() => this.#sendOptions(), DEBOUNCE_MS);
  }

  /**
   * Another camera, size or file. The running connection is kept.
   * @param {Settings} settings
   * @param {File|null} file
   */
  async changeSource(settings, file) {
    this.#settings = settings;
    this.#file = file;
    if (!this.#source) return; // still asking; the new settings come too late for this one
    try {
      await this.#open();
    } catch (error) {
      if (this.#abort.signal.aborted) return;
      if (!(error instanceof Failure)) throw error;
      this.#abort.abort(error);
    }
  }

  close() {
    this.#abort.abort();
    clearTimeout(this.#optionsTimer);
    this.#peer?.close();
    this.#peer = null;
    this.#source?.close();
    this.#source = null;
  }

  /** Opens the source the settings name, in place of the one before. */
  async #open() {
    const before = this.#source;
    // A phone gives one camera at a time, and a camera one size at a time.
    if (this.#settings.source === 'camera') before?.close();
    const source = await openSource(this.#settings, this.#file);
    if (this.#abort.signal.aborted) {
      source.close();
      this.#abort.signal.throwIfAborted();
    }
    source.onlost = () => this.#abort.abort(new Failure('camera-lost'));
    this.#source = source;
    await this.#peer?.replace(source);
    before?.close();
    this.#age?.sourceChanged();
    this.#events.source(source);
  }

  /**
   * One connection, to its end.
   * @param {AbortSignal} signal
   * @returns {Promise<{failure: Failure, stood: boolean}>} why it ended and whether it stood
   */
  async #attempt(signal) {
    const source = this.#source;
    if (!source) throw new Failure('camera-lost');
    const ends = new AbortController();
    signal.addEventListener('abort', () => ends.abort(), { signal: ends.signal });
    let stood = false;
    try {
      const config = await getConfig(signal);
      const clock = new ServerClock();
      const age = new AgeMeter(clock, ends.signal);
      const log = new TelemetryLog(age);
      const peer = new Peer(source, config.ice_servers, {
        picture: (stream) => this.#events.picture(stream),
        hello: (hello) => this.#events.hello(hello),
        frame: (message) => {
          log.addFrame(message);
          this.#events.frame(message);
        },
        pong: (sentMs, serverMs) => clock.add(sentMs, performance.now(), serverMs),
      });
      this.#peer = peer;
      this.#age = age;
      age.watchLocal(this.#videos.local);
      age.watchRemote(this.#videos.remote);
      const stream = wantedStream();
      const options = { ...this.#options(), ...(stream ? { stream } : {}) };
      const answer = await peer.connect(source, options, signal);
      stood = true;
      this.#live = true;
      this.#events.hello({ model: null, ...answer });
      this.#events.state({ kind: 'live' });
      this.#report(peer, log, ends.signal);
      const failure = await Promise.race([peer.ended, aborted(signal)]);
      return { failure, stood };
    } catch (error) {
      if (signal.aborted || !(error instanceof Failure)) throw error;
      return { failure: error, stood };
    } finally {
      ends.abort();
      this.#live = false;
      this.#peer?.close();
      this.#peer = null;
      this.#age = null;
    }
  }

  /**
   * Waits until it is worth trying again, or the person says now.
   * @param {Failure} failure
   * @param {number} attempt
   * @param {AbortSignal} signal
   */
  async #pause(failure, attempt, signal) {
    if (failure.retry === 'ask') throw failure;
    const asked = (failure.retryAfterS ?? 0) * 1_000;
    const waitMs = Math.max(asked, pauseMs(attempt, Math.random()));
    await new Promise((resolve, reject) => {
      const untilMs = performance.now() + waitMs;
      const timer = setTimeout(resolve, waitMs);
      const again = () => resolve(undefined);
      window.addEventListener('online', again, { once: true, signal });
      signal.addEventListener('abort', () => {
        clearTimeout(timer);
        reject(signal.reason);
      });
      this.#events.state({ kind: 'waiting', failure, untilMs, again });
    });
  }

  /**
   * @param {Peer} peer
   * @param {TelemetryLog} log
   * @param {AbortSignal} signal
   */
  #report(peer, log, signal) {
    const stats = new LinkStats();
    let turn = 0;
    const tick = async () => {
      if (turn % STATS_EVERY === 0) {
        try {
          log.addLink(stats.read(await peer.getStats()));
        } catch (error) {
          if (!signal.aborted) throw error; // closed meanwhile: nothing to report
        }
        if (log.quiet && !signal.aborted) await this.#askAbout(peer.session, log, signal);
      }
      turn += 1;
      if (signal.aborted) return;
      this.#events.telemetry(log.snapshot());
      timer = setTimeout(tick, TELEMETRY_MS);
    };
    let timer = setTimeout(tick, TELEMETRY_MS);
    signal.addEventListener('abort', () => clearTimeout(timer));
  }

  /** @param {string} session @param {TelemetryLog} log @param {AbortSignal} signal */
  async #askAbout(session, log, signal) {
    try {
      log.addSession(await getSession(session, signal));
    } catch (error) {
      // Without these numbers the call goes on; if the server is gone, the peer notices.
      if (!signal.aborted && !(error instanceof Failure)) throw error;
    }
  }

  /** @returns {Options} */
  #options() {
    const { mode, confidence, classes } = this.#settings;
    return { mode, confidence, classes };
  }

  async #sendOptions() {
    const peer = this.#peer;
    if (!peer || !this.#live) return; // the next offer carries them
    try {
      await patchSession(peer.session, this.#options(), this.#abort.signal);
    } catch (error) {
      if (this.#abort.signal.aborted) return;
      if (!(error instanceof Failure)) throw error;
      this.#events.notice(`The change did not reach the server: ${error.detail}`);
    }
  }
}

/** The name under which others may watch this call: the page was opened with `?stream=NAME`. */
function wantedStream() {
  return new URLSearchParams(location.search).get('stream') ?? '';
}

/** @param {AbortSignal} signal @returns {Promise<never>} */
function aborted(signal) {
  return new Promise((_, reject) => {
    if (signal.aborted) reject(signal.reason);
    signal.addEventListener('abort', () => reject(signal.reason));
  });
}
