// getStats() as one small typed snapshot per call, with rates against the call before.

/**
 * @typedef {object} LinkSnapshot
 * @property {number} encodeMs this browser's encoding, per frame
 * @property {number} sendDelayMs from encoder to network, per packet
 * @property {number} rttMs of the chosen network path
 * @property {number} upKbps
 * @property {number} downKbps
 * @property {number} sentWidth
 * @property {number} sentHeight
 * @property {number} sentFps
 * @property {number} shownWidth
 * @property {number} shownHeight
 * @property {number} framesDropped by this browser, since the call began
 * @property {number} packetsLost on the way back, since the call began
 * @property {number} freezes since the call began
 * @property {string} codec of the way back
 * @property {string} path e.g. "udp host"
 */

/** @typedef {Record<string, any>} Entry */

export class LinkStats {
  /** @type {Map<string, Entry>} */ #before = new Map();

  /**
   * @param {RTCStatsReport} report
   * @returns {LinkSnapshot}
   */
  read(report) {
    /** @type {Map<string, Entry>} */
    const entries = new Map();
    report.forEach((entry, id) => entries.set(id, entry));
    const all = [...entries.values()];
    const sent = all.find((entry) => entry['type'] === 'outbound-rtp' && isVideo(entry)) ?? {};
    const got = all.find((entry) => entry['type'] === 'inbound-rtp' && isVideo(entry)) ?? {};
    const remote = all.find((entry) => entry['type'] === 'remote-inbound-rtp') ?? {};
    const pair = chosenPair(entries, all);
    const local = entries.get(pair['localCandidateId']) ?? {};
    const codec = entries.get(got['codecId']) ?? {};
    const seconds = (entry = /** @type {Entry} */ ({})) =>
      this.#delta(entry, 'timestamp') / 1_000;
    const snapshot = {
      encodeMs: 1_000 * this.#ratio(sent, 'totalEncodeTime', 'framesEncoded'),
      sendDelayMs: 1_000 * this.#ratio(sent, 'totalPacketSendDelay', 'packetsSent'),
      // Chromium has it on the path, Firefox only from the receiver's reports.
      rttMs: 1_000 * (pair['currentRoundTripTime'] ?? remote['roundTripTime'] ?? NaN),
      upKbps: (this.#delta(sent, 'bytesSent') * 8) / 1_000 / seconds(sent),
      downKbps: (this.#delta(got, 'bytesReceived') * 8) / 1_000 / seconds(got),
      sentWidth: sent['frameWidth'] ?? 0,
      sentHeight: sent['frameHeight'] ?? 0,
      sentFps: sent['framesPerSecond'] ?? this.#delta(sent, 'framesEncoded') / seconds(sent),
      shownWidth: got['frameWidth'] ?? 0,
      shownHeight: got['frameHeight'] ?? 0,
      framesDropped: got['framesDropped'] ?? 0,
      packetsLost: Math.max(0, got['packetsLost'] ?? 0),
      freezes: got['freezeCount'] ?? 0,
      codec: String(codec['mimeType'] ?? '').replace(/^video\//i, ''),
      path: [local['protocol'], local['candidateType']].filter(Boolean).join(' '),
    };
    this.#before = entries;
    return snapshot;
  }

  /** @param {Entry} entry @param {string} key */
  #delta(entry, key) {
    return (entry[key] ?? NaN) - (this.#before.get(entry['id'])?.[key] ?? NaN);
  }

  /** @param {Entry} entry @param {string} total @param {string} count */
  #ratio(entry, total, count) {
    const counted = this.#delta(entry, count);
    return counted > 0 ? this.#delta(entry, total) / counted : NaN;
  }
}

/** @param {Entry} entry */
function isVideo(entry) {
  return entry['kind'] === 'video' || entry['mediaType'] === 'video';
}

/**
 * The standard names it on the transport; Firefox marks it on the pair itself.
 * @param {Map<string, Entry>} entries
 * @param {Entry[]} all
 * @returns {Entry}
 */
function chosenPair(entries, all) {
  const transport = all.find((entry) => entry['type'] === 'transport');
  const named = entries.get(transport?.['selectedCandidatePairId']);
  const pairs = all.filter((entry) => entry['type'] === 'candidate-pair');
  return named ?? pairs.find((pair) => pair['selected']) ?? pairs.find(nominated) ?? {};
}

/** @param {Entry} pair */
function nominated(pair) {
  return pair['nominated'] && pair['state'] === 'succeeded';
}
