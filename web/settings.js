// What the person chose, kept in localStorage between visits. Values read back are checked one
// by one: an older page or another tab may have written something else.

/** @typedef {'camera'|'screen'|'file'} SourceKind */
/** @typedef {'exact'|'smooth'|'data'} Mode */
/** @typedef {'corner'|'beside'|'hidden'} LocalView */
/** @typedef {{width: number, height: number}} Size */

/**
 * @typedef {object} Settings
 * @property {SourceKind} source
 * @property {string} deviceId camera; '' = the browser's choice
 * @property {number} height 360, 480, 720 or 1080
 * @property {number} confidence 0..1
 * @property {string[]|null} classes names to keep; null = all
 * @property {Mode} mode
 * @property {LocalView} localView
 */

const KEY = 'sightline.settings';

/** @type {Record<number, Size>} */
export const SIZES = {
  360: { width: 640, height: 360 },
  480: { width: 640, height: 480 },
  720: { width: 1280, height: 720 },
  1080: { width: 1920, height: 1080 },
};

/** @type {Settings} */
export const DEFAULTS = {
  source: 'camera',
  deviceId: '',
  height: 480,
  confidence: 0.4,
  classes: null,
  mode: 'exact',
  localView: 'corner',
};

/**
 * Takes only what is valid from `raw`; the rest keeps its default.
 * @param {unknown} raw
 * @returns {Settings}
 */
export function checked(raw) {
  const given = /** @type {Record<string, unknown>} */ (
    typeof raw === 'object' && raw !== null ? raw : {}
  );
  const { source, deviceId, height, confidence, classes, mode, localView } = given;
  const settings = { ...DEFAULTS };
  if (source === 'camera' || source === 'screen' || source === 'file') settings.source = source;
  if (typeof deviceId === 'string') settings.deviceId = deviceId;
  if (typeof height === 'number' && height in SIZES) settings.height = height;
  if (typeof confidence === 'number' && confidence >= 0 && confidence <= 1) {
    settings.confidence = confidence;
  }
  if (Array.isArray(classes) && classes.every((name) => typeof name === 'string')) {
    settings.classes = classes;
  }
  if (mode === 'exact' || mode === 'smooth' || mode === 'data') settings.mode = mode;
  if (localView === 'corner' || localView === 'beside' || localView === 'hidden') {
    settings.localView = localView;
  }
  return settings;
}

/** @returns {Settings|null} null on a first visit */
export function loadSettings() {
  try {
    const kept = JSON.parse(localStorage.getItem(KEY) ?? 'null');
    return kept && checked(kept);
  } catch {
    return null; // forbidden storage or broken text
  }
}

/** @param {Settings} settings */
export function saveSettings(settings) {
  try {
    localStorage.setItem(KEY, JSON.stringify(settings));
  } catch {
    // Forbidden or full storage: the settings hold for this visit only.
  }
}
