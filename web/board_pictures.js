// Pictures behind the gate, in img elements: fetched when they come into view, freed together.

import { hasKey } from './access.js';
import { pictureUrl } from './board_api.js';

/** A picture is told of a moment before it is stored. */
const AGAIN_MS = 2_500;
const TRIES = 3;

export class Pictures {
  /** @type {Map<Element, string>} */ #waiting = new Map();
  /** @type {string[]} */ #urls = [];
  #abort = new AbortController();
  #sight = new IntersectionObserver((entries) => {
    for (const { target, isIntersecting } of entries) {
      const path = this.#waiting.get(target);
      if (!isIntersecting || path === undefined || !(target instanceof HTMLImageElement)) continue;
      this.#waiting.delete(target);
      this.#sight.unobserve(target);
      void this.#load(target, path, 1);
    }
  }, { rootMargin: '150px' });

  /** @param {HTMLImageElement} image @param {string} path of this server */
  show(image, path) {
    this.#waiting.set(image, path.replace(/^\//, ''));
    this.#sight.observe(image);
  }

  /** Everything that was shown goes; what is on its way does not come. */
  clear() {
    this.#abort.abort();
    this.#abort = new AbortController();
    this.#sight.disconnect();
    this.#waiting.clear();
    for (const url of this.#urls) URL.revokeObjectURL(url);
    this.#urls = [];
  }

  /** @param {HTMLImageElement} image @param {string} path @param {number} attempt */
  async #load(image, path, attempt) {
    const { signal } = this.#abort;
    try {
      // Without a key the browser's own cache serves the same picture twice.
      const url = hasKey() ? await pictureUrl(path, signal) : path;
      if (url !== path) this.#urls.push(url);
      image.src = url;
      await image.decode();
    } catch {
      if (signal.aborted) return;
      if (attempt >= TRIES) image.classList.add('empty');
      else setTimeout(() => !signal.aborted && void this.#load(image, path, attempt + 1), AGAIN_MS);
    }
  }
}
