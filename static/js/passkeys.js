// The browser's part of passkeys: a form with data-passkey="get" (prove who is there) or "create" (add
// one). What the server asks stands in data-options, or is fetched from data-begin; the answer goes
// into the form's field "credential", and the form goes its way like any other.

const forms = document.querySelectorAll("form[data-passkey]");
const isOffered = Boolean(window.PublicKeyCredential && navigator.credentials);

// -- base64url on the way, bytes in the browser -----------------------------------------------------
const toBytes = (text) => Uint8Array.from(atob(text.replaceAll("-", "+").replaceAll("_", "/")), (sign) => sign.charCodeAt(0));
const toText = (bytes) => btoa(String.fromCharCode(...new Uint8Array(bytes))).replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "");
const known = (list = []) => list.map((one) => ({ ...one, id: toBytes(one.id) }));

function read({ publicKey }) {
  const { challenge, user, excludeCredentials, allowCredentials } = publicKey;
  return {
    ...publicKey,
    challenge: toBytes(challenge),
    ...(user ? { user: { ...user, id: toBytes(user.id) }, excludeCredentials: known(excludeCredentials) } : { allowCredentials: known(allowCredentials) }),
  };
}

function write({ rawId, response }) {
  const names = ["clientDataJSON", "attestationObject", "authenticatorData", "signature", "userHandle"];
  const values = names.filter((name) => response[name]).map((name) => [name, toText(response[name])]);
  const id = toText(rawId);
  return JSON.stringify({ id, rawId: id, type: "public-key", response: Object.fromEntries(values) });
}

// -- asking -----------------------------------------------------------------------------------------
class Refusal extends Error {} // its message is the name of a note

async function options(form, signal) {
  if (form.dataset.options) return JSON.parse(form.dataset.options);
  const body = new URLSearchParams({ csrfmiddlewaretoken: form.elements.csrfmiddlewaretoken.value });
  const answer = await fetch(form.dataset.begin, { method: "POST", body, signal }).catch((error) => {
    throw signal.aborted ? error : new Refusal("unreachable");
  });
  if (!answer.ok) throw new Refusal(answer.status === 429 ? "busy" : "failed");
  return answer.json();
}

let current = null; // the one question that a browser takes at a time

async function ask(form, more = {}) {
  current?.abort();
  const { signal } = (current = new AbortController());
  const publicKey = read(await options(form, signal));
  form.elements.credential.value = write(await navigator.credentials[form.dataset.passkey]({ publicKey, signal, ...more }));
  form.dataset.asked = "";
  form.requestSubmit();
}

// What the browser offers in the field of the address, until a button is pressed. The challenge is
// asked for anew when the page is looked at again: another tab has taken it meanwhile.
async function offer(form) {
  if (!(await PublicKeyCredential.isConditionalMediationAvailable?.())) return;
  await ask(form, { mediation: "conditional" }).catch(() => {}); // nobody asked aloud
}

const NOTES = { InvalidStateError: "known", NotAllowedError: "cancelled", AbortError: "cancelled" };

function note(form, which) {
  for (const one of form.querySelectorAll("[data-when]")) one.hidden = one.dataset.when !== which;
}

const quiet = [...forms].find((form) => form.dataset.begin);
const offerAgain = () => isOffered && quiet && !document.hidden && offer(quiet);

// Before the listener of ui.js, which takes a form for sent.
document.addEventListener("submit", async (event) => {
  const form = event.target;
  if (!form.matches("[data-passkey]")) return;
  if (form.dataset.asked !== undefined) return delete form.dataset.asked;
  event.preventDefault();
  event.stopImmediatePropagation();
  const button = form.querySelector("[type=submit]");
  if (button.getAttribute("aria-busy")) return;
  button.setAttribute("aria-busy", "true");
  note(form, null);
  try {
    await ask(form);
  } catch (error) {
    button.removeAttribute("aria-busy");
    note(form, error instanceof Refusal ? error.message : (NOTES[error.name] ?? "failed"));
    offerAgain();
  }
}, { capture: true });

for (const form of forms) {
  form.querySelector("[type=submit]").hidden = !isOffered;
  if (!isOffered) note(form, "unsupported");
}
document.addEventListener("visibilitychange", () => {
  if (!document.querySelector("form[data-passkey] [aria-busy]")) offerAgain();
});
offerAgain();
