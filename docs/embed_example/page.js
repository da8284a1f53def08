// What a page of another site does: listen to the tile, and give the frame a token when it asks.

const frame = document.querySelector('iframe');
const log = document.querySelector('#log');

document.addEventListener('sightline-state', ({ detail }) => {
  const line = document.createElement('li');
  line.textContent = [detail.stream, detail.state, detail.why].filter(Boolean).join(', ');
  log.prepend(line);
});

addEventListener('message', async ({ source, origin, data }) => {
  if (source !== frame.contentWindow || data?.type !== 'sightline-token-wanted') return;
  const reply = await fetch(`/camera-token?stream=${encodeURIComponent(data.stream)}`);
  if (!reply.ok) return;
  const { token } = await reply.json();
  source.postMessage({ type: 'sightline-token', token }, origin);
});
