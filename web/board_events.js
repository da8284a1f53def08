// What happened, newest first, beside the pictures: live from the server.

import { follow, getEvents } from './board_api.js';
import { Pictures } from './board_pictures.js';
import { element } from './classes.js';

/** @typedef {import('./board_api.js').Happened} Happened */

const KEPT = 60;
const AGAIN_MS = 3_000;
const VERBS = {
  enter: 'came into',
  leave: 'left',
  dwell: 'stays in',
  cross: 'crossed',
  appear: 'appeared',
  signal: 'signal',
};

/** @param {Happened} event @param {string} zone its name */
export function headline(event, zone) {
  const verb = VERBS[/** @type {keyof typeof VERBS} */ (event.kind)] ?? event.kind;
  const way = event.direction === 'backward' ? 'backwards' : '';
  return [event.class ?? '', verb, event.kind === 'appear' ? '' : zone, way].filter(Boolean).join(' ');
}

/** @param {Happened} event */
export function when(event) {
  const began = new Date(event.started_unix_ms);
  const lasted = event.ended_unix_ms ? Math.round((event.ended_unix_ms - event.started_unix_ms) / 1_000) : 0;
  return began.toLocaleTimeString() + (lasts(event) ? ', now' : lasted > 1 ? `, ${lasted} s` : '');
}

/** @param {Happened} event */
function lasts(event) {
  return !event.ended_unix_ms && event.kind !== 'cross';
}

export class EventList {
  #root = element('events', HTMLElement);
  #list = element('events-list', HTMLOListElement);
  #none = element('events-none', HTMLElement);
  #state = element('events-state', HTMLElement);
  #count = element('events-count', HTMLElement);
  #open = element('events-open', HTMLButtonElement);
  /** @type {Map<string, {node: HTMLLIElement, pictured: boolean}>} */ #rows = new Map();
  #pictures = new Pictures();
  #unseen = 0;
  #lastId = '';
  #abort = new AbortController();
  #changed;
  #chosen;
  #names;

  /**
   * @param {(open: boolean) => void} changed
   * @param {(stream: string) => void} chosen the person wants to see that stream
   * @param {Pick<import('./board_names.js').ZoneNames, 'of'|'knowThoseOf'>} names
   */
  constructor(changed, chosen, names) {
    this.#names = names;
    this.#changed = changed;
    this.#chosen = chosen;
    this.#open.addEventListener('click', () => this.setOpen(Boolean(this.#root.hidden)));
    const close = () => {
      this.setOpen(false);
      this.#open.focus();
    };
    element('events-close', HTMLButtonElement).addEventListener('click', close);
    this.#root.addEventListener('keydown', (event) => {
      if (event.key !== 'Escape') return;
      event.preventDefault();
      close();
    });
  }

  /** @param {boolean} open */
  setOpen(open) {
    this.#root.hidden = !open;
    this.#open.setAttribute('aria-expanded', String(open));
    if (open) this.#unseen = 0;
    this.#showCount();
    this.#changed(open);
  }

  /** What there is already, then listen until the page goes. */
  async run() {
    const { signal } = this.#abort;
    try {
      const { events } = await getEvents(new URLSearchParams({ limit: '30' }), signal);
      await this.#names.knowThoseOf(events);
      for (const event of events) this.add(event, false);
    } catch {
      // None are kept here, or not for this key.
    }
    while (!signal.aborted) {
      try {
        this.#state.textContent = '';
        await follow('api/events/live', signal, (kind, data, id) => void this.#heard(kind, data, id), this.#lastId);
      } catch {
        // Not for this key, or the server is away: the streams say so themselves.
      }
      if (signal.aborted) return;
      this.#state.textContent = 'not connected';
      await new Promise((resolve) => setTimeout(resolve, AGAIN_MS));
    }
  }

  close() {
    this.#abort.abort();
  }

  /** @param {string} kind @param {any} data @param {string} id */
  async #heard(kind, data, id) {
    if (id) this.#lastId = id;
    if (kind !== 'event' || typeof data?.id !== 'string') return;
    await this.#names.knowThoseOf([data]);
    this.add(data, true);
  }

  /** A new event, or one that has ended meanwhile. @param {Happened} event @param {boolean} isNew */
  add(event, isNew) {
    const known = this.#rows.get(event.id);
    const row = known ?? { node: document.createElement('li'), pictured: false };
    if (!known) {
      this.#rows.set(event.id, row);
      if (isNew) this.#list.prepend(row.node);
      else this.#list.append(row.node);
      if (isNew && this.#root.hidden) this.#unseen += 1;
    }
    this.#write(row, event);
    while (this.#rows.size > KEPT) {
      const oldest = this.#list.lastElementChild;
      const id = [...this.#rows].find(([, { node }]) => node === oldest)?.[0];
      if (!oldest || id === undefined) break;
      oldest.remove();
      this.#rows.delete(id);
    }
    this.#none.hidden = this.#rows.size > 0;
    this.#showCount();
  }

  /** @param {{node: HTMLLIElement, pictured: boolean}} row @param {Happened} event */
  #write(row, event) {
    const { node } = row;
    const picture = node.querySelector('img') ?? document.createElement('img');
    picture.alt = '';
    picture.width = 72;
    picture.height = 48;
    const text = document.createElement('div');
    const what = document.createElement('b');
    what.textContent = headline(event, this.#names.of(event.stream, event.zone));
    const where = document.createElement('button');
    where.type = 'button';
    where.className = 'link';
    where.textContent = event.stream;
    where.addEventListener('click', () => this.#chosen(event.stream));
    const time = document.createElement('time');
    time.dateTime = new Date(event.started_unix_ms).toISOString();
    time.textContent = when(event);
    const line = document.createElement('p');
    line.append(where, time);
    text.append(what, line);
    node.replaceChildren(picture, text);
    node.toggleAttribute('data-lasts', lasts(event));
    if (event.snapshot_url && !row.pictured) {
      row.pictured = true;
      this.#pictures.show(picture, event.snapshot_url);
    }
  }

  #showCount() {
    this.#count.hidden = this.#unseen === 0;
    this.#count.textContent = this.#unseen > 99 ? '99+' : String(this.#unseen);
  }
}
