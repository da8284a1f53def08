// The server's clock, seen from this page. Both are monotonic; `ping`/`pong` on the data
// channel gives their difference, and the quickest of the last exchanges is trusted, because
// its error is at most half of its round trip.

const KEPT = 24;

export class ServerClock {
  /** @type {{rttMs: number, offsetMs: number}[]} */
  #exchanges = [];

  /**
   * @param {number} sentMs page time of the ping
   * @param {number} receivedMs page time of the pong
   * @param {number} serverMs server time in the pong
   */
  add(sentMs, receivedMs, serverMs) {
    const rttMs = receivedMs - sentMs;
    if (!(rttMs >= 0)) return;
    this.#exchanges.push({ rttMs, offsetMs: serverMs - (sentMs + receivedMs) / 2 });
    if (this.#exchanges.length > KEPT) this.#exchanges.shift();
  }

  get known() {
    return this.#exchanges.length > 0;
  }

  /** The quickest recent round trip: twice the bound of the mapping's error. NaN before any. */
  get rttMs() {
    return this.#best()?.rttMs ?? NaN;
  }

  /**
   * @param {number} serverMs
   * @returns {number} page time (`performance.now()`); NaN before the first exchange
   */
  toPageMs(serverMs) {
    return serverMs - (this.#best()?.offsetMs ?? NaN);
  }

  #best() {
    let best = this.#exchanges[0];
    for (const exchange of this.#exchanges) {
      if (best && exchange.rttMs <= best.rttMs) best = exchange;
    }
    return best;
  }
}
