// The class filter: a button that opens a searchable list of the detector's class names.
// No choice (null) means all of them, also those of a model loaded later.

const MOST_SHOWN = 300;
const HUES = 16;

/** The style class with the colour a class's boxes have in the picture. @param {number} classId */
export function hueOf(classId) {
  return `hue-${classId % HUES}`;
}

export class ClassFilter {
  #button = element('classes-open', HTMLButtonElement);
  #panel = element('classes-panel', HTMLElement);
  #search = element('classes-search', HTMLInputElement);
  #list = element('classes-list', HTMLElement);
  #label = element('classes-label', HTMLElement);
  /** @type {string[]} */ #names = [];
  /** @type {string[]|null} */ #chosen = null;
  /** @type {(chosen: string[]|null) => void} */ #changed;

  /** @param {(chosen: string[]|null) => void} changed called on the person's changes only */
  constructor(changed) {
    this.#changed = changed;
    this.#name();
    this.#button.addEventListener('click', () => this.#toggle());
    this.#search.addEventListener('input', () => this.#fill());
    this.#list.addEventListener('change', (event) => this.#tick(event.target));
    element('classes-all', HTMLButtonElement).addEventListener('click', () => this.#choose(null));
    element('classes-none', HTMLButtonElement).addEventListener('click', () => this.#choose([]));
    document.addEventListener('keydown', (event) => {
      if (event.key !== 'Escape' || this.#panel.hidden) return;
      event.preventDefault(); // it closes this, and nothing around it
      this.#toggle();
    });
    document.addEventListener('pointerdown', (event) => {
      const inside = event.target instanceof Element && event.target.closest('.classes');
      if (!inside && !this.#panel.hidden) this.#toggle();
    });
  }

  /** @param {string[]} names */
  setNames(names) {
    if (names.length === this.#names.length && names.every((n, i) => n === this.#names[i])) return;
    this.#names = names;
    this.#show();
  }

  /** @param {string[]|null} chosen */
  setChosen(chosen) {
    // A list that is filled anew loses the focus of whoever is in it.
    if (JSON.stringify(chosen) === JSON.stringify(this.#chosen)) return;
    this.#chosen = chosen;
    this.#show();
  }

  #toggle() {
    const opens = this.#panel.hidden;
    this.#panel.hidden = !opens;
    this.#button.setAttribute('aria-expanded', String(opens));
    if (opens) {
      this.#search.value = '';
      this.#fill();
      this.#search.focus();
    } else if (this.#panel.contains(document.activeElement)) this.#button.focus();
  }

  /** @param {string[]|null} chosen */
  #choose(chosen) {
    this.#chosen = chosen;
    this.#show();
    this.#changed(chosen);
  }

  /** @param {EventTarget|null} box */
  #tick(box) {
    if (!(box instanceof HTMLInputElement)) return;
    const chosen = new Set(this.#chosen ?? this.#names);
    if (box.checked) chosen.add(box.value);
    else chosen.delete(box.value);
    const all = this.#names.every((name) => chosen.has(name));
    this.#chosen = all ? null : this.#names.filter((name) => chosen.has(name));
    this.#name();
    this.#changed(this.#chosen);
  }

  #show() {
    this.#name();
    if (!this.#panel.hidden) this.#fill();
  }

  #name() {
    const chosen = this.#chosen;
    this.#button.disabled = this.#names.length === 0;
    if (chosen === null) this.#label.textContent = 'All classes';
    else if (chosen.length === 0) this.#label.textContent = 'No classes';
    else if (chosen.length <= 2) this.#label.textContent = chosen.join(', ');
    else this.#label.textContent = `${chosen.length} classes`;
  }

  #fill() {
    const wanted = this.#search.value.trim().toLowerCase();
    const fitting = this.#names.filter((name) => name.toLowerCase().includes(wanted));
    const rows = fitting.slice(0, MOST_SHOWN).map((name) => this.#row(name));
    const rest = fitting.length - rows.length;
    if (rest > 0) rows.push(note(`and ${rest} more: search to find them`));
    if (fitting.length === 0) rows.push(note('No class has that name'));
    this.#list.replaceChildren(...rows);
  }

  /** @param {string} name */
  #row(name) {
    const row = document.createElement('li');
    const label = document.createElement('label');
    const box = document.createElement('input');
    box.type = 'checkbox';
    box.value = name;
    box.checked = this.#chosen === null || this.#chosen.includes(name);
    const hue = document.createElement('i');
    hue.className = hueOf(this.#names.indexOf(name));
    label.append(box, name, hue);
    row.append(label);
    return row;
  }
}

/** @param {string} text */
function note(text) {
  const row = document.createElement('li');
  row.className = 'note';
  row.textContent = text;
  return row;
}

/**
 * The page's element of that id; a missing one is a mistake in index.html.
 * @template {Element} T
 * @param {string} id
 * @param {new () => T} kind
 * @returns {T}
 */
export function element(id, kind) {
  const found = document.getElementById(id);
  if (!(found instanceof kind)) throw new Error(`index.html has no ${kind.name} #${id}`);
  return found;
}
