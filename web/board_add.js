// Adding a camera: a phone by its code, an RTSP address, a file on the server, or the demo.

import { absolute, pictureUrl, postStream } from './board_api.js';
import { address, words } from './board_panel.js';
import { element } from './classes.js';

const NAME = /^[A-Za-z0-9_-]{1,64}$/;
const KINDS = {
  phone: { label: '', hint: '' },
  rtsp: { label: 'Address', hint: 'rtsp://user:password@192.168.1.20/stream1' },
  file: { label: 'Path on the server', hint: '/videos/entrance.mp4' },
  demo: { label: '', hint: '' },
};
const DEBOUNCE_MS = 250;

export class AddDialog {
  #dialog = element('add', HTMLDialogElement);
  #form = element('add-form', HTMLFormElement);
  #name = element('add-name', HTMLInputElement);
  #address = element('add-address', HTMLInputElement);
  #said = element('add-said', HTMLElement);
  #submit = element('add-submit', HTMLButtonElement);
  #qr = element('add-qr', HTMLImageElement);
  #timer = 0;
  #added;
  /** @type {() => string[]} */ #taken;

  /**
   * @param {() => string[]} taken names there are
   * @param {() => void} added the streams are other ones now
   */
  constructor(taken, added) {
    this.#taken = taken;
    this.#added = added;
    this.#form.addEventListener('submit', (event) => {
      event.preventDefault();
      void this.#add();
    });
    element('add-kind', HTMLFieldSetElement).addEventListener('change', () => this.#show());
    element('add-cancel', HTMLButtonElement).addEventListener('click', () => this.#dialog.close());
    this.#name.addEventListener('input', () => {
      clearTimeout(this.#timer);
      this.#timer = setTimeout(() => this.#show(), DEBOUNCE_MS);
    });
  }

  open() {
    this.#name.value = this.#freeName();
    this.#address.value = '';
    this.#show();
    this.#dialog.showModal();
    this.#name.select();
  }

  #kind() {
    const checked = this.#form.querySelector('input[name=kind]:checked');
    const value = checked instanceof HTMLInputElement ? checked.value : 'phone';
    return /** @type {keyof typeof KINDS} */ (value);
  }

  #freeName() {
    const taken = new Set(this.#taken());
    for (let number = 1; ; number += 1) {
      if (!taken.has(`camera-${number}`)) return `camera-${number}`;
    }
  }

  #show() {
    const kind = this.#kind();
    const { label, hint } = KINDS[kind];
    this.#said.hidden = true;
    element('add-address-part', HTMLElement).hidden = !label;
    element('add-address-label', HTMLElement).textContent = label;
    this.#address.placeholder = hint;
    this.#address.required = Boolean(label);
    element('add-phone', HTMLElement).hidden = kind !== 'phone';
    this.#submit.hidden = kind === 'phone';
    if (kind === 'phone') this.#showPhone(this.#name.value.trim());
  }

  /** @param {string} name */
  #showPhone(name) {
    const fits = NAME.test(name);
    const page = absolute(`./?stream=${encodeURIComponent(name)}`);
    element('add-urls', HTMLElement).replaceChildren(
      ...(fits ? [address('Page', page), address('WHIP', absolute(`whip/${name}`))] : []),
    );
    const warning = element('add-warning', HTMLElement);
    warning.textContent = fits ? phoneTrouble() : 'A name has letters, digits, _ and -.';
    warning.hidden = !warning.textContent;
    if (fits) void this.#showCode(page, name);
  }

  /** @param {string} page @param {string} name */
  async #showCode(page, name) {
    try {
      const url = await pictureUrl(`api/qr?text=${encodeURIComponent(page)}`);
      const before = this.#qr.src;
      this.#qr.src = url;
      this.#qr.alt = `Code of the page that publishes as ${name}`;
      if (before.startsWith('blob:')) URL.revokeObjectURL(before);
    } catch (failure) {
      this.#say(words(failure));
    }
  }

  async #add() {
    const kind = this.#kind();
    const name = this.#name.value.trim();
    const given = this.#address.value.trim();
    if (kind === 'phone') return;
    const source = kind === 'demo' ? 'demo' : kind === 'file' && !given.startsWith('file:') ? `file:${given}` : given;
    this.#submit.disabled = true;
    try {
      await postStream(name, source);
      this.#dialog.close();
      this.#added();
    } catch (failure) {
      this.#say(words(failure));
    } finally {
      this.#submit.disabled = false;
    }
  }

  /** @param {string} text */
  #say(text) {
    this.#said.textContent = text;
    this.#said.hidden = false;
  }
}

/** What would keep a phone from sending, in one sentence. */
function phoneTrouble() {
  const { hostname, protocol } = location;
  if (/^(localhost|127\.|\[::1\])/.test(hostname)) {
    return 'This code leads to this computer only: open the dashboard by the address it has in your network.';
  }
  if (protocol !== 'https:') {
    return 'Phones give their camera only to https: start the server with --tls self-signed.';
  }
  return '';
}
