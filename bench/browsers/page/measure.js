// @ts-check
// What the bench does inside a browser: a canvas camera whose pictures carry the time as a bar
// code, a call to the server this page came from, and an eye on the returned picture. It is
// evaluated into a blank page of the measured server, or into the product's own, and is no module:
// its last statement hands out the functions which the driver calls.

'use strict';

// The layout of bench/barcode.py.
const COLUMNS = 32;
const ROWS = 2;
const ROWS_IN_PICTURE = 48;
// Luma 48, 208 and 128 as grey: the canvas is RGB, full range.
const BLACK = 'rgb(37 37 37)';
const WHITE = 'rgb(224 224 224)';
const THRESHOLD = 130;
// Points of each cell and axis that the strip is reduced to; the outer ones are smeared.
const POINTS = 5;
const GATHER_MS = 2_000;
const CONNECT_MS = 15_000;

/**
 * @typedef {object} Plan
 * @property {number} width
 * @property {number} height
 * @property {number} fps
 * @property {string} codec 'auto' leaves the choice to browser and server
 * @property {'canvas'|'track'} camera
 * @property {string} mode
 * @property {number} jitterTargetMs
 * @property {string} contentHint
 * @property {number} startKbps
 * @property {number} maxKbps
 * @property {boolean} playoutDelay let the server ask for pictures at once
 * @property {number} atMost rows of the log
 */

/** @type {ImageBitmap[]} */
const pictures = [];
/** @type {number[][]} */
const rows = [];
const counts = { drawn: 0, skipped: 0, seen: 0, unreadable: 0 };
/** @type {number[]} */
const drawnAtMs = [];
/** @type {RTCPeerConnection|undefined} */
let connection;
/** @type {HTMLVideoElement|undefined} */
let video;
let answer = /** @type {any} */ (null);

/** Checksum of the six bytes, as Python's binascii.crc_hqx from 0xFFFF. @param {Uint8Array} bytes */
function checksum(bytes) {
  let value = 0xffff;
  for (const byte of bytes) {
    value ^= byte << 8;
    for (let bit = 0; bit < 8; bit += 1) {
      value = value & 0x8000 ? ((value << 1) ^ 0x1021) & 0xffff : (value << 1) & 0xffff;
    }
  }
  return value;
}

const payload = new Uint8Array(8);
const payloadView = new DataView(payload.buffer);

/** @param {CanvasRenderingContext2D|OffscreenCanvasRenderingContext2D} context
 * @param {number} width @param {number} height @param {number} timeUs @param {number} number */
function stamp(context, width, height, timeUs, number) {
  payloadView.setUint32(0, timeUs % 2 ** 32);
  payloadView.setUint16(4, number & 0xffff);
  payloadView.setUint16(6, checksum(payload.subarray(0, 6)));
  const cellW = width / COLUMNS;
  const cellH = height / ROWS_IN_PICTURE;
  for (const top of [0, height - ROWS * cellH]) {
    context.fillStyle = BLACK;
    context.fillRect(0, top, width, ROWS * cellH);
    context.fillStyle = WHITE;
    for (let cell = 0; cell < COLUMNS * ROWS; cell += 1) {
      if (!((payload[cell >> 3] >> (7 - (cell & 7))) & 1)) continue;
      const x = (cell % COLUMNS) * cellW;
      context.fillRect(x, top + Math.floor(cell / COLUMNS) * cellH, cellW, cellH);
    }
  }
}

/**
 * The mark in one strip of the picture, or null.
 * @param {CanvasRenderingContext2D} context of the reduced strip
 * @param {HTMLVideoElement} source @param {number} top
 */
function readStrip(context, source, top) {
  const { videoWidth, videoHeight } = source;
  const w = COLUMNS * POINTS;
  const h = ROWS * POINTS;
  const stripH = (videoHeight * ROWS) / ROWS_IN_PICTURE;
  context.drawImage(source, 0, top * (videoHeight - stripH), videoWidth, stripH, 0, 0, w, h);
  const { data } = context.getImageData(0, 0, w, h);
  const bytes = new Uint8Array(8);
  for (let cell = 0; cell < COLUMNS * ROWS; cell += 1) {
    let sum = 0;
    for (let y = 1; y < POINTS - 1; y += 1) {
      const line = (Math.floor(cell / COLUMNS) * POINTS + y) * w + (cell % COLUMNS) * POINTS;
      for (let x = 1; x < POINTS - 1; x += 1) sum += data[(line + x) * 4 + 1];
    }
    if (sum > THRESHOLD * (POINTS - 2) ** 2) bytes[cell >> 3] |= 1 << (7 - (cell & 7));
  }
  const view = new DataView(bytes.buffer);
  if (checksum(bytes.subarray(0, 6)) !== view.getUint16(6)) return null;
  return { timeUs: view.getUint32(0), number: view.getUint16(4) };
}

/** 0, 1 .. n-1 .. 1, 0 .. : no cut. @param {number} index @param {number} count */
function pingPong(index, count) {
  if (count === 1) return 0;
  const place = index % (2 * count - 2);
  return place < count ? place : 2 * count - 2 - place;
}

/** Pictures to show, as data addresses. @param {string[]} addresses */
async function addPictures(addresses) {
  for (const address of addresses) {
    const image = new Image();
    image.src = address;
    await image.decode();
    pictures.push(await createImageBitmap(image));
  }
  return pictures.length;
}

/** Draws on a fixed grid of instants, without drift. @param {Plan} plan @param {() => void} draw */
function everySlot(plan, draw) {
  const intervalMs = 1_000 / plan.fps;
  const firstMs = performance.now();
  let slot = 0;
  const next = () => {
    const lateSlots = Math.floor((performance.now() - firstMs) / intervalMs) - slot;
    if (lateSlots > 0) {
      counts.skipped += lateSlots;
      slot += lateSlots;
    }
    draw();
    slot += 1;
    setTimeout(next, Math.max(0, firstMs + slot * intervalMs - performance.now()));
  };
  next();
}

/** @param {Plan} plan @returns {MediaStreamTrack} */
function openCamera(plan) {
  const { width, height } = plan;
  const canvas = Object.assign(document.createElement('canvas'), { width, height });
  const context = canvas.getContext('2d', { alpha: false, willReadFrequently: true });
  if (!context) throw new Error('no 2D context');
  const draw = () => {
    const number = counts.drawn;
    context.drawImage(pictures[pingPong(number, pictures.length)], 0, 0, width, height);
    const nowMs = performance.now();
    stamp(context, width, height, Math.round(nowMs * 1_000), number);
    if (drawnAtMs.length < plan.atMost) drawnAtMs.push(nowMs);
    counts.drawn += 1;
  };
  if (plan.camera === 'track') {
    // As a real camera: the picture goes to the track at once, not with the next repaint.
    const Generator = /** @type {any} */ (globalThis).MediaStreamTrackGenerator;
    if (!Generator) throw new Error('this browser has no MediaStreamTrackGenerator');
    const track = new Generator({ kind: 'video' });
    const writer = track.writable.getWriter();
    everySlot(plan, () => {
      draw();
      const frame = new VideoFrame(canvas, { timestamp: Math.round(performance.now() * 1_000) });
      writer.write(frame).catch(() => {});
    });
    return track;
  }
  // No rate: with one, Firefox samples the canvas by a clock of its own and misses pictures.
  const [track] = canvas.captureStream().getVideoTracks();
  // A canvas is captured when the page is repainted: drawn right before, the time in the picture
  // is that of its capture, like a camera's, and not up to a repaint older.
  everySlot(plan, () => requestAnimationFrame(draw));
  return track;
}

/**
 * Chromium begins at 300 kbit/s, and with a smaller picture, unless the answer hints otherwise.
 * @param {string} sdp @param {number} kbps 0 for no hint
 */
function withStartBitrate(sdp, kbps) {
  if (!kbps) return sdp;
  const hint = `x-google-start-bitrate=${kbps}`;
  for (const [line, type] of sdp.matchAll(/^a=rtpmap:(\d+) (?:H264|VP8)\/90000/gm)) {
    const has = new RegExp(`^a=fmtp:${type} .*?(?=\\r?$)`, 'm');
    sdp = has.test(sdp)
      ? sdp.replace(has, `$&;${hint}`)
      : sdp.replace(line, `${line}\r\na=fmtp:${type} ${hint}`);
  }
  return sdp;
}

/** @param {RTCPeerConnection} peer */
async function gathered(peer) {
  if (peer.iceGatheringState === 'complete') return;
  await new Promise((resolve) => {
    setTimeout(resolve, GATHER_MS);
    peer.addEventListener('icegatheringstatechange', () => {
      if (peer.iceGatheringState === 'complete') resolve(undefined);
    });
  });
}

/** The named codec and what repairs its losses. @param {string} name */
function codecsCalled(name) {
  const all = RTCRtpReceiver.getCapabilities('video')?.codecs ?? [];
  const types = [`video/${name}`.toLowerCase(), 'video/rtx'];
  const wanted = all.filter(({ mimeType }) => types.includes(mimeType.toLowerCase()));
  if (!wanted.some(({ mimeType }) => mimeType.toLowerCase() === types[0])) {
    throw new Error(`this browser has no ${name} for calls`);
  }
  return wanted;
}

/** Calls the server and shows what comes back. @param {Plan} plan */
async function call(plan) {
  const track = openCamera(plan);
  if (plan.contentHint) track.contentHint = plan.contentHint;
  connection = new RTCPeerConnection({ iceServers: [], bundlePolicy: 'max-bundle' });
  const transceiver = connection.addTransceiver(track, { direction: 'sendrecv' });
  if (plan.codec !== 'auto') transceiver.setCodecPreferences(codecsCalled(plan.codec));
  if (plan.jitterTargetMs >= 0) {
    const receiver = /** @type {any} */ (transceiver.receiver);
    if ('jitterBufferTarget' in receiver) receiver.jitterBufferTarget = plan.jitterTargetMs;
  }
  connection.createDataChannel('detections', { ordered: false, maxRetransmits: 0 });
  video = Object.assign(document.createElement('video'), { muted: true, autoplay: true });
  video.style.cssText = `position:fixed;left:0;top:0;width:${plan.width}px;height:${plan.height}px`;
  document.documentElement.append(video);
  connection.addEventListener('track', (event) => {
    if (video) video.srcObject = new MediaStream([event.track]);
  });
  await connection.setLocalDescription();
  await gathered(connection);
  const reply = await fetch('/offer', {
    method: 'POST',
    headers: { 'Content-Type': 'application/json' },
    body: JSON.stringify({
      sdp: plan.playoutDelay
        ? connection.localDescription?.sdp
        : connection.localDescription?.sdp.replace(/^a=extmap:.*playout-delay\r?\n/gm, ''),
      type: 'offer',
      options: { mode: plan.mode },
    }),
  });
  answer = await reply.json();
  if (!reply.ok) throw new Error(`the offer was refused with ${reply.status}: ${answer.detail}`);
  await connection.setRemoteDescription({
    type: 'answer',
    sdp: withStartBitrate(answer.sdp, plan.startKbps),
  });
  const parameters = transceiver.sender.getParameters();
  if (plan.maxKbps && parameters.encodings?.[0]) {
    parameters.encodings[0].maxBitrate = plan.maxKbps * 1_000;
    await transceiver.sender.setParameters(parameters);
  }
  watch(video, plan.atMost, (mark) => mark);
  await firstPicture();
  return { session: answer.session, codec: answer.codec, encoder: answer.encoder, model: answer.model };
}

/** A small canvas that strips are reduced to. */
function openStrip() {
  const canvas = Object.assign(document.createElement('canvas'), {
    width: COLUMNS * POINTS,
    height: ROWS * POINTS,
  });
  const context = canvas.getContext('2d', { alpha: false, willReadFrequently: true });
  if (!context) throw new Error('no 2D context');
  context.imageSmoothingEnabled = false;
  return context;
}

/** @typedef {{timeUs: number, number: number}} Mark */

/**
 * Reads every picture of a video and logs those whose mark says when they began their way.
 * @param {HTMLVideoElement} shown @param {number} atMost rows
 * @param {(mark: Mark) => Mark|undefined} begun
 */
function watch(shown, atMost, begun) {
  const strip = openStrip();
  /** @type {VideoFrameRequestCallback} */
  const seen = (nowMs, metadata) => {
    const calledAtMs = performance.now();
    shown.requestVideoFrameCallback(seen);
    counts.seen += 1;
    const read = readStrip(strip, shown, 0) ?? readStrip(strip, shown, 1);
    const mark = read && begun(read);
    if (!mark) {
      counts.unreadable += 1;
      return;
    }
    if (rows.length >= atMost) return;
    const more = /** @type {any} */ (metadata);
    rows.push([
      mark.number,
      mark.timeUs,
      calledAtMs,
      nowMs,
      metadata.presentationTime,
      metadata.expectedDisplayTime,
      more.receiveTime ?? -1,
      more.processingDuration === undefined ? -1 : more.processingDuration * 1_000,
      performance.now() - calledAtMs,
    ]);
  };
  shown.requestVideoFrameCallback(seen);
}

/**
 * The product's own page in a call whose camera plays a clip with numbered pictures, over and
 * over: when each was captured is seen in the local preview.
 * @param {number} atMost rows
 */
async function watchPage(atMost) {
  const local = /** @type {HTMLVideoElement} */ (document.querySelector('#local'));
  const remote = /** @type {HTMLVideoElement} */ (document.querySelector('#remote'));
  const strip = openStrip();
  /** @type {Map<number, Mark>} the newest of each number of the clip */
  const captured = new Map();
  let captureTold = true;
  /** @type {VideoFrameRequestCallback} */
  const seen = (_nowMs, metadata) => {
    local.requestVideoFrameCallback(seen);
    const mark = readStrip(strip, local, 0);
    if (!mark || drawnAtMs.length >= atMost) return;
    const captureTime = /** @type {any} */ (metadata).captureTime;
    captureTold &&= captureTime !== undefined;
    const atMs = captureTime ?? metadata.presentationTime;
    captured.set(mark.number, { number: counts.drawn, timeUs: Math.round(atMs * 1_000) });
    drawnAtMs.push(atMs);
    counts.drawn += 1;
  };
  local.requestVideoFrameCallback(seen);
  watch(remote, atMost, (mark) => {
    const begun = captured.get(mark.number);
    return begun && { number: begun.number, timeUs: begun.timeUs % 2 ** 32 };
  });
  await firstPicture();
  return captureTold;
}

async function firstPicture() {
  const until = performance.now() + CONNECT_MS;
  while (rows.length === 0) {
    if (performance.now() > until) {
      throw new Error(
        `no picture came back: connection ${connection?.connectionState}, ` +
          `${counts.drawn} drawn, ${counts.seen} seen, ${counts.unreadable} unreadable`,
      );
    }
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
}

/** An instant of this page's clock, the counts so far, and the connection's own statistics. */
async function snapshot() {
  const atMs = performance.now();
  const report = await connection?.getStats();
  /** @type {Record<string, any>} */
  const stats = {};
  for (const entry of report?.values() ?? []) {
    if (entry.kind !== 'video') continue;
    if (entry.type === 'inbound-rtp' || entry.type === 'outbound-rtp') stats[entry.type] = entry;
  }
  return { atMs, counts: { ...counts }, state: connection?.connectionState, stats };
}

/** Everything that was logged, and the end of the call. */
async function finish() {
  connection?.close();
  if (answer?.session) await fetch(`/sessions/${answer.session}`, { method: 'DELETE' });
  return { rows, drawnAtMs };
}

Object.assign(globalThis, { sightlineBench: { addPictures, call, watchPage, snapshot, finish } });
