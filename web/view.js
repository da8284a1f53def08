// The screen: state and telemetry in, the person's wishes out. With classes.js the only module
// that touches the page's elements.

import { BoxLayer } from './boxes.js';
import { ClassFilter, element, hueOf } from './classes.js';
import { sparkPaths } from './sparkline.js';
import { STAGES } from './telemetry.js';

/** @typedef {import('./call.js').CallState} CallState */
/** @typedef {import('./failures.js').Failure} Failure */
/** @typedef {import('./peer.js').FrameMessage} FrameMessage */
/** @typedef {import('./peer.js').Hello} Hello */
/** @typedef {import('./settings.js').Settings} Settings */
/** @typedef {import('./settings.js').SourceKind} SourceKind */
/** @typedef {import('./settings.js').Mode} Mode */
/** @typedef {import('./settings.js').LocalView} LocalView */
/** @typedef {import('./signaling.js').Model} Model */
/** @typedef {import('./telemetry.js').Telemetry} Telemetry */

/** @typedef {{kind: 'idle'} | {kind: 'demo'} | {kind: 'failed', failure: Failure} | CallState} ViewState */

/**
 * @typedef {object} ViewEvents
 * @property {() => void} start
 * @property {() => void} stop
 * @property {() => void} demo
 * @property {(file: File) => void} file
 * @property {(changed: Partial<Settings>) => void} settings
 * @property {(name: string) => void} model
 */

const BUDGET_MS = 75;
const SPARK_POINTS = 120;
const BAR_WIDTH = 1_000;
const SVG = 'http://www.w3.org/2000/svg';

/** @type {Record<ViewState['kind'], string>} */
const STATUS = {
  idle: 'Ready',
  asking: 'Waiting for the picture',
  connecting: 'Connecting',
  live: 'Live',
  demo: 'Demo',
  waiting: 'Reconnecting',
  failed: 'Stopped',
};

export class View {
  /** The picture from the server. */
  remote = element('remote', HTMLVideoElement);
  /** The person's own picture. */
  local = element('local', HTMLVideoElement);

  #events;
  /** @type {ViewState} */ #state = { kind: 'idle' };
  /** @type {string[]} */ #names = [];
  /** @type {{p50: number, p95: number}[]} */ #ages = [];
  #countdownTimer = 0;
  #demoOffered = false;
  #boxes = new BoxLayer(this.remote, element('boxes', HTMLCanvasElement));
  #classes = new ClassFilter((classes) => this.#events.settings({ classes }));
  #idleTitle = element('message-title', HTMLElement).textContent ?? '';
  #idleDetail = element('message-detail', HTMLElement).textContent ?? '';

  /** @param {ViewEvents} events */
  constructor(events) {
    this.#events = events;
    this.#bindCall();
    this.#bindSettings();
    this.#bindTheme();
    this.#bindHelp();
    const swap = element('swap-model', HTMLSelectElement);
    swap.addEventListener('change', () => this.#events.model(swap.value));
    this.#drawSpark();
    this.#drawStages([]);
    this.#drawObjects(null);
  }

  /** @param {Settings} settings */
  showSettings(settings) {
    check('source', settings.source);
    check('local-view', settings.localView);
    check('mode', settings.mode);
    this.#boxes.show(settings.mode === 'data');
    element('height', HTMLSelectElement).value = String(settings.height);
    element('confidence', HTMLInputElement).value = String(Math.round(settings.confidence * 100));
    this.#showConfidence();
    this.#classes.setChosen(settings.classes);
    document.body.dataset['source'] = settings.source;
    document.body.dataset['local'] = settings.localView;
  }

  /**
   * @param {{deviceId: string, label: string}[]} cameras
   * @param {string} chosen
   */
  showCameras(cameras, chosen) {
    const select = element('device', HTMLSelectElement);
    const first = new Option(cameras.length ? 'Default camera' : 'Camera', '');
    const options = cameras.map(({ deviceId, label }) => new Option(label, deviceId));
    select.replaceChildren(first, ...options);
    select.value = cameras.some(({ deviceId }) => deviceId === chosen) ? chosen : '';
  }

  /** @param {File} file */
  showFile(file) {
    element('file-name', HTMLElement).textContent = file.name;
  }

  /** @param {Mode[]} modes that the server offers */
  showModes(modes) {
    for (const input of radios('mode')) {
      const label = input.closest('label');
      if (label) label.hidden = !modes.includes(/** @type {Mode} */ (input.value));
    }
  }

  /** @param {MediaStream} stream */
  showLocal(stream) {
    if (this.local.srcObject !== stream) this.local.srcObject = stream;
    play(this.local);
  }

  /** @param {MediaStream} stream */
  showRemote(stream) {
    if (this.remote.srcObject !== stream) this.remote.srcObject = stream;
    play(this.remote);
  }

  /** Whether there is a demo to be watched without a camera. @param {boolean} offered */
  offerDemo(offered) {
    this.#demoOffered = offered;
    this.#showMessage(this.#state);
  }

  /** What plays the demo, in place of a call; null takes it away. @param {HTMLElement|null} player */
  showDemo(player) {
    element('demo', HTMLElement).replaceChildren(...(player ? [player] : []));
    this.showState(player ? { kind: 'demo' } : { kind: 'idle' });
  }

  /** @param {ViewState} state */
  showState(state) {
    this.#state = state;
    clearInterval(this.#countdownTimer);
    document.body.dataset['call'] = state.kind;
    this.#status(STATUS[state.kind]);
    const running = state.kind !== 'idle' && state.kind !== 'failed';
    element('start', HTMLButtonElement).textContent = running ? 'Stop' : 'Start';
    if (!running) {
      this.local.srcObject = null;
      this.remote.srcObject = null;
      this.#boxes.clear();
      this.showTelemetry(null);
    }
    this.#showMessage(state);
  }

  /** What was found in one frame. @param {FrameMessage} message */
  showBoxes(message) {
    this.#boxes.add(message);
  }

  /** One sentence in the status line, until the next state. @param {string} text */
  showNotice(text) {
    this.#status(text);
  }

  /** @param {Hello} hello */
  showHello(hello) {
    const { model } = hello;
    this.#names = hello.names ?? model?.names ?? this.#names;
    this.#classes.setNames(this.#names);
    this.#boxes.names = this.#names;
    element('ribbon', HTMLElement).hidden = model !== null;
    const engines = model?.engines ?? [];
    const sizes = engines.map(({ input_wh: [width, height] }) => `${width}×${height}`);
    const about = [model?.name, sizes.join('+')].filter(Boolean).join(' · ');
    text('fact-model', model ? about : 'none: passing video through');
    text('fact-provider', model ? `${model.provider} · ${model.precision}` : '–');
    const fallbacks = engines.map(({ fallback }) => fallback).filter(Boolean);
    text('fact-fallback', fallbacks.join(' '));
    element('fact-fallback', HTMLElement).hidden = fallbacks.length === 0;
    if (hello.codec) text('fact-video', [hello.codec, hello.encoder].filter(Boolean).join(' · '));
  }

  /**
   * The models to choose from; with fewer than two there is nothing to choose.
   * @param {string[]} names
   * @param {string} running
   */
  showModels(names, running) {
    const select = element('swap-model', HTMLSelectElement);
    select.replaceChildren(...names.map((name) => new Option(name, name)));
    select.value = running;
    element('swap', HTMLElement).hidden = names.length < 2;
  }

  /** What becomes of the wish for another model. @param {string} words @param {boolean} busy */
  showSwap(words, busy) {
    text('swap-note', words);
    element('swap-model', HTMLSelectElement).disabled = busy;
  }

  /** @param {Telemetry|null} telemetry null clears the numbers */
  showTelemetry(telemetry) {
    const age = telemetry?.age;
    const p50 = age?.p50Ms ?? NaN;
    const p95 = age?.p95Ms ?? NaN;
    text('age-p50', whole(p50));
    text('age-p95', Number.isFinite(p95) ? `${whole(p95)} ms` : '–');
    text('journey-up', ms(age?.uplinkMs));
    text('journey-server', ms(age?.serverMs));
    text('journey-down', ms(age?.downlinkMs));
    document.body.dataset['age'] = p95 > BUDGET_MS ? 'over' : 'within';
    text('age-capture', CAPTURE_TEXT[age?.capture ?? 'unknown']);
    text('fps-in', tenth(telemetry?.fpsIn));
    text('fps-out', tenth(telemetry?.fpsOut));
    text('fps-shown', tenth(age?.shownFps));
    this.#drawDrops(telemetry?.dropped ?? {});
    this.#drawStages(telemetry?.stagesMs ?? []);
    this.#drawObjects(telemetry?.objects ?? null);
    this.#showLink(telemetry?.link ?? null);
    if (!telemetry) this.#ages = [];
    else this.#ages.push({ p50, p95 });
    if (this.#ages.length > SPARK_POINTS) this.#ages.shift();
    this.#drawSpark();
  }

  /** @param {string} words */
  #status(words) {
    text('status', words);
  }

  /** @param {ViewState} state */
  #showMessage(state) {
    const box = element('message', HTMLElement);
    const action = element('message-action', HTMLButtonElement);
    const other = element('message-other', HTMLButtonElement);
    const countdown = element('countdown', HTMLElement);
    const [title, detail] = this.#messageOf(state);
    box.hidden = state.kind === 'live' || state.kind === 'demo';
    countdown.hidden = state.kind !== 'waiting';
    text('message-title', title);
    text('message-detail', detail);
    action.hidden = state.kind === 'asking' || state.kind === 'connecting';
    action.textContent = ACTIONS[state.kind] ?? '';
    const resting = state.kind === 'idle' || state.kind === 'failed';
    other.hidden = resting;
    element('message-demo', HTMLButtonElement).hidden = !resting || !this.#demoOffered;
    if (state.kind === 'waiting') this.#countDown(state.untilMs);
    if (state.kind === 'failed' && state.failure.kind === 'no-file') {
      action.textContent = 'Choose a file';
    }
  }

  /** @param {ViewState} state @returns {[string, string]} */
  #messageOf(state) {
    switch (state.kind) {
      case 'failed':
      case 'waiting':
        return [state.failure.title, state.failure.detail];
      case 'asking':
        return ['Waiting for the picture', 'The browser may ask whether this page may have it.'];
      case 'connecting':
        return ['Connecting', 'Finding the way to the server.'];
      default:
        return [this.#idleTitle, this.#idleDetail];
    }
  }

  /** @param {number} untilMs */
  #countDown(untilMs) {
    const show = () => {
      const left = Math.max(0, Math.ceil((untilMs - performance.now()) / 1_000));
      text('countdown', left > 0 ? `Trying again in ${left} s` : 'Trying again');
    };
    show();
    this.#countdownTimer = setInterval(show, 250);
  }

  #bindCall() {
    const toggle = () => {
      const idle = this.#state.kind === 'idle' || this.#state.kind === 'failed';
      if (idle) this.#events.start();
      else this.#events.stop();
    };
    element('start', HTMLButtonElement).addEventListener('click', toggle);
    element('message-other', HTMLButtonElement).addEventListener('click', toggle);
    element('message-demo', HTMLButtonElement).addEventListener('click', () => this.#events.demo());
    element('message-action', HTMLButtonElement).addEventListener('click', () => {
      const state = this.#state;
      if (state.kind === 'waiting') state.again();
      else if (state.kind === 'failed' && state.failure.kind === 'no-file') {
        element('file', HTMLInputElement).click();
      } else toggle();
    });
    const full = element('fullscreen', HTMLButtonElement);
    const stage = element('stage', HTMLElement);
    full.hidden = !document.fullscreenEnabled;
    full.addEventListener('click', () => {
      if (document.fullscreenElement) void document.exitFullscreen();
      else void stage.requestFullscreen();
    });
  }

  #bindSettings() {
    const changed = (/** @type {Partial<Settings>} */ part) => this.#events.settings(part);
    onRadio('source', (value) => changed({ source: /** @type {SourceKind} */ (value) }));
    onRadio('mode', (value) => changed({ mode: /** @type {Mode} */ (value) }));
    onRadio('local-view', (value) => changed({ localView: /** @type {LocalView} */ (value) }));
    const device = element('device', HTMLSelectElement);
    device.addEventListener('change', () => changed({ deviceId: device.value }));
    const height = element('height', HTMLSelectElement);
    height.addEventListener('change', () => changed({ height: Number(height.value) }));
    const confidence = element('confidence', HTMLInputElement);
    confidence.addEventListener('input', () => {
      this.#showConfidence();
      changed({ confidence: Number(confidence.value) / 100 });
    });
    const file = element('file', HTMLInputElement);
    file.addEventListener('change', () => {
      const [chosen] = file.files ?? [];
      if (chosen) this.#events.file(chosen);
    });
  }

  #bindTheme() {
    const button = element('theme', HTMLButtonElement);
    const system = matchMedia('(prefers-color-scheme: dark)');
    const root = document.documentElement;
    const dark = () => (root.dataset['theme'] ?? (system.matches ? 'dark' : 'light')) === 'dark';
    const show = () => button.setAttribute('aria-pressed', String(dark()));
    button.addEventListener('click', () => {
      const theme = dark() ? 'light' : 'dark';
      root.dataset['theme'] = theme;
      try {
        localStorage.setItem('sightline.theme', theme);
      } catch {
        // Forbidden storage: the theme holds for this visit.
      }
      show();
    });
    system.addEventListener('change', show);
    show();
  }

  #bindHelp() {
    const button = element('age-info', HTMLButtonElement);
    const help = element('age-help', HTMLElement);
    const set = (/** @type {boolean} */ open) => {
      help.hidden = !open;
      button.setAttribute('aria-expanded', String(open));
    };
    button.addEventListener('click', () => set(Boolean(help.hidden)));
    document.addEventListener('keydown', (event) => {
      if (event.key === 'Escape') set(false);
    });
  }

  #showConfidence() {
    const input = element('confidence', HTMLInputElement);
    text('confidence-value', `${input.value} %`);
    const share = (Number(input.value) - Number(input.min)) / (Number(input.max) - Number(input.min));
    input.style.setProperty('--share', String(share));
  }

  /** @param {import('./stats.js').LinkSnapshot|null} link */
  #showLink(link) {
    text('age-error', link && Number.isFinite(link.rttMs) ? `±${tenth(link.rttMs / 2)} ms` : '–');
    if (!link) {
      text('fact-picture', '–');
      text('fact-network', '–');
      return;
    }
    const sent = link.sentWidth ? `${link.sentWidth}×${link.sentHeight}` : '–';
    const shown = link.shownWidth ? `${link.shownWidth}×${link.shownHeight}` : '–';
    text('fact-picture', sent === shown ? sent : `${sent} out, ${shown} back`);
    const rates = [link.upKbps, link.downKbps].map((kbps) => tenth(kbps / 1_000));
    text('fact-network', `${tenth(link.rttMs)} ms · ↑ ${rates[0]} ↓ ${rates[1]} Mbit/s`);
  }

  /** @param {Record<string, number>} dropped */
  #drawDrops(dropped) {
    const parts = Object.entries(dropped)
      .filter(([, count]) => count > 0)
      .map(([reason, count]) => `${reason.replaceAll('_', ' ')} ${count}`);
    const known = Object.keys(dropped).length > 0;
    text('drops', parts.length ? parts.join(' · ') : known ? 'nothing' : '–');
  }

  /** @param {[string, number][]} stagesMs */
  #drawStages(stagesMs) {
    const total = stagesMs.reduce((sum, [, duration]) => sum + duration, 0);
    text('stages-total', stagesMs.length ? tenth(total) : '–');
    const rows = stagesMs.length
      ? stagesMs
      : STAGES.map((stage) => /** @type {[string, number]} */ ([stage, NaN]));
    const parts = [];
    let left = 0;
    for (const [stage, duration] of stagesMs) {
      const width = total > 0 ? (duration / total) * BAR_WIDTH : 0;
      const part = document.createElementNS(SVG, 'rect');
      part.setAttribute('x', left.toFixed(1));
      part.setAttribute('width', Math.max(0, width).toFixed(1));
      part.setAttribute('height', '20');
      part.setAttribute('class', `stage-${stageClass(stage)}`);
      parts.push(part);
      left += width;
    }
    const bar = element('bar', SVGSVGElement);
    for (const rect of bar.querySelectorAll('rect')) rect.remove();
    bar.append(...parts);
    element('legend', HTMLElement).replaceChildren(
      ...rows.map(([stage, duration]) => {
        const row = document.createElement('li');
        row.className = `stage-${stageClass(stage)}`;
        const value = document.createElement('b');
        value.textContent = tenth(duration);
        row.append(stage, value);
        return row;
      }),
    );
  }

  /** @param {{classId: number, count: number}[]|null} objects */
  #drawObjects(objects) {
    const chips = (objects ?? []).map(({ classId, count }) => {
      const chip = document.createElement('li');
      chip.className = hueOf(classId);
      const number = document.createElement('b');
      number.textContent = String(count);
      chip.append(this.#names[classId] ?? `class ${classId}`, number);
      return chip;
    });
    if (!chips.length) {
      const none = document.createElement('li');
      none.className = 'none';
      none.textContent = objects ? 'Nothing found' : '–';
      chips.push(none);
    }
    element('objects', HTMLElement).replaceChildren(...chips);
  }

  #drawSpark() {
    const { line, band, budget } = sparkPaths(this.#ages, SPARK_POINTS, BUDGET_MS);
    element('spark-line', SVGPathElement).setAttribute('d', line);
    element('spark-band', SVGPathElement).setAttribute('d', band);
    element('spark-budget', SVGPathElement).setAttribute('d', budget);
  }
}

/** @type {Record<string, string>} */
const CAPTURE_TEXT = {
  measured: 'measured, by the capture time of your own picture',
  estimated:
    'estimated, from arrivals at the server less encoding and half a round trip, where the ' +
    'browser does not tell when its source captured a frame',
  unknown: 'unknown yet',
};

/** @type {Partial<Record<ViewState['kind'], string>>} */
const ACTIONS = { idle: 'Start', failed: 'Try again', waiting: 'Try now' };

/** A muted video may always play; a refusal means it was taken away meanwhile.
 * @param {HTMLVideoElement} video */
function play(video) {
  video.play().catch(() => {});
}

/** @param {string} stage */
function stageClass(stage) {
  return STAGES.includes(stage) ? stage : 'other';
}

/** @param {string} id @param {string} words */
function text(id, words) {
  const target = element(id, HTMLElement);
  if (target.textContent !== words) target.textContent = words;
}

/** @param {string} name @returns {HTMLInputElement[]} */
function radios(name) {
  return [...document.querySelectorAll('input')].filter((input) => input.name === name);
}

/** @param {string} name @param {string} value */
function check(name, value) {
  for (const input of radios(name)) input.checked = input.value === value;
}

/** @param {string} name @param {(value: string) => void} changed */
function onRadio(name, changed) {
  for (const input of radios(name)) {
    input.addEventListener('change', () => changed(input.value));
  }
}

/** @param {number} value */
function whole(value) {
  return Number.isFinite(value) ? String(Math.round(value)) : '–';
}

/** @param {number} [value] */
function tenth(value = NaN) {
  return Number.isFinite(value) ? value.toFixed(1) : '–';
}

/** @param {number} [value] */
function ms(value = NaN) {
  return Number.isFinite(value) ? `${Math.max(0, value).toFixed(1)} ms` : '–';
}
