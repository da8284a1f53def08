// Composition root of the dashboard: one poll for all streams, the wall, its panels.

import { askForKey, forgetKey, hasKey } from './access.js';
import { AddDialog } from './board_add.js';
import { getCounts, getStreams, getViewers } from './board_api.js';
import { EventList } from './board_events.js';
import { Grid } from './board_grid.js';
import { History } from './board_history.js';
import { ZoneNames } from './board_names.js';
import { Panel } from './board_panel.js';
import { ZoneEditor } from './board_zones.js';
import { element } from './classes.js';
import { Failure } from './failures.js';
import { getConfig } from './signaling.js';

/** @typedef {import('./board_api.js').StreamNow} StreamNow */
/** @typedef {import('./board_api.js').ViewerNow} ViewerNow */
/** @typedef {import('./board_grid.js').Layout} Layout */

const STORE = 'sightline.dashboard';
const POLL_MS = 2_000;

/** @typedef {Layout & {events: boolean}} Kept */

/** @returns {Kept} what an earlier visit left, each part only if it is sound */
function kept() {
  const found = { order: /** @type {string[]} */ ([]), columns: 0, events: false };
  try {
    const raw = JSON.parse(localStorage.getItem(STORE) ?? '{}') ?? {};
    if (Array.isArray(raw.order)) {
      found.order = raw.order.filter((/** @type {unknown} */ name) => typeof name === 'string').slice(0, 500);
    }
    if (Number.isInteger(raw.columns) && raw.columns >= 0 && raw.columns <= 6) found.columns = raw.columns;
    found.events = raw.events === true;
  } catch {
    // Storage is forbidden, or holds something else.
  }
  return found;
}

/** @param {Partial<Kept>} part */
function keep(part) {
  layout = { ...layout, ...part };
  try {
    localStorage.setItem(STORE, JSON.stringify(layout));
  } catch {
    // Then the order holds as long as the page.
  }
}

let layout = kept();
/** @type {StreamNow[]} */
let streams = [];
/** Of the stream whose panel is open. @type {ViewerNow[]|null} */
let viewers = null;
/** Streams whose viewers are not for this key. @type {Set<string>} */
const discreet = new Set();
let timer = 0;
let asking = false;
const ended = new AbortController();

const summary = element('summary', HTMLElement);
const nothing = element('nothing', HTMLElement);
const columns = element('columns', HTMLSelectElement);
const spoken = element('spoken', HTMLElement);

const grid = new Grid(element('grid', HTMLElement), layout, {
  tune: openPanel,
  arranged: (arranged) => keep(arranged),
  say: (said) => {
    spoken.textContent = said;
  },
});
const names = new ZoneNames();
const panel = new Panel({ closed: () => {}, changed: () => void poll(), draw });
const editor = new ZoneEditor((stream) => {
  names.forget(stream);
  void poll();
});
const add = new AddDialog(
  () => grid.names,
  () => void poll(),
);
const events = new EventList(
  (open) => {
    keep({ events: open });
    if (open && innerWidth < 900) panel.close();
  },
  (stream) => {
    if (grid.solo !== stream && grid.names.includes(stream)) grid.setSolo(stream);
  },
  names,
);
const history = new History(names);

/** @param {string} name */
function openPanel(name) {
  if (panel.name === name) {
    panel.close();
    return;
  }
  const stream = streams.find((each) => each.name === name);
  if (!stream) return;
  viewers = null;
  names.forget(name);
  panel.open(stream);
  void poll();
}

/** @param {string} name */
function draw(name) {
  const stream = streams.find((each) => each.name === name);
  if (stream) void editor.open(name, stream.size, (place) => grid.lend(name, place));
}

/** One question for everything on the page. */
async function poll() {
  clearTimeout(timer);
  if (asking) return;
  asking = true;
  try {
    streams = await getStreams(ended.signal);
    show();
    await lookCloser();
  } catch (failure) {
    if (ended.signal.aborted) return;
    if (!(failure instanceof Failure)) throw failure;
    if (failure.kind === 'locked') {
      await unlock(failure);
      return;
    }
    tell(failure.title);
    stands('waiting');
    grid.forget();
    panel.forget();
  } finally {
    asking = false;
  }
  // Nobody looks: nothing is asked.
  if (document.visibilityState === 'visible') timer = setTimeout(() => void poll(), POLL_MS);
}

/** The stream whose panel is open: who watches, and what its zones and lines count. */
async function lookCloser() {
  const { name } = panel;
  if (!name) return;
  const [told, counts] = await Promise.all([whoWatches(name), orNull(getCounts(name, ended.signal)), names.know([name])]);
  if (panel.name !== name) return;
  viewers = told;
  panel.showCounts(names.layout(name), counts);
  showPanel();
}

/** @param {string} name @returns {Promise<ViewerNow[]|null>} null where the key does not show them */
async function whoWatches(name) {
  if (discreet.has(name)) return null;
  return orNull(getViewers(name, ended.signal), () => discreet.add(name));
}

/**
 * What the server does not tell now is null.
 * @template T
 * @param {Promise<T>} asked
 * @param {() => void} [locked] it never tells this key
 * @returns {Promise<T|null>}
 */
async function orNull(asked, locked) {
  try {
    return await asked;
  } catch (failure) {
    if (!(failure instanceof Failure)) throw failure;
    if (failure.kind === 'locked') locked?.();
    return null;
  }
}

/** How it stands, for the styles: not written anew while it is the same. @param {string} state */
function stands(state) {
  if (document.body.dataset['call'] !== state) document.body.dataset['call'] = state;
}

/** @param {string} words in the head of the page, and for those who listen; not to be repeated */
function tell(words) {
  if (summary.textContent === words) return;
  summary.textContent = words;
  spoken.textContent = words;
}

function show() {
  grid.show(streams);
  const live = streams.filter((stream) => stream.live).length;
  const watching = streams.reduce((sum, stream) => sum + stream.viewers, 0);
  const all = live === streams.length ? `${live}` : `${live} of ${streams.length}`;
  const words = streams.length ? [`${all} live`, ` · ${watching} watching`] : ['No streams', ''];
  if (summary.textContent !== words.join('')) summary.replaceChildren(part(...words.map((each) => part(each))));
  stands(live ? 'live' : 'idle');
  if (nothing.hidden === (streams.length === 0)) nothing.hidden = streams.length > 0;
  element('grid', HTMLElement).hidden = streams.length === 0;
  showPanel();
}

/** @param {...(string|Node)} children */
function part(...children) {
  const node = document.createElement('span');
  node.append(...children);
  return node;
}

function showPanel() {
  const stream = streams.find(({ name }) => name === panel.name);
  if (stream) panel.show(stream, grid.tileOf(stream.name), viewers);
  else panel.close();
}

/** @param {Failure} failure */
async function unlock(failure) {
  tell(failure.title);
  stands('failed');
  const why = hasKey() ? `Another one is needed: ${failure.detail}` : 'One that may view the streams.';
  forgetKey();
  if (!(await askForKey(why))) {
    nothing.hidden = false;
    element('nothing-title', HTMLElement).textContent = failure.title;
    element('nothing-detail', HTMLElement).textContent = failure.detail;
    const again = element('nothing-add', HTMLButtonElement);
    again.textContent = 'Give a key';
    again.onclick = () => location.reload();
    return;
  }
  discreet.clear();
  asking = false;
  grid.retry();
  void greet();
  await poll();
}

async function greet() {
  try {
    panel.setNames((await getConfig()).model?.names ?? []);
  } catch {
    // The poll says what is wrong.
  }
}

function themeButton() {
  const root = document.documentElement;
  const button = element('theme', HTMLButtonElement);
  const system = matchMedia('(prefers-color-scheme: dark)');
  const isDark = () => (root.dataset['theme'] ?? (system.matches ? 'dark' : 'light')) === 'dark';
  const mark = () => button.setAttribute('aria-pressed', String(isDark()));
  button.addEventListener('click', () => {
    const theme = isDark() ? 'light' : 'dark';
    root.dataset['theme'] = theme;
    try {
      localStorage.setItem('sightline.theme', theme);
    } catch {
      // Then it holds as long as the page.
    }
    mark();
  });
  system.addEventListener('change', mark);
  mark();
}

columns.value = String(layout.columns);
columns.addEventListener('change', () => grid.setColumns(Number(columns.value)));
for (const id of ['add-open', 'nothing-add']) {
  element(id, HTMLButtonElement).addEventListener('click', () => add.open());
}
element('history-open', HTMLButtonElement).addEventListener('click', () => history.open(grid.names, grid.solo));
document.addEventListener('keydown', (event) => {
  // Whoever is nearer, a list of classes or a dialog, has taken its own.
  if (event.key !== 'Escape' || event.defaultPrevented || document.fullscreenElement || document.querySelector('dialog[open]')) return;
  if (panel.name) panel.close();
  else if (grid.solo) grid.setSolo(grid.solo);
});
document.addEventListener('visibilitychange', () => {
  if (document.visibilityState === 'visible') void poll();
});
addEventListener('pagehide', () => {
  ended.abort();
  events.close();
});
// From the back-forward cache nothing runs any more.
addEventListener('pageshow', (event) => {
  if (event.persisted) location.reload();
});
themeButton();
events.setOpen(layout.events);
void greet();
void poll().then(() => events.run());
