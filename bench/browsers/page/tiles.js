// @ts-check
// What `bench tiles` does inside a browser: tiles beside each other, an eye on every one of them,
// and on how evenly the page itself runs. It is evaluated behind measure.js, in one scope with it.

'use strict';

/** @typedef {HTMLElement & {pairing: Record<string, number>, statistics: () => any}} Tile */

/** @type {Tile[]} */
let watched = [];
/** @type {number[][]} */
const tileRows = [];
/** Boxes put on a picture: tile, when, the picture's number, the message's, how many.
 * @type {number[][]} */
const boxRows = [];
/** By tile. @type {number[]} */
const tileSeen = [];
/** By tile. @type {number[]} */
const tileUnreadable = [];
/** @type {number[]} */
const repaintsMs = [];
/** @type {number[][]} */
const longTasks = [];

/** What the server said: stream, count of the picture, when its first packet came, by its clock.
 * @type {[string, number, number][]} */
const messages = [];

/** The channels of this page's connections are listened to from their making on. */
function overhear() {
  const { createDataChannel } = RTCPeerConnection.prototype;
  RTCPeerConnection.prototype.createDataChannel = function (label, options) {
    const channel = createDataChannel.call(this, label, options);
    channel.addEventListener('message', ({ data }) => {
      const said = JSON.parse(data);
      if (said.boxes) messages.push([said.stream, said.seq, said.received_server_ms]);
    });
    return channel;
  };
}

/**
 * Tiles of this server, side by side in the window.
 * @param {string[]} streams @param {string} view
 */
async function openTiles(streams, view) {
  overhear();
  // @ts-expect-error: a module of the server's
  await import('/tile.js');
  const columns = Math.ceil(Math.sqrt(streams.length));
  const wall = document.createElement('div');
  wall.style.cssText = `display:grid;grid-template-columns:repeat(${columns},1fr);width:1280px`;
  for (const stream of streams) {
    const tile = document.createElement('sightline-tile');
    tile.setAttribute('stream', stream);
    tile.setAttribute('view', view);
    wall.append(tile);
  }
  document.body.style.margin = '0';
  document.body.replaceChildren(wall);
}

/** How many tiles are live. */
function tilesLive() {
  return document.querySelectorAll('sightline-tile[state=live]').length;
}

/**
 * From now on every tile's pictures are seen, one of `every` is read.
 * @param {string[]} streams @param {number} atMost rows @param {number} every
 */
function watchTiles(streams, atMost, every) {
  const found = /** @type {Tile[]} */ ([...document.querySelectorAll('sightline-tile')]);
  watched = streams.map((name) => {
    const tile = found.find((each) => each.getAttribute('stream') === name);
    if (!tile) throw new Error(`no tile of ${name}`);
    return tile;
  });
  watched.forEach((tile, index) => watchTile(tile, index, atMost, every));
  let beforeMs = performance.now();
  const repainted = () => {
    const nowMs = performance.now();
    if (repaintsMs.length < atMost) repaintsMs.push(nowMs - beforeMs);
    beforeMs = nowMs;
    requestAnimationFrame(repainted);
  };
  requestAnimationFrame(repainted);
  if (PerformanceObserver.supportedEntryTypes.includes('longtask')) {
    new PerformanceObserver((list) => {
      for (const { startTime, duration } of list.getEntries()) longTasks.push([startTime, duration]);
    }).observe({ type: 'longtask' });
  }
}

/** @param {Tile} tile @param {number} index @param {number} atMost @param {number} every */
function watchTile(tile, index, atMost, every) {
  const strip = openStrip();
  tileSeen[index] = tileUnreadable[index] = 0;
  /** @type {HTMLVideoElement|null} */
  let shown = null;
  const read = () => shown && (readStrip(strip, shown, 0) ?? readStrip(strip, shown, 1));
  // A tile that connects anew, or takes another size, shows another video.
  const attach = () => {
    const video = tile.shadowRoot?.querySelector('video:not([hidden])');
    if (!(video instanceof HTMLVideoElement) || video === shown) return;
    shown = video;
    /** @type {VideoFrameRequestCallback} */
    const seen = (nowMs, metadata) => {
      if (video !== shown) return;
      const calledAtMs = performance.now();
      video.requestVideoFrameCallback(seen);
      tileSeen[index] += 1;
      if (tileSeen[index] % every || tileRows.length >= atMost) return;
      const mark = read();
      if (!mark) {
        tileUnreadable[index] += 1;
        return;
      }
      tileRows.push([index, ...instants(mark, calledAtMs, nowMs, metadata)]);
    };
    video.requestVideoFrameCallback(seen);
  };
  tile.addEventListener('sightline-state', attach);
  attach();
  let told = 0;
  tile.addEventListener('sightline-detections', (event) => {
    told += 1;
    if (told % every || boxRows.length >= atMost) return;
    // The picture that the boxes are on now, whatever anybody says about it.
    const mark = read();
    const { seq, boxes } = /** @type {CustomEvent} */ (event).detail;
    if (mark) boxRows.push([index, performance.now(), mark.number, seq, boxes.length]);
  });
}

/** An instant of this page's clock, and every tile's counts so far. */
function tilesSnapshot() {
  return {
    atMs: performance.now(),
    repaints: repaintsMs.length,
    tiles: watched.map((tile, index) => ({
      seen: tileSeen[index],
      unreadable: tileUnreadable[index],
      pairing: tile.pairing,
      ...tile.statistics(),
    })),
  };
}

function tilesLog() {
  const tellsLongTasks = PerformanceObserver.supportedEntryTypes.includes('longtask');
  return { rows: tileRows, boxes: boxRows, messages, repaintsMs, longTasks, tellsLongTasks };
}

Object.assign(globalThis, { sightlineTiles: { openTiles, tilesLive, watchTiles, tilesSnapshot, tilesLog } });
