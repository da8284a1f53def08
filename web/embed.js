// One stream that fills its frame. What a tile's attributes say elsewhere stands here in the
// query: /embed/porch?view=data&label=Porch. A token comes in the fragment (#token=...), which
// browsers keep to themselves, or by message from the page around, which is asked before each
// try:  { type: 'sightline-token-wanted', stream }  ->  { type: 'sightline-token', token }.

import { SightlineTile } from './tile.js';

const OPTIONS = ['label', 'view', 'rung', 'when-hidden', 'bare', 'detections'];
const ANSWER_MS = 2_000;
const SECRET = /^[\x21-\x7e]{1,8192}$/;

const query = new URLSearchParams(location.search);
let token = new URLSearchParams(location.hash.slice(1)).get('token') ?? '';
// Out of the address, so that it is not copied with it.
if (token) history.replaceState(null, '', location.pathname + location.search);

const stream = decodeURIComponent(location.pathname.split('/').at(-1) ?? '');
const tile = new SightlineTile();
for (const name of OPTIONS) {
  const value = query.get(name);
  if (value !== null) tile.setAttribute(name, value);
}
const theme = query.get('theme');
if (theme === 'light' || theme === 'dark') document.documentElement.dataset['theme'] = theme;
tile.setAttribute('src', '../');
tile.setAttribute('stream', stream);
document.title = query.get('label') ?? stream;

if (parent !== window) {
  tile.tokenSource = askAround;
  for (const event of ['sightline-state', 'sightline-detections']) {
    tile.addEventListener(event, (told) => {
      const detail = /** @type {CustomEvent} */ (told).detail;
      // Who may frame this page is settled by its policy, so whoever does may hear.
      parent.postMessage({ type: event, detail }, '*');
    });
  }
} else if (token) tile.token = token;

document.body.append(tile);

/** The page around may know a newer token; what we have serves if it is silent. */
function askAround() {
  return new Promise((/** @type {(token: string) => void} */ resolve) => {
    const heard = new AbortController();
    const done = () => {
      heard.abort();
      clearTimeout(timer);
      resolve(token);
    };
    // With a token at hand a page that does not answer must not hold up the picture.
    const timer = setTimeout(done, token ? ANSWER_MS / 8 : ANSWER_MS / 4);
    addEventListener(
      'message',
      ({ source, data }) => {
        if (source !== parent || data?.type !== 'sightline-token') return;
        if (typeof data.token !== 'string' || !SECRET.test(data.token)) return;
        token = data.token;
        done();
      },
      { signal: heard.signal },
    );
    parent.postMessage({ type: 'sightline-token-wanted', stream }, '*');
  });
}
