// Boxes over the returned picture, in mode `data`: the picture comes back as it went, and the
// page draws what was found on the very frame that it was found in, by RTP timestamp. Boxes
// come a little after their frame left the server and mostly before it is shown; a frame that is
// shown first has those of the one before until its own are there.

import { hueOf } from './classes.js';

/** @typedef {import('./peer.js').FrameMessage} FrameMessage */

const KEPT = 64;
const FADE_MS = 300;

export class BoxLayer {
  #video;
  #canvas;
  /** @type {Map<number, FrameMessage>} */ #messages = new Map();
  /** @type {FrameMessage|null} */ #newest = null;
  #newestAtMs = 0;
  /** What is shown now; undefined where the browser does not tell. @type {number|undefined} */ #rtp;
  #draws = false;
  /** Class names by id. @type {string[]} */ names = [];

  /** @param {HTMLVideoElement} video @param {HTMLCanvasElement} canvas that lies over it */
  constructor(video, canvas) {
    this.#video = video;
    this.#canvas = canvas;
    if (!('requestVideoFrameCallback' in video)) return;
    /** @type {VideoFrameRequestCallback} */
    const next = (_, metadata) => {
      this.#rtp = metadata.rtpTimestamp;
      if (this.#draws) this.#draw();
      video.requestVideoFrameCallback(next);
    };
    video.requestVideoFrameCallback(next);
  }

  /** Whether the page draws; the server does otherwise. @param {boolean} draws */
  show(draws) {
    if (draws === this.#draws) return;
    this.#draws = draws;
    this.#canvas.hidden = !draws;
    if (!draws) this.clear();
  }

  /** @param {FrameMessage} message */
  add(message) {
    if (!this.#draws) return;
    this.#messages.set(message.rtp_timestamp, message);
    for (const oldest of this.#messages.keys()) {
      if (this.#messages.size <= KEPT) break;
      this.#messages.delete(oldest);
    }
    // The channel is unordered.
    if (!this.#newest || message.seq > this.#newest.seq || performance.now() - this.#newestAtMs > FADE_MS) {
      this.#newest = message;
      this.#newestAtMs = performance.now();
    }
    if (this.#rtp === undefined || message.rtp_timestamp === this.#rtp) this.#draw();
  }

  clear() {
    this.#messages.clear();
    this.#newest = null;
    this.#canvas.getContext('2d')?.clearRect(0, 0, this.#canvas.width, this.#canvas.height);
  }

  #draw() {
    const context = this.#canvas.getContext('2d');
    if (!context) return;
    const scale = devicePixelRatio;
    const width = Math.round(this.#canvas.clientWidth * scale);
    const height = Math.round(this.#canvas.clientHeight * scale);
    if (this.#canvas.width !== width || this.#canvas.height !== height) {
      this.#canvas.width = width;
      this.#canvas.height = height;
    } else context.clearRect(0, 0, width, height);
    const own = this.#rtp === undefined ? undefined : this.#messages.get(this.#rtp);
    const fresh = performance.now() - this.#newestAtMs < FADE_MS;
    const message = own ?? (fresh ? this.#newest : null);
    const { videoWidth, videoHeight } = this.#video;
    if (!message || !videoWidth || !videoHeight) return;
    const fit = Math.min(width / videoWidth, height / videoHeight);
    const [w, h] = [videoWidth * fit, videoHeight * fit];
    this.#paint(context, message, [(width - w) / 2, (height - h) / 2, w, h], scale);
  }

  /**
   * @param {CanvasRenderingContext2D} context
   * @param {FrameMessage} message
   * @param {[number, number, number, number]} place x, y, width and height of the picture
   * @param {number} scale device pixels of a line
   */
  #paint(context, message, [left, top, width, height], scale) {
    const [w, h] = message.size;
    const size = Math.round(Math.max(11, Math.min(16, height / (26 * scale))) * scale);
    context.font = `600 ${size}px ui-sans-serif, system-ui, sans-serif`;
    context.textBaseline = 'middle';
    context.lineWidth = 2 * scale;
    for (const [x1, y1, x2, y2, classId, confidence, trackId] of message.boxes) {
      const [x, y] = [left + (x1 / w) * width, top + (y1 / h) * height];
      const colour = this.#colour(classId);
      context.strokeStyle = context.fillStyle = colour;
      context.strokeRect(x, y, ((x2 - x1) / w) * width, ((y2 - y1) / h) * height);
      const track = trackId === null || trackId === undefined ? '' : ` #${trackId}`;
      const text = `${this.names[classId] ?? classId}${track} ${Math.round(confidence * 100)}`;
      const tall = size + 6 * scale;
      const up = y - tall >= top ? y - tall : y;
      context.fillRect(x - scale, up, context.measureText(text).width + 8 * scale, tall);
      context.fillStyle = '#10181b';
      context.fillText(text, x + 3 * scale, up + tall / 2);
    }
  }

  /** @type {Map<string, string>} */ #colours = new Map();

  /** As the server and the style sheet have it. @param {number} classId */
  #colour(classId) {
    const name = hueOf(classId);
    let colour = this.#colours.get(name);
    if (!colour) {
      const probe = document.createElement('i');
      probe.className = name;
      this.#canvas.after(probe);
      colour = getComputedStyle(probe).getPropertyValue('--hue').trim() || '#ff7a45';
      probe.remove();
      this.#colours.set(name, colour);
    }
    return colour;
  }
}
