// Zones, lines and masks, drawn on the live picture of one stream. Points are in shares of the
// picture's sides, as the server keeps them. By pointer, or by keyboard: every corner is a
// button that arrow keys move.

import { getLayout, putLayout } from './board_api.js';
import { words } from './board_panel.js';
import { element } from './classes.js';

/** @typedef {[number, number]} Point */
/** @typedef {'zones'|'lines'|'masks'} Kind */

/**
 * One shape; which keys it has depends on its kind.
 * @typedef {object} Shape
 * @property {string} id
 * @property {Point[]} points
 * @property {string} [label]
 * @property {string[]|null} [classes]
 * @property {string[]} [events]
 * @property {number|null} [dwell_s]
 * @property {string} [anchor]
 * @property {string} [kind] of a mask: fill or blur
 */

/** @typedef {{zones: Shape[], lines: Shape[], masks: Shape[], appear: string[]}} Layout */

const SVG = 'http://www.w3.org/2000/svg';
const STEP = 0.01;
const NAMES = { zones: 'Zone', lines: 'Line', masks: 'Mask' };
const FEWEST = { zones: 3, lines: 2, masks: 3 };
const CLOSE_PX = 14;
const FINGER_PX = 24;
/** @type {Kind[]} */
const KINDS = ['zones', 'lines', 'masks'];

/**
 * Where the arrow of a line stands and which way is forward: to the right of who walks along it.
 * @param {Point[]} points in pixels
 * @returns {{at: Point, to: Point}|null}
 */
export function arrowOf(points) {
  const middle = Math.floor((points.length - 1) / 2);
  const [a, b] = [points[middle], points[middle + 1]];
  if (!a || !b) return null;
  const [dx, dy] = [b[0] - a[0], b[1] - a[1]];
  const length = Math.hypot(dx, dy) || 1;
  /** @type {Point} */
  const at = [(a[0] + b[0]) / 2, (a[1] + b[1]) / 2];
  return { at, to: [at[0] - (dy / length) * 34, at[1] + (dx / length) * 34] };
}

/** @param {string} text "person, car" @returns {string[]|null} null for all */
export function classesFrom(text) {
  const names = text.split(',').map((name) => name.trim()).filter(Boolean);
  return names.length ? names : null;
}

export class ZoneEditor {
  #dialog = element('draw', HTMLDialogElement);
  #stage = element('draw-stage', HTMLElement);
  #svg = element('draw-svg', SVGSVGElement);
  #list = element('draw-list', HTMLElement);
  #said = element('draw-said', HTMLElement);
  #hint = element('draw-hint', HTMLElement);
  #save = element('draw-save', HTMLButtonElement);
  #appear = element('draw-appear', HTMLInputElement);
  /** @type {Layout} */ #layout = empty();
  #stream = '';
  /** What is being drawn. @type {{kind: Kind, points: Point[], at: Point|null}|null} */ #draft = null;
  #selected = '';
  /** @type {{shape: Shape, index: number}|null} */ #dragged = null;
  #size = { width: 0, height: 0 };
  #giveBack = () => {};
  #stored;

  /** @param {(stream: string) => void} stored its shapes are other ones now */
  constructor(stored) {
    this.#stored = stored;
    for (const kind of KINDS) {
      element(`draw-${kind}`, HTMLButtonElement).addEventListener('click', () => this.#begin(kind));
    }
    element('draw-cancel', HTMLButtonElement).addEventListener('click', () => this.#dialog.close());
    this.#save.addEventListener('click', () => void this.#store());
    this.#dialog.addEventListener('close', () => this.#giveBack());
    this.#dialog.addEventListener('cancel', (event) => {
      if (!this.#draft) return;
      event.preventDefault(); // Escape gives up the shape, not the dialog
      this.#end();
    });
    this.#svg.addEventListener('pointerdown', (event) => this.#press(event));
    this.#svg.addEventListener('pointermove', (event) => this.#move(event));
    this.#svg.addEventListener('pointerup', () => (this.#dragged = null));
    this.#svg.addEventListener('dblclick', () => this.#finish());
    this.#dialog.addEventListener('keydown', (event) => {
      if (event.key === 'Enter' && this.#draft && event.target !== this.#appear) {
        event.preventDefault();
        if (this.#draft.points.length >= FEWEST[this.#draft.kind]) this.#finish();
        else this.#addPoint([0.5, 0.5]);
      }
    });
    new ResizeObserver(() => this.#fit()).observe(this.#stage);
  }

  /**
   * @param {string} stream
   * @param {[number, number]} size of its picture
   * @param {(place: HTMLElement) => () => void} lend puts the picture into a place; what it
   *   returns takes it back
   */
  async open(stream, size, lend) {
    this.#stream = stream;
    this.#draft = null;
    this.#selected = '';
    this.#said.textContent = '';
    element('draw-title', HTMLElement).textContent = `What matters in ${stream}`;
    this.#stage.style.setProperty('--ratio', String((size[0] || 16) / (size[1] || 9)));
    this.#layout = empty();
    this.#save.disabled = true;
    this.#dialog.showModal();
    this.#giveBack = lend(this.#stage);
    this.#show();
    try {
      this.#layout = { ...empty(), ...(await getLayout(stream)) };
      this.#save.disabled = false;
    } catch (failure) {
      this.#said.textContent = words(failure);
    }
    this.#appear.value = this.#layout.appear.join(', ');
    this.#show();
  }

  async #store() {
    this.#finish();
    this.#layout.appear = classesFrom(this.#appear.value) ?? [];
    this.#save.disabled = true;
    try {
      await putLayout(this.#stream, this.#layout);
      this.#dialog.close();
      this.#stored(this.#stream);
    } catch (failure) {
      this.#said.textContent = words(failure);
    } finally {
      this.#save.disabled = false;
    }
  }

  // --- drawing ---

  /** @param {Kind} kind */
  #begin(kind) {
    this.#draft = { kind, points: [], at: null };
    this.#selected = '';
    this.#show();
  }

  #end() {
    this.#draft = null;
    this.#show();
  }

  /** The draft becomes a shape, if it has corners enough. */
  #finish() {
    const draft = this.#draft;
    if (!draft) return;
    this.#draft = null;
    const points = draft.points.filter((point, index) => {
      const before = draft.points[index - 1];
      return !before || Math.hypot(point[0] - before[0], point[1] - before[1]) > 1e-4;
    });
    if (points.length >= FEWEST[draft.kind]) {
      const id = `${draft.kind.slice(0, -1)}-${Math.random().toString(36).slice(2, 8)}`;
      const number = this.#layout[draft.kind].length + 1;
      const label = `${NAMES[draft.kind]} ${number}`;
      /** @type {Record<Kind, Shape>} */
      const made = {
        zones: { id, label, points, classes: null, events: ['enter', 'dwell'], dwell_s: null, anchor: 'bottom' },
        lines: { id, label, points, classes: null, anchor: 'bottom' },
        masks: { id, points, kind: 'fill' },
      };
      this.#layout[draft.kind].push(made[draft.kind]);
      this.#selected = id;
    }
    this.#show();
  }

  /** @param {Point} point */
  #addPoint(point) {
    this.#draft?.points.push(point);
    this.#show();
  }

  /** @param {PointerEvent} event @returns {Point} */
  #pointOf(event) {
    const box = this.#svg.getBoundingClientRect();
    return [within((event.clientX - box.left) / box.width), within((event.clientY - box.top) / box.height)];
  }

  /** @param {PointerEvent} event */
  #press(event) {
    if (event.button !== 0) return;
    const point = this.#pointOf(event);
    const draft = this.#draft;
    if (draft) {
      event.preventDefault();
      const first = draft.points[0];
      const closes = first && draft.points.length >= 3 && draft.kind !== 'lines' && this.#apart(first, point) < (event.pointerType === 'touch' ? FINGER_PX : CLOSE_PX);
      if (closes) this.#finish();
      else this.#addPoint(point);
      return;
    }
    const target = event.pointerType === 'touch' ? this.#cornerNear(point) : event.target instanceof Element ? event.target : null;
    const corner = target?.closest('[data-corner]');
    const owner = target?.closest('[data-id]');
    const shape = this.#find(owner?.getAttribute('data-id') ?? '');
    this.#selected = shape?.id ?? '';
    if (shape && corner) {
      this.#dragged = { shape, index: Number(corner.getAttribute('data-corner')) };
      this.#svg.setPointerCapture(event.pointerId);
    }
    this.#show();
  }

  /** @param {PointerEvent} event */
  #move(event) {
    const point = this.#pointOf(event);
    if (this.#draft) this.#draft.at = point;
    else if (this.#dragged) this.#dragged.shape.points[this.#dragged.index] = point;
    else return;
    this.#paint();
  }

  /** @param {Point} a @param {Point} b in pixels */
  #apart(a, b) {
    return Math.hypot((a[0] - b[0]) * this.#size.width, (a[1] - b[1]) * this.#size.height);
  }

  /** The one that a finger means, which is wider than a corner. @param {Point} point */
  #cornerNear(point) {
    let best = /** @type {{id: string, index: number, px: number}} */ ({ id: '', index: 0, px: FINGER_PX });
    for (const shape of KINDS.flatMap((kind) => this.#layout[kind])) {
      shape.points.forEach((corner, index) => {
        const px = this.#apart(corner, point);
        if (px < best.px) best = { id: shape.id, index, px };
      });
    }
    return best.id ? this.#svg.querySelector(`[data-id="${CSS.escape(best.id)}"] [data-corner="${best.index}"]`) : null;
  }

  /** @param {string} id */
  #find(id) {
    for (const kind of KINDS) {
      const found = this.#layout[kind].find((shape) => shape.id === id);
      if (found) return found;
    }
    return null;
  }

  /** @param {string} id */
  #remove(id) {
    for (const kind of KINDS) this.#layout[kind] = this.#layout[kind].filter((shape) => shape.id !== id);
    this.#selected = '';
    this.#show();
  }

  // --- the screen ---

  #fit() {
    const { clientWidth: width, clientHeight: height } = this.#stage;
    this.#size = { width, height };
    this.#svg.setAttribute('viewBox', `0 0 ${width || 1} ${height || 1}`);
    this.#paint();
  }

  #show() {
    this.#fit();
    this.#fillList();
    for (const kind of KINDS) {
      element(`draw-${kind}`, HTMLButtonElement).setAttribute('aria-pressed', String(this.#draft?.kind === kind));
    }
    const draft = this.#draft;
    this.#hint.textContent = draft
      ? draft.kind === 'lines'
        ? 'Click along the line; double-click or Enter ends it. The arrow shows which way is forward.'
        : 'Click the corners; click the first one again, double-click or press Enter to close it.'
      : 'Choose what to draw. Drag corners to move them; arrow keys move the one in focus.';
  }

  #paint() {
    const focused = this.#svg.querySelector(':focus');
    const focus = focused && [focused.closest('[data-id]')?.getAttribute('data-id'), focused.getAttribute('data-corner')];
    const nodes = KINDS.flatMap((kind) => this.#layout[kind].map((shape) => this.#drawn(kind, shape)));
    if (this.#draft) nodes.push(this.#drawnDraft(this.#draft));
    this.#svg.replaceChildren(...nodes);
    if (focus) {
      const again = this.#svg.querySelector(`[data-id="${focus[0]}"] [data-corner="${focus[1]}"]`);
      if (again instanceof SVGElement) again.focus();
    }
  }

  /** @param {Point[]} points @returns {Point[]} */
  #pixels(points) {
    return points.map(([x, y]) => [x * this.#size.width, y * this.#size.height]);
  }

  /** @param {Kind} kind @param {Shape} shape */
  #drawn(kind, shape) {
    const group = node('g', { class: `shape ${kind}${shape.id === this.#selected ? ' chosen' : ''}`, 'data-id': shape.id });
    const points = this.#pixels(shape.points);
    const text = points.map((point) => point.join(',')).join(' ');
    group.append(node(kind === 'lines' ? 'polyline' : 'polygon', { points: text }));
    if (kind === 'lines') group.append(...arrow(points));
    const label = shape.label ?? 'Mask';
    points.forEach(([x, y], index) => {
      const corner = node('circle', {
        cx: String(x), cy: String(y), r: '7', tabindex: '0', role: 'button', 'data-corner': String(index),
        'aria-label': `${label}, corner ${index + 1} of ${points.length}`,
      });
      corner.addEventListener('keydown', (event) => this.#onCornerKey(/** @type {KeyboardEvent} */ (event), shape, index));
      group.append(corner);
    });
    return group;
  }

  /** @param {{kind: Kind, points: Point[], at: Point|null}} draft */
  #drawnDraft(draft) {
    const group = node('g', { class: `shape draft ${draft.kind}` });
    const points = this.#pixels(draft.at ? [...draft.points, draft.at] : draft.points);
    group.append(node('polyline', { points: points.map((point) => point.join(',')).join(' ') }));
    for (const [x, y] of this.#pixels(draft.points)) group.append(node('circle', { cx: String(x), cy: String(y), r: '6' }));
    return group;
  }

  /** @param {KeyboardEvent} event @param {Shape} shape @param {number} index */
  #onCornerKey(event, shape, index) {
    /** @type {Record<string, Point>} */
    const ways = { ArrowLeft: [-STEP, 0], ArrowRight: [STEP, 0], ArrowUp: [0, -STEP], ArrowDown: [0, STEP] };
    const way = ways[event.key];
    const [x, y] = shape.points[index] ?? [0, 0];
    if (way) shape.points[index] = [within(x + way[0]), within(y + way[1])];
    else if (event.key === 'Delete') return this.#remove(shape.id);
    else return;
    event.preventDefault();
    this.#paint();
  }

  #fillList() {
    const rows = KINDS.flatMap((kind) => this.#layout[kind].map((shape) => this.#row(kind, shape)));
    this.#list.replaceChildren(...rows);
    element('draw-none', HTMLElement).hidden = rows.length > 0;
  }

  /** @param {Kind} kind @param {Shape} shape */
  #row(kind, shape) {
    const row = document.createElement('li');
    row.className = `shape-row ${kind}`;
    row.toggleAttribute('data-chosen', shape.id === this.#selected);
    row.addEventListener('pointerdown', () => {
      if (this.#selected === shape.id) return;
      this.#selected = shape.id;
      for (const each of this.#list.children) each.toggleAttribute('data-chosen', each === row);
      this.#paint();
    });
    const head = document.createElement('div');
    head.className = 'shape-head';
    if (kind === 'masks') head.append(...this.#maskFields(shape));
    else head.append(field('Name', shape.label ?? '', (value) => (shape.label = value.slice(0, 80))));
    const away = document.createElement('button');
    away.type = 'button';
    away.className = 'link';
    away.textContent = 'Remove';
    away.setAttribute('aria-label', `Remove ${shape.label ?? 'mask'}`);
    away.addEventListener('click', () => this.#remove(shape.id));
    head.append(away);
    row.append(head);
    if (kind !== 'masks') {
      row.append(field('Only', (shape.classes ?? []).join(', '), (value) => (shape.classes = classesFrom(value)), 'everything'));
    }
    if (kind === 'zones') row.append(this.#zoneEvents(shape));
    return row;
  }

  /** @param {Shape} shape */
  #zoneEvents(shape) {
    const part = document.createElement('div');
    part.className = 'shape-events';
    for (const [name, text] of [['enter', 'comes'], ['leave', 'leaves']]) {
      const label = document.createElement('label');
      const box = document.createElement('input');
      box.type = 'checkbox';
      box.checked = (shape.events ?? []).includes(name ?? '');
      box.addEventListener('change', () => {
        const events = new Set(shape.events ?? []);
        if (box.checked) events.add(name ?? '');
        else events.delete(name ?? '');
        shape.events = [...events];
      });
      label.append(box, ` ${text}`);
      part.append(label);
    }
    const stays = field('stays, s', shape.dwell_s === null ? '' : String(shape.dwell_s ?? ''), (value) => {
      const seconds = Number(value);
      shape.dwell_s = value.trim() && seconds > 0 ? seconds : null;
      shape.events = [...new Set([...(shape.events ?? []), 'dwell'])];
    }, '–');
    part.append(stays);
    return part;
  }

  /** @param {Shape} shape */
  #maskFields(shape) {
    const label = document.createElement('label');
    label.className = 'shape-field';
    const select = document.createElement('select');
    for (const kind of ['fill', 'blur']) select.append(new Option(kind === 'fill' ? 'Black out' : 'Blur', kind));
    select.value = shape.kind ?? 'fill';
    select.addEventListener('change', () => (shape.kind = select.value));
    label.append('Mask', select);
    return [label];
  }
}

/** @returns {Layout} */
function empty() {
  return { zones: [], lines: [], masks: [], appear: [] };
}

/** @param {number} share */
function within(share) {
  return Math.round(Math.min(1, Math.max(0, share)) * 1e4) / 1e4;
}

/** @param {string} name @param {Record<string, string>} attributes */
function node(name, attributes) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

/** @param {Point[]} points in pixels */
function arrow(points) {
  const found = arrowOf(points);
  if (!found) return [];
  const [[x, y], [tx, ty]] = [found.at, found.to];
  const angle = Math.atan2(ty - y, tx - x);
  const wing = (/** @type {number} */ turn) => `${tx - 11 * Math.cos(angle + turn)},${ty - 11 * Math.sin(angle + turn)}`;
  return [node('polyline', { class: 'arrow', points: `${x},${y} ${tx},${ty}` }), node('polyline', { class: 'arrow', points: `${wing(0.5)} ${tx},${ty} ${wing(-0.5)}` })];
}

/** @param {string} title @param {string} value @param {(value: string) => void} changed @param {string} [hint] */
function field(title, value, changed, hint = '') {
  const label = document.createElement('label');
  label.className = 'shape-field';
  const input = document.createElement('input');
  input.value = value;
  input.placeholder = hint;
  input.spellcheck = false;
  input.addEventListener('input', () => changed(input.value));
  label.append(title, input);
  return label;
}
