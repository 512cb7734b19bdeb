// What the platform doesn't do by itself. Every listener stands on the document, so that
// swapped-in fragments need no set-up.

// -- copy: a button with data-copy="text" or data-copy-from="id"; else the code it stands in --------
document.addEventListener("click", async (event) => {
  const button = event.target.closest("button:is([data-copy], [data-copy-from])");
  if (!button) return;
  const { copy, copyFrom } = button.dataset;
  const source = copyFrom ? document.getElementById(copyFrom) : button.closest(".code")?.querySelector("code");
  await writeClipboard(copy || (source?.textContent ?? ""));
  button.dataset.copied = "";
  setTimeout(() => delete button.dataset.copied, 2000);
});

async function writeClipboard(text) {
  if (navigator.clipboard) return navigator.clipboard.writeText(text);
  // Plain http on another host than this one: browsers offer only the old way there.
  const area = Object.assign(document.createElement("textarea"), { value: text });
  document.body.append(area);
  area.select();
  document.execCommand("copy");
  area.remove();
}

// Code blocks come through the sanitiser, which lets no button pass: each gets its own here, while
// a reply streams as well.
const copyButton = document.getElementById("copy-button");

function dressCode(block) {
  if (block.querySelector(":scope > .copy")) return;
  block.append(copyButton.content.cloneNode(true));
  const pre = block.querySelector("pre");
  if (pre && pre.scrollWidth > pre.clientWidth) pre.tabIndex = 0;
}

const chat = document.querySelector(".chat, .patterns");
if (chat) {
  chat.querySelectorAll(".code").forEach(dressCode);
  new MutationObserver((records) => {
    for (const { addedNodes } of records)
      for (const node of addedNodes)
        if (node.nodeType === Node.ELEMENT_NODE) {
          if (node.matches(".code")) dressCode(node);
          else node.querySelectorAll(".code").forEach(dressCode);
        }
  }).observe(chat, { childList: true, subtree: true });
}

// -- dialogs: command="show-modal" commandfor="id", for browsers that don't know them ------------
if (!("command" in HTMLButtonElement.prototype)) {
  document.addEventListener("click", (event) => {
    const button = event.target.closest("button[commandfor]");
    const dialog = button && document.getElementById(button.getAttribute("commandfor"));
    if (!dialog) return;
    if (button.getAttribute("command") === "show-modal") dialog.showModal();
    else dialog.close();
  });
}

// -- menus: the arrow keys go through an open one, a letter goes to the next entry that begins so ----
document.addEventListener("keydown", (event) => {
  const { key, target } = event;
  const letter = [...key].length === 1 && key !== " " && key.toLocaleLowerCase();
  if ((!letter && !["ArrowDown", "ArrowUp", "Home", "End"].includes(key)) || event.altKey || event.ctrlKey || event.metaKey) return;
  const opens = target.closest?.("[popovertarget]")?.getAttribute("popovertarget");
  const menu = target.closest?.(".menu-list:popover-open") ?? (opens && document.getElementById(opens));
  if (!menu?.matches(".menu-list:popover-open") || target.matches("input, select, textarea")) return;
  event.preventDefault();
  const entries = [...menu.querySelectorAll("a[href], button:not(:disabled)")].filter((one) => one.checkVisibility());
  const at = entries.indexOf(target);
  if (letter) return entries.slice(at + 1).concat(entries).find((entry) => entry.textContent.trim().toLocaleLowerCase().startsWith(letter))?.focus();
  ({ ArrowDown: entries[at + 1] ?? entries[0], ArrowUp: entries.at(at < 0 ? -1 : at - 1), Home: entries[0], End: entries.at(-1) })[key]?.focus();
});

// A long one shows where one is.
document.addEventListener("toggle", ({ target, newState }) => {
  if (newState === "open" && target.matches(".menu-list")) target.querySelector("[aria-current=true]")?.scrollIntoView({ block: "nearest" });
}, { capture: true });

// -- long lists: a select with many options, and a part of a page with data-narrow, get a field that
// leaves what holds all its words. What is left out is sent as it stands.
const MANY = 20;
const whole = new WeakMap(); // select → all its options

const fold = (text) => text.normalize("NFKD").replace(/\p{M}/gu, "").toLocaleLowerCase();
const itemsOf = (list) => (list.matches("select") ? whole.get(list) : [...list.querySelectorAll("tbody > tr, .field")]);

function narrow(field, list) {
  const words = fold(field.value).split(/\s+/);
  const holds = (item) => words.every((word) => fold(item.textContent).includes(word));
  if (!list.matches("select")) return itemsOf(list).forEach((item) => (item.hidden = !holds(item)));
  const { value } = list;
  const found = itemsOf(list).filter((option) => option.value && holds(option));
  list.replaceChildren(...itemsOf(list).filter((option) => !option.value || found.includes(option)));
  list.value = value;
  // The one that is left is the one that is meant.
  if (list.selectedIndex < 0 || (!list.value && found.length === 1)) (found[0] ?? list.options[0] ?? {}).selected = true;
}

function offerNarrow(part) {
  const lists = [...part.querySelectorAll("main select:not([form], [multiple]), [data-narrow]")];
  for (const list of lists) {
    if (list.matches("select")) {
      if (whole.has(list) || list.options.length <= MANY || list.closest(".filters")) continue;
      whole.set(list, [...list.options]);
    } else if (list.previousElementSibling?.matches(".narrow") || itemsOf(list).length <= MANY) continue;
    const field = document.getElementById("narrow").content.firstElementChild.cloneNode(true);
    field.addEventListener("input", () => (narrow(field, list), count()));
    field.addEventListener("keydown", (event) => event.key === "Enter" && event.preventDefault()); // sends nothing
    list.before(field);
  }
}
offerNarrow(document);
document.addEventListener("htmx:load", ({ detail }) => offerNarrow(detail.elt));

// What asks for itself every few seconds rests while nobody looks.
document.addEventListener("htmx:beforeRequest", (event) => {
  if (document.hidden && event.target.matches("[data-while-visible]")) event.preventDefault();
});

// A dialog that a request brings into [data-dialogs] opens at once.
document.addEventListener("htmx:afterSwap", (event) => {
  if (!event.target.matches("[data-dialogs]")) return;
  const dialog = event.target.querySelector("dialog");
  // The entry of a menu that asked for it is hidden by then: the menu's button has the focus after.
  const menu = event.detail.requestConfig?.elt.closest("[popover]")?.id;
  dialog?.addEventListener("close", () => document.querySelector(`[popovertarget="${menu}"]`)?.focus());
  dialog?.showModal();
});

// -- toasts: go after eight seconds, not while pointed at or focused; errors stay -----------------
const TOAST_MS = 8000;

function startToast(toast) {
  if (toast.dataset.tone === "danger" || toast.dataset.timed !== undefined) return;
  toast.dataset.timed = "";
  let timer;
  const start = () => (timer = setTimeout(() => toast.remove(), TOAST_MS));
  const stop = () => clearTimeout(timer);
  toast.addEventListener("pointerenter", stop);
  toast.addEventListener("pointerleave", start);
  toast.addEventListener("focusin", stop);
  toast.addEventListener("focusout", start);
  start();
}

const toasts = document.getElementById("toasts");
for (const toast of toasts.children) startToast(toast);
new MutationObserver((records) => {
  for (const { addedNodes } of records)
    for (const node of addedNodes) if (node.nodeType === Node.ELEMENT_NODE) startToast(node);
}).observe(toasts, { childList: true });

// htmx swaps no error answer but 422, so that a fault would pass in silence: say it, once at a time.
function complain(id) {
  if (toasts.querySelector(`[data-from="${id}"]`)) return;
  const toast = document.getElementById(id).content.firstElementChild.cloneNode(true);
  toast.dataset.from = id;
  toasts.append(toast);
}
document.addEventListener("htmx:responseError", () => complain("toast-refused"));
document.addEventListener("htmx:sendError", () => complain("toast-unreachable"));
document.addEventListener("htmx:timeout", () => complain("toast-unreachable"));

document.addEventListener("click", (event) => {
  event.target.closest("[data-dismiss]")?.closest(".toast")?.remove();
});

// -- answers: htmx looks for an answer's places in the tree of the element that asked ----------------
// One that something else has replaced meanwhile stands in no page, and its answer would be lost (the
// queued texts that Stop gives back among it). So it comes back, out of sight, while the answer is read.
document.addEventListener("htmx:beforeSend", ({ detail: { elt } }) => {
  const home = elt.closest("[data-session]") ?? document.body;
  elt.addEventListener("htmx:beforeOnLoad", () => {
    if (elt.isConnected) return;
    const place = document.createElement("div");
    place.hidden = true;
    place.append(elt);
    home.append(place);
    elt.addEventListener("htmx:afterOnLoad", () => place.remove(), { once: true });
  }, { once: true });
});

// -- focus: what a swap takes away, its successor gets --------------------------------------------
// htmx does so for elements with an id. Others are known again by what they do, within the nearest
// part of the page that is still there; a menu's entry gives way to the menu's button, an editor's to
// the pencil that opened it.
const named = ["name", "value", "href", "formaction", "aria-label", "popovertarget"];
let left = null;

function successor({ selector, within }) {
  for (const id of within) {
    const found = selector && document.getElementById(id)?.querySelector(selector);
    if (found) return found;
  }
  const [first] = within.map((id) => document.getElementById(id)).filter(Boolean);
  return document.getElementById("draft") ?? first?.querySelector("a[href], button:not(:disabled), input:not([type=hidden])") ?? document.getElementById("main");
}

document.addEventListener("htmx:beforeSwap", ({ detail }) => {
  const { activeElement: active } = document;
  const element = active === document.body ? detail.requestConfig?.elt : active;
  left = null;
  // What asks by itself (a row that is checked, a list that loads) had no focus to lose.
  if (!element?.matches("a, button, form, input, select, summary, textarea, [tabindex]")) return;
  const menu = element.closest("[popover]");
  const marks = named.filter((name) => element.hasAttribute(name)).map((name) => `[${name}="${CSS.escape(element.getAttribute(name))}"]`);
  const within = [];
  for (let part = (menu ?? element).parentElement; part; part = part.parentElement) if (part.id) within.push(part.id);
  const editor = element.closest(".waiting-edit") && ".waiting-edit > summary";
  left = { element, within, selector: menu ? `[popovertarget="${menu.id}"]` : editor || marks.join("") };
});
document.addEventListener("htmx:afterRequest", () => {
  const { activeElement: active } = document;
  if (left && !left.element.isConnected && (active === document.body || !active)) successor(left).focus({ preventScroll: true });
  left = null;
});

// -- an editor within <details>: begins in its field, Escape and [data-close-details] end it ---------
document.addEventListener("toggle", ({ target }) => {
  if (target.open && target.matches(".waiting-edit")) target.querySelector("textarea").focus();
}, { capture: true });

function closeDetails(details) {
  details.querySelector("form").reset();
  details.open = false;
  details.querySelector("summary").focus();
}

document.addEventListener("click", (event) => {
  if (event.target.closest("[data-close-details]")) closeDetails(event.target.closest("details"));
});
document.addEventListener("keydown", (event) => {
  const details = event.key === "Escape" && !event.isComposing && event.target.closest(".waiting-edit[open]");
  if (!details) return;
  event.preventDefault();
  closeDetails(details);
});

// -- forms: one press, one request ----------------------------------------------------------------
// htmx's own forms are left to htmx (hx-disabled-elt, hx-sync); after a download the page stays.
document.addEventListener("submit", (event) => {
  const form = event.target;
  if (event.defaultPrevented || form.method !== "post" || form.matches("[hx-post], [hx-put], [hx-patch], [hx-delete], [data-download]")) return;
  if (form.dataset.sending !== undefined) return event.preventDefault();
  form.dataset.sending = "";
  event.submitter?.setAttribute("aria-busy", "true");
});
// Back from the next page, out of the browser's page cache: the form can be sent again.
addEventListener("pageshow", (event) => {
  if (!event.persisted) return;
  for (const form of document.querySelectorAll("form[data-sending]")) {
    delete form.dataset.sending;
    // Pressed after a look back, it is meant as another one.
    const key = form.querySelector("[name=client_key]");
    if (key) key.value = [...crypto.getRandomValues(new Uint32Array(4))].join("-");
    form.querySelector("[aria-busy]")?.removeAttribute("aria-busy");
  }
});

// A form that is fetched anew for another choice: what was typed while it was on its way stays.
let asked = null;

const entries = (form) => [...form.elements].filter((field) => field.name && field.matches("textarea, select, input:not([type=hidden], [type=checkbox], [type=radio])"));
document.addEventListener("htmx:beforeRequest", ({ detail: { elt, requestConfig } }) => {
  const form = requestConfig.parameters._refresh && elt.closest("form");
  if (form) asked = new Map(entries(form).map((field) => [field.id, field.value]));
});
document.addEventListener("htmx:beforeSwap", ({ detail, target }) => {
  if (!asked || !detail.requestConfig?.parameters._refresh) return;
  const typed = entries(target).filter(({ id, value }) => asked.has(id) && asked.get(id) !== value).map(({ id, value }) => [id, value]);
  asked = null;
  addEventListener("htmx:afterSwap", () => {
    for (const [id, value] of typed) {
      const field = document.getElementById(id);
      if (field) field.value = value;
    }
  }, { once: true });
});

// A field that may not be empty has what it had again.
document.addEventListener("change", ({ target }) => {
  if (target.matches("[data-never-empty]") && !target.value.trim()) target.value = target.defaultValue;
}, { capture: true });

// -- select all: data-check-all="name of the checkboxes" -------------------------------------------
document.addEventListener("change", (event) => {
  const all = event.target.closest("[data-check-all]");
  if (!all) return;
  for (const box of document.getElementsByName(all.dataset.checkAll)) if (!box.closest("[hidden]")) box.checked = all.checked;
});

// How many are, in [data-count-checked="name of the checkboxes"].
function count() {
  const said = document.querySelector("[data-count-checked]");
  if (!said) return;
  const boxes = [...document.getElementsByName(said.dataset.countChecked)].filter((box) => box.type === "checkbox");
  const n = boxes.filter((box) => box.checked).length;
  said.textContent = n === 0 ? "" : n === 1 ? said.dataset.one : said.dataset.many.replace("{n}", n);
  const all = document.querySelector(`[data-check-all="${said.dataset.countChecked}"]`);
  if (!all) return;
  const shown = boxes.filter((box) => !box.closest("[hidden]"));
  all.checked = shown.length > 0 && shown.every((box) => box.checked);
  all.indeterminate = !all.checked && shown.some((box) => box.checked);
}
document.addEventListener("change", () => queueMicrotask(count));
document.addEventListener("htmx:afterSettle", count);
count();

// -- theme: data-theme-choice="system|light|dark" ---------------------------------------------------
function showTheme() {
  const now = document.documentElement.dataset.theme ?? "system";
  for (const button of document.querySelectorAll("[data-theme-choice]"))
    button.setAttribute("aria-pressed", String(button.dataset.themeChoice === now));
}

document.addEventListener("click", (event) => {
  const choice = event.target.closest("[data-theme-choice]")?.dataset.themeChoice;
  if (!choice) return;
  if (choice === "system") {
    localStorage.removeItem("theme");
    delete document.documentElement.dataset.theme;
  } else {
    localStorage.setItem("theme", choice);
    document.documentElement.dataset.theme = choice;
  }
  showTheme();
});
showTheme();
