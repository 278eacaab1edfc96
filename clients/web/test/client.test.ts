import assert from "node:assert/strict";
import { test } from "node:test";

import { Client, Code, TransomError } from "../src/index.js";
import type { Socket } from "../src/session.js";
import type { Frame } from "../src/transport.js";

/** A gateway as a client sees it: sockets that a test answers. */
class Gateway {
  sockets: FakeSocket[] = [];
  refuse = 0;
  waiting: ((s: FakeSocket) => void)[] = [];

  readonly WebSocket: new (url: string, protocols: string[]) => Socket;

  constructor(readonly answer: (s: FakeSocket, f: Frame) => void = () => {}) {
    const gateway = this;
    this.WebSocket = class extends FakeSocket {
      constructor(url: string, protocols: string[]) {
        super(gateway, url, protocols);
      }
    };
  }
}

class FakeSocket implements Socket {
  readyState = 0;
  binaryType = "";
  onopen: ((e: any) => void) | null = null;
  onmessage: ((e: any) => void) | null = null;
  onclose: ((e: any) => void) | null = null;
  onerror: ((e: any) => void) | null = null;
  frames: Frame[] = [];
  closeCode: number | undefined;

  constructor(
    readonly gateway: Gateway,
    readonly url: string,
    readonly protocols: string[],
  ) {
    gateway.sockets.push(this);
    queueMicrotask(() => {
      if (gateway.refuse > 0) {
        gateway.refuse--;
        this.drop(1006);
        return;
      }
      this.readyState = 1;
      this.onopen?.({});
    });
  }

  send(data: string): void {
    const f = JSON.parse(data) as Frame;
    this.frames.push(f);
    queueMicrotask(() => this.gateway.answer(this, f));
  }

  say(...frames: object[]): void {
    for (const f of frames) this.onmessage?.({ data: JSON.stringify(f) });
  }

  close(code?: number): void {
    this.closeCode = code;
    this.readyState = 3;
  }

  drop(code: number): void {
    this.readyState = 3;
    this.onclose?.({ code, reason: "" });
  }
}

const url = "https://api.example";
const client = (g: Gateway, more: object = {}) =>
  new Client(url, { WebSocket: g.WebSocket, transports: ["websocket"], reconnect: { minDelayMs: 1 }, ...more });

/** Rejects with a TransomError of the code. */
const fails = (p: Promise<unknown>, code: Code) =>
  assert.rejects(p, (e: unknown) => {
    assert.ok(e instanceof TransomError, String(e));
    assert.equal(e.code, code, e.message);
    return true;
  });

test("a unary call is one frame, with metadata, token and deadline", async () => {
  const g = new Gateway((s, f) => s.say({ id: f.id, header: { metadata: { h: ["1"] } }, message: { n: 2 }, status: { code: 0, trailers: { t: ["1"] } } }));
  let header, trailer;
  const c = client(g, { metadata: { A: "1" }, token: async () => "abc" });
  const got = await c.unary("/a.B/C", { n: 1 }, { metadata: { b: ["2", "3"] }, timeoutMs: 1500, onHeader: (h) => (header = h), onTrailer: (t) => (trailer = t) });
  assert.deepEqual(got, { n: 2 });
  assert.deepEqual([header, trailer], [{ h: ["1"] }, { t: ["1"] }]);
  const [s] = g.sockets;
  assert.equal(s!.url, "wss://api.example/");
  assert.deepEqual(s!.protocols, ["transom.v1"]);
  assert.equal(s!.frames.length, 1);
  const { open, ...rest } = s!.frames[0]!;
  assert.deepEqual(rest, { id: 1, message: { n: 1 }, end: true });
  assert.deepEqual(open!.metadata, { a: ["1"], b: ["2", "3"], authorization: ["Bearer abc"] });
  assert.match(open!.timeout!, /^1\.[45]\d\ds$/);
  await c.unary("/a.B/C", {});
  assert.equal(g.sockets.length, 1, "calls share a socket");
  assert.equal(s!.frames[1]!.id, 2);
  await c.close();
});

test("a status is an error with code, details and trailers", async () => {
  const g = new Gateway((s, f) => s.say({ id: f.id, status: { code: 5, message: "none", details: [{ "@type": "x" }], trailers: { t: ["1"] } } }));
  await assert.rejects(client(g).unary("/a.B/C", {}), (e: unknown) => {
    assert.ok(e instanceof TransomError);
    assert.deepEqual([e.code, e.message, e.details, e.trailers], [Code.NotFound, "none", [{ "@type": "x" }], { t: ["1"] }]);
    return true;
  });
});

test("a server stream gives credit as messages are taken", async () => {
  const g = new Gateway((s, f) => {
    if (f.open) for (let i = 0; i < 16; i++) s.say({ id: f.id, message: i });
    if (f.credit) s.say({ id: f.id, message: "more" }, { id: f.id, status: {} });
  });
  const it = client(g).serverStream<object, unknown>("/a.B/C", {});
  const got: unknown[] = [];
  for (let i = 0; i < 7; i++) got.push((await it.next()).value);
  assert.equal(g.sockets[0]!.frames.length, 1, "no credit before half of the window is taken");
  for await (const m of it) got.push(m);
  assert.deepEqual(got, [...Array(16).keys(), "more"]);
  assert.deepEqual(g.sockets[0]!.frames[1], { id: 1, credit: 8 });
});

test("a bidi stream waits for credit, and the rest of the socket does not wait for it", async () => {
  const g = new Gateway((s, f) => {
    if (f.open?.method === "/a.B/Unary") s.say({ id: f.id, message: "other", status: {} });
    if (f.end) s.say({ id: f.id, status: {} });
  });
  const c = client(g);
  let produced = 0;
  const it = c.bidi<number, unknown>(
    "/a.B/Chat",
    (async function* () {
      for (; produced < 20; ) yield produced++;
    })(),
  );
  const first = it.next();
  assert.equal(await c.unary("/a.B/Unary", {}), "other");
  const s = g.sockets[0]!;
  const mine = () => s.frames.filter((f) => f.id === 1 && "message" in f).length;
  await new Promise((resolve) => setImmediate(resolve)); // all that can happen has happened
  assert.equal(mine(), 16);
  s.say({ id: 1, message: "hi" });
  assert.deepEqual(await first, { value: "hi", done: false });
  s.say({ id: 1, credit: 16 });
  assert.deepEqual(await it.next(), { value: undefined, done: true });
  assert.equal(mine(), 20);
  assert.equal(s.frames.filter((f) => f.id === 1 && f.end).length, 1);
});

test("a client stream has one answer, and errors of its own iterable end it", async () => {
  const g = new Gateway((s, f) => f.end && s.say({ id: f.id, message: "sum", status: {} }));
  const c = client(g);
  assert.equal(await c.clientStream("/a.B/Sum", [1, 2, 3]), "sum");
  const broken = (function* () {
    yield 1;
    throw new RangeError("mine");
  })();
  await assert.rejects(c.clientStream("/a.B/Sum", broken), RangeError);
  assert.ok(g.sockets[0]!.frames.some((f) => f.id === 2 && f.cancel), "the gateway is told");
});

test("abort, deadline and leaving the iteration cancel the call", async () => {
  const g = new Gateway((s, f) => f.open && s.say({ id: f.id, message: 1 }));
  const c = client(g);
  const abort = new AbortController();
  const it = c.serverStream("/a.B/Watch", {}, { signal: abort.signal });
  await it.next();
  const next = it.next();
  abort.abort(new Error("why"));
  await fails(next, Code.Canceled);
  await fails(c.unary("/a.B/C", {}, { signal: abort.signal }), Code.Canceled);
  const late = c.serverStream("/a.B/Watch", {}, { timeoutMs: 20 });
  await late.next();
  await fails(late.next(), Code.DeadlineExceeded);
  for await (const _ of c.serverStream("/a.B/Watch", {})) break;
  assert.deepEqual(g.sockets[0]!.frames.filter((f) => f.cancel).map((f) => f.id), [1, 2, 3]);
});

test("an idempotent call that lost its connection is made again, another is not", async () => {
  let drops = 2;
  const g = new Gateway((s, f) => (drops-- > 0 ? s.drop(1006) : s.say({ id: f.id, message: "ok", status: {} })));
  const c = client(g);
  assert.equal(await c.unary("/a.B/Get", {}, { idempotent: true }), "ok");
  assert.equal(g.sockets.length, 3);
  drops = 1;
  await fails(c.unary("/a.B/Pay", {}), Code.Unavailable);
  drops = 99;
  await fails(c.unary("/a.B/Get", {}, { idempotent: true }), Code.Unavailable);
  assert.equal(drops, 95, "four attempts");
});

test("a stream that lost its connection after an answer is not made again", async () => {
  const g = new Gateway((s, f) => {
    s.say({ id: f.id, message: 1 });
    s.drop(1006);
  });
  const it = client(g).serverStream("/a.B/Watch", {}, { idempotent: true });
  assert.deepEqual(await it.next(), { value: 1, done: false });
  await fails(it.next(), Code.Unavailable);
  assert.equal(g.sockets.length, 1);
});

test("a socket that goes away finishes its calls, and new ones get another", async () => {
  const g = new Gateway((s, f) => f.open?.method === "/a.B/Get" && s.say({ id: f.id, message: "ok", status: {} }));
  const c = client(g);
  const watch = c.serverStream("/a.B/Watch", {});
  const first = watch.next();
  await c.unary("/a.B/Get", {});
  g.sockets[0]!.say({ id: 0, status: { code: 14 } });
  await c.unary("/a.B/Get", {});
  assert.equal(g.sockets.length, 2);
  g.sockets[0]!.say({ id: 1, message: "last", status: {} });
  assert.deepEqual(await first, { value: "last", done: false });
  assert.equal((await watch.next()).done, true);
  assert.equal(g.sockets[0]!.closeCode, 1000, "it is closed with its last call");
});

test("any call is made again if its socket never opened", async () => {
  const g = new Gateway((s, f) => s.say({ id: f.id, message: "ok", status: {} }));
  g.refuse = 2;
  assert.equal(await client(g).unary("/a.B/Pay", {}), "ok");
  assert.equal(g.sockets.length, 3);
});

/** A fetch that answers in the Connect protocol. */
const fakeFetch = (log: Request[], answer: (r: Request) => Response | Promise<Response>): typeof fetch =>
  async (input, init) => {
    const r = new Request(input as string, { ...init, duplex: "half" } as RequestInit);
    log.push(r);
    return answer(r);
  };

const envelope = (flags: number, v: object) => {
  const json = Buffer.from(JSON.stringify(v));
  const head = Buffer.alloc(5);
  head[0] = flags;
  head.writeUInt32BE(json.length, 1);
  return Buffer.concat([head, json]);
};

test("without WebSocket, unary calls and server streams go by fetch", async () => {
  const g = new Gateway();
  g.refuse = 1;
  const log: Request[] = [];
  const c = new Client(`${url}/`, {
    WebSocket: g.WebSocket,
    token: "abc",
    fetch: fakeFetch(log, async (r) => {
      if (r.url.endsWith("/Fail")) {
        return new Response(JSON.stringify({ code: "not_found", message: "none", details: [{ type: "google.rpc.ErrorInfo", value: "AA" }] }), { status: 404, headers: { "trailer-t": "1" } });
      }
      if (r.headers.get("content-type") === "application/json") {
        return new Response(JSON.stringify({ echo: await r.json() }), { headers: { h: "1", "trailer-t": "2" } });
      }
      const body = Buffer.concat([envelope(0, { n: 1 }), envelope(0, { n: 2 }), envelope(2, { metadata: { t: ["3"] } })]);
      let at = 0;
      return new Response(new ReadableStream({ pull: (s) => (at < body.length ? s.enqueue(body.subarray(at, (at += 7))) : s.close()) }));
    }),
  });
  let header, trailer;
  assert.deepEqual(await c.unary("/a.B/C", { n: 1 }, { timeoutMs: 1000, onHeader: (h) => (header = h), onTrailer: (t) => (trailer = t) }), { echo: { n: 1 } });
  assert.deepEqual([(header as any).h, trailer], [["1"], { t: ["2"] }]);
  assert.equal(log[0]!.url, "https://api.example/a.B/C");
  assert.equal(log[0]!.headers.get("authorization"), "Bearer abc");
  assert.ok(Number(log[0]!.headers.get("connect-timeout-ms")) > 500);
  const got: unknown[] = [];
  for await (const m of c.serverStream("/a.B/Watch", {}, { onTrailer: (t) => (trailer = t) })) got.push(m);
  assert.deepEqual([got, trailer], [[{ n: 1 }, { n: 2 }], { t: ["3"] }]);
  await assert.rejects(c.unary("/a.B/Fail", {}), (e: unknown) => {
    assert.ok(e instanceof TransomError);
    assert.deepEqual([e.code, e.message, e.details, e.trailers], [Code.NotFound, "none", [{ "@type": "type.googleapis.com/google.rpc.ErrorInfo", value: "AA" }], { t: ["1"] }]);
    return true;
  });
  assert.equal(g.sockets.length, 1, "what cannot be opened is not tried for every call");
  await fails(c.clientStream("/a.B/Sum", [1]), Code.Unavailable);
});

test("fetch tells streams that end with an error, or are cut off, and is aborted", async () => {
  let aborted = false;
  const log: Request[] = [];
  const c = new Client(url, {
    transports: ["fetch"],
    fetch: async (input, init) => {
      log.push(new Request(input as string));
      init!.signal!.addEventListener("abort", () => (aborted = true));
      if (String(input).endsWith("/Late")) return new Response(Buffer.concat([envelope(0, {}), envelope(2, { error: { code: "aborted", message: "no" } })]));
      if (String(input).endsWith("/Cut")) return new Response(envelope(0, {}));
      return new Response(new ReadableStream({ start: (s) => s.enqueue(envelope(0, {})) }));
    },
  });
  const late = c.serverStream("/a.B/Late", {});
  await late.next();
  await fails(late.next(), Code.Aborted);
  const cut = c.serverStream("/a.B/Cut", {});
  await cut.next();
  await fails(cut.next(), Code.Unavailable);
  for await (const _ of c.serverStream("/a.B/Endless", {})) break;
  assert.ok(aborted);
});
