// Composition root: settings, view and at most one call.

import { askForKey, bearer, forgetKey, hasKey } from './access.js';
import { Call } from './call.js';
import { listCameras, watchCameras } from './camera.js';
import { Failure } from './failures.js';
import { DEFAULTS, checked, loadSettings, saveSettings } from './settings.js';
import { getConfig, getModels, putModel } from './signaling.js';
import { View } from './view.js';

/** @typedef {import('./settings.js').Settings} Settings */

const kept = loadSettings();
let settings = kept ?? DEFAULTS;
/** @type {File|null} */
let file = null;
/** @type {Call|null} */
let call = null;
/** Calls need a key or token here. */
let isLocked = false;

/** Whether the demo is shown in place of a call. */
let isDemo = false;

const view = new View({
  start,
  stop,
  demo: watchDemo,
  file: chooseFile,
  settings: changeSettings,
  model: changeModel,
});

/** What needs another picture, and what only another option. @type {(keyof Settings)[]} */
const SOURCE_KEYS = ['source', 'deviceId', 'height'];
/** @type {(keyof Settings)[]} */
const OPTION_KEYS = ['confidence', 'classes', 'mode'];

async function start() {
  if (isDemo) endDemo();
  call?.close();
  if (isLocked && !hasKey()) return unlock(new Failure('locked'));
  const current = new Call(settings, file, view, {
    state: (state) => shown(() => view.showState(state)),
    source: (source) => {
      view.showLocal(source.stream);
      void refreshCameras(); // labels are known from the first permission on
    },
    picture: (stream) => view.showRemote(stream),
    frame: (message) => view.showBoxes(message),
    hello: (hello) => view.showHello(hello),
    telemetry: (telemetry) => shown(() => view.showTelemetry(telemetry)),
    notice: (words) => view.showNotice(words),
  });
  /** A call that was replaced or stopped has nothing to say any more. */
  const shown = (/** @type {() => void} */ act) => {
    if (call === current) act();
  };
  call = current;
  const failure = await current.run();
  if (call !== current) return;
  call = null;
  if (failure?.kind === 'locked') return unlock(failure);
  view.showState(failure ? { kind: 'failed', failure } : { kind: 'idle' });
}

/**
 * Says why there is no call, asks for a key, and starts again with it.
 * @param {Failure} failure
 */
async function unlock(failure) {
  view.showState({ kind: 'failed', failure });
  const why = hasKey() ? `Another one is needed: ${failure.detail}` : 'Paste the one you were given.';
  forgetKey();
  if (!(await askForKey(why))) return;
  void greet();
  await start();
}

function stop() {
  if (isDemo) endDemo();
  call?.close();
}

/** Moving pictures for who has no camera: the server's stream `demo`, watched by WHEP. */
async function watchDemo() {
  await import('./tile.js');
  if (call || isDemo) return;
  isDemo = true;
  const tile = document.createElement('sightline-tile');
  tile.setAttribute('stream', 'demo');
  tile.setAttribute('label', 'Demo');
  const token = bearer()['Authorization']?.replace('Bearer ', '');
  if (token) tile.setAttribute('token', token);
  view.showDemo(tile);
}

function endDemo() {
  isDemo = false;
  view.showDemo(null);
}

/** @param {File} chosen */
function chooseFile(chosen) {
  file = chosen;
  view.showFile(chosen);
  if (call) void call.changeSource(settings, file);
  else void start();
}

/** @param {Partial<Settings>} part */
function changeSettings(part) {
  settings = { ...settings, ...part };
  saveSettings(settings);
  view.showSettings(settings);
  const keys = /** @type {(keyof Settings)[]} */ (Object.keys(part));
  const wantsFile = settings.source === 'file' && !file; // comes with the choice of the file
  if (keys.some((key) => SOURCE_KEYS.includes(key)) && !wantsFile) {
    void call?.changeSource(settings, file);
  }
  if (keys.some((key) => OPTION_KEYS.includes(key))) call?.changeOptions(settings);
}

async function refreshCameras() {
  view.showCameras(await listCameras(), settings.deviceId);
}

/** @param {string} name */
async function changeModel(name) {
  view.showSwap(`Loading ${name}; the running one goes on meanwhile.`, true);
  try {
    view.showHello({ model: await putModel(name) });
    view.showSwap('', false);
  } catch (failure) {
    view.showSwap(failure instanceof Failure ? failure.detail : String(failure), false);
  }
  await refreshModels();
}

async function refreshModels() {
  try {
    const [names, { model }] = await Promise.all([getModels(), getConfig()]);
    view.showModels(names, model?.name ?? '');
  } catch {
    view.showModels([], ''); // not for us to change
  }
}

async function greet() {
  try {
    const config = await getConfig();
    isLocked = config.auth_required;
    if (!isLocked || hasKey()) void refreshModels();
    view.showModes(config.modes);
    view.offerDemo(config.demo && (!isLocked || hasKey()));
    view.showHello({ model: config.model });
    // On a first visit the server's own defaults hold, unless the person was quicker.
    if (settings === DEFAULTS && !call) {
      settings = checked({ ...DEFAULTS, ...config.defaults });
      view.showSettings(settings);
    }
  } catch {
    // The call itself will say what is wrong, when there is to be one.
  }
}

view.showSettings(settings);
view.showState({ kind: 'idle' });
watchCameras(() => void refreshCameras(), new AbortController().signal);
void refreshCameras();
void greet();
// The server is told at once instead of finding out by silence.
addEventListener('pagehide', () => call?.close());
