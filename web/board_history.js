// What happened before: a timeline of all streams to scrub over, and the events as cards with
// their best pictures, by pages, found by stream, class and kind, marked as seen.

import { hasKey } from './access.js';
import { acknowledge, getClip, getEvents, pictureUrl } from './board_api.js';
import { headline, when } from './board_events.js';
import { Pictures } from './board_pictures.js';
import { words } from './board_panel.js';
import { element } from './classes.js';
import { Failure } from './failures.js';

/** @typedef {import('./board_api.js').Happened} Happened */

const SVG = 'http://www.w3.org/2000/svg';
const PAGE = 200;
const KEPT_AT_MOST = 2_000;
const HOUR_MS = 3_600_000;
const ROW_PX = 22;
const AXIS_PX = 20;
const NAMES_PX = 92;
const LABEL_PX = 58;
/** A moment is drawn this wide at least, to be seen and hit. */
const LEAST_PX = 4;

/**
 * Where each event lies on a timeline: one row for a stream, the newest at the right.
 * @param {Happened[]} events
 * @param {number} sinceMs
 * @param {number} untilMs
 * @param {number} width in pixels
 * @returns {{rows: string[], bars: {id: string, row: number, x: number, wide: number}[]}}
 */
export function placed(events, sinceMs, untilMs, width) {
  const rows = [...new Set(events.map(({ stream }) => stream))].sort();
  const scale = width / Math.max(1, untilMs - sinceMs);
  const bars = events.map(({ id, stream, started_unix_ms, ended_unix_ms }) => {
    const begin = Math.max(0, (started_unix_ms - sinceMs) * scale);
    const end = Math.min(width, ((ended_unix_ms ?? started_unix_ms) - sinceMs) * scale);
    const wide = Math.max(LEAST_PX, end - begin);
    return { id, row: rows.indexOf(stream), x: Math.min(begin, width - wide), wide };
  });
  return { rows, bars };
}

export class History {
  #dialog = element('history', HTMLDialogElement);
  #form = element('history-form', HTMLFormElement);
  #stream = element('history-stream', HTMLSelectElement);
  #kind = element('history-kind', HTMLSelectElement);
  #class = element('history-class', HTMLInputElement);
  #span = element('history-span', HTMLSelectElement);
  #unseen = element('history-unseen', HTMLInputElement);
  #svg = element('history-svg', SVGSVGElement);
  #cards = element('history-cards', HTMLElement);
  #more = element('history-more', HTMLButtonElement);
  #said = element('history-said', HTMLElement);
  #detail = element('history-detail', HTMLElement);
  /** @type {Happened[]} */ #events = [];
  #next = '';
  #chosen = '';
  #range = { sinceMs: 0, untilMs: 1 };
  #pictures = new Pictures();
  /** Of clips. @type {string[]} */ #urls = [];
  #loading = new AbortController();
  #showing = new AbortController();
  /** @type {ReturnType<typeof placed>} */ #placed = { rows: [], bars: [] };
  #names;
  #timer = 0;

  /** @param {import('./board_names.js').ZoneNames} names */
  constructor(names) {
    this.#names = names;
    this.#form.addEventListener('change', () => void this.#load());
    this.#form.addEventListener('submit', (event) => event.preventDefault());
    this.#class.addEventListener('input', () => {
      clearTimeout(this.#timer);
      this.#timer = setTimeout(() => void this.#load(), 300);
    });
    this.#more.addEventListener('click', () => void this.#page());
    element('history-close', HTMLButtonElement).addEventListener('click', () => this.#dialog.close());
    this.#dialog.addEventListener('close', () => this.#free());
    const scrub = (/** @type {PointerEvent} */ event) => {
      if (event.type === 'pointerdown' || event.buttons & 1) this.#scrub(event);
    };
    this.#svg.addEventListener('pointerdown', scrub);
    this.#svg.addEventListener('pointermove', scrub);
    this.#svg.addEventListener('keydown', (event) => this.#onKey(event));
    new ResizeObserver(() => this.#paint()).observe(this.#svg);
  }

  /** @param {string[]} streams there are now @param {string} [stream] to begin with */
  open(streams, stream = '') {
    const options = [new Option('All streams', ''), ...streams.map((name) => new Option(name, name))];
    this.#stream.replaceChildren(...options);
    this.#stream.value = streams.includes(stream) ? stream : '';
    this.#dialog.showModal();
    void this.#load();
  }

  async #load() {
    this.#free();
    this.#loading = new AbortController();
    const untilMs = Date.now();
    this.#range = { sinceMs: untilMs - Number(this.#span.value) * HOUR_MS, untilMs };
    this.#events = [];
    this.#next = '';
    this.#chosen = '';
    this.#cards.replaceChildren();
    this.#detail.hidden = true;
    await this.#page();
  }

  async #page() {
    const { signal } = this.#loading;
    const asked = new URLSearchParams({ limit: String(PAGE), since: String(Math.round(this.#range.sinceMs)) });
    if (this.#stream.value) asked.set('stream', this.#stream.value);
    if (this.#kind.value) asked.set('kind', this.#kind.value);
    if (this.#class.value.trim()) asked.set('class', this.#class.value.trim());
    if (this.#unseen.checked) asked.set('acknowledged', 'false');
    if (this.#next) asked.set('cursor', this.#next);
    this.#more.disabled = true;
    this.#said.textContent = 'Looking';
    try {
      const { events, next } = await getEvents(asked, signal);
      await this.#names.knowThoseOf(events);
      if (signal.aborted) return;
      this.#events.push(...events);
      this.#next = this.#events.length < KEPT_AT_MOST ? (next ?? '') : '';
      this.#cards.append(...events.map((event) => this.#card(event)));
      this.#said.textContent = this.#events.length ? '' : 'Nothing found.';
    } catch (failure) {
      if (signal.aborted) return;
      this.#said.textContent = words(failure);
    } finally {
      this.#more.disabled = false;
    }
    this.#more.hidden = !this.#next;
    this.#paint();
  }

  // --- the timeline ---

  #paint() {
    if (!this.#dialog.open) return;
    const width = Math.max(200, this.#svg.clientWidth - NAMES_PX);
    const { sinceMs, untilMs } = this.#range;
    this.#placed = placed(this.#events, sinceMs, untilMs, width);
    const { rows, bars } = this.#placed;
    const height = Math.max(1, rows.length) * ROW_PX + AXIS_PX;
    this.#svg.setAttribute('viewBox', `0 0 ${width + NAMES_PX} ${height}`);
    this.#svg.style.height = `${height}px`;
    /** @type {SVGElement[]} */
    const nodes = ticks(sinceMs, untilMs, width).flatMap(({ x, text }) => [
      node('line', { class: 'tick', x1: `${x + NAMES_PX}`, x2: `${x + NAMES_PX}`, y1: '0', y2: `${height - AXIS_PX}` }),
      named('text', { class: 'tick-text', x: `${x + NAMES_PX}`, y: `${height - 5}` }, text),
    ]);
    rows.forEach((name, row) => {
      nodes.push(named('text', { class: 'row-name', x: '0', y: `${row * ROW_PX + 15}` }, name.length > 13 ? `${name.slice(0, 12)}…` : name));
    });
    for (const { id, row, x, wide } of bars) {
      const chosen = id === this.#chosen ? ' chosen' : '';
      nodes.push(node('rect', { class: `happened${chosen}`, x: `${x + NAMES_PX}`, y: `${row * ROW_PX + 3}`, width: `${wide}`, height: `${ROW_PX - 6}`, rx: '2.5' }));
    }
    this.#svg.replaceChildren(...nodes);
    const count = this.#events.length;
    this.#svg.setAttribute('aria-label', `${count} events on a timeline; left and right arrows go from one to the next`);
  }

  /** The event nearest to the pointer. @param {PointerEvent} event */
  #scrub(event) {
    const box = this.#svg.getBoundingClientRect();
    const x = event.clientX - box.left - NAMES_PX;
    const row = Math.floor((event.clientY - box.top) / ROW_PX);
    const inRow = this.#placed.bars.filter((bar) => bar.row === row);
    let best = '';
    let nearest = Infinity;
    for (const bar of inRow.length ? inRow : this.#placed.bars) {
      const away = Math.max(bar.x - x, x - bar.x - bar.wide, 0);
      if (away < nearest) [nearest, best] = [away, bar.id];
    }
    if (best && best !== this.#chosen) void this.#choose(best);
  }

  /** @param {KeyboardEvent} event */
  #onKey(event) {
    const step = { ArrowLeft: 1, ArrowRight: -1 }[event.key];
    if (!step) return;
    event.preventDefault();
    const at = this.#events.findIndex(({ id }) => id === this.#chosen);
    const to = this.#events[at < 0 ? 0 : Math.min(this.#events.length - 1, Math.max(0, at + step))];
    if (to) void this.#choose(to.id);
  }

  // --- cards and the chosen one ---

  /** @param {Happened} event */
  #card(event) {
    const card = document.createElement('button');
    card.type = 'button';
    card.className = 'card-event';
    card.dataset['id'] = event.id;
    card.toggleAttribute('data-seen', Boolean(event.acknowledged_unix_ms));
    const picture = document.createElement('img');
    picture.alt = '';
    const title = document.createElement('b');
    title.textContent = headline(event, this.#names.of(event.stream, event.zone));
    const line = document.createElement('span');
    line.textContent = `${event.stream} · ${when(event)}`;
    card.append(picture, title, line);
    card.addEventListener('click', () => void this.#choose(event.id));
    if (event.snapshot_url) this.#pictures.show(picture, event.snapshot_url);
    return card;
  }

  /** @param {string} id */
  async #choose(id) {
    const event = this.#events.find((each) => each.id === id);
    if (!event) return;
    this.#chosen = id;
    this.#showing.abort();
    this.#showing = new AbortController();
    const { signal } = this.#showing;
    for (const card of this.#cards.children) {
      const is = card instanceof HTMLElement && card.dataset['id'] === id;
      card.toggleAttribute('data-chosen', is);
      if (is) card.setAttribute('aria-current', 'true');
      else card.removeAttribute('aria-current');
      if (is) card.scrollIntoView({ block: 'nearest' });
    }
    this.#paint();
    this.#showDetail(event);
    try {
      const clip = await getClip(event, signal);
      if (clip) await this.#play(clip, event, signal);
    } catch (failure) {
      if (!(failure instanceof Failure) && !signal.aborted) throw failure; // the picture stays
    }
  }

  /** @param {import('./board_api.js').Clip} clip @param {Happened} event @param {AbortSignal} signal */
  async #play(clip, event, signal) {
    const path = clip.url.replace(/^\//, '');
    const video = document.createElement('video');
    video.controls = video.muted = video.autoplay = video.loop = video.playsInline = true;
    // Without a key the browser fetches what it plays, and no more.
    if (hasKey()) {
      const url = await pictureUrl(path, signal);
      this.#urls.push(url);
      video.src = url;
    } else video.src = path;
    const before = this.#detail.querySelector('img, video');
    video.addEventListener('loadeddata', () => {
      if (signal.aborted) return;
      if (before) before.replaceWith(video);
      else this.#detail.prepend(video);
    }, { once: true });
    // A moment before it begins.
    video.addEventListener('loadedmetadata', () => {
      video.currentTime = Math.max(0, (event.started_unix_ms - clip.started_unix_ms) / 1_000 - 1);
    }, { once: true });
  }

  /** @param {Happened} event */
  #showDetail(event) {
    const picture = document.createElement('img');
    picture.alt = '';
    const title = document.createElement('b');
    title.textContent = headline(event, this.#names.of(event.stream, event.zone));
    const line = document.createElement('p');
    const track = event.track_id == null ? '' : ` · object ${event.track_id}`;
    line.textContent = `${event.stream} · ${new Date(event.started_unix_ms).toLocaleString()}${track}`;
    const seen = document.createElement('button');
    seen.type = 'button';
    seen.className = 'quiet';
    const mark = () => {
      seen.disabled = Boolean(event.acknowledged_unix_ms);
      seen.textContent = event.acknowledged_unix_ms ? `Seen ${new Date(event.acknowledged_unix_ms).toLocaleTimeString()}` : 'Mark as seen';
    };
    seen.addEventListener('click', async () => {
      seen.disabled = true;
      try {
        Object.assign(event, await acknowledge(event.id));
        this.#cards.querySelector(`[data-id="${CSS.escape(event.id)}"]`)?.toggleAttribute('data-seen', true);
      } catch (failure) {
        this.#said.textContent = words(failure);
      }
      mark();
    });
    mark();
    this.#detail.replaceChildren(picture, title, line, seen);
    this.#detail.hidden = false;
    if (event.snapshot_url) this.#pictures.show(picture, event.snapshot_url);
    else picture.remove();
  }

  #free() {
    this.#loading.abort();
    this.#showing.abort();
    for (const url of this.#urls) URL.revokeObjectURL(url);
    this.#urls = [];
    this.#pictures.clear();
    this.#detail.replaceChildren();
  }
}

/** Round times for the axis. @param {number} sinceMs @param {number} untilMs @param {number} width */
function ticks(sinceMs, untilMs, width) {
  const spanMs = untilMs - sinceMs;
  const steps = [300_000, 900_000, HOUR_MS, 3 * HOUR_MS, 6 * HOUR_MS, 12 * HOUR_MS, 24 * HOUR_MS];
  const step = steps.find((each) => (spanMs / each) * LABEL_PX < width) ?? 24 * HOUR_MS;
  const offset = new Date(untilMs).getTimezoneOffset() * 60_000;
  const found = [];
  for (let at = Math.ceil((sinceMs - offset) / step) * step + offset; at < untilMs; at += step) {
    const time = new Date(at);
    const text = step >= 24 * HOUR_MS
      ? time.toLocaleDateString(undefined, { weekday: 'short', day: 'numeric' })
      : time.toLocaleTimeString(undefined, { hour: '2-digit', minute: '2-digit' });
    const x = ((at - sinceMs) / spanMs) * width;
    if (x <= width - LABEL_PX / 2) found.push({ x, text }); // one at the edge would be cut
  }
  return found;
}

/** @param {string} name @param {Record<string, string>} attributes */
function node(name, attributes) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

/** @param {string} name @param {Record<string, string>} attributes @param {string} text */
function named(name, attributes, text) {
  const made = node(name, attributes);
  made.textContent = text;
  return made;
}
