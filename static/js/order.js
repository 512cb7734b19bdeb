// Lists that are put in order by hand: the connections, and the messages that wait. An item, [data-key]
// within [data-order], is dragged by its handle, with a mouse or a finger, or moved by keys. One request,
// to where its handle says (data-move), saves a move: before which other item, or after the last one, so
// that two people's moves both count. What is said of it stands in components/order.html.

const words = document.getElementById("order-said");
const items = (list) => [...list.querySelectorAll("[data-key]")];
const isBusy = (handle) => handle.closest("[data-order]").hasAttribute("aria-busy");
const calm = matchMedia("(prefers-reduced-motion: reduce)");

let lifted = null; // the item, its list, the order before, and the pointer that holds it

function say(what) {
  const { item, list, order } = lifted;
  // A page of a longer list doesn't begin at one.
  const place = Number(order[0].dataset.place ?? 1) + items(list).indexOf(item);
  words.textContent = words.dataset[`say${what}`].replace("{name}", item.dataset.name).replace("{place}", place);
}

function lift(handle, pointer = null) {
  const item = handle.closest("[data-key]");
  const list = handle.closest("[data-order]");
  lifted = { item, list, handle, order: items(list), pointer };
  item.dataset.lifted = "";
  handle.setAttribute("aria-pressed", "true");
  if (pointer === null) say("Lifted");
}

// The others move around the item: it keeps the focus and the finger.
function place(list, item, index) {
  const order = items(list);
  const at = order.indexOf(item);
  const passed = index > at ? order.slice(at + 1, index + 1) : order.slice(index, at);
  const tops = passed.map((one) => one.offsetTop);
  if (index > at) item.before(...passed);
  else item.after(...passed);
  if (calm.matches) return;
  passed.forEach((one, n) => one.animate({ translate: [`0 ${tops[n] - one.offsetTop}px`, "0 0"] }, { duration: 120, easing: "ease-out" }));
}

function letGo() {
  const before = lifted;
  delete before.item.dataset.lifted;
  before.handle.setAttribute("aria-pressed", "false");
  lifted = null;
  return before;
}

function putBack() {
  place(lifted.list, lifted.item, lifted.order.indexOf(lifted.item));
  if (lifted.pointer === null) say("Back");
  letGo().list.dispatchEvent(new CustomEvent("order:back", { bubbles: true }));
}

function putDown() {
  const { item, list, handle, order } = lifted;
  const now = items(list);
  if (now.every((one, n) => one === order[n])) return putBack();
  letGo();
  const next = now[now.indexOf(item) + 1];
  list.setAttribute("aria-busy", "true");
  handle.addEventListener("htmx:afterRequest", ({ detail }) => {
    // What went wrong is said by a toast; the items stand as they are stored.
    if (!detail.successful) place(list, item, order.indexOf(item));
  }, { once: true });
  const values = next ? { before: next.dataset.key } : { after: now.at(-2).dataset.key };
  htmx.ajax("POST", handle.dataset.move, { source: handle, values })
    .catch(() => {}) // said by ui.js
    .finally(() => list.removeAttribute("aria-busy"));
}

// By pointer: held down on the handle. A finger leaves the focus, and with it the keyboard on the
// screen, where it is.
document.addEventListener("pointerdown", (event) => {
  const handle = event.target.closest(".handle");
  if (!handle || event.button !== 0 || lifted || isBusy(handle)) return;
  event.preventDefault(); // selects no text
  if (event.pointerType === "mouse") handle.focus({ preventScroll: true });
  lift(handle, event.pointerId);
  lifted.y = lifted.from = event.clientY;
  requestAnimationFrame(scroll);
});

function follow() {
  const { item, list, y } = lifted;
  const { offsetParent: box } = item;
  const top = box.getBoundingClientRect().top - box.scrollTop;
  const above = items(list).filter((one) => one !== item && y > top + one.offsetTop + one.offsetHeight / 2);
  if (items(list).indexOf(item) !== above.length) place(list, item, above.length);
}

document.addEventListener("pointermove", (event) => {
  if (lifted?.pointer !== event.pointerId) return;
  lifted.y = event.clientY;
  follow();
});

// At the edge of what scrolls, the list itself or the window, it scrolls along.
const EDGE = 64; // pixels
function scroll() {
  if (!lifted || lifted.pointer === null) return;
  const { list, y, from } = lifted;
  const isOwn = getComputedStyle(list).overflowY !== "visible";
  const { top, bottom } = isOwn ? list.getBoundingClientRect() : { top: 0, bottom: innerHeight };
  const edge = Math.min(EDGE, (bottom - top) / 4);
  // Not for an item that was taken up there and is carried away from it.
  const by = y < from ? Math.min(0, y - top - edge) : y > from ? Math.max(0, y - bottom + edge) : 0;
  if (by) {
    (isOwn ? list : window).scrollBy(0, by / 4);
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

// By keys, and by what a screen reader presses: the handle lifts the item and puts it down.
document.addEventListener("click", (event) => {
  const handle = event.target.closest(".handle");
  if (!handle || event.detail !== 0) return;
  if (lifted?.handle === handle) putDown();
  else if (!lifted && !isBusy(handle)) lift(handle);
});

document.addEventListener("keydown", (event) => {
  if (!lifted) return;
  if (event.key === "Escape") {
    event.preventDefault();
    return putBack();
  }
  if (lifted.pointer !== null) return;
  const { item, list } = lifted;
  const last = items(list).length - 1;
  const at = items(list).indexOf(item);
  const to = { ArrowUp: at - 1, ArrowDown: at + 1, Home: 0, End: last }[event.key];
  if (to === undefined) return;
  event.preventDefault();
  place(list, item, Math.min(Math.max(to, 0), last));
  say("Moved");
  item.scrollIntoView({ block: "nearest" });
});
document.addEventListener("focusout", (event) => {
  if (lifted?.pointer === null && event.target === lifted.handle) putBack();
});

// An item that is being checked swaps itself: not while one is held, or another one passes it.
document.addEventListener("htmx:beforeSwap", (event) => {
  if (!lifted) return;
  if (event.detail.target.matches("[data-order] [data-key]")) event.detail.shouldSwap = false;
  else if (event.detail.target === lifted.list) putBack();
});
