// Geometry of the small charts: numbers in, SVG path data out. No DOM here.

/** @typedef {{p50: number, p95: number}} Point */

export const SPARK_WIDTH = 320;
export const SPARK_HEIGHT = 64;
const HEADROOM = 1.15;

/**
 * @param {Point[]} points oldest first; NaN where nothing was known
 * @param {number} capacity points that fill the width
 * @param {number} budget a level always kept in view
 * @returns {{line: string, band: string, budget: string}}
 */
export function sparkPaths(points, capacity, budget) {
  const known = points.flatMap(({ p95 }) => (Number.isFinite(p95) ? [p95] : []));
  const top = Math.max(budget, ...known) * HEADROOM;
  const step = SPARK_WIDTH / (capacity - 1);
  const left = SPARK_WIDTH - (points.length - 1) * step;
  const y = (/** @type {number} */ value) => round(SPARK_HEIGHT * (1 - value / top));
  let line = '';
  let band = '';
  for (const run of runsOf(points)) {
    const at = (/** @type {number} */ index) => round(left + index * step);
    const middle = run.map(({ index, p50 }) => `${at(index)} ${y(p50)}`);
    const upper = run.map(({ index, p95 }) => `${at(index)} ${y(p95)}`);
    line += `M${middle.join('L')}`;
    band += `M${upper.join('L')}L${middle.reverse().join('L')}Z`;
  }
  return { line, band, budget: `M0 ${y(budget)}H${SPARK_WIDTH}` };
}

/**
 * Neighbouring known points; a reconnect leaves a gap in the line instead of a slope.
 * @param {Point[]} points
 */
function runsOf(points) {
  /** @type {(Point & {index: number})[][]} */
  const runs = [];
  let open = false;
  points.forEach((point, index) => {
    const known = Number.isFinite(point.p50) && Number.isFinite(point.p95);
    if (known && !open) runs.push([]);
    if (known) runs.at(-1)?.push({ ...point, index });
    open = known;
  });
  return runs;
}

/** @param {number} value */
function round(value) {
  return Math.round(value * 10) / 10;
}
