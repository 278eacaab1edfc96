// dist/status.js
var Code;
(function(Code2) {
  Code2[Code2["OK"] = 0] = "OK";
  Code2[Code2["Canceled"] = 1] = "Canceled";
  Code2[Code2["Unknown"] = 2] = "Unknown";
  Code2[Code2["InvalidArgument"] = 3] = "InvalidArgument";
  Code2[Code2["DeadlineExceeded"] = 4] = "DeadlineExceeded";
  Code2[Code2["NotFound"] = 5] = "NotFound";
  Code2[Code2["AlreadyExists"] = 6] = "AlreadyExists";
  Code2[Code2["PermissionDenied"] = 7] = "PermissionDenied";
  Code2[Code2["ResourceExhausted"] = 8] = "ResourceExhausted";
  Code2[Code2["FailedPrecondition"] = 9] = "FailedPrecondition";
  Code2[Code2["Aborted"] = 10] = "Aborted";
  Code2[Code2["OutOfRange"] = 11] = "OutOfRange";
  Code2[Code2["Unimplemented"] = 12] = "Unimplemented";
  Code2[Code2["Internal"] = 13] = "Internal";
  Code2[Code2["Unavailable"] = 14] = "Unavailable";
  Code2[Code2["DataLoss"] = 15] = "DataLoss";
  Code2[Code2["Unauthenticated"] = 16] = "Unauthenticated";
})(Code || (Code = {}));
var TransomError = class extends Error {
  code;
  details;
  trailers;
  name = "TransomError";
  constructor(code, message, details = [], trailers = {}, options) {
    super(message, options);
    this.code = code;
    this.details = details;
    this.trailers = trailers;
  }
};
var ConnectionError = class extends TransomError {
  unsent;
  constructor(message, unsent, options) {
    super(Code.Unavailable, message, [], {}, options);
    this.unsent = unsent;
  }
};

// dist/transport.js
var WINDOW = 16;
var Gate = class {
  #waiting = [];
  #error;
  #broken = false;
  wait() {
    if (this.#broken)
      return Promise.reject(this.#error);
    return new Promise((resolve, reject) => this.#waiting.push({ resolve, reject }));
  }
  wake() {
    for (const w of this.#waiting.splice(0))
      w.resolve();
  }
  break(error) {
    this.#broken = true;
    this.#error = error;
    for (const w of this.#waiting.splice(0))
      w.reject(error);
  }
  get broken() {
    return this.#broken;
  }
};
function openFrame(id, o) {
  const open = { method: o.method };
  if (Object.keys(o.metadata).length > 0)
    open.metadata = o.metadata;
  if (o.timeoutMs !== void 0)
    open.timeout = `${(Math.max(1, Math.round(o.timeoutMs)) / 1e3).toFixed(3)}s`;
  return { id, open };
}

// dist/fetch.js
var codes = {
  canceled: Code.Canceled,
  unknown: Code.Unknown,
  invalid_argument: Code.InvalidArgument,
  deadline_exceeded: Code.DeadlineExceeded,
  not_found: Code.NotFound,
  already_exists: Code.AlreadyExists,
  permission_denied: Code.PermissionDenied,
  resource_exhausted: Code.ResourceExhausted,
  failed_precondition: Code.FailedPrecondition,
  aborted: Code.Aborted,
  out_of_range: Code.OutOfRange,
  unimplemented: Code.Unimplemented,
  internal: Code.Internal,
  unavailable: Code.Unavailable,
  data_loss: Code.DataLoss,
  unauthenticated: Code.Unauthenticated
};
function errorOf(e, trailers, fallback) {
  const details = (e.details ?? []).map((d) => ({ "@type": `type.googleapis.com/${d.type}`, value: d.value }));
  return new TransomError(codes[e.code ?? ""] ?? fallback, e.message ?? "", details, trailers);
}
function metadataOf(h) {
  const header = {};
  const trailers = {};
  h.forEach((value, name) => {
    if (name.startsWith("trailer-"))
      trailers[name.slice(8)] = value.split(", ");
    else
      header[name] = value.split(", ");
  });
  return { header, trailers };
}
function codeOfHTTP(status) {
  switch (status) {
    case 400:
      return Code.Internal;
    case 401:
      return Code.Unauthenticated;
    case 403:
      return Code.PermissionDenied;
    case 404:
      return Code.Unimplemented;
    case 429:
    case 502:
    case 503:
    case 504:
      return Code.Unavailable;
    default:
      return Code.Unknown;
  }
}
var FetchTransport = class {
  base;
  fetch;
  constructor(base, fetch) {
    this.base = base;
    this.fetch = fetch;
  }
  open(o, receiver) {
    if (o.clientStreams) {
      throw new TransomError(Code.Unimplemented, "client streams need WebSocket or WebTransport, and neither could be opened");
    }
    const abort = new AbortController();
    const taken = new Gate();
    let over = false;
    const end = (error, trailers) => {
      if (over)
        return;
      over = true;
      taken.break(new TransomError(Code.Canceled, "the call has ended"));
      receiver.end(error, trailers);
    };
    return {
      send: async (m) => {
        void this.#run(o, m, { ...receiver, end, header: (h) => receiver.header(h), message: (v) => receiver.message(v) }, abort.signal, taken);
      },
      end: () => {
      },
      cancel: () => {
        end(new TransomError(Code.Canceled, "the call was cancelled"), {});
        abort.abort();
      },
      consumed: () => taken.wake()
    };
  }
  async #run(o, m, r, signal, taken) {
    const headers = new Headers({ "Connect-Protocol-Version": "1", "Content-Type": o.serverStreams ? "application/connect+json" : "application/json" });
    for (const [k, vs] of Object.entries(o.metadata))
      for (const v of vs)
        headers.append(k, v);
    if (o.timeoutMs !== void 0)
      headers.set("Connect-Timeout-Ms", String(Math.max(1, Math.round(o.timeoutMs))));
    const json = new TextEncoder().encode(JSON.stringify(m ?? {}));
    let body = json;
    if (o.serverStreams) {
      body = new Uint8Array(5 + json.length);
      new DataView(body.buffer).setUint32(1, json.length);
      body.set(json, 5);
    }
    try {
      const resp = await this.fetch(this.base + o.method, { method: "POST", headers, body, signal });
      const { header, trailers } = metadataOf(resp.headers);
      if (!resp.ok) {
        const text = await resp.text();
        let e = {};
        try {
          e = JSON.parse(text);
        } catch {
          e.message = `HTTP status ${resp.status}`;
        }
        return r.end(errorOf(e, trailers, codeOfHTTP(resp.status)), trailers);
      }
      r.header(header);
      if (!o.serverStreams) {
        r.message(await resp.json());
        return r.end(void 0, trailers);
      }
      await this.#stream(resp, r, taken);
    } catch (cause) {
      r.end(cause instanceof TransomError ? cause : new ConnectionError("the request failed", false, { cause }), {});
    }
  }
  /** Reads the enveloped messages of a stream, one at a time: the next is read when the last was taken. */
  async #stream(resp, r, taken) {
    const reader = resp.body.getReader();
    let buf = new Uint8Array(0);
    for (; ; ) {
      while (buf.length >= 5) {
        const n = new DataView(buf.buffer, buf.byteOffset).getUint32(1);
        if (buf.length < 5 + n)
          break;
        const flags = buf[0];
        const value2 = JSON.parse(new TextDecoder().decode(buf.subarray(5, 5 + n)));
        buf = buf.slice(5 + n);
        if (flags & 2) {
          const last = value2;
          const trailers = last.metadata ?? {};
          return r.end(last.error ? errorOf(last.error, trailers, Code.Unknown) : void 0, trailers);
        }
        const wait = taken.wait();
        wait.catch(() => {
        });
        r.message(value2);
        await wait;
      }
      const { value, done } = await reader.read();
      if (done)
        throw new ConnectionError("the stream was cut off", false);
      const next = new Uint8Array(buf.length + value.length);
      next.set(buf);
      next.set(value, buf.length);
      buf = next;
    }
  }
  close() {
  }
};

// dist/session.js
var Session = class _Session {
  socket;
  idleMs;
  onGone;
  #calls = /* @__PURE__ */ new Map();
  #lastId = 0;
  #usable = true;
  #idle;
  constructor(socket, idleMs, onGone) {
    this.socket = socket;
    this.idleMs = idleMs;
    this.onGone = onGone;
  }
  /** Opens a socket. Rejects with a ConnectionError if that fails, also after timeoutMs. */
  static connect(make, url, timeoutMs, idleMs, onGone) {
    return new Promise((resolve, reject) => {
      let socket;
      try {
        socket = new make(url, ["transom.v1"]);
      } catch (cause) {
        reject(new ConnectionError("no WebSocket can be opened", true, { cause }));
        return;
      }
      const fail = (why) => {
        clearTimeout(timer);
        socket.onopen = socket.onclose = socket.onerror = null;
        socket.close();
        reject(new ConnectionError(why, true));
      };
      const timer = setTimeout(() => fail("the WebSocket does not open in time"), timeoutMs);
      socket.onclose = () => fail("the WebSocket was refused");
      socket.onopen = () => {
        clearTimeout(timer);
        const s = new _Session(socket, idleMs, () => onGone(s));
        s.#listen();
        resolve(s);
      };
    });
  }
  #listen() {
    this.socket.onmessage = (e) => {
      if (typeof e.data !== "string")
        return this.#fail("the gateway sent a binary frame");
      let f;
      try {
        f = JSON.parse(e.data);
      } catch {
        return this.#fail("the gateway sent what is no frame");
      }
      this.#frame(f);
    };
    this.socket.onclose = (e) => this.#gone(`the connection was closed (${e.code}${e.reason ? ` ${e.reason}` : ""})`);
    this.#rest();
  }
  #fail(why) {
    this.socket.close(1e3);
    this.#gone(why);
  }
  /** Ends what is open: the socket is no more. */
  #gone(why) {
    this.#retire();
    const calls = [...this.#calls.values()];
    this.#calls.clear();
    for (const c of calls)
      this.#finish(c, new ConnectionError(why, false), {});
    clearTimeout(this.#idle);
  }
  /** No further call is to be opened here. */
  #retire() {
    if (!this.#usable)
      return;
    this.#usable = false;
    this.onGone();
  }
  /** Closes the socket when no call has been open for idleMs. */
  #rest() {
    clearTimeout(this.#idle);
    if (this.#calls.size > 0)
      return;
    if (!this.#usable)
      return this.socket.close(1e3);
    this.#idle = setTimeout(() => this.close(), this.idleMs);
    this.#idle.unref?.();
  }
  #finish(c, error, trailers) {
    c.gate.break(error ?? new TransomError(Code.Canceled, "the call has ended"));
    c.receiver.end(error, trailers);
  }
  #frame(f) {
    const id = f.id ?? 0;
    if (id === 0) {
      if (f.status)
        this.#retire();
      return;
    }
    const c = this.#calls.get(id);
    if (!c)
      return;
    if (f.header)
      c.receiver.header(f.header.metadata ?? {});
    if ("message" in f)
      c.receiver.message(f.message);
    if (f.credit) {
      c.credit += f.credit;
      c.gate.wake();
    }
    if (f.status) {
      this.#calls.delete(id);
      const { code = 0, message = "", details = [], trailers = {} } = f.status;
      this.#finish(c, code === 0 ? void 0 : new TransomError(code, message, details, trailers), trailers);
      this.#rest();
    }
  }
  #send(f) {
    if (this.socket.readyState === 1)
      this.socket.send(JSON.stringify(f));
  }
  open(o, receiver) {
    if (!this.#usable || this.socket.readyState !== 1)
      throw new ConnectionError("the connection is closed", true);
    const id = ++this.#lastId;
    const call = { receiver, credit: WINDOW, owed: 0, gate: new Gate(), halfClosed: false };
    this.#calls.set(id, call);
    clearTimeout(this.#idle);
    let first = openFrame(id, o);
    if (o.clientStreams) {
      this.#send(first);
      first = void 0;
    }
    return {
      send: async (message) => {
        while (call.credit === 0 && !call.gate.broken)
          await call.gate.wait();
        if (call.gate.broken)
          return call.gate.wait();
        call.credit--;
        if (first) {
          this.#send({ ...first, message, end: true });
          call.halfClosed = true;
        } else {
          this.#send({ id, message });
        }
        first = void 0;
      },
      end: () => {
        if (call.halfClosed || call.gate.broken)
          return;
        call.halfClosed = true;
        this.#send(first ? { ...first, end: true } : { id, end: true });
        first = void 0;
      },
      cancel: () => {
        if (!this.#calls.delete(id))
          return;
        if (!first)
          this.#send({ id, cancel: true });
        this.#finish(call, new TransomError(Code.Canceled, "the call was cancelled"), {});
        this.#rest();
      },
      consumed: () => {
        if (!this.#calls.has(id))
          return;
        if (++call.owed < WINDOW / 2)
          return;
        this.#send({ id, credit: call.owed });
        call.owed = 0;
      }
    };
  }
  close() {
    this.socket.close(1e3);
    this.#gone("the client was closed");
  }
};

// dist/webtransport.js
var WebTransportSession = class _WebTransportSession {
  wt;
  onGone;
  #usable = true;
  constructor(wt, onGone) {
    this.wt = wt;
    this.onGone = onGone;
  }
  static async connect(make, url, options, timeoutMs, onGone) {
    let wt;
    try {
      wt = new make(url, options);
    } catch (cause) {
      throw new ConnectionError("no WebTransport can be opened", true, { cause });
    }
    let timer;
    const late = new Promise((_, reject) => {
      timer = setTimeout(() => reject(new Error("timeout")), timeoutMs);
    });
    try {
      wt.closed.catch(() => {
      });
      await Promise.race([wt.ready, late]);
    } catch (cause) {
      wt.close();
      throw new ConnectionError("WebTransport was refused", true, { cause });
    } finally {
      clearTimeout(timer);
    }
    const s = new _WebTransportSession(wt, () => onGone(s));
    const gone = () => s.#retire();
    wt.closed.then(gone, gone);
    return s;
  }
  #retire() {
    if (!this.#usable)
      return;
    this.#usable = false;
    this.onGone();
  }
  open(o, receiver) {
    if (!this.#usable)
      throw new ConnectionError("the connection is closed", true);
    return new StreamCall(this.wt, o, receiver);
  }
  close() {
    this.#retire();
    this.wt.close();
  }
};
function encodeFrame(f) {
  const json = new TextEncoder().encode(JSON.stringify(f));
  const b = new Uint8Array(5 + json.length);
  b[0] = 1;
  new DataView(b.buffer).setUint32(1, json.length);
  b.set(json, 5);
  return b;
}
var StreamCall = class {
  o;
  receiver;
  #over = new Gate();
  #taken = new Gate();
  #ended = false;
  #first;
  #stream;
  #writer;
  #reader;
  constructor(wt, o, receiver) {
    this.o = o;
    this.receiver = receiver;
    this.#stream = wt.createBidirectionalStream();
    this.#writer = this.#stream.then((s) => s.writable.getWriter());
    this.#writer.catch(() => {
    });
    this.#reader = this.#stream.then((s) => s.readable.getReader());
    this.#reader.catch(() => {
    });
    this.#first = openFrame(1, o);
    if (o.clientStreams) {
      void this.#write(this.#first).catch(() => {
      });
      this.#first = void 0;
    }
    void this.#read();
  }
  async #write(f) {
    const w = await this.#writer;
    await w.ready;
    await w.write(encodeFrame(f));
  }
  #finish(error, trailers) {
    if (this.#over.broken)
      return;
    const why = error ?? new TransomError(Code.Canceled, "the call has ended");
    this.#over.break(why);
    this.#taken.break(why);
    this.receiver.end(error, trailers);
  }
  async #read() {
    try {
      const reader = await this.#reader;
      let buf = new Uint8Array(0);
      for (; ; ) {
        while (buf.length >= 5) {
          const n = new DataView(buf.buffer, buf.byteOffset).getUint32(1);
          if (buf.length < 5 + n)
            break;
          const f = JSON.parse(new TextDecoder().decode(buf.subarray(5, 5 + n)));
          buf = buf.slice(5 + n);
          if (f.header)
            this.receiver.header(f.header.metadata ?? {});
          if ("message" in f) {
            const taken = this.#taken.wait();
            taken.catch(() => {
            });
            this.receiver.message(f.message);
            await taken;
          }
          if (f.status) {
            const { code = 0, message = "", details = [], trailers = {} } = f.status;
            this.#finish(code === 0 ? void 0 : new TransomError(code, message, details, trailers), trailers);
            (await this.#writer).abort().catch(() => {
            });
            return;
          }
        }
        const { value, done } = await reader.read();
        if (done)
          throw new Error("the stream ended without a status");
        const next = new Uint8Array(buf.length + value.length);
        next.set(buf);
        next.set(value, buf.length);
        buf = next;
      }
    } catch (cause) {
      this.#finish(new ConnectionError("the connection was lost", false, { cause }), {});
    }
  }
  async send(message) {
    if (this.#over.broken)
      return this.#over.wait();
    const first = this.#first;
    this.#first = void 0;
    if (first)
      this.#ended = true;
    try {
      await this.#write(first ? { ...first, message, end: true } : { id: 1, message });
    } catch (cause) {
      throw new ConnectionError("the connection was lost", false, { cause });
    }
  }
  end() {
    if (this.#ended)
      return;
    this.#ended = true;
    void this.#write(this.#first ? { ...this.#first, end: true } : { id: 1, end: true }).catch(() => {
    });
    this.#first = void 0;
  }
  cancel() {
    if (this.#over.broken)
      return;
    this.#finish(new TransomError(Code.Canceled, "the call was cancelled"), {});
    this.#writer.then((w) => w.abort()).catch(() => {
    });
    this.#reader.then((r) => r.cancel()).catch(() => {
    });
  }
  consumed() {
    this.#taken.wake();
  }
};

// dist/client.js
var Client = class {
  #base;
  #options;
  #current;
  #fetch;
  #failed = /* @__PURE__ */ new Map();
  /** url is the gateway's, "https://api.example"; a path in it goes before the methods'. */
  constructor(url, options = {}) {
    this.#base = String(url).replace(/\/+$/, "");
    this.#options = options;
  }
  /** Makes a unary call of a method, "/bank.v1.Accounts/Get". */
  async unary(method, request, options = {}) {
    return only(this.#call({ method, clientStreams: false, serverStreams: false }, [request], options));
  }
  /** Makes a call with one request and a stream of answers. Leaving the iteration cancels it. */
  serverStream(method, request, options = {}) {
    return this.#call({ method, clientStreams: false, serverStreams: true }, [request], options);
  }
  /** Makes a call with a stream of requests and one answer. */
  async clientStream(method, requests, options = {}) {
    return only(this.#call({ method, clientStreams: true, serverStreams: false }, requests, options));
  }
  /** Makes a call with a stream each way. The call begins with the first next(). */
  bidi(method, requests, options = {}) {
    return this.#call({ method, clientStreams: true, serverStreams: true }, requests, options);
  }
  /** Ends the connection and all calls on it. The client may be used again. */
  async close() {
    const current = this.#current;
    this.#current = void 0;
    try {
      (await current)?.close();
    } catch {
    }
  }
  #call(kind, requests, options) {
    return new Call(kind, requests, options, this.#options, (k, last) => this.#transport(k, last));
  }
  /** The connection in use, or a new one; fetch where there is none and it will do. */
  async #transport(kind, deadline) {
    const left = deadline - Date.now();
    this.#current ??= this.#connect(Math.min(this.#options.connectTimeoutMs ?? 3e3, left));
    const current = this.#current;
    try {
      return await current;
    } catch (e) {
      if (this.#current === current)
        this.#current = void 0;
      if (kind.clientStreams || !this.#names().includes("fetch"))
        throw e;
      return this.#fetch ??= new FetchTransport(this.#base, this.#options.fetch ?? globalThis.fetch.bind(globalThis));
    }
  }
  #names() {
    return this.#options.transports ?? ["webtransport", "websocket", "fetch"];
  }
  /** Opens the first of the transports that can be opened, fetch aside. */
  async #connect(timeoutMs) {
    const { idleMs = 6e4, retryMs = 6e4 } = this.#options;
    const gone = () => {
      this.#current = void 0;
    };
    let error = new ConnectionError("no transport is left to try", true);
    for (const name of this.#names()) {
      if (Date.now() - (this.#failed.get(name) ?? -Infinity) < retryMs)
        continue;
      try {
        if (name === "websocket") {
          const make = this.#options.WebSocket ?? globalThis.WebSocket;
          if (!make)
            continue;
          return await Session.connect(make, `${this.#base.replace(/^http/, "ws")}/`, timeoutMs, idleMs, gone);
        }
        if (name === "webtransport" && this.#base.startsWith("https:")) {
          const make = this.#options.WebTransport ?? globalThis.WebTransport;
          if (!make)
            continue;
          return await WebTransportSession.connect(make, `${this.#base}/transom.v1`, this.#options.webTransportOptions ?? {}, timeoutMs, gone);
        }
      } catch (e) {
        error = e;
        if (name === "webtransport" || this.#names().includes("fetch"))
          this.#failed.set(name, Date.now());
      }
    }
    throw error;
  }
};
async function only(call) {
  let found;
  for await (const value of call) {
    if (found)
      throw new TransomError(Code.Internal, "the backend sent more than one answer");
    found = { value };
  }
  if (!found)
    throw new TransomError(Code.Internal, "the backend sent no answer");
  return found.value;
}
var Call = class {
  kind;
  requests;
  options;
  settings;
  transport;
  #queue = [];
  #waiting = [];
  #over = false;
  #error;
  #started = false;
  #sender;
  #stop = new AbortController();
  // of waits between attempts
  #timer;
  #deadline;
  #onAbort;
  constructor(kind, requests, options, settings, transport) {
    this.kind = kind;
    this.requests = requests;
    this.options = options;
    this.settings = settings;
    this.transport = transport;
    this.#deadline = options.timeoutMs === void 0 ? Infinity : Date.now() + options.timeoutMs;
  }
  [Symbol.asyncIterator]() {
    return this;
  }
  next() {
    if (!this.#started) {
      this.#started = true;
      this.#start();
    }
    if (this.#queue.length > 0) {
      const value = this.#queue.shift();
      this.#sender?.consumed();
      return Promise.resolve({ value, done: false });
    }
    if (this.#over) {
      const error = this.#error;
      this.#error = void 0;
      return error === void 0 ? Promise.resolve({ value: void 0, done: true }) : Promise.reject(error);
    }
    return new Promise((resolve, reject) => this.#waiting.push({ resolve, reject }));
  }
  return() {
    this.#started = true;
    this.#abandon(void 0);
    this.#queue = [];
    return Promise.resolve({ value: void 0, done: true });
  }
  /** Ends the call from this side. */
  #abandon(error) {
    const sender = this.#sender;
    this.#end(error);
    sender?.cancel();
  }
  #end(error) {
    if (this.#over)
      return;
    this.#over = true;
    clearTimeout(this.#timer);
    if (this.#onAbort)
      this.options.signal?.removeEventListener("abort", this.#onAbort);
    this.#stop.abort();
    this.#error = error;
    for (const w of this.#waiting.splice(0)) {
      if (error === void 0)
        w.resolve({ value: void 0, done: true });
      else {
        w.reject(error);
        this.#error = void 0;
      }
    }
  }
  #start() {
    const { signal } = this.options;
    const aborted = () => this.#abandon(new TransomError(Code.Canceled, "the call was aborted", [], {}, { cause: signal?.reason }));
    if (signal?.aborted)
      return aborted();
    if (signal) {
      this.#onAbort = aborted;
      signal.addEventListener("abort", aborted);
    }
    if (this.#deadline !== Infinity) {
      this.#timer = setTimeout(() => this.#abandon(new TransomError(Code.DeadlineExceeded, "the deadline has passed")), this.#deadline - Date.now());
    }
    void this.#attempts().catch((e) => this.#abandon(e));
  }
  async #attempts() {
    const { attempts = 4, minDelayMs = 100, maxDelayMs = 5e3 } = this.settings.reconnect ?? {};
    const requests = this.kind.clientStreams ? void 0 : [...this.requests];
    for (let n = 1; ; n++) {
      const outcome = await this.#attempt(requests);
      if (this.#over)
        return;
      const { error } = outcome;
      const again = error instanceof ConnectionError && !outcome.answered && !outcome.taken && (error.unsent || this.options.idempotent === true);
      if (!again || n >= attempts)
        return this.#end(error);
      const longest = Math.min(minDelayMs * 2 ** (n - 1), maxDelayMs);
      await this.#pause(longest * (0.5 + Math.random() / 2));
      if (this.#over)
        return;
    }
  }
  #pause(ms) {
    return new Promise((resolve) => {
      const timer = setTimeout(resolve, ms);
      this.#stop.signal.addEventListener("abort", () => {
        clearTimeout(timer);
        resolve();
      });
    });
  }
  async #metadata() {
    const md = {};
    for (const from of [this.settings.metadata ?? {}, this.options.metadata ?? {}]) {
      for (const [k, v] of Object.entries(from))
        md[k.toLowerCase()] = typeof v === "string" ? [v] : [...v];
    }
    const { token } = this.settings;
    if (token !== void 0)
      md["authorization"] ??= [`Bearer ${typeof token === "function" ? await token() : token}`];
    return md;
  }
  /** Makes one attempt. answered: an answer has come. taken: requests of a stream were taken that cannot be taken again. */
  async #attempt(replay) {
    const state = { error: void 0, answered: false, taken: false };
    let sender;
    let ended;
    const end = new Promise((resolve) => ended = resolve);
    try {
      const metadata = await this.#metadata();
      const transport = await this.transport(this.kind, this.#deadline);
      if (this.#over)
        return state;
      const receiver = {
        header: (md) => {
          if (!this.#over)
            this.options.onHeader?.(md);
        },
        message: (m) => {
          state.answered = true;
          this.#push(m);
        },
        end: (error, trailers) => {
          state.error = error;
          if (!this.#over)
            this.options.onTrailer?.(trailers);
          ended();
        }
      };
      const timeoutMs = this.#deadline === Infinity ? void 0 : this.#deadline - Date.now();
      sender = transport.open({ ...this.kind, metadata, timeoutMs }, receiver);
    } catch (error) {
      state.error = error;
      return state;
    }
    this.#sender = sender;
    void this.#send(sender, replay, state);
    await end;
    return state;
  }
  async #send(sender, replay, state) {
    try {
      if (replay) {
        for (const m of replay)
          await sender.send(m);
      } else {
        for await (const m of this.requests) {
          state.taken = true;
          if (this.#over)
            return;
          try {
            await sender.send(m);
          } catch {
            return;
          }
        }
        state.taken = true;
      }
      sender.end();
    } catch (e) {
      if (!(e instanceof TransomError))
        this.#abandon(e);
    }
  }
  #push(m) {
    if (this.#over)
      return;
    const w = this.#waiting.shift();
    if (!w) {
      this.#queue.push(m);
      return;
    }
    w.resolve({ value: m, done: false });
    this.#sender?.consumed();
  }
};
export {
  Client,
  Code,
  TransomError
};
