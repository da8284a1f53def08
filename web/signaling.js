// The HTTP side of a call: configuration, offer, live options, end. Every request has a
// deadline, and what goes wrong comes out as a Failure.

import { bearer } from './access.js';
import { Failure } from './failures.js';

/** @typedef {import('./settings.js').Mode} Mode */
/** @typedef {{mode: Mode, confidence: number, classes: string[]|null}} Options */

/**
 * @typedef {object} Model
 * @property {string} name
 * @property {string[]} names class names, by class id
 * @property {string} provider
 * @property {string} precision
 * @property {{input_wh: [number, number], fallback: string}[]} [engines] `fallback` says why an
 *   engine is not the one asked for; empty when it is
 */

/**
 * @typedef {object} ClientConfig
 * @property {boolean} auth_required whether calls need a key or token
 * @property {RTCIceServer[]} ice_servers
 * @property {Record<string, number>} limits
 * @property {Mode[]} modes
 * @property {Partial<Options>} defaults of a call nobody has changed yet
 * @property {boolean} demo whether there is a stream to watch without a camera
 * @property {Model|null} model
 * @property {string} version
 */

/**
 * @typedef {object} Answer
 * @property {string} sdp
 * @property {RTCSdpType} type
 * @property {string} session
 * @property {Options} [options]
 * @property {string} [codec]
 * @property {Model|null} [model]
 * @property {string} [encoder]
 */

const DEADLINE_MS = 8_000;
const GOODBYE_MS = 1_000;
/** A large model may be compiled for a while. */
const LOADING_MS = 60_000;

/** @type {ClientConfig} */
const NO_CONFIG = {
  auth_required: false,
  ice_servers: [],
  limits: {},
  modes: ['exact', 'smooth'],
  defaults: {},
  demo: false,
  model: null,
  version: '',
};

/**
 * @param {AbortSignal} [signal]
 * @returns {Promise<ClientConfig>}
 */
export async function getConfig(signal) {
  const reply = await request('api/client-config', { method: 'GET' }, signal);
  return { ...NO_CONFIG, ...(await json(reply)) };
}

/**
 * The models this server could run now; none where it does not let us ask.
 * @returns {Promise<string[]>}
 */
export async function getModels() {
  const reply = await request('api/models', { method: 'GET' });
  const { models } = await json(reply);
  return (models ?? []).map((/** @type {{name: string}} */ { name }) => name);
}

/**
 * Have another model run, for every call of this server.
 * @param {string} name
 * @returns {Promise<Model|null>} what runs then
 */
export async function putModel(name) {
  const body = JSON.stringify({ model: name });
  const reply = await request('api/model', { method: 'PUT', body }, undefined, LOADING_MS);
  return (await json(reply))['model'] ?? null;
}

/**
 * @param {string} sdp
 * @param {Options} options
 * @param {AbortSignal} signal
 * @returns {Promise<Answer>}
 */
export async function postOffer(sdp, options, signal) {
  const body = JSON.stringify({ sdp, type: 'offer', options });
  const reply = await request('offer', { method: 'POST', body }, signal);
  return /** @type {Promise<Answer>} */ (json(reply));
}

/**
 * @param {string} session
 * @param {Partial<Options>} options
 * @param {AbortSignal} signal
 * @returns {Promise<Partial<Options>>} as the server now has them
 */
export async function patchSession(session, options, signal) {
  const path = `sessions/${encodeURIComponent(session)}`;
  const body = JSON.stringify({ options });
  const reply = await request(path, { method: 'PATCH', body }, signal);
  return (await json(reply))['options'] ?? options;
}

/**
 * A session as the server counts it.
 * @typedef {object} SessionStatistics
 * @property {number} fps_in
 * @property {number} fps_out
 * @property {{p50?: number}} [server_ms]
 * @property {Record<string, number>} dropped
 */

/**
 * @param {string} session
 * @param {AbortSignal} signal
 * @returns {Promise<SessionStatistics>}
 */
export async function getSession(session, signal) {
  const path = `sessions/${encodeURIComponent(session)}`;
  const reply = await request(path, { method: 'GET' }, signal);
  return /** @type {Promise<SessionStatistics>} */ (json(reply));
}

/**
 * Never fails, and takes a second at most: the server frees a silent session by itself. `keepalive` lets the request
 * outlive the page.
 * @param {string} session
 */
export async function deleteSession(session) {
  const path = `sessions/${encodeURIComponent(session)}`;
  try {
    const signal = AbortSignal.timeout(GOODBYE_MS);
    await fetch(address(path), { method: 'DELETE', keepalive: true, signal, headers: bearer() });
  } catch {
    // Server gone; so is the session.
  }
}

/** Relative to the page, so that a proxy may serve us below a path. @param {string} path */
function address(path) {
  return new URL(path, document.baseURI);
}

/**
 * @param {string} path
 * @param {RequestInit} init
 * @param {AbortSignal} [signal]
 * @param {number} [deadlineMs]
 * @returns {Promise<Response>} with a 2xx status
 */
export async function request(path, init, signal, deadlineMs = DEADLINE_MS) {
  const deadline = AbortSignal.timeout(deadlineMs);
  const signals = signal ? [signal, deadline] : [deadline];
  /** @type {Response} */
  let reply;
  try {
    const type = init.body ? { 'Content-Type': 'application/json' } : {};
    const headers = { ...type, ...bearer() };
    reply = await fetch(address(path), {
      cache: 'no-store',
      ...init,
      headers,
      signal: AbortSignal.any(signals),
    });
  } catch (cause) {
    if (signal?.aborted) throw cause; // the person stopped the call: no failure to show
    throw new Failure(navigator.onLine ? 'server-gone' : 'offline', { cause });
  }
  if (!reply.ok) throw await failureOf(reply);
  return reply;
}

/** @param {Response} reply */
async function failureOf(reply) {
  let reason = '';
  try {
    const problem = await reply.json();
    reason = String(problem.detail || problem.title || '');
  } catch {
    reason = `${reply.status} ${reply.statusText}`.trim(); // not from our server: a proxy's page
  }
  const after = Number(reply.headers.get('Retry-After') ?? NaN);
  const retryAfterS = Number.isFinite(after) && after >= 0 ? Math.min(after, 300) : null;
  if (reply.status === 401 || reply.status === 403) return new Failure('locked', { reason });
  if (reply.status === 429) return new Failure('slow-down', { reason, retryAfterS });
  if (reply.status === 503) {
    // Our server names the limit that is reached; all else passes with time.
    const isFull = /\bmax_\w+/.test(reason);
    return new Failure(isFull ? 'server-full' : 'server-busy', { reason, retryAfterS });
  }
  // A gateway's own "nobody behind me".
  if (reply.status === 502 || reply.status === 504) return new Failure('server-gone', { reason });
  return new Failure(reply.status < 500 ? 'refused' : 'server-error', { reason, retryAfterS });
}

/**
 * @param {Response} reply
 * @returns {Promise<Record<string, any>>}
 */
export async function json(reply) {
  try {
    return await reply.json();
  } catch (cause) {
    throw new Failure('server-error', { reason: 'its answer was not JSON', cause });
  }
}
