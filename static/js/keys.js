// Keys of every page: the command palette, the sheet of shortcuts, and the single keys it lists.

const palette = document.getElementById("palette");
const sheet = document.getElementById("shortcuts");

const isMac = /Mac|iP(hone|ad)/.test(navigator.platform);
if (isMac) for (const key of document.querySelectorAll("kbd[data-mod]")) key.textContent = "⌘";

// -- opening: a form with data-opens="id of a dialog" leads to the same as a page without scripts ---
document.addEventListener("submit", (event) => {
  const dialog = document.getElementById(event.target.dataset.opens);
  if (!dialog) return;
  event.preventDefault();
  open(dialog, event.submitter);
});

function open(dialog, from = document.activeElement) {
  if (document.querySelector("dialog:modal")) return;
  // A menu's entry is hidden afterwards: the focus goes back to the nearest button still to be seen.
  const back = [from];
  for (let menu = from?.closest("[popover]"); menu; menu = menu.parentElement.closest("[popover]"))
    back.push(document.querySelector(`[popovertarget="${menu.id}"]`));
  dialog.addEventListener("close", () => back.find((one) => one?.checkVisibility())?.focus({ preventScroll: true }), { once: true });
  dialog.showModal();
  if (dialog === palette) ask();
}

// -- the palette: a combobox; the server finds, the keys choose ------------------------------------
const query = document.getElementById("palette-query");
let hurried = null; // Enter, pressed before the answer to what was typed is there

const options = () => [...palette.querySelectorAll("[role=option]")];
const chosen = () => document.getElementById(query.getAttribute("aria-activedescendant"));

function ask() {
  hurried = null;
  query.value = "";
  choose(null);
  htmx.trigger(query.form, "palette:opened");
}

function choose(option) {
  chosen()?.setAttribute("aria-selected", "false");
  query.setAttribute("aria-activedescendant", option?.id ?? "");
  query.setAttribute("aria-expanded", String(Boolean(option)));
  option?.setAttribute("aria-selected", "true");
  // The heading of the first option's group is to be seen as well.
  (option === options()[0] ? option?.parentElement : option)?.scrollIntoView({ block: "nearest" });
}

// As a click with the same keys held: Ctrl or ⌘ opens a link beside the page.
function go({ ctrlKey, metaKey, shiftKey }) {
  chosen()?.dispatchEvent(new MouseEvent("click", { bubbles: true, cancelable: true, ctrlKey, metaKey, shiftKey }));
}

if (palette) {
  const isAnswered = () => palette.querySelector("#palette-results").dataset.query === query.value.split(/\s+/).filter(Boolean).join(" ");

  query.form.addEventListener("submit", (event) => event.preventDefault());
  query.addEventListener("keydown", (event) => {
    const { key } = event;
    if (event.isComposing || !["ArrowDown", "ArrowUp", "Home", "End", "Enter"].includes(key)) return;
    if (event.shiftKey && key !== "Enter") return; // selects in the field
    event.preventDefault();
    if (key === "Enter") return isAnswered() ? go(event) : (hurried = event);
    const all = options();
    const at = all.indexOf(chosen());
    choose({ ArrowDown: all[at + 1] ?? all[0], ArrowUp: all.at(at < 0 ? -1 : at - 1), Home: all[0], End: all.at(-1) }[key]);
  });
  query.addEventListener("input", () => (hurried = null));
  palette.addEventListener("pointermove", (event) => {
    const option = event.target.closest("[role=option]");
    if (option && option !== chosen()) choose(option);
  });
  document.addEventListener("htmx:beforeSwap", ({ detail }) => {
    // Signed out meanwhile: what came is the page to sign in.
    if (detail.elt?.id !== "palette-results" && detail.target?.id !== "palette-results") return;
    if (detail.serverResponse.includes('id="palette-results"')) return;
    detail.shouldSwap = false;
    location.reload();
  });
  query.form.addEventListener("htmx:afterRequest", () => {
    if (!isAnswered()) return;
    choose(options()[0]);
    if (hurried) go(hurried);
    hurried = null;
  });
}

// -- single keys: off for those who speak their input; never while one types -----------------------
const KEPT = "single-keys";
const box = document.getElementById("single-keys");
const isOn = () => localStorage.getItem(KEPT) !== "off";
box.checked = isOn();
box.addEventListener("change", () => (box.checked ? localStorage.removeItem(KEPT) : localStorage.setItem(KEPT, "off")));

const PAUSE_MS = 1500; // between g and the letter after it
let began = -PAUSE_MS;

document.addEventListener("keydown", (event) => {
  const { key, target } = event;
  if (event.defaultPrevented || event.isComposing || event.repeat || event.altKey) return;
  if (key.toLowerCase() === "k" && !event.shiftKey && (isMac ? event.metaKey && !event.ctrlKey : event.ctrlKey && !event.metaKey)) {
    event.preventDefault();
    if (palette?.open) palette.close();
    else if (palette) open(palette);
    else document.getElementById("query").focus();
    return;
  }
  if (event.ctrlKey || event.metaKey || !isOn()) return;
  if (target.closest?.("textarea, select, [contenteditable], input:not([type=checkbox], [type=radio], [type=submit])")) return;
  if (document.querySelector("dialog[open], .menu-list:popover-open")) return;
  const after = event.timeStamp - began < PAUSE_MS;
  began = key === "g" && !after ? event.timeStamp : -PAUSE_MS;
  if (key === "?" && sheet) open(sheet);
  else if (key === "/") {
    const field = document.querySelector("main [role=search] [name=q], main [type=search]");
    if (field) field.select(), field.focus();
    else if (palette) open(palette);
  } else {
    const found = document.querySelector(`[data-keys="${after ? "g " : ""}${CSS.escape(key)}"]`);
    if (!found) return;
    found.click();
  }
  event.preventDefault();
});
