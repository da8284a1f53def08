// What zones and lines are called. Events tell ids; a stream is asked for its names once, when
// somebody needs them, and again when they may be other ones.

import { getLayout } from './board_api.js';
import { Failure } from './failures.js';

/** @typedef {import('./board_api.js').LayoutNow} LayoutNow */

export class ZoneNames {
  /** @type {Map<string, Promise<void>>} */ #asked = new Map();
  /** @type {Map<string, LayoutNow>} */ #layouts = new Map();

  /** Resolves when all that can be known is. @param {Iterable<string>} streams */
  async know(streams) {
    await Promise.all([...new Set(streams)].map((stream) => {
      let asked = this.#asked.get(stream);
      if (!asked) this.#asked.set(stream, (asked = this.#ask(stream)));
      return asked;
    }));
  }

  /** Those of events that happened somewhere. @param {import('./board_api.js').Happened[]} events */
  async knowThoseOf(events) {
    await this.know(events.filter(({ zone }) => zone).map(({ stream }) => stream));
  }

  /** @param {string} stream @param {string|null|undefined} zone its id, which stands for a name that is not known */
  of(stream, zone) {
    const layout = this.#layouts.get(stream);
    return [...(layout?.zones ?? []), ...(layout?.lines ?? [])].find(({ id }) => id === zone)?.label ?? zone ?? '';
  }

  /** @param {string} stream @returns {LayoutNow|null} */
  layout(stream) {
    return this.#layouts.get(stream) ?? null;
  }

  /** They may have changed. @param {string} stream */
  forget(stream) {
    this.#asked.delete(stream);
  }

  /** @param {string} stream */
  async #ask(stream) {
    try {
      this.#layouts.set(stream, await getLayout(stream));
    } catch (failure) {
      if (!(failure instanceof Failure)) throw failure; // not for this key, or away: asked again
      this.#asked.delete(stream);
    }
  }
}
