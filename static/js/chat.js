// The composer: keys, images, and the promise that nothing typed is lost.

const root = document.querySelector("[data-session]");
const composer = document.getElementById("composer");
const draft = document.getElementById("draft");

if (composer) start();

function start() {
  draft.setSelectionRange(draft.value.length, draft.value.length);
  // Where the browser can't size a field by its content.
  if (!CSS.supports("field-sizing", "content")) {
    draft.addEventListener("input", grow);
    grow();
  }

  // -- the draft: what is sent leaves the field at once; what is refused comes back before what was
  // typed meanwhile ---------------------------------------------------------------------------------
  let flight = null;
  let choosing = false, hurried = null;
  const isOurs = (detail) => composer.contains(detail.elt) && detail.requestConfig?.verb === "post" && !detail.elt.matches("select");

  root.addEventListener("htmx:beforeSend", ({ detail }) => {
    if (!isOurs(detail)) return;
    flight = { from: detail.elt, text: draft.value, files: detail.elt === composer ? pick([]) : null, answered: false };
    write("");
    if (detail.elt === composer) root.dispatchEvent(new CustomEvent("chat:sent"));
  });
  root.addEventListener("htmx:afterRequest", ({ detail }) => {
    if (flight?.from !== detail.requestConfig.elt) return;
    const { text, files, answered } = flight;
    flight = null;
    // No answer, or one that says nothing of the text: it comes back as it was.
    if (!answered) giveBack(text);
    const taken = answered && detail.xhr.status === 200;
    if (files && !taken) pick([...files, ...shown]);
    // What was sent meanwhile goes next, unless this one came back.
    if (!files || choosing) return;
    if (taken) setTimeout(goOn); // the form is busy until htmx has done with this answer
    else hurried = null;
  });
  root.addEventListener("htmx:oobBeforeSwap", ({ detail, target }) => {
    if (target !== draft) return;
    detail.shouldSwap = false;
    if (flight) flight.answered = true;
    giveBack(detail.fragment.firstElementChild.value);
  });
  root.addEventListener("chat:returned", ({ detail }) => giveBack(detail));

  // What is typed outlives a reload, in this tab.
  const kept = `draft:${location.pathname}`;
  if (!draft.value) write(sessionStorage.getItem(kept) ?? "");
  draft.addEventListener("input", () => (draft.value ? sessionStorage.setItem(kept, draft.value) : sessionStorage.removeItem(kept)));

  // -- keys -------------------------------------------------------------------------------------------
  draft.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing || matchMedia("(pointer: coarse)").matches) return;
    event.preventDefault();
    send();
  });
  // Up from an empty field: the last of one's own messages, one that waits or one that was sent.
  draft.addEventListener("keydown", (event) => {
    if (event.key !== "ArrowUp" || draft.value || event.shiftKey || event.ctrlKey || event.metaKey || event.altKey || event.isComposing) return;
    const last = [...document.querySelectorAll("#waiting .waiting-edit")].at(-1) ?? [...document.querySelectorAll(".message-edit[data-own]")].at(-1);
    if (!last) return;
    event.preventDefault();
    if (last.matches("details")) last.open = true;
    else last.click();
  });
  document.addEventListener("keydown", (event) => {
    if (event.key !== "Escape" || event.defaultPrevented || event.isComposing) return;
    if (document.querySelector(":popover-open, dialog[open], .waiting-edit[open]") || event.target.closest("#chat-title")) return;
    const leave = draft.value === draft.defaultValue && document.getElementById("leave");
    (document.getElementById("stop") ?? leave)?.click();
  });
  // A message sent right after another model (or level, or length) was chosen goes to that one, as does a Retry, and one
  // sent right after another message goes behind that one: each waits for the answer.
  const isChoice = ({ requestConfig }) => requestConfig?.elt.matches("select[form]");
  root.addEventListener("htmx:beforeRequest", ({ detail }) => {
    if (isChoice(detail)) choosing = true;
  });
  root.addEventListener("htmx:afterRequest", ({ detail }) => {
    // One that was chosen meanwhile goes next.
    if (!isChoice(detail)) return;
    const { elt, formData } = detail.requestConfig;
    if (elt.value !== formData.get(elt.name)) return;
    choosing = false;
    goOn();
  });
  root.addEventListener("submit", (event) => {
    const isSend = event.target === composer && event.submitter?.name !== "queued";
    if (isSend ? choosing || flight?.from === composer : choosing && event.target.action.endsWith("/retry/")) {
      event.preventDefault();
      event.stopImmediatePropagation();
      hurried = isSend ? send : () => root.querySelector("form[action$='/retry/']")?.requestSubmit();
    } else if (isSend && !draft.value.trim() && !shown.length) {
      event.preventDefault();
      event.stopImmediatePropagation();
      draft.focus();
    }
  }, { capture: true });

  function goOn() {
    const next = hurried;
    hurried = null;
    next?.();
  }

  function send() {
    const button = document.getElementById("send");
    if (!button.disabled) composer.requestSubmit(button);
  }

  // -- files -------------------------------------------------------------------------------------------
  const input = document.getElementById("images");
  const textInput = document.getElementById("text-files");
  const files = document.getElementById("files");
  const words = document.getElementById("chat-words").dataset;
  let shown = [];

  const takesImages = () => !composer.querySelector("label[for=images][data-disabled]");
  const isImage = (file) => input.accept.split(",").includes(file.type);

  // Shows and sends exactly these; returns those before.
  function pick(list) {
    const before = shown;
    shown = list;
    const images = new DataTransfer();
    const texts = new DataTransfer();
    for (const file of list) (isImage(file) ? images : texts).items.add(file);
    input.files = images.files;
    textInput.files = texts.files;
    files.replaceChildren(...list.map(preview));
    return before;
  }

  function preview(file) {
    const item = document.createElement("li");
    if (isImage(file)) {
      const image = new Image();
      image.alt = file.name;
      const reader = new FileReader();
      reader.onload = () => (image.src = reader.result);
      reader.readAsDataURL(file);
      item.append(image);
    } else {
      const chip = Object.assign(document.createElement("span"), { className: "file-chip" });
      const name = Object.assign(document.createElement("span"), { className: "truncate", textContent: file.name });
      chip.append(document.getElementById("chat-file").content.cloneNode(true), name);
      file.slice(0, 600).text().then((text) => (chip.title = text));
      item.append(chip);
    }
    const remove = document.createElement("button");
    Object.assign(remove, { type: "button", className: "button", textContent: "×", ariaLabel: words.remove, title: words.remove });
    remove.addEventListener("click", () => pick(shown.filter((other) => other !== file)));
    item.append(remove);
    return item;
  }

  // Whether a file is text is seen by the server, which says so where it isn't.
  const add = (list) => pick([...shown, ...[...list].filter((file) => !isImage(file) || takesImages())]);
  input.addEventListener("change", () => add(input.files));
  textInput.addEventListener("change", () => add(textInput.files));
  composer.addEventListener("click", (event) => {
    if (event.target.closest("label[data-disabled]")) event.preventDefault();
  });
  draft.addEventListener("paste", (event) => {
    // Some programs copy a picture beside the text that is meant.
    const pasted = [...event.clipboardData.files];
    if (!pasted.length || event.clipboardData.types.includes("text/plain")) return;
    event.preventDefault();
    add(pasted);
  });
  root.addEventListener("dragover", (event) => {
    if (event.dataTransfer.types.includes("Files")) event.preventDefault();
  });
  root.addEventListener("drop", (event) => {
    if (!event.dataTransfer.files.length) return;
    event.preventDefault();
    add(event.dataTransfer.files);
  });
}

function grow() {
  draft.style.height = "auto";
  draft.style.height = `${draft.scrollHeight}px`;
}

function write(text) {
  draft.value = text;
  draft.dispatchEvent(new Event("input"));
}

function giveBack(text) {
  if (!text) return;
  write([text, draft.value].filter(Boolean).join("\n\n"));
  draft.focus({ preventScroll: true });
}
