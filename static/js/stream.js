// A session's page while it is open: follows the event stream (the contract is in sessions/bus.py),
// lets replies grow, and asks for the last turns again when the server says that they changed.
//
// What the server stored is the truth. Events only make the page quick: text names its place, so what
// comes twice changes nothing and what is missing shows; then the page starts again from the database.

const root = document.querySelector("[data-session]");
const transcript = document.getElementById("transcript");
const log = document.getElementById("log");
const notice = document.getElementById("notice");
const words = document.getElementById("chat-words").dataset;

// -- what is new: the tab says so until one looks, the server keeps it for the list of sessions --------
let isNews = false;
let seen = Number(root.dataset.seen);

const isActive = () => ["pending", "running"].includes(root.dataset.turnState);

function showTitle() {
  const title = document.title.replace(`${words.news}: `, "");
  document.title = isNews ? `${words.news}: ${title}` : title;
}

// What has ended and stands before one's eyes.
function markSeen() {
  const number = Number(lastTurn()) - (isActive() ? 1 : 0);
  if (document.hidden || hasEnded || !follows || number <= seen) return;
  const before = seen;
  seen = number;
  const headers = { "X-CSRFToken": document.querySelector("[name=csrfmiddlewaretoken]").value };
  fetch(root.dataset.see, { method: "POST", headers, body: new URLSearchParams({ turn: number }), keepalive: true }).catch(() => (seen = before));
}

// -- growing text -----------------------------------------------------------------------------------

// An open block: the server's HTML covers its text up to `offset` (UTF-16 units), `text` follows.
const grown = new WeakMap();

function growth(block) {
  if (!grown.has(block)) grown.set(block, { offset: Number(block.dataset.offset) || 0, text: block.dataset.rest ?? "" });
  return grown.get(block);
}

const bodyOf = (message) => document.getElementById(`message-${message}`)?.querySelector(".reply");
const blockAt = (body, index) => body.querySelector(`:scope > [data-block="${index}"]`);
const isOpen = (block) => "open" in block.dataset;

function newBlock(body, index, kind) {
  const block = document.createElement("div");
  Object.assign(block.dataset, { block: index, kind, open: "", offset: 0 });
  if (kind === "thinking") block.append(document.getElementById("chat-thinking").content.cloneNode(true));
  return body.appendChild(dress(block));
}

function dress(block) {
  block.classList.toggle("prose", block.dataset.kind === "text");
  return block;
}

// A block begins when all before it are there and closed; else something was missed.
const mayBegin = (body, index) => body.children.length === index && !body.querySelector(":scope > [data-open]");

// What is said of a message that isn't here yet waits until it is.
const within = (handler) => (data) => {
  const body = bodyOf(data.m);
  if (!body) hold(handler, data);
  else if (!("complete" in body.closest("[data-message]").dataset)) handler(body, data);
};

function onText(body, { b, k, o, t }) {
  let block = blockAt(body, b);
  if (!block) {
    if (o > 0 || !mayBegin(body, b)) return startAgain();
    block = newBlock(body, b, k);
  }
  if (!isOpen(block)) return;
  const state = growth(block);
  const known = state.offset + state.text.length;
  if (o > known) return startAgain();
  if (o + t.length <= known) return;
  state.text += t.slice(known - o);
  showTail(block);
  say("");
}

function onBlock(body, { b, h, c, o }) {
  let block = blockAt(body, b);
  if (!block) {
    if (!mayBegin(body, b)) return startAgain();
    block = newBlock(body, b, "text");
  }
  if (c) {
    // A closed block changes no more, but a tool's call is drawn again with its result.
    if (!isOpen(block) && block.dataset.kind !== "tool") return;
    draw(block, h);
    grown.delete(block);
    for (const name of ["open", "offset", "rest"]) delete block.dataset[name];
  } else if (isOpen(block) && o >= growth(block).offset) {
    const state = growth(block);
    const rest = state.text.slice(o - state.offset);
    draw(block, h);
    grown.set(block, { offset: o, text: rest });
    block.dataset.offset = o;
    showTail(block);
  }
}

function draw(block, html) {
  const unfolded = block.querySelector(":scope > details")?.open;
  htmx.swap(block, html, { swapStyle: "innerHTML", swapDelay: 0, settleDelay: 0 });
  const details = block.querySelector(":scope > details");
  if (details) {
    block.dataset.kind = details.matches(".tool") ? "tool" : "thinking";
    details.open = Boolean(unfolded);
  }
  dress(block);
}

// Text that the server hasn't rendered yet goes on inside the last element that holds text, so that
// it stands where the rendered text will.
const HOLDS_BLOCKS = "p, ul, ol, li, blockquote, div, pre, code, table, thead, tbody, tr, th, td, h3, h4, h5, h6";

function showTail(block) {
  const { text } = growth(block);
  let tail = block.querySelector("[data-tail]");
  if (!tail) {
    let host = block.querySelector("[data-text]") ?? block;
    for (let inner = host; inner; inner = [...host.children].findLast((child) => child.matches(HOLDS_BLOCKS))) host = inner;
    // A rendered code block ends its last line, whether the line has ended or not.
    if (host.matches("pre > code") && host.lastChild) host.lastChild.data = host.lastChild.data.trimEnd();
    tail = document.createElement("span");
    tail.dataset.tail = "";
    tail.append("");
    host.append(tail);
  }
  const shown = tail.firstChild;
  shown.appendData(text.slice(shown.length));
}

// -- the turns --------------------------------------------------------------------------------------

let version = Number(root.dataset.version);
let newest = version; // the newest version that the server spoke of
let fetching = false;
let again = false;
let lost = false; // growing messages are to be taken from the server
let lostAt = 0;
let held = []; // events of messages that aren't on the page yet, with their handlers
let later = 0;
let took = false;

function hold(handler, data) {
  held.push([handler, data]);
  refetch();
}

function startAgain() {
  if (lost) return;
  lost = true;
  close();
  // Where the log lost events, its next checkpoint has them: one look a second is enough.
  const wait = Math.max(0, lostAt + 1000 - performance.now());
  lostAt = performance.now() + wait;
  later = setTimeout(refetch, wait);
}

const lastTurn = () => transcript.querySelector(":scope > [data-turn]:last-child")?.dataset.turn ?? "0";

async function refetch() {
  if (hasEnded) return;
  if (fetching) return void (again = true);
  fetching = true;
  again = took = false;
  clearTimeout(later);
  const batch = held;
  held = [];
  let status = 0;
  const note = ({ detail }) => detail.elt === root && (status = detail.xhr.status);
  root.addEventListener("htmx:afterRequest", note);
  try {
    await htmx.ajax("GET", root.dataset.turns, { source: root, target: root, swap: "none", values: { since: lastTurn() } });
  } catch {
    // said below
  }
  root.removeEventListener("htmx:afterRequest", note);
  fetching = false;
  // Another page than asked for is the sign-in page.
  if (status === 403 || status === 404 || (status === 200 && !took)) return end();
  if (status !== 200) {
    held = [...batch, ...held];
    later = setTimeout(refetch, 1000 + Math.random() * 2000);
    return;
  }
  if (lost) {
    lost = false;
    held = [];
    cursor = root.dataset.cursor;
    connect();
  } else {
    const arrived = held;
    held = [];
    for (const [handler, data] of batch) if (bodyOf(data.m)) within(handler)(data);
    for (const [handler, data] of arrived) within(handler)(data);
  }
  showTitle();
  markSeen();
  if (again || version < newest) refetch();
}

// Events that answers of ours raise are not the person's business: no toast.
for (const name of ["htmx:responseError", "htmx:sendError", "htmx:timeout"])
  root.addEventListener(name, (event) => event.detail.elt === root && event.stopPropagation());

document.addEventListener("htmx:configRequest", ({ detail }) => {
  if (root.contains(detail.elt) && detail.verb === "post") detail.parameters.since = lastTurn();
});

// A second choice, made before the answer to the first, waits in htmx behind it, and would be gone with
// its form: that stays as it is until the answer to the last choice comes.
const underWay = new Map(); // the senders of requests → what they sent

root.addEventListener("htmx:beforeRequest", ({ detail }) => underWay.set(detail.requestConfig.elt, detail.requestConfig.formData));
root.addEventListener("htmx:afterRequest", ({ detail }) => {
  const sender = detail.requestConfig.elt; // `detail.elt` is another one when the answer replaced it
  underWay.delete(sender);
  if (detail.failed && sender !== root && ![409, 422, 429].includes(detail.xhr.status)) refetch();
});

function hasMoreToSay(element) {
  for (const [sender, sent] of underWay) {
    const form = sender.form ?? sender;
    if (!element.contains(sender) || !form.matches("form:has([name=connection]), #model-form")) continue;
    if ([...new FormData(form)].some(([name, value]) => name !== "csrfmiddlewaretoken" && value !== sent.get(name))) return true;
  }
  return false;
}

// A turn that is new here gets its place before htmx looks for it.
root.addEventListener("htmx:beforeSwap", ({ detail, target }) => {
  // The reason of a refusal is part of the answer.
  if ([409, 429].includes(detail.xhr.status)) Object.assign(detail, { shouldSwap: true, isError: false });
  if (!detail.shouldSwap || target.id === "older") return;
  const answer = new DOMParser().parseFromString(detail.serverResponse, "text/html");
  for (const { id, dataset } of answer.querySelectorAll("[data-turn][hx-swap-oob]")) {
    if (document.getElementById(id)) continue;
    const place = document.createElement("section");
    place.id = id;
    place.dataset.turn = dataset.turn;
    transcript.append(place);
  }
});

root.addEventListener("htmx:oobBeforeSwap", ({ detail, target }) => {
  const fresh = detail.fragment.firstElementChild;
  if (target.matches("[data-turn]")) {
    detail.shouldSwap = false;
    blend(target, fresh);
  } else if (target.id === "waiting-box") {
    detail.shouldSwap = false;
    isWithheld = Boolean(target.querySelector("[data-lifted]"));
    if (!isWithheld) blendWaiting(target, fresh);
  } else if (target.id === "chat-state") {
    takeState(fresh.dataset);
  } else if (plain(target) === plain(fresh) || isBeingEdited(target) || hasMoreToSay(target)) {
    detail.shouldSwap = false;
  } else {
    keepFocus(target);
  }
});

// The messages that wait keep still while one of them is in the hand (order.js); the answer to its move
// tells how they stand, and one that is put back asks.
let isWithheld = false;
root.addEventListener("order:back", () => {
  if (isWithheld) refetch();
});

// The swap comes right after: what has the focus by its name gets it again.
function keepFocus({ id }) {
  const focused = document.activeElement;
  if (!focused.name || !focused.closest(`#${id}`)) return;
  const same = `#${id} [name="${focused.name}"]${focused.type === "radio" ? ":checked" : ""}`;
  queueMicrotask(() => document.querySelector(same)?.focus({ preventScroll: true }));
}

const isBeingEdited = (element) => element.contains(document.activeElement) && document.activeElement.matches("input:not([type=radio])");

// An element as the server sent it: without what differs in every answer or was added here.
function plain(element) {
  const copy = element.cloneNode(true);
  for (const token of copy.querySelectorAll("[name=csrfmiddlewaretoken], [name=client_key]")) token.removeAttribute("value");
  for (const changed of copy.querySelectorAll("[class=''], .htmx-request")) changed.removeAttribute("class");
  for (const unfolded of copy.querySelectorAll("details[open]")) unfolded.removeAttribute("open");
  for (const added of copy.querySelectorAll(".narrow")) added.remove();
  return copy.outerHTML;
}

function takeState(fresh) {
  took = true;
  for (const [name, value] of Object.entries(fresh))
    if (name.startsWith("chat")) root.dataset[name[4].toLowerCase() + name.slice(5)] = value;
  version = Number(root.dataset.version);
  newest = Math.max(newest, version);
  if (version < newest) refetch(); // an answer that others have overtaken
  const seam = document.getElementById("seam");
  const turn = document.getElementById(`turn-${root.dataset.seam}`);
  if (!turn || seam?.parentElement === turn) return;
  seam?.remove();
  turn.prepend(document.getElementById("chat-seam").content.cloneNode(true));
}

// A part's new state, put into the one that is shown: what hasn't changed isn't touched (a press on it
// would be lost), and a reply that grows here isn't set back to what the server had stored a moment ago.
function blend(shown, fresh) {
  const wanted = [...fresh.children];
  for (const child of [...shown.children]) if (!wanted.some(({ id }) => id === child.id)) child.remove();
  wanted.forEach((item, index) => {
    const old = document.getElementById(item.id);
    if (!old || !shown.parentElement.contains(old)) return place(item, shown, index);
    putAt(old, shown, index);
    if (old.dataset.role === "assistant") blendReply(old, item);
    else if (old.id === "waiting") blend(old, item);
    else if (plain(old) === plain(item)) return;
    else if (editorKept(old, item)) blendAround(old, item);
    else {
      place(item, shown, index);
      old.remove();
    }
  });
  for (const { name, value } of fresh.attributes) shown.setAttribute(name, value);
}

// What is moved stands outside the page for a moment: not so what one works in, the others give way.
function putAt(item, parent, index) {
  if (item.parentElement === parent && item.matches(":focus-within, :has(> [open])")) {
    while (parent.children[index] !== item) parent.append(parent.children[index]);
  } else if (parent.children[index] !== item) parent.insertBefore(item, parent.children[index] ?? null);
}

function place(item, parent, index) {
  parent.insertBefore(item, parent.children[index] ?? null);
  htmx.process(item);
}

function blendReply(old, fresh) {
  if ("complete" in old.dataset) return;
  const body = old.querySelector(".reply");
  if (!("complete" in fresh.dataset) && !lost && !(isResting && fresh.textContent.length > old.textContent.length)) return;
  const blocks = [...fresh.querySelector(".reply").children];
  blocks.forEach((block, index) => {
    const known = blockAt(body, index);
    const isKept = known && !lost && !isOpen(known) && (known.dataset.kind !== "tool" || known.innerHTML === block.innerHTML);
    if (isKept) return;
    if (!known) return void body.append(block);
    block.querySelector(":scope > details")?.toggleAttribute("open", Boolean(known.querySelector(":scope > details")?.open));
    known.replaceWith(block);
  });
  for (const extra of [...body.children].slice(blocks.length)) extra.remove();
  old.toggleAttribute("data-complete", "complete" in fresh.dataset);
}

// A message that is being edited keeps its form, unless another page has changed its text; when it is
// on its way already, its text goes back to the composer.
const editorOf = (item) => item.querySelector(":scope > .waiting-edit");

function editorKept(old, fresh) {
  const editor = editorOf(old);
  const next = editorOf(fresh);
  return editor?.open && next && next.querySelector("textarea").defaultValue === editor.querySelector("textarea").defaultValue;
}

function blendAround(old, fresh) {
  const editor = editorOf(old);
  editorOf(fresh).remove();
  for (const child of [...old.children]) if (child !== editor) child.remove();
  const around = [...fresh.children];
  editor.before(...around);
  around.forEach((child) => htmx.process(child));
  for (const { name, value } of fresh.attributes) old.setAttribute(name, value);
}

function blendWaiting(shown, fresh) {
  for (const editor of shown.querySelectorAll(".waiting-edit[open]")) {
    const text = editor.querySelector("textarea");
    if (fresh.querySelector(`#${editor.closest("li").id}`) || text.value === text.defaultValue) continue;
    root.dispatchEvent(new CustomEvent("chat:returned", { detail: text.value }));
  }
  blend(shown, fresh);
}

// -- the stream -------------------------------------------------------------------------------------

let cursor = root.dataset.cursor;
let source = null;
let failures = 0;
let retry = 0;
let hasEnded = false;

const handlers = {
  text: within(onText),
  block: within(onBlock),
  changed: ({ v }) => see(v),
  "turn-end": ({ v, state }) => {
    say("");
    document.getElementById("announce").textContent = words[state] ?? "";
    if (document.hidden && state === "done") isNews = true;
    see(v);
  },
  notice: ({ t }) => say(t),
  refresh: startAgain,
  closed: end,
};

function see(seen) {
  newest = Math.max(newest, seen);
  if (newest > version) refetch();
}

function say(text) {
  if (notice.textContent !== text) notice.textContent = text;
}

function connect() {
  clearTimeout(retry);
  if (source || hasEnded || document.hidden) return;
  source = new EventSource(`${root.dataset.stream}?${new URLSearchParams({ after: cursor, v: version })}`);
  source.onopen = () => {
    failures = 0;
    say("");
  };
  source.onerror = () => {
    close();
    failures += 1;
    if (failures > 2) {
      say(words.reconnecting);
      tellRefusal();
      refetch();
    }
    retry = setTimeout(connect, Math.min(5000, 300 * 2 ** (failures - 1)) * (0.5 + Math.random() / 2));
  };
  for (const [name, handler] of Object.entries(handlers))
    source.addEventListener(name, ({ data, lastEventId }) => {
      cursor = lastEventId || cursor;
      handler(JSON.parse(data));
    });
  tellOthers();
}

// An EventSource doesn't tell why it was refused: that a person has too many streams is asked for.
async function tellRefusal() {
  const asked = new AbortController();
  try {
    const answer = await fetch(`${root.dataset.stream}?v=${version}`, { signal: asked.signal });
    if (answer.status === 429) say(await answer.text());
  } catch {
    // it is tried again anyway
  }
  asked.abort();
}

function close() {
  clearTimeout(retry);
  source?.close();
  source = null;
}

function end() {
  hasEnded = true;
  close();
  clearInterval(isResting);
  notice.replaceChildren(document.getElementById("chat-closed").content.cloneNode(true));
  for (const button of document.querySelectorAll("#composer button")) button.disabled = true;
}

// Browsers allow six connections to a host over HTTP/1.1, all pages together, and one page that
// waits for a seventh waits for ever. So the four pages that were looked at last hold a stream; one
// that is still in sight without asks for the turns every few seconds.
const MOST = 4;
const REST = 3000;
const others = new Map(); // the other pages that hold a stream: id → when it was looked at last
const me = crypto.getRandomValues(new Uint32Array(2)).join("-");
const channel = new BroadcastChannel("patchbay-streams");
let looked = performance.timeOrigin + performance.now();
let isResting = 0; // the timer that asks instead

function tellOthers() {
  channel.postMessage({ id: me, looked: source || isResting ? looked : 0, holds: Boolean(source) });
}

channel.onmessage = ({ data }) => {
  const isNew = !others.has(data.id) && data.holds;
  if (data.holds) others.set(data.id, data.looked);
  else others.delete(data.id);
  if (isNew && source) tellOthers();
  const newer = [...others.values()].filter((at) => at > looked).length;
  if (source && newer >= MOST) rest();
  else if (isResting && newer < MOST) wake();
};

function rest() {
  close();
  clearInterval(isResting);
  isResting = setInterval(() => document.hidden || refetch(), REST);
  tellOthers();
}

function wake() {
  if (!isResting) return connect();
  clearInterval(isResting);
  isResting = 0;
  startAgain();
}

function look() {
  looked = performance.timeOrigin + performance.now();
  if (source) tellOthers();
  else wake();
}

addEventListener("focus", look);

const HIDDEN = 60_000;
let hiding = 0;

// A reply that runs is followed to its end, which the title tells.
function hide() {
  if (isActive()) return void (hiding = setTimeout(hide, HIDDEN));
  close();
  tellOthers();
}

document.addEventListener("visibilitychange", () => {
  clearTimeout(hiding);
  if (document.hidden) return void (hiding = setTimeout(hide, HIDDEN));
  look();
  isNews = false;
  showTitle();
  markSeen();
});
addEventListener("pagehide", () => {
  close();
  tellOthers();
});
addEventListener("pageshow", ({ persisted }) => persisted && look());

// -- the place where one reads ----------------------------------------------------------------------

const jump = document.getElementById("jump");
let follows = true; // not before the first turn: what can be chosen is read from its beginning

const toEnd = () => (log.scrollTop = log.scrollHeight);
const hasTurns = () => transcript.querySelector(":scope > [data-turn]") !== null;
const isAtEnd = () => log.scrollHeight - log.scrollTop - log.clientHeight < 48;
let lastTop = log.scrollTop;
log.addEventListener("scroll", () => {
  // What comes in never moves one up: only who scrolls up leaves the end, even where more has come
  // since the last step to it.
  if (hasTurns() && (isAtEnd() || log.scrollTop < lastTop)) follows = isAtEnd();
  lastTop = log.scrollTop;
  jump.hidden = follows || !hasTurns();
  markSeen();
});
const keepPlace = new ResizeObserver(() => {
  if (follows) toEnd();
  else jump.hidden = isAtEnd() || !hasTurns();
});
keepPlace.observe(log.firstElementChild);
keepPlace.observe(log);
jump.addEventListener("click", () => {
  toEnd();
  document.getElementById("draft")?.focus({ preventScroll: true });
});
root.addEventListener("chat:sent", () => {
  follows = true;
  toEnd();
});

// Older turns come above: what one reads stays where it is.
let below = null;
root.addEventListener("htmx:beforeSwap", ({ target }) => {
  if (target.id === "older") below = log.scrollHeight - log.scrollTop;
});
root.addEventListener("htmx:afterSwap", () => {
  if (below !== null) log.scrollTop = log.scrollHeight - below;
  below = null;
});

// A new session is read from its beginning, others from their end or from where the address says.
const named = document.getElementById(location.hash.slice(1));
if (named?.matches("[data-turn]")) (follows = false), named.scrollIntoView();
else if (hasTurns()) toEnd();
else follows = false;
const news = document.getElementById("news");
if (news && news.offsetTop < log.scrollTop) news.scrollIntoView(); // its end is further than one can see
requestAnimationFrame(markSeen);
connect();
