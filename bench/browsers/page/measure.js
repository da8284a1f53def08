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
const STREAM = 'bench';

/**
 * @typedef {object} Plan
 * @property {number} width
 * @property {number} height
 * @property {number} fps
 * @property {string} codec 'auto' leaves the choice to browser and server
 * @property {'canvas'|'track'|'clip'} camera 'clip': the browser's own, which plays numbered pictures
 * @property {'call'|'whep'} door
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
/** What sends; in a call it receives, too. @type {RTCPeerConnection|undefined} */
let connection;
/** What watches by WHEP. @type {RTCPeerConnection|undefined} */
let viewer;
/** Sessions to end, by their addresses. @type {string[]} */
const resources = [];
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
  const track = plan.camera === 'clip' ? await openClip(plan) : openCamera(plan);
  if (plan.contentHint) track.contentHint = plan.contentHint;
  /** @type {RTCConfiguration} */
  const rtc = { iceServers: [], bundlePolicy: 'max-bundle' };
  connection = new RTCPeerConnection(rtc);
  const transceiver = connection.addTransceiver(track, {
    direction: plan.door === 'call' ? 'sendrecv' : 'sendonly',
  });
  if (plan.codec !== 'auto') transceiver.setCodecPreferences(codecsCalled(plan.codec));
  video = shownVideo(plan);
  if (plan.door === 'call') {
    receiveInto(video, connection, transceiver, plan);
    answer = await offer(connection, plan);
  } else {
    await exchange(connection, `/whip/${STREAM}`, plan);
    await patchMode(plan.mode);
  }
  const parameters = transceiver.sender.getParameters();
  if (plan.maxKbps && parameters.encodings?.[0]) {
    parameters.encodings[0].maxBitrate = plan.maxKbps * 1_000;
    await transceiver.sender.setParameters(parameters);
  }
  if (plan.door === 'whep') {
    viewer = new RTCPeerConnection(rtc);
    const watching = viewer.addTransceiver('video', { direction: 'recvonly' });
    if (plan.codec !== 'auto') watching.setCodecPreferences(codecsCalled(plan.codec));
    receiveInto(video, viewer, watching, plan);
    await exchange(viewer, `/whep/${STREAM}`, plan);
  }
  if (plan.camera === 'clip') {
    const told = await watchClip(document.querySelector('#bench-camera'), video, plan.atMost);
    if (!told) throw new Error('this browser does not tell when its camera captured a picture');
  } else {
    watch(video, plan.atMost, (mark) => mark);
    await firstPicture();
  }
  return { session: answer?.session, codec: answer?.codec ?? (await received()), encoder: answer?.encoder };
}

/** @param {Plan} plan */
function shownVideo({ width, height }) {
  const made = Object.assign(document.createElement('video'), { muted: true, autoplay: true });
  made.style.cssText = `position:fixed;left:0;top:0;width:${width}px;height:${height}px`;
  document.documentElement.append(made);
  return made;
}

/**
 * @param {HTMLVideoElement} shown @param {RTCPeerConnection} peer
 * @param {RTCRtpTransceiver} transceiver @param {Plan} plan
 */
function receiveInto(shown, peer, transceiver, plan) {
  if (plan.jitterTargetMs >= 0) {
    const receiver = /** @type {any} */ (transceiver.receiver);
    if ('jitterBufferTarget' in receiver) receiver.jitterBufferTarget = plan.jitterTargetMs;
  }
  peer.createDataChannel('detections', { ordered: false, maxRetransmits: 0 });
  peer.addEventListener('track', (event) => {
    shown.srcObject = new MediaStream([event.track]);
  });
}

/** @param {RTCPeerConnection} peer @param {Plan} plan */
async function described(peer, plan) {
  await peer.setLocalDescription();
  await gathered(peer);
  const sdp = peer.localDescription?.sdp ?? '';
  return plan.playoutDelay ? sdp : sdp.replace(/^a=extmap:.*playout-delay\r?\n/gm, '');
}

/** @param {RTCPeerConnection} peer @param {Plan} plan */
async function offer(peer, plan) {
  const reply = await fetch('/offer', {
    method: 'POST',
    headers: { 'Content-Type': 'application/json' },
    body: JSON.stringify({
      sdp: await described(peer, plan),
      type: 'offer',
      options: { mode: plan.mode },
    }),
  });
  const told = await reply.json();
  if (!reply.ok) throw new Error(`the offer was refused with ${reply.status}: ${told.detail}`);
  resources.push(`/sessions/${told.session}`);
  await peer.setRemoteDescription({
    type: 'answer',
    sdp: withStartBitrate(told.sdp, plan.startKbps),
  });
  return told;
}

/** By WHIP or WHEP. A stream whose first picture is still to come is asked for again.
 * @param {RTCPeerConnection} peer @param {string} path @param {Plan} plan */
async function exchange(peer, path, plan) {
  const body = await described(peer, plan);
  const until = performance.now() + CONNECT_MS;
  for (;;) {
    const headers = { 'Content-Type': 'application/sdp' };
    const reply = await fetch(path, { method: 'POST', headers, body });
    const text = await reply.text();
    if (reply.status === 201) {
      resources.push(reply.headers.get('Location') ?? '');
      const sdp = withStartBitrate(text, plan.startKbps);
      await peer.setRemoteDescription({ type: 'answer', sdp });
      return;
    }
    const early = reply.status === 404 || reply.status === 409;
    if (!early || performance.now() > until) {
      throw new Error(`${path} was refused with ${reply.status}: ${text}`);
    }
    await new Promise((resolve) => setTimeout(resolve, 100));
  }
}

/** @param {string} mode of the stream that is published */
async function patchMode(mode) {
  const headers = { 'Content-Type': 'application/json' };
  const body = JSON.stringify({ options: { mode } });
  const reply = await fetch(`/api/streams/${STREAM}`, { method: 'PATCH', headers, body });
  if (!reply.ok) throw new Error(`the stream took no mode: ${await reply.text()}`);
}

/** The codec of what comes in. */
async function received() {
  const report = [...((await viewer?.getStats())?.values() ?? [])];
  const incoming = report.find(({ type, kind }) => type === 'inbound-rtp' && kind === 'video');
  return report.find(({ id }) => id === incoming?.codecId)?.mimeType.split('/')[1];
}

/** The browser's own camera, with a preview that tells when each picture was captured.
 * @param {Plan} plan */
async function openClip({ width, height, fps }) {
  const stream = await navigator.mediaDevices.getUserMedia({
    video: { width, height, frameRate: fps },
  });
  const preview = Object.assign(document.createElement('video'), { muted: true, autoplay: true });
  preview.id = 'bench-camera';
  preview.style.cssText = 'position:fixed;right:0;bottom:0;width:160px';
  preview.srcObject = stream;
  document.documentElement.append(preview);
  return stream.getVideoTracks()[0];
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
 * A row of the log: what a picture's mark says, and the instants that the browser tells of it. The
 * last is how long looking at it took.
 * @param {Mark} mark @param {number} calledAtMs @param {number} nowMs
 * @param {VideoFrameCallbackMetadata} metadata
 */
function instants(mark, calledAtMs, nowMs, metadata) {
  const { receiveTime, processingDuration } = metadata;
  return [
    mark.number,
    mark.timeUs,
    calledAtMs,
    nowMs,
    metadata.presentationTime,
    metadata.expectedDisplayTime,
    receiveTime ?? -1,
    processingDuration === undefined ? -1 : processingDuration * 1_000,
    performance.now() - calledAtMs,
  ];
}

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
    if (rows.length < atMost) rows.push(instants(mark, calledAtMs, nowMs, metadata));
  };
  shown.requestVideoFrameCallback(seen);
}

/** The product's own page in a call. @param {number} atMost rows @param {'canvas'|'clip'} camera */
async function watchPage(atMost, camera) {
  const remote = /** @type {HTMLVideoElement} */ (document.querySelector('#remote'));
  if (camera === 'clip') return watchClip(document.querySelector('#local'), remote, atMost);
  watch(remote, atMost, (mark) => mark);
  await firstPicture();
  return true;
}

/** The page's own button then opens our canvas instead of a camera. @param {Plan} plan */
function replaceCamera(plan) {
  const track = openCamera(plan);
  navigator.mediaDevices.getUserMedia = async () => new MediaStream([track.clone()]);
}

/**
 * A call whose camera plays a clip with numbered pictures, over and over: when each was captured
 * is seen in the local preview.
 * @param {HTMLVideoElement|null} local @param {HTMLVideoElement} remote @param {number} atMost rows
 */
async function watchClip(local, remote, atMost) {
  if (!local) throw new Error('no preview of the camera');
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
  /** @type {Record<string, any>} */
  const stats = {};
  for (const peer of [connection, viewer]) {
    for (const entry of (await peer?.getStats())?.values() ?? []) {
      if (entry.kind !== 'video') continue;
      if (entry.type === 'inbound-rtp' || entry.type === 'outbound-rtp') stats[entry.type] = entry;
    }
  }
  return { atMs, counts: { ...counts }, state: connection?.connectionState, stats };
}

/** Everything that was logged, and the end of the call. */
async function finish() {
  connection?.close();
  viewer?.close();
  for (const resource of resources) await fetch(resource, { method: 'DELETE' });
  return { rows, drawnAtMs };
}

Object.assign(globalThis, { sightlineBench: { addPictures, call, replaceCamera, watchPage, snapshot, finish } });
