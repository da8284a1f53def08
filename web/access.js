// The key or token of this tab: asked for in a dialog, kept until the tab is closed, sent as
// Bearer and never in a URL.

const STORE = 'sightline.access';
/** What may stand in a header. */
const SECRET = /^[\x21-\x7e]{1,4096}$/;

/** Where storage is forbidden the key lasts as long as the page. */
let kept = read();

export function hasKey() {
  return kept !== '';
}

/** The header that says who we are; none before a key was given. @returns {Record<string, string>} */
export function bearer() {
  return kept ? { Authorization: `Bearer ${kept}` } : {};
}

/** The key was not taken: it is not tried again. */
export function forgetKey() {
  keep('');
}

/**
 * Ask the person for a key or token.
 * @param {string} why one sentence above the field
 * @returns {Promise<boolean>} whether there is one now
 */
export function askForKey(why) {
  const dialog = element('access', HTMLDialogElement);
  const field = element('access-key', HTMLInputElement);
  element('access-why', HTMLElement).textContent = why;
  field.value = '';
  if (!dialog.open) dialog.showModal();
  return new Promise((resolve) => {
    const ended = new AbortController();
    const { signal } = ended;
    const take = (/** @type {Event} */ event) => {
      event.preventDefault();
      const secret = field.value.trim();
      if (!SECRET.test(secret)) {
        element('access-why', HTMLElement).textContent = 'That is no key or token: it has blanks or is empty.';
        return;
      }
      keep(secret);
      dialog.close('given');
    };
    const done = () => {
      field.value = '';
      ended.abort();
      resolve(dialog.returnValue === 'given');
      dialog.returnValue = '';
    };
    element('access-form', HTMLFormElement).addEventListener('submit', take, { signal });
    element('access-cancel', HTMLButtonElement).addEventListener('click', () => dialog.close(''), { signal });
    dialog.addEventListener('close', done, { signal });
  });
}

/** @param {string} secret */
function keep(secret) {
  kept = secret;
  try {
    if (secret) sessionStorage.setItem(STORE, secret);
    else sessionStorage.removeItem(STORE);
  } catch {
    // Storage is off; the variable is enough for this page.
  }
}

function read() {
  try {
    return sessionStorage.getItem(STORE) ?? '';
  } catch {
    return '';
  }
}

/**
 * @template {HTMLElement} T
 * @param {string} id
 * @param {new () => T} kind
 * @returns {T}
 */
function element(id, kind) {
  const found = document.getElementById(id);
  if (!(found instanceof kind)) throw new Error(`#${id} is missing in index.html`);
  return found;
}
