// Where the outgoing picture comes from: camera, screen or a video file, as one Source.

import { Failure } from './failures.js';
import { SIZES } from './settings.js';

/** @typedef {import('./settings.js').Settings} Settings */

const FRAME_RATE = 30;
const FILE_DEADLINE_MS = 8_000;

/** A live picture with one video track. `close()` frees the camera or file. */
export class Source {
  /** @type {MediaStream} */ stream;
  /** @type {MediaStreamTrack} */ track;
  /** Height to send at most; null where the capture itself was asked for the size.
   * @type {number|null} */
  maxHeight;
  /** Called once when the track ends by itself. @type {() => void} */
  onlost = () => {};
  /** @type {() => void} */ #free;
  #closed = false;

  /**
   * @param {MediaStream} stream
   * @param {number|null} maxHeight
   * @param {() => void} [free]
   */
  constructor(stream, maxHeight, free = () => {}) {
    const [track] = stream.getVideoTracks();
    if (!track) throw new Failure('camera-lost');
    this.stream = stream;
    this.track = track;
    this.maxHeight = maxHeight;
    this.#free = free;
    track.addEventListener('ended', () => {
      if (!this.#closed) this.onlost();
    });
  }

  close() {
    if (this.#closed) return;
    this.#closed = true;
    for (const track of this.stream.getTracks()) track.stop();
    this.#free();
  }
}

/**
 * Opens what the settings name; asks the person for permission where the browser wants it.
 * @param {Settings} settings
 * @param {File|null} file for source 'file'
 * @returns {Promise<Source>}
 */
export async function openSource(settings, file) {
  if (settings.source === 'file') return openFile(file, settings.height);
  if (!navigator.mediaDevices) throw new Failure(isSecureContext ? 'unsupported' : 'insecure');
  return settings.source === 'screen' ? openScreen(settings) : openCamera(settings);
}

/**
 * Cameras with their labels; labels are empty until the first permission.
 * @returns {Promise<{deviceId: string, label: string}[]>}
 */
export async function listCameras() {
  if (!navigator.mediaDevices?.enumerateDevices) return [];
  const devices = await navigator.mediaDevices.enumerateDevices();
  return devices
    .filter((device) => device.kind === 'videoinput' && device.deviceId)
    .map((device, index) => ({
      deviceId: device.deviceId,
      label: device.label || `Camera ${index + 1}`,
    }));
}

/** @param {() => void} changed @param {AbortSignal} signal */
export function watchCameras(changed, signal) {
  navigator.mediaDevices?.addEventListener?.('devicechange', changed, { signal });
}

/** @param {Settings} settings */
async function openCamera(settings) {
  const { width, height } = sizeOf(settings);
  /** @type {MediaTrackConstraints} */
  const video = {
    width: { ideal: width },
    height: { ideal: height },
    frameRate: { ideal: FRAME_RATE },
  };
  if (settings.deviceId) video.deviceId = { exact: settings.deviceId };
  // On a phone the camera that looks at the world is the useful one.
  else if (matchMedia('(pointer: coarse)').matches) video.facingMode = { ideal: 'environment' };
  let stream;
  try {
    stream = await navigator.mediaDevices.getUserMedia({ video, audio: false });
  } catch (cause) {
    // The camera chosen last time is not there today: any other is better than none.
    if (settings.deviceId && nameOf(cause) === 'OverconstrainedError') {
      return openCamera({ ...settings, deviceId: '' });
    }
    throw captureFailure(cause, 'permission');
  }
  const source = new Source(stream, null);
  source.track.contentHint = 'motion'; // rather fewer pixels than fewer pictures
  return source;
}

/** @param {Settings} settings */
async function openScreen(settings) {
  if (!navigator.mediaDevices.getDisplayMedia) throw new Failure('unsupported');
  const { width, height } = sizeOf(settings);
  try {
    const stream = await navigator.mediaDevices.getDisplayMedia({
      video: { width: { max: width }, height: { max: height }, frameRate: { ideal: FRAME_RATE } },
      audio: false,
    });
    return new Source(stream, settings.height);
  } catch (cause) {
    throw captureFailure(cause, 'screen-cancelled');
  }
}

/**
 * @param {File|null} file
 * @param {number} maxHeight
 */
async function openFile(file, maxHeight) {
  if (!file) throw new Failure('no-file');
  const player = document.createElement('video');
  const url = URL.createObjectURL(file);
  const free = () => {
    player.pause();
    player.removeAttribute('src');
    player.load();
    URL.revokeObjectURL(url);
  };
  player.muted = true;
  player.loop = true;
  player.playsInline = true;
  player.src = url;
  try {
    await withDeadline(player.play());
    return new Source(captureOf(player), maxHeight, free);
  } catch (cause) {
    free();
    if (cause instanceof Failure) throw cause;
    throw new Failure('file-unplayable', { cause });
  }
}

/**
 * Firefox has the same method under its own name.
 * @param {HTMLVideoElement & {captureStream?: () => MediaStream,
 *   mozCaptureStream?: () => MediaStream}} player
 */
function captureOf(player) {
  const stream = player.captureStream?.() ?? player.mozCaptureStream?.();
  if (!stream) throw new Failure('unsupported', { reason: 'it cannot capture a video file' });
  for (const track of stream.getAudioTracks()) {
    track.stop();
    stream.removeTrack(track);
  }
  return stream;
}

/** @param {Promise<void>} played */
function withDeadline(played) {
  return Promise.race([
    played,
    new Promise((_, reject) => {
      setTimeout(() => reject(new Failure('file-unplayable')), FILE_DEADLINE_MS);
    }),
  ]);
}

/** @param {Settings} settings */
function sizeOf(settings) {
  return SIZES[settings.height] ?? { width: 640, height: 480 };
}

/** @param {unknown} error */
function nameOf(error) {
  return error instanceof Error || error instanceof DOMException ? error.name : '';
}

/**
 * @param {unknown} cause
 * @param {'permission'|'screen-cancelled'} refused what "not allowed" means here
 */
function captureFailure(cause, refused) {
  switch (nameOf(cause)) {
    case 'NotAllowedError':
    case 'SecurityError':
      return new Failure(isSecureContext ? refused : 'insecure', { cause });
    case 'NotFoundError':
    case 'OverconstrainedError':
      return new Failure('no-camera', { cause });
    default:
      return new Failure('camera-busy', { cause, reason: nameOf(cause) });
  }
}
