// What the dashboard asks the server: streams, their options, statistics, events.

import { bearer } from './access.js';
import { Failure } from './failures.js';
import { json, request } from './signaling.js';

/** @typedef {import('./signaling.js').Options} Options */

/**
 * One stream as `/api/streams` lists it; other keys are ignored.
 * @typedef {object} StreamNow
 * @property {string} name
 * @property {boolean} live
 * @property {string} source
 * @property {[number, number]} size
 * @property {number} fps
 * @property {Record<string, number>} [dropped] pictures that were not shown, by reason
 * @property {number} viewers
 * @property {number} age_s
 * @property {Partial<Options>|null} [options]
 * @property {Record<string, string>} [urls]
 * @property {{address: string, state: string, last_error: string}|null} [pull] what the server
 *   fetches itself
 */

/**
 * @typedef {object} ViewerNow
 * @property {string} name what its key or token is called; empty for nothing
 * @property {string} by the key or token; `anyone` where none is needed
 * @property {string} address
 * @property {string} state
 * @property {string} rung
 * @property {string} codec
 * @property {number} age_s
 * @property {number|null} rtt_ms
 * @property {number} packets_sent
 * @property {number} packets_resent
 */

/**
 * @typedef {object} LayoutNow what is drawn on the picture of a stream
 * @property {{id: string, label: string}[]} zones
 * @property {{id: string, label: string}[]} lines
 * @property {{id: string}[]} masks
 */

/**
 * @typedef {object} Happened an event, as it is told and stored
 * @property {string} id
 * @property {string} stream
 * @property {string} kind
 * @property {string} [class]
 * @property {number|null} [track_id]
 * @property {string|null} [zone] its id
 * @property {number} started_unix_ms
 * @property {number|null} [ended_unix_ms]
 * @property {string|null} [direction]
 * @property {string|null} [snapshot_url]
 * @property {number|null} [acknowledged_unix_ms]
 */

/** @param {AbortSignal} signal @returns {Promise<StreamNow[]>} */
export async function getStreams(signal) {
  const reply = await request('api/streams', { method: 'GET' }, signal);
  return (await json(reply))['streams'] ?? [];
}

/** Who watches. @param {string} name @param {AbortSignal} signal @returns {Promise<ViewerNow[]>} */
export async function getViewers(name, signal) {
  const reply = await request(`${pathOf(name)}/viewers`, { method: 'GET' }, signal);
  return (await json(reply))['viewers'] ?? [];
}

/** @param {string} name @param {Partial<Options>} options @returns {Promise<StreamNow>} */
export async function patchStream(name, options) {
  const body = JSON.stringify({ options });
  const reply = await request(pathOf(name), { method: 'PATCH', body });
  return /** @type {Promise<any>} */ (json(reply));
}

/** @param {string} name @param {string} source */
export async function postStream(name, source) {
  const body = JSON.stringify({ name, source });
  await request('api/streams', { method: 'POST', body });
}

/** @param {string} name */
export async function deleteStream(name) {
  await request(pathOf(name), { method: 'DELETE' });
}

/** @param {string} name @returns {Promise<any>} zones, lines, masks and `appear` */
export async function getLayout(name) {
  return json(await request(`${pathOf(name)}/zones`, { method: 'GET' }));
}

/** @param {string} name @param {object} layout */
export async function putLayout(name, layout) {
  await request(`${pathOf(name)}/zones`, { method: 'PUT', body: JSON.stringify(layout) });
}

/** @param {string} name @param {AbortSignal} signal @returns {Promise<any>} who is inside, who came and crossed */
export async function getCounts(name, signal) {
  return json(await request(`${pathOf(name)}/counts`, { method: 'GET' }, signal));
}

/**
 * @param {URLSearchParams} asked
 * @param {AbortSignal} signal
 * @returns {Promise<{events: Happened[], next: string|null}>} newest first
 */
export async function getEvents(asked, signal) {
  const reply = await request(`api/events?${asked}`, { method: 'GET' }, signal);
  return /** @type {Promise<any>} */ (json(reply));
}

/** @param {string} id @returns {Promise<Partial<Happened>>} */
export async function acknowledge(id) {
  return json(await request(`api/events/${encodeURIComponent(id)}/acknowledge`, { method: 'POST' }));
}

/**
 * @typedef {object} Clip
 * @property {string} event_id
 * @property {number} started_unix_ms
 * @property {number} duration_ms
 * @property {string} url
 */

/**
 * The clip that shows an event: its own, or one of a neighbour that was running then.
 * @param {Happened} event
 * @param {AbortSignal} signal
 * @returns {Promise<Clip|null>}
 */
export async function getClip(event, signal) {
  const at = event.started_unix_ms;
  const asked = new URLSearchParams({ since: String(at - 300_000), until: String(at + 60_000), limit: '100' });
  const reply = await request(`${pathOf(event.stream)}/clips?${asked}`, { method: 'GET' }, signal);
  /** @type {Clip[]} */
  const clips = (await json(reply))['clips'] ?? [];
  const covers = (/** @type {Clip} */ clip) => clip.started_unix_ms <= at && at <= clip.started_unix_ms + clip.duration_ms;
  return clips.find((clip) => clip.event_id === event.id) ?? clips.find(covers) ?? null;
}

/** @param {string} name */
export function pathOf(name) {
  return `api/streams/${encodeURIComponent(name)}`;
}

/** The address of this server, as this page reached it. @param {string} path */
export function absolute(path) {
  return new URL(path, document.baseURI).href;
}

/**
 * Server-Sent Events with a Bearer header, which EventSource cannot send. Ends with the
 * connection or the signal.
 * @param {string} path
 * @param {AbortSignal} signal
 * @param {(kind: string, data: any, id: string) => void} told
 * @param {string} [lastId]
 */
export async function follow(path, signal, told, lastId = '') {
  const headers = { Accept: 'text/event-stream', ...bearer(), ...(lastId ? { 'Last-Event-ID': lastId } : {}) };
  const reply = await fetch(absolute(path), { headers, signal, cache: 'no-store' });
  if (!reply.ok || !reply.body) throw new Failure(reply.status === 401 || reply.status === 403 ? 'locked' : 'server-error');
  const reader = reply.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = '';
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const parts = (rest + value).split('\n\n');
    rest = parts.pop() ?? '';
    for (const part of parts) tell(part, told);
  }
}

/** @param {string} part @param {(kind: string, data: any, id: string) => void} told */
function tell(part, told) {
  let [kind, id, data] = ['message', '', ''];
  for (const line of part.split('\n')) {
    if (line.startsWith('event: ')) kind = line.slice(7);
    else if (line.startsWith('id: ')) id = line.slice(4);
    else if (line.startsWith('data: ')) data += line.slice(6);
  }
  if (!data) return;
  try {
    told(kind, JSON.parse(data), id);
  } catch (error) {
    if (!(error instanceof SyntaxError)) throw error; // a later version's message
  }
}

/** A picture behind the gate as an address that an img takes; freed by whoever shows it.
 * @param {string} path @param {AbortSignal} [signal] */
export async function pictureUrl(path, signal) {
  const reply = await request(path, { method: 'GET' }, signal);
  return URL.createObjectURL(await reply.blob());
}
