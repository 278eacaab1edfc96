// The client of clients/web, in one file; make web checks that it is up to date.
import { Client } from "./transom-web.js";

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

// Bidi stream: both ways over the one WebSocket that the client keeps. What is said waits in a queue for its turn.
const client = new Client(location.origin, { transports: ["websocket", "fetch"] });
const chat = $("chat");
let queue; // of the open chat
function openQueue() {
  const lines = [];
  let wake = () => {};
  let ended = false;
  return {
    say: (text) => { lines.push(text); wake(); },
    end: () => { ended = true; wake(); },
    async *[Symbol.asyncIterator]() {
      for (;;) {
        while (lines.length > 0) yield { room: "lobby", author: "you", text: lines.shift() };
        if (ended) return;
        await new Promise((resolve) => (wake = resolve));
      }
    },
  };
}
async function talk(lines) {
  chat.end.disabled = false;
  try {
    for await (const m of client.bidi("/bank.v1.Support/Chat", lines, { onHeader: () => say("chat-status", "open") })) {
      add("chat-answer", `${m.author}: ${m.text}`);
    }
    say("chat-status", "OK");
  } catch (error) {
    say("chat-status", `${codes[error.code]}: ${error.message}`, true);
  }
  lines.end();
  if (queue === lines) queue = undefined;
  chat.end.disabled = !queue;
}
chat.end.addEventListener("click", () => queue?.end());
chat.addEventListener("submit", (event) => {
  event.preventDefault();
  const text = chat.text.value;
  chat.text.value = "";
  if (!queue) {
    queue = openQueue();
    void talk(queue);
  }
  queue.say(text);
  add("chat-answer", `you: ${text}`);
});

say("protocol", `This page came over ${performance.getEntriesByType("navigation")[0]?.nextHopProtocol || "?"}.`);
