// Every way a call can fail, and the words a person reads about it. One place, so that no
// failure is shown as a code or an exception's text alone.

/**
 * @typedef {'unsupported'|'insecure'|'permission'|'screen-cancelled'|'no-camera'|'camera-busy'|
 *   'camera-lost'|'no-file'|'file-unplayable'|'server-full'|'server-busy'|'slow-down'|
 *   'server-gone'|'server-error'|'locked'|'refused'|'no-path'|'connection-lost'|'offline'} FailureKind
 */

/**
 * `auto`: the page tries again by itself. `ask`: the person has to do something first.
 * @typedef {'auto'|'ask'} Retry
 */

/** @type {Record<FailureKind, {title: string, detail: string, retry: Retry}>} */
const TEXTS = {
  unsupported: {
    title: 'This browser cannot make video calls',
    detail: 'It has no WebRTC. A current Chrome, Edge, Firefox or Safari does.',
    retry: 'ask',
  },
  insecure: {
    title: 'The camera needs a secure page',
    detail:
      'Browsers hand out cameras only over https or on localhost. Open this page as ' +
      'http://localhost on the machine itself, or put TLS in front of the server. ' +
      'A video file works here as it is.',
    retry: 'ask',
  },
  permission: {
    title: 'The camera was refused',
    detail: 'Allow the camera for this page in the address bar, then try again.',
    retry: 'ask',
  },
  'screen-cancelled': {
    title: 'No screen was chosen',
    detail: 'Try again and pick a screen, a window or a tab to share.',
    retry: 'ask',
  },
  'no-camera': {
    title: 'No camera found',
    detail: 'Plug one in and try again, or use a screen or a video file instead.',
    retry: 'ask',
  },
  'camera-busy': {
    title: 'The camera is in use',
    detail: 'Another program or tab holds it, or it stopped answering. Close that, then try again.',
    retry: 'ask',
  },
  'camera-lost': {
    title: 'The picture source went away',
    detail: 'The camera was unplugged, or sharing was stopped.',
    retry: 'ask',
  },
  'no-file': {
    title: 'No video file chosen yet',
    detail: 'Choose a file to play into the call. It loops, without sound.',
    retry: 'ask',
  },
  'file-unplayable': {
    title: 'This browser cannot play that file',
    detail: 'WebM and MP4 (H.264) play nearly everywhere.',
    retry: 'ask',
  },
  'server-full': {
    title: 'The server is full',
    detail: 'Every place is taken. This page asks again by itself.',
    retry: 'auto',
  },
  'server-busy': {
    title: 'The server is too busy',
    detail: 'It takes no new calls for the moment. This page asks again by itself.',
    retry: 'auto',
  },
  'slow-down': {
    title: 'The server asks to wait',
    detail: 'Too many calls were made from here in a short time.',
    retry: 'auto',
  },
  'server-gone': {
    title: 'The server does not answer',
    detail: 'It may be restarting, or the way to it is cut.',
    retry: 'auto',
  },
  'server-error': {
    title: 'The server could not start the call',
    detail: 'Something failed on its side.',
    retry: 'auto',
  },
  locked: {
    title: 'This server is locked',
    detail: 'It serves calls only to those who have a key for it.',
    retry: 'ask',
  },
  refused: {
    title: 'The server refused the call',
    detail: 'It did not accept what this page asked for.',
    retry: 'ask',
  },
  'no-path': {
    title: 'No way through for the video',
    detail:
      'The server answers, but video packets (UDP) do not reach it. A firewall or a network ' +
      'that only lets web pages through is the usual reason.',
    retry: 'auto',
  },
  'connection-lost': {
    title: 'The connection broke',
    detail: 'The server or the network stopped answering in the middle of the call.',
    retry: 'auto',
  },
  offline: {
    title: 'This device is offline',
    detail: 'The call goes on as soon as there is a network again.',
    retry: 'auto',
  },
};

/** A reason why there is no call, fit to be shown. */
export class Failure extends Error {
  /** @type {FailureKind} */ kind;
  /** @type {string} */ title;
  /** @type {string} */ detail;
  /** @type {Retry} */ retry;
  /** Seconds the server asked us to wait, or null. @type {number|null} */ retryAfterS;

  /**
   * @param {FailureKind} kind
   * @param {{reason?: string, retryAfterS?: number|null, cause?: unknown}} [more] `reason` is
   *   what the server or browser said; it is shown after our own words.
   */
  constructor(kind, more = {}) {
    const text = TEXTS[kind];
    super(text.title, { cause: more.cause });
    this.name = 'Failure';
    this.kind = kind;
    this.title = text.title;
    this.detail = more.reason ? `${text.detail} (${more.reason})` : text.detail;
    this.retry = text.retry;
    this.retryAfterS = more.retryAfterS ?? null;
  }
}
