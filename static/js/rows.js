// The list of connections: its rows are dragged, or moved by keys, into another order; a right click
// opens a row's menu; how many are selected is said. One request saves a move: before which other row,
// or after the last one, so that two admins' moves both count.

const form = () => document.getElementById("connections");
const rows = () => [...document.querySelectorAll("#connections tbody > tr[data-place]")];
const slugOf = (row) => row.id.replace("connection-", "");
const calm = matchMedia("(prefers-reduced-motion: reduce)");

// -- the order -------------------------------------------------------------------------------------
let lifted = null; // the row, the order before, the first row's place, and the pointer that holds it

function say(kind) {
  const place = lifted.first + rows().indexOf(lifted.row);
  const text = form().dataset[`say${kind}`].replace("{name}", lifted.row.dataset.name).replace("{place}", place);
  document.getElementById("order-said").textContent = text;
}

function lift(handle, pointer = null) {
  const row = handle.closest("tr");
  const order = rows();
  lifted = { row, handle, order, pointer, first: Number(order[0].dataset.place) };
  row.dataset.lifted = "";
  handle.setAttribute("aria-pressed", "true");
  if (pointer === null) say("Lifted");
}

// The others move around the row: it keeps the focus and the finger.
function place(row, index) {
  const order = rows();
  const at = order.indexOf(row);
  const passed = index > at ? order.slice(at + 1, index + 1) : order.slice(index, at);
  const tops = passed.map((one) => one.offsetTop);
  if (index > at) row.before(...passed);
  else row.after(...passed);
  if (calm.matches) return;
  passed.forEach((one, n) => one.animate({ translate: [`0 ${tops[n] - one.offsetTop}px`, "0 0"] }, { duration: 120, easing: "ease-out" }));
}

function letGo() {
  const { row, handle, order, first } = lifted;
  delete row.dataset.lifted;
  handle.setAttribute("aria-pressed", "false");
  lifted = null;
  return { row, handle, order, first };
}

function putBack() {
  place(lifted.row, lifted.order.indexOf(lifted.row));
  if (lifted.pointer === null) say("Back");
  letGo();
}

function putDown() {
  const { row, handle, order } = letGo();
  if (rows().every((one, n) => one === order[n])) return;
  const [next, last] = [row.nextElementSibling, row.previousElementSibling];
  form().setAttribute("aria-busy", "true");
  handle.addEventListener("htmx:afterRequest", ({ detail }) => {
    if (detail.successful) return;
    // What went wrong is said by a toast; the rows stand as they are stored.
    form().removeAttribute("aria-busy");
    place(row, order.indexOf(row));
  }, { once: true });
  htmx.ajax("POST", `${row.querySelector(".row-title").pathname}order/`, {
    source: handle,
    target: "#connections",
    swap: "outerHTML",
    values: next ? { before: slugOf(next) } : { after: slugOf(last) },
  }).catch(() => {}); // said by ui.js
}

// By pointer: held down on the handle.
document.addEventListener("pointerdown", (event) => {
  const handle = event.target.closest(".handle");
  if (!handle || event.button !== 0 || lifted || form().hasAttribute("aria-busy")) return;
  event.preventDefault(); // selects no text
  handle.focus({ preventScroll: true });
  lift(handle, event.pointerId);
  lifted.y = lifted.from = event.clientY;
  requestAnimationFrame(scroll);
});

function follow() {
  const table = lifted.row.closest("table").getBoundingClientRect().top;
  const others = rows().filter((row) => row !== lifted.row);
  const above = others.filter((row) => lifted.y > table + row.offsetTop + row.offsetHeight / 2);
  if (rows().indexOf(lifted.row) !== above.length) place(lifted.row, above.length);
}

document.addEventListener("pointermove", (event) => {
  if (lifted?.pointer !== event.pointerId) return;
  lifted.y = event.clientY;
  follow();
});

// At the window's edge the page scrolls along.
const EDGE = 64; // pixels
function scroll() {
  if (!lifted || lifted.pointer === null) return;
  const { y, from } = lifted;
  // Not for a row that was taken up there and is carried away from it.
  const by = y < from ? Math.min(0, y - EDGE) : y > from ? Math.max(0, y - innerHeight + EDGE) : 0;
  if (by) {
    scrollBy(0, by / 4);
    follow();
  }
  requestAnimationFrame(scroll);
}

document.addEventListener("pointerup", (event) => {
  if (lifted?.pointer === event.pointerId) putDown();
});
document.addEventListener("pointercancel", (event) => {
  if (lifted?.pointer === event.pointerId) putBack();
});

// By keys, and by what a screen reader presses: the handle lifts the row and puts it down.
document.addEventListener("click", (event) => {
  const handle = event.target.closest(".handle");
  if (!handle || event.detail !== 0) return;
  if (lifted?.handle === handle) putDown();
  else if (!lifted && !form().hasAttribute("aria-busy")) lift(handle);
});

document.addEventListener("keydown", (event) => {
  if (!lifted) return;
  if (event.key === "Escape") {
    event.preventDefault();
    return putBack();
  }
  if (lifted.pointer !== null) return;
  const last = rows().length - 1;
  const at = rows().indexOf(lifted.row);
  const to = { ArrowUp: at - 1, ArrowDown: at + 1, Home: 0, End: last }[event.key];
  if (to === undefined) return;
  event.preventDefault();
  place(lifted.row, Math.min(Math.max(to, 0), last));
  say("Moved");
  lifted.row.scrollIntoView({ block: "nearest" });
});
document.addEventListener("focusout", (event) => {
  if (lifted?.pointer === null && event.target === lifted.handle) putBack();
});

// A row that is being checked swaps itself: not while it is held, or another one passes it.
document.addEventListener("htmx:beforeSwap", (event) => {
  if (!lifted) return;
  if (event.detail.target.matches("#connections tr")) event.detail.shouldSwap = false;
  else if (event.detail.target === form()) putBack();
});

// -- a right click, or the key for it, opens the row's menu; with Shift, the browser's ---------------
let byKey = false;
document.addEventListener("keydown", (event) => {
  byKey = event.key === "ContextMenu" || (event.key === "F10" && event.shiftKey);
}, { capture: true });

document.addEventListener("contextmenu", (event) => {
  const row = event.target.closest("#connections tbody > tr");
  const menu = row?.querySelector("[popover]");
  const plain = event.shiftKey && !byKey;
  if (!menu || lifted || plain || !getSelection().isCollapsed || event.target.closest("[popover], input")) return;
  event.preventDefault();
  const at = byKey ? null : { x: event.clientX, y: event.clientY };
  byKey = false;
  const open = () => openAt(menu, at);
  // The release of the button, outside of what it opened, would close it.
  if (event.buttons) addEventListener("pointerup", () => setTimeout(open), { once: true });
  else open();
});

function openAt(menu, at) {
  if (!menu.isConnected || menu.matches(":popover-open")) return;
  if (at) menu.dataset.at = "pointer";
  menu.showPopover({ source: document.querySelector(`[popovertarget="${menu.id}"]`) });
  if (at) {
    const { offsetWidth: width, offsetHeight: height } = menu;
    // On the root: what htmx swaps may have no style of its own.
    const { style } = document.documentElement;
    style.setProperty("--at-x", `${Math.max(0, Math.min(at.x, innerWidth - width - 8))}px`);
    style.setProperty("--at-y", `${Math.max(0, at.y + height > innerHeight - 8 ? at.y - height : at.y)}px`);
  }
  menu.querySelector("a[href], button")?.focus({ preventScroll: true });
}
document.addEventListener("toggle", ({ target, newState }) => {
  if (newState === "closed") delete target.dataset.at;
}, { capture: true });

// -- how many are selected ---------------------------------------------------------------------------
function count() {
  const said = document.querySelector("[data-count-checked]");
  if (!said) return;
  const boxes = [...document.getElementsByName(said.dataset.countChecked)].filter((box) => box.type === "checkbox");
  const n = boxes.filter((box) => box.checked).length;
  said.textContent = n === 0 ? "" : n === 1 ? said.dataset.one : said.dataset.many.replace("{n}", n);
  const all = document.querySelector(`[data-check-all="${said.dataset.countChecked}"]`);
  if (!all) return;
  all.checked = n > 0 && n === boxes.length;
  all.indeterminate = n > 0 && n < boxes.length;
}
document.addEventListener("change", () => queueMicrotask(count));
document.addEventListener("htmx:afterSettle", count);
count();
