// The wall of tiles: as big as fits, in the order the person gave them, kept between visits.

import './tile.js';
import { bearer } from './access.js';

/** @typedef {import('./tile.js').SightlineTile} SightlineTile */
/** @typedef {import('./board_api.js').StreamNow} StreamNow */

/**
 * @typedef {object} Layout
 * @property {string[]} order names, first to last; others follow by name
 * @property {number} columns 0: as many as make the tiles biggest
 */

/**
 * @typedef {object} GridEvents
 * @property {(name: string) => void} tune the person wants the settings of a stream
 * @property {(layout: Layout) => void} arranged
 * @property {(words: string) => void} say for those who listen instead of look
 */

const GAP_PX = 8;
const RATIO = 16 / 9;
const LEAST_WIDTH_PX = 168;
/** Below this the page scrolls instead of fitting; as in dashboard.css. */
const NARROW = matchMedia('(max-width: 900px)');
const PHONE_PX = 560;

/**
 * As many columns as make `count` pictures biggest in a space.
 * @param {number} count
 * @param {number} width
 * @param {number} height
 * @returns {{columns: number, tilePx: number}}
 */
export function bestFit(count, width, height) {
  let best = { columns: 1, tilePx: 0 };
  for (let columns = 1; columns <= Math.max(1, count); columns += 1) {
    const rows = Math.ceil(count / columns);
    const wide = (width - GAP_PX * (columns - 1)) / columns;
    const high = ((height - GAP_PX * (rows - 1)) / rows) * RATIO;
    const tilePx = Math.floor(Math.min(wide, high));
    if (tilePx > best.tilePx) best = { columns, tilePx };
  }
  return best;
}

/**
 * The names there are, in the order given; new ones at the end by name.
 * @param {string[]} names
 * @param {string[]} order
 */
export function ordered(names, order) {
  const rank = new Map(order.map((name, index) => [name, index]));
  const last = order.length;
  return [...names].sort(
    (a, b) => (rank.get(a) ?? last) - (rank.get(b) ?? last) || (a < b ? -1 : 1),
  );
}

/** A tile of this server that sends this page's key. @param {string} name */
function tileFor(name) {
  const tile = /** @type {SightlineTile} */ (document.createElement('sightline-tile'));
  tile.setAttribute('src', './');
  tile.setAttribute('stream', name);
  // It is never written into the document.
  tile.tokenSource = async () => bearer()['Authorization']?.slice(7) ?? '';
  return tile;
}

class Cell {
  /** @type {string} */ name;
  node = document.createElement('article');
  tile;
  #health = document.createElement('span');
  tune = iconButton('i-tune', '');
  move = iconButton('i-move', '');
  solo = iconButton('i-solo', '');

  /** @param {string} name */
  constructor(name) {
    this.name = name;
    this.node.className = 'cell';
    this.node.dataset['name'] = name;
    this.node.setAttribute('aria-label', name);
    this.tile = tileFor(name);
    label(this.tune, `Settings of ${name}`);
    label(this.move, `Move ${name}: arrow keys, or drag`);
    label(this.solo, `Only ${name}`);
    this.move.classList.add('move');
    this.#health.className = 'health';
    const tools = document.createElement('div');
    tools.className = 'cell-tools';
    tools.append(this.move, this.tune, this.solo);
    this.node.append(this.tile, this.#health, tools);
  }

  /** @param {StreamNow} stream */
  show(stream) {
    const { fps, viewers, live, size, pull } = stream;
    const words = live
      ? `${Math.round(fps)} fps · ${size[1]}p · ${viewers} watching`
      : pull && pull.state !== 'playing'
        ? `${pull.state}${pull.last_error ? `: ${pull.last_error}` : ''}`
        : 'no signal';
    if (this.#health.textContent !== words) this.#health.textContent = words;
    this.node.toggleAttribute('data-quiet', !live);
  }

  /** Nobody knows how it is. */
  forget() {
    this.#health.textContent = '';
    this.node.removeAttribute('data-quiet');
  }
}

export class Grid {
  #root;
  #events;
  /** @type {Map<string, Cell>} */ #cells = new Map();
  /** @type {Layout} */ #layout;
  #solo = '';
  /** @type {{name: string, pointer: number}|null} */ #dragged = null;

  /**
   * @param {HTMLElement} root
   * @param {Layout} layout
   * @param {GridEvents} events
   */
  constructor(root, layout, events) {
    this.#root = root;
    this.#layout = layout;
    this.#events = events;
    new ResizeObserver(() => this.#fit()).observe(root);
    root.addEventListener('pointermove', (event) => this.#dragOver(event));
    root.addEventListener('pointerup', () => this.#drop());
    root.addEventListener('pointercancel', () => this.#drop());
  }

  get names() {
    return [...this.#cells.keys()];
  }

  /** @param {string} name */
  tileOf(name) {
    return this.#cells.get(name)?.tile ?? null;
  }

  /**
   * Show a tile in another place, without a stop in its picture.
   * @param {string} name
   * @param {HTMLElement} place
   * @returns {() => void} takes it back
   */
  lend(name, place) {
    const cell = this.#cells.get(name);
    if (!cell) return () => {};
    moveInto(place, cell.tile, place.firstElementChild);
    return () => {
      if (this.#cells.get(name) === cell) moveInto(cell.node, cell.tile, cell.node.firstElementChild);
      else cell.tile.remove();
    };
  }

  get solo() {
    return this.#solo;
  }

  /** @param {StreamNow[]} streams as they are now */
  show(streams) {
    const there = new Set(streams.map(({ name }) => name));
    for (const [name, cell] of this.#cells) {
      if (there.has(name)) continue;
      cell.node.remove();
      this.#cells.delete(name);
      if (this.#solo === name) this.#solo = '';
    }
    let grew = false;
    for (const stream of streams) {
      let cell = this.#cells.get(stream.name);
      if (!cell) {
        this.#cells.set(stream.name, (cell = this.#made(stream.name)));
        grew = true;
      }
      cell.show(stream);
    }
    if (grew) this.#place();
    this.#fit();
  }

  /** @param {number} columns */
  setColumns(columns) {
    this.#layout = { ...this.#layout, columns };
    this.#events.arranged(this.#layout);
    this.#fit();
  }

  /** Show one alone, or all again. @param {string} name */
  setSolo(name) {
    this.#solo = this.#solo === name ? '' : name;
    for (const cell of this.#cells.values()) {
      const pressed = cell.name === this.#solo;
      cell.node.hidden = this.#solo !== '' && !pressed;
      cell.solo.setAttribute('aria-pressed', String(pressed));
      label(cell.solo, pressed ? 'All streams again' : `Only ${cell.name}`);
    }
    this.#events.say(this.#solo ? `Only ${this.#solo}` : 'All streams');
    this.#fit();
  }

  /** The server does not answer: what it said last is not so any more. */
  forget() {
    for (const cell of this.#cells.values()) cell.forget();
  }

  /** Every tile tries again at once: there is another key. */
  retry() {
    for (const cell of this.#cells.values()) cell.tile.retry();
  }

  /** @param {string} name */
  #made(name) {
    const cell = new Cell(name);
    cell.tune.addEventListener('click', () => this.#events.tune(name));
    cell.solo.addEventListener('click', () => this.setSolo(name));
    cell.tile.addEventListener('dblclick', () => this.setSolo(name));
    cell.move.addEventListener('keydown', (event) => this.#onKey(event, name));
    cell.move.addEventListener('pointerdown', (event) => {
      if (event.button !== 0) return;
      this.#dragged = { name, pointer: event.pointerId };
      cell.node.classList.add('dragged');
      cell.move.setPointerCapture(event.pointerId);
    });
    return cell;
  }

  // --- order ---

  #order() {
    return ordered(this.names, this.#layout.order);
  }

  /** Put the cells where they belong, moving as few as possible. */
  #place() {
    let before = /** @type {Element|null} */ (null);
    for (const name of this.#order()) {
      const node = this.#cells.get(name)?.node;
      if (!node) continue;
      const next = before ? before.nextElementSibling : this.#root.firstElementChild;
      if (node !== next) moveInto(this.#root, node, next);
      before = node;
    }
  }

  /** @param {string} name @param {number} to */
  #moveTo(name, to) {
    const order = this.#order();
    const from = order.indexOf(name);
    const place = Math.max(0, Math.min(order.length - 1, to));
    if (place === from) return;
    order.splice(from, 1);
    order.splice(place, 0, name);
    // Streams that are away keep their places behind.
    const away = this.#layout.order.filter((each) => !order.includes(each));
    this.#layout = { ...this.#layout, order: [...order, ...away] };
    const focused = document.activeElement;
    this.#place();
    if (focused instanceof HTMLElement && focused !== document.activeElement) focused.focus();
    this.#events.arranged(this.#layout);
    this.#events.say(`${name}, place ${place + 1} of ${order.length}`);
  }

  /** @param {KeyboardEvent} event @param {string} name */
  #onKey(event, name) {
    const columns = Number(this.#root.style.getPropertyValue('--columns')) || 1;
    const at = this.#order().indexOf(name);
    /** @type {Record<string, number>} */
    const places = {
      ArrowLeft: at - 1,
      ArrowRight: at + 1,
      ArrowUp: at - columns,
      ArrowDown: at + columns,
      Home: 0,
      End: this.#cells.size - 1,
    };
    const to = places[event.key];
    if (to === undefined) return;
    event.preventDefault();
    this.#moveTo(name, to);
  }

  /** @param {PointerEvent} event */
  #dragOver(event) {
    const dragged = this.#dragged;
    if (!dragged || event.pointerId !== dragged.pointer) return;
    const under = document.elementsFromPoint(event.clientX, event.clientY);
    const cell = under.map((each) => each.closest('.cell')).find((each) => each);
    const name = cell instanceof HTMLElement ? cell.dataset['name'] : undefined;
    if (name && name !== dragged.name) this.#moveTo(dragged.name, this.#order().indexOf(name));
  }

  #drop() {
    if (!this.#dragged) return;
    this.#cells.get(this.#dragged.name)?.node.classList.remove('dragged');
    this.#dragged = null;
  }

  // --- size ---

  #fit() {
    const { clientWidth: width, clientHeight: height } = this.#root;
    const count = this.#solo ? 1 : this.#cells.size;
    if (!count || !width) return;
    let { columns, tilePx } = bestFit(count, width, height);
    const wished = this.#solo ? 0 : this.#layout.columns;
    let across = 0;
    if (NARROW.matches) across = Math.min(count, width < PHONE_PX ? (count > 6 ? 2 : 1) : 2);
    else if (wished) across = wished;
    // Too many for this window: rather scroll than look through a keyhole.
    else if (tilePx < LEAST_WIDTH_PX) across = Math.max(1, Math.floor(width / LEAST_WIDTH_PX));
    if (across) {
      columns = across;
      tilePx = Math.floor((width - GAP_PX * (columns - 1)) / columns);
    }
    this.#set('--columns', String(columns));
    this.#set('--tile', `${tilePx}px`);
  }

  /** Whoever sets what is set already makes the browser look at every tile again.
   * @param {string} name @param {string} value */
  #set(name, value) {
    if (this.#root.style.getPropertyValue(name) !== value) this.#root.style.setProperty(name, value);
  }
}

/**
 * Moves without a stop in the picture where the browser can.
 * @param {HTMLElement} root @param {HTMLElement} node @param {Element|null} next
 */
function moveInto(root, node, next) {
  const mover = /** @type {any} */ (root);
  if (node.isConnected && mover.moveBefore) mover.moveBefore(node, next);
  else root.insertBefore(node, next);
}

/** @param {string} icon @param {string} words */
export function iconButton(icon, words) {
  const button = document.createElement('button');
  button.type = 'button';
  button.className = 'tool';
  const svg = document.createElementNS('http://www.w3.org/2000/svg', 'svg');
  const use = document.createElementNS('http://www.w3.org/2000/svg', 'use');
  use.setAttribute('href', `#${icon}`);
  svg.setAttribute('aria-hidden', 'true');
  svg.append(use);
  button.append(svg);
  if (words) label(button, words);
  return button;
}

/** @param {HTMLElement} node @param {string} words */
function label(node, words) {
  node.setAttribute('aria-label', words);
  node.title = words;
}
