"use strict";

// What gRPC's codes are called (google/rpc/code.proto).
const codes = ["OK", "CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND", "ALREADY_EXISTS",
  "PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION", "ABORTED", "OUT_OF_RANGE", "UNIMPLEMENTED",
  "INTERNAL", "UNAVAILABLE", "DATA_LOSS", "UNAUTHENTICATED"];

const $ = (id) => document.getElementById(id);

function say(id, text, failed = false) {
  $(id).textContent = text;
  $(id).classList.toggle("failed", failed);
}

function add(id, line) {
  $(id).textContent += line + "\n";
  $(id).scrollTop = $(id).scrollHeight;
}

// protocolOf tells which HTTP version the browser used for the last request to a path.
function protocolOf(url) {
  const entries = performance.getEntriesByType("resource").filter((e) => e.name === new URL(url, location).href);
  return entries.at(-1)?.nextHopProtocol ?? "";
}

// REST: fetch, with the status and error of whatever comes back.
const rest = $("rest");
function choose() {
  const [verb, path, ...body] = rest.preset.value.split(" ");
  rest.request.value = verb + " " + path;
  rest.body.value = body.join(" ");
}
rest.preset.addEventListener("change", choose);
choose();

rest.addEventListener("submit", async (event) => {
  event.preventDefault();
  const [verb, path] = rest.request.value.trim().split(/\s+/);
  const abort = new AbortController();
  rest.cancel.disabled = false;
  rest.cancel.onclick = () => abort.abort();
  say("rest-status", "…");
  $("rest-answer").textContent = "";
  const start = performance.now();
  try {
    const init = { method: verb, signal: abort.signal };
    if (rest.body.value) {
      init.body = rest.body.value;
      init.headers = { "Content-Type": "application/json" };
    }
    const response = await fetch(path, init);
    const text = await response.text();
    const ms = Math.round(performance.now() - start);
    let shown = text;
    let status = "";
    if (response.headers.get("Content-Type")?.startsWith("application/json")) {
      const json = JSON.parse(text);
      shown = JSON.stringify(json, null, 2);
      if (!response.ok) status = `${codes[json.code] ?? json.code}: ${json.message}`;
    }
    say("rest-status", `${response.status} ${status} ${protocolOf(path)} ${ms} ms`, !response.ok);
    $("rest-answer").textContent = shown;
  } catch (error) {
    say("rest-status", abort.signal.aborted ? "cancelled; the bank has stopped working on it" : String(error), true);
  }
  rest.cancel.disabled = true;
});

// Server stream: one event for each message, then an event named "end", or "error" for a status other than OK.
const stream = $("stream");
let source;
function stop(text, failed) {
  source?.close();
  source = undefined;
  stream.stop.disabled = true;
  say("stream-status", text, failed);
}
stream.stop.addEventListener("click", () => stop("stopped"));
stream.addEventListener("submit", (event) => {
  event.preventDefault();
  stop("connecting");
  $("stream-answer").textContent = "";
  stream.stop.disabled = false;
  let received = 0;
  source = new EventSource(`/v1/${stream.account.value}/transactions:watch?interval=${encodeURIComponent(stream.interval.value)}`);
  source.onopen = () => say("stream-status", "open");
  source.onmessage = (message) => {
    const t = JSON.parse(message.data);
    received++;
    say("stream-status", `open, ${received} messages`);
    add("stream-answer", `${t.time}  ${t.amount.units ?? 0}.${String(t.amount.nanos ?? 0).padStart(9, "0").slice(0, 2)} ${t.amount.currency}  ${t.reference}`);
  };
  source.addEventListener("end", () => stop("ended")); // left alone, EventSource would connect again
  source.onerror = (event) => {
    // Without data it is the connection, or an answer that is no stream; EventSource does not say which.
    if (event.data === undefined) return stop("the stream could not be opened, or broke off", true);
    const status = JSON.parse(event.data);
    stop(`${codes[status.code] ?? status.code}: ${status.message}`, true);
  };
});

// Bidi stream: a WebSocket on the method's path; a text frame is one message, an empty one half-closes.
const chat = $("chat");
let socket;
function connect() {
  const ws = new WebSocket(location.origin.replace(/^http/, "ws") + "/v1/support/chat");
  chat.end.disabled = false;
  ws.onopen = () => say("chat-status", "open");
  ws.onmessage = (message) => {
    const m = JSON.parse(message.data);
    add("chat-answer", `${m.author}: ${m.text}`);
  };
  ws.onclose = (event) => {
    socket = undefined;
    chat.end.disabled = true;
    const code = event.code >= 4000 ? codes[event.code - 4000] : event.code === 1000 ? "OK" : `closed (${event.code})`;
    say("chat-status", `${code} ${event.reason}`, code !== "OK");
  };
  return new Promise((resolve, reject) => {
    ws.addEventListener("open", () => resolve(ws));
    ws.addEventListener("close", () => reject(new Error("the socket could not be opened")));
  });
}
chat.end.addEventListener("click", async () => (await socket)?.send(""));
chat.addEventListener("submit", async (event) => {
  event.preventDefault();
  const text = chat.text.value;
  chat.text.value = "";
  try {
    socket ??= connect();
    (await socket).send(JSON.stringify({ room: "lobby", author: "you", text }));
    add("chat-answer", `you: ${text}`);
  } catch (error) {
    say("chat-status", String(error), true);
  }
});

say("protocol", `This page came over ${performance.getEntriesByType("navigation")[0]?.nextHopProtocol || "?"}.`);
