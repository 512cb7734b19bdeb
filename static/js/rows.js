// The list of connections: a right click opens a row's menu.

// -- a right click, or the key for it, opens the row's menu; with Shift, the browser's ---------------
let byKey = false;
document.addEventListener("keydown", (event) => {
  byKey = event.key === "ContextMenu" || (event.key === "F10" && event.shiftKey);
}, { capture: true });

document.addEventListener("contextmenu", (event) => {
  const row = event.target.closest("#connections tbody > tr");
  const menu = row?.querySelector("[popover]");
  const plain = event.shiftKey && !byKey;
  if (!menu || document.querySelector("[data-lifted]") || plain || !getSelection().isCollapsed || event.target.closest("[popover], input")) return;
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
