// Everything a call tells about itself, gathered from the data channel, the browser's
// statistics and the age meter, and given out as one snapshot for the screen.

import { Window } from './latency.js';

/** @typedef {import('./latency.js').AgeMeter} AgeMeter */
/** @typedef {import('./latency.js').AgeSnapshot} AgeSnapshot */
/** @typedef {import('./peer.js').FrameMessage} FrameMessage */
/** @typedef {import('./signaling.js').SessionStatistics} SessionStatistics */
/** @typedef {import('./stats.js').LinkSnapshot} LinkSnapshot */

/**
 * @typedef {object} Telemetry
 * @property {AgeSnapshot} age
 * @property {number} fpsIn frames the server gets, per second
 * @property {number} fpsOut frames it sends back
 * @property {Record<string, number>} dropped by reason, since the call began
 * @property {[string, number][]} stagesMs medians, in the order of the frame's way
 * @property {{classId: number, count: number}[]|null} objects in the newest frame, most first;
 *   null while nothing is known about any
 * @property {LinkSnapshot|null} link
 */

/** The frame's way through the server; the names are those of /metrics and the bench. */
export const STAGES = [
  'assemble',
  'decode',
  'wait',
  'prepare',
  'infer',
  'boxes',
  'handoff',
  'draw',
  'encode',
  'send',
];

const STAGE_WINDOW_MS = 2_000;
const STALE_MS = 2_000;

export class TelemetryLog {
  #age;
  /** @type {Map<string, Window>} */ #stages = new Map();
  /** @type {FrameMessage|null} */ #newest = null;
  #newestAtMs = performance.now();
  /** @type {LinkSnapshot|null} */ #link = null;
  /** @type {SessionStatistics|null} */ #session = null;

  /** @param {AgeMeter} age */
  constructor(age) {
    this.#age = age;
  }

  /** @param {FrameMessage} message */
  addFrame(message) {
    const nowMs = performance.now();
    this.#age.addMessage(message);
    // The channel is unordered; an older message must not replace a newer one.
    if (!this.#newest || message.seq >= this.#newest.seq || nowMs - this.#newestAtMs > STALE_MS) {
      this.#newest = message;
      this.#newestAtMs = nowMs;
    }
    for (const [stage, ms] of Object.entries(message.stages_ms ?? {})) {
      let window = this.#stages.get(stage);
      if (!window) this.#stages.set(stage, (window = new Window(STAGE_WINDOW_MS)));
      window.add(nowMs, ms);
    }
  }

  /** No message for a while: without a detector there are none, or they do not get through. */
  get quiet() {
    return performance.now() - this.#newestAtMs > STALE_MS;
  }

  /** What stands in for messages while it is quiet. @param {SessionStatistics} session */
  addSession(session) {
    this.#session = session;
    this.#age.guessServer(session.server_ms?.p50 ?? NaN);
  }

  /** @param {LinkSnapshot} link */
  addLink(link) {
    this.#link = link;
    const parts = [link.encodeMs, link.sendDelayMs, link.rttMs / 2];
    this.#age.guessUplink(parts.reduce((sum, ms) => sum + (Number.isFinite(ms) ? ms : 0), 0));
  }

  /** @returns {Telemetry} */
  snapshot() {
    const nowMs = performance.now();
    const fresh = this.quiet ? null : this.#newest;
    const session = fresh ?? this.#session;
    const link = this.#link;
    return {
      age: this.#age.snapshot(),
      fpsIn: session?.fps_in ?? link?.sentFps ?? NaN,
      fpsOut: session?.fps_out ?? NaN,
      dropped: {
        ...session?.dropped,
        ...(link ? { 'lost packets': link.packetsLost, 'browser': link.framesDropped } : {}),
      },
      stagesMs: this.#stageMedians(nowMs),
      objects: fresh && countObjects(fresh),
      link,
    };
  }

  /** @param {number} nowMs @returns {[string, number][]} */
  #stageMedians(nowMs) {
    const known = STAGES.filter((stage) => this.#stages.has(stage));
    const others = [...this.#stages.keys()].filter((stage) => !STAGES.includes(stage)).sort();
    return [...known, ...others]
      .map((stage) => /** @type {[string, number]} */ ([stage, this.#median(stage, nowMs)]))
      .filter(([, ms]) => Number.isFinite(ms));
  }

  /** @param {string} stage @param {number} nowMs */
  #median(stage, nowMs) {
    return this.#stages.get(stage)?.median(nowMs) ?? NaN;
  }
}

/** @param {FrameMessage} message */
function countObjects(message) {
  /** @type {Map<number, number>} */
  const counts = new Map();
  for (const [, , , , classId] of message.boxes) {
    counts.set(classId, (counts.get(classId) ?? 0) + 1);
  }
  return [...counts]
    .map(([classId, count]) => ({ classId, count }))
    .sort((a, b) => b.count - a.count || a.classId - b.classId);
}
