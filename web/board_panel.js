// The settings of one stream: what it is, what is looked for in it, who watches, how to reach it.

import { absolute, deleteStream, patchStream } from './board_api.js';
import { ClassFilter, element } from './classes.js';
import { Failure } from './failures.js';

/** @typedef {import('./board_api.js').StreamNow} StreamNow */
/** @typedef {import('./board_api.js').ViewerNow} ViewerNow */
/** @typedef {import('./signaling.js').Options} Options */
/** @typedef {import('./tile.js').SightlineTile} SightlineTile */

/**
 * @typedef {object} PanelEvents
 * @property {() => void} closed
 * @property {() => void} changed the streams are other ones now
 * @property {(name: string) => void} draw the person wants to draw on its picture
 */

const DEBOUNCE_MS = 150;
/** Where pictures come from, as people say it. */
const SOURCES = /** @type {Record<string, string>} */ ({
  call: 'sent by the call page',
  whip: 'sent by WHIP',
  pull: 'fetched by the server',
  demo: 'the demo',
});
const WATCHERS_SHOWN = 20;
/** Why a picture is not shown, as the server counts it and as people say it; others by their name. */
const REASONS = /** @type {Record<string, string>} */ ({
  replaced: 'a newer one came first',
  stale: 'too old for the detector',
  unsent: 'a newer one was sent',
  late: 'overtaken',
  lost: 'lost on the way',
  decode_queue: 'too many to decode',
  corrupt: 'damaged',
  encoder: 'encoder busy',
  not_encoded: 'encoder failed',
});

export class Panel {
  #root = element('panel', HTMLElement);
  #said = element('panel-said', HTMLElement);
  #confidence = element('confidence', HTMLInputElement);
  #confidenceValue = element('confidence-value', HTMLOutputElement);
  #mode = element('mode', HTMLFieldSetElement);
  #remove = element('panel-remove', HTMLButtonElement);
  #classes = new ClassFilter((classes) => this.#change({ classes }));
  #events;
  #name = '';
  /** What the person changed and the server has not heard yet. @type {Partial<Options>} */ #pending = {};
  #timer = 0;
  #busy = false;
  /** @type {{name: string, total: number, atMs: number, perS: number|null}|null} */ #dropsBefore = null;
  /** @type {Element|null} */ #opener = null;

  /** @param {PanelEvents} events */
  constructor(events) {
    this.#events = events;
    element('panel-close', HTMLButtonElement).addEventListener('click', () => this.close());
    this.#confidence.addEventListener('input', () => {
      this.#showConfidence(Number(this.#confidence.value) / 100);
      this.#change({ confidence: Number(this.#confidence.value) / 100 });
    });
    this.#mode.addEventListener('change', (event) => {
      if (event.target instanceof HTMLInputElement) {
        this.#change({ mode: /** @type {any} */ (event.target.value) });
      }
    });
    element('panel-draw', HTMLButtonElement).addEventListener('click', () => this.#events.draw(this.#name));
    this.#remove.addEventListener('click', () => void this.#removeStream());
  }

  /** The stream it is about; empty while it is closed. */
  get name() {
    return this.#name;
  }

  /** @param {string[]} names of the detector's classes */
  setNames(names) {
    this.#classes.setNames(names);
  }

  /** @param {StreamNow} stream */
  open(stream) {
    this.#opener = document.activeElement;
    this.#name = stream.name;
    this.#pending = {};
    this.#said.textContent = '';
    this.#armed(false);
    element('panel-name', HTMLElement).textContent = stream.name;
    this.#root.hidden = false;
    this.#showAddresses(stream);
    this.show(stream, null, null);
    this.showCounts(null, null);
    element('panel-close', HTMLButtonElement).focus();
  }

  close() {
    if (!this.#name) return;
    this.#name = '';
    this.#root.hidden = true;
    if (this.#opener instanceof HTMLElement && this.#opener.isConnected) this.#opener.focus();
    this.#events.closed();
  }

  /**
   * @param {StreamNow} stream
   * @param {SightlineTile|null} tile
   * @param {ViewerNow[]|null} viewers null where the key does not show them
   */
  show(stream, tile, viewers) {
    const shown = tile?.statistics();
    const facts = [
      ['Source', `${SOURCES[stream.source] ?? (stream.source || 'away')}${stream.live ? '' : ', no signal'}`],
      ['Picture', stream.size[0] ? `${stream.size[0]} × ${stream.size[1]}, ${stream.fps} per second` : '–'],
      ['Shown here', shown?.fps == null ? '–' : `${shown.fps} per second`],
      ['Age here', shown?.ageMs == null ? '–' : `${shown.ageMs} ms${shown.rung === 'low' ? ', half size' : ''}`],
      ['Not shown', this.#drops(stream)],
      ['Running for', span(stream.age_s)],
    ];
    if (stream.pull) facts.splice(1, 0, ['Fetched from', `${stream.pull.address}, ${stream.pull.state}`]);
    if (stream.pull?.last_error) facts.push(['Last trouble', stream.pull.last_error]);
    fill(element('panel-facts', HTMLElement), facts.map(([name, value]) => row(name ?? '', value ?? '')));
    const options = stream.options;
    element('panel-options', HTMLElement).hidden = !options;
    if (options && !this.#busy && !Object.keys(this.#pending).length) this.#showOptions(options);
    const list = element('panel-watchers', HTMLElement);
    if (!stream.viewers) fill(list, [item('Nobody')]);
    else if (viewers === null) fill(list, [item(`${stream.viewers} watching. Who they are is told to keys that control this stream.`)]);
    else {
      const more = viewers.length - WATCHERS_SHOWN;
      fill(list, [...viewers.slice(0, WATCHERS_SHOWN).map(watcher), ...(more > 0 ? [item(`and ${more} more`)] : [])]);
    }
  }

  /** The server does not answer: what it said last is not so any more. */
  forget() {
    fill(element('panel-facts', HTMLElement), [row('Source', 'The server does not answer')]);
    fill(element('panel-watchers', HTMLElement), []);
  }

  /**
   * @param {any} layout zones and lines of the stream
   * @param {any} counts of them
   */
  showCounts(layout, counts) {
    const rows = [];
    for (const zone of layout?.zones ?? []) {
      const count = counts?.zones?.[zone.id] ?? {};
      rows.push(item(`${zone.label}: ${count.inside ?? 0} inside · ${count.entered ?? 0} came · ${count.left ?? 0} left`));
    }
    for (const line of layout?.lines ?? []) {
      const count = counts?.lines?.[line.id] ?? {};
      rows.push(item(`${line.label}: ${count.forward ?? 0} forward · ${count.backward ?? 0} back`));
    }
    const masks = layout?.masks?.length ?? 0;
    if (masks) rows.push(item(masks === 1 ? '1 mask' : `${masks} masks`));
    fill(element('panel-counts', HTMLElement), rows);
  }

  /**
   * The count since the source came, with its reasons, and how it goes now: what counts is
   * whether it grows.
   * @param {StreamNow} stream
   */
  #drops(stream) {
    const drops = Object.entries(stream.dropped ?? {}).sort(([, a], [, b]) => b - a);
    const total = drops.reduce((sum, [, count]) => sum + count, 0);
    const nowMs = performance.now();
    const before = this.#dropsBefore;
    // A source that came anew begins from nothing.
    if (!before || before.name !== stream.name || total < before.total) {
      this.#dropsBefore = { name: stream.name, total, atMs: nowMs, perS: null };
    } else if (nowMs - before.atMs > 1_000) {
      const perS = (1_000 * (total - before.total)) / (nowMs - before.atMs);
      this.#dropsBefore = { name: stream.name, total, atMs: nowMs, perS };
    }
    if (!total) return 'none';
    const perS = this.#dropsBefore?.perS ?? null;
    const rate = perS === null ? '' : perS < 0.05 ? ', none now' : `, ${perS.toFixed(1)} per second now`;
    return `${total}${rate} (${drops.map(([reason, count]) => `${count} ${REASONS[reason] ?? reason}`).join(', ')})`;
  }

  /** @param {Partial<Options>} options */
  #showOptions(options) {
    const confidence = options.confidence ?? 0.35;
    if (document.activeElement !== this.#confidence) {
      this.#confidence.value = String(Math.round(confidence * 100));
      this.#showConfidence(confidence);
    }
    for (const radio of this.#mode.querySelectorAll('input')) radio.checked = radio.value === options.mode;
    this.#classes.setChosen(options.classes ?? null);
  }

  /** @param {number} confidence */
  #showConfidence(confidence) {
    this.#confidence.style.setProperty('--share', String((confidence * 100 - 5) / 90));
    this.#confidenceValue.textContent = `${Math.round(confidence * 100)} %`;
  }

  /** @param {Partial<Options>} options */
  #change(options) {
    this.#pending = { ...this.#pending, ...options };
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => void this.#send(), DEBOUNCE_MS);
  }

  async #send() {
    const [name, options] = [this.#name, this.#pending];
    if (!name) return;
    this.#pending = {};
    this.#busy = true;
    try {
      await patchStream(name, options);
      this.#said.textContent = 'Changed for everybody who watches.';
    } catch (failure) {
      this.#said.textContent = words(failure);
    } finally {
      this.#busy = false;
    }
  }

  /** The first press asks, the second does it. */
  async #removeStream() {
    if (this.#remove.dataset['armed'] !== 'yes') {
      this.#armed(true);
      return;
    }
    try {
      await deleteStream(this.#name);
      this.close();
      this.#events.changed();
    } catch (failure) {
      this.#said.textContent = words(failure);
      this.#armed(false);
    }
  }

  /** @param {boolean} armed */
  #armed(armed) {
    this.#remove.dataset['armed'] = armed ? 'yes' : 'no';
    this.#remove.textContent = armed ? 'Really? It ends for everybody' : 'Remove stream';
  }

  /** @param {StreamNow} stream */
  #showAddresses(stream) {
    const { name } = stream;
    const tag = `<script type="module" src="${absolute('tile.js')}"></script>\n<sightline-tile stream="${name}"></sightline-tile>`;
    fill(element('panel-urls', HTMLElement), [
      address('Watch (WHEP)', absolute(`whep/${name}`)),
      address('Publish (WHIP)', absolute(`whip/${name}`)),
      address('In a frame', absolute(`embed/${name}`)),
      address('In a page', tag),
    ]);
  }
}

/**
 * One address with a button that copies it.
 * @param {string} title
 * @param {string} text
 */
export function address(title, text) {
  const line = document.createElement('div');
  line.className = 'address';
  const name = document.createElement('span');
  name.textContent = title;
  const code = document.createElement('code');
  code.textContent = text;
  const copy = document.createElement('button');
  copy.type = 'button';
  copy.className = 'quiet';
  copy.textContent = 'Copy';
  copy.setAttribute('aria-label', `Copy: ${title}`);
  copy.addEventListener('click', async () => {
    try {
      await navigator.clipboard.writeText(text);
      copy.textContent = 'Copied';
    } catch {
      // Only on secure pages; marked, so that the keys for it work.
      getSelection()?.selectAllChildren(code);
      copy.textContent = 'Marked';
    }
    setTimeout(() => (copy.textContent = 'Copy'), 1_500);
  });
  line.append(name, copy, code);
  return line;
}

/** Who, and below how it is served. @param {ViewerNow} viewer */
function watcher(viewer) {
  const { name, by, address, codec, rung, age_s, rtt_ms, packets_sent, packets_resent, state } = viewer;
  const whose = name || (by === 'anyone' ? '' : by);
  const parts = [whose && address, codec, rung === 'low' ? 'half size' : 'full size', `for ${span(age_s)}`];
  if (rtt_ms !== null) parts.push(`${Math.round(rtt_ms)} ms away`);
  const lost = packets_resent / Math.max(1, packets_sent);
  if (lost >= 0.001) parts.push(`${(100 * lost).toFixed(1)} % sent twice`);
  if (state !== 'live' && state !== 'connected') parts.push(state);
  const node = document.createElement('li');
  const who = document.createElement('b');
  who.textContent = whose || address;
  // Two of one name are told apart by their keys.
  if (name && by !== 'anyone') who.title = by;
  const how = document.createElement('span');
  how.textContent = parts.filter(Boolean).join(' · ');
  node.append(who, how);
  return node;
}

/** @param {string} text */
function item(text) {
  const node = document.createElement('li');
  node.textContent = text;
  return node;
}

/** @param {string} name @param {string} value */
function row(name, value) {
  const node = document.createElement('div');
  const term = document.createElement('dt');
  const meaning = document.createElement('dd');
  term.textContent = name;
  meaning.textContent = value;
  node.append(term, meaning);
  return node;
}

/** Only what differs is touched. @param {Element} parent @param {Node[]} children */
function fill(parent, children) {
  const same =
    parent.childNodes.length === children.length &&
    children.every((child, index) => child.isEqualNode(parent.childNodes[index] ?? null));
  if (!same) parent.replaceChildren(...children);
}

/** @param {number} seconds */
export function span(seconds) {
  if (seconds < 90) return `${Math.round(seconds)} s`;
  if (seconds < 5_400) return `${Math.round(seconds / 60)} min`;
  if (seconds < 172_800) return `${Math.round(seconds / 3_600)} h`;
  return `${Math.round(seconds / 86_400)} days`;
}

/** @param {unknown} failure */
export function words(failure) {
  if (!(failure instanceof Failure)) return String(failure);
  // Ours, not the server's words: they go with their title.
  return failure.kind === 'server-gone' ? `${failure.title}. ${failure.detail}` : failure.detail;
}
