import { FetchTransport } from "./fetch.js";
import { Session, type SocketConstructor } from "./session.js";
import { Code, ConnectionError, type Metadata, TransomError } from "./status.js";
import type { Receiver, Sender, Transport } from "./transport.js";
import { type WebTransportConstructor, WebTransportSession } from "./webtransport.js";

/** The ways to the gateway. */
export type TransportName = "webtransport" | "websocket" | "fetch";

/** When a call is made again. Only calls marked idempotent are, or those that the gateway has surely not begun. */
export interface ReconnectPolicy {
  /** How often a call is made at most; default 4. */
  attempts?: number;
  /** The wait before the second attempt, doubled for each further one; default 100 ms. */
  minDelayMs?: number;
  /** The longest wait; default 5 s. Each is drawn between half of it and all of it. */
  maxDelayMs?: number;
}

/** Settings of a Client. */
export interface ClientOptions {
  /** What is tried, in this order; default webtransport (on https), websocket, fetch. What fails is not tried again for retryMs. */
  transports?: readonly TransportName[];
  /** Metadata of every call. */
  metadata?: Record<string, string | readonly string[]>;
  /** A bearer token, or what gives one for each call. */
  token?: string | (() => string | Promise<string>);
  reconnect?: ReconnectPolicy;
  /** How long a connection may take to open; default 3 s. */
  connectTimeoutMs?: number;
  /** How long a WebSocket without calls is kept; default 60 s. */
  idleMs?: number;
  /** How long a transport that could not be opened is not tried; default 60 s. */
  retryMs?: number;
  /** Options of WebTransport, such as serverCertificateHashes. */
  webTransportOptions?: object;
  /** In place of those of the platform. */
  WebSocket?: SocketConstructor;
  WebTransport?: WebTransportConstructor;
  fetch?: typeof globalThis.fetch;
}

/** Settings of a call. */
export interface CallOptions {
  metadata?: Record<string, string | readonly string[]>;
  /** How long the call may take, attempts included. The gateway and the backend are told. */
  timeoutMs?: number;
  signal?: AbortSignal;
  /** The call may be made again when its connection is lost before an answer has come. */
  idempotent?: boolean;
  onHeader?: (md: Metadata) => void;
  onTrailer?: (md: Metadata) => void;
}

/** What a client sends: any iterable, asynchronous or not. */
export type Requests<T> = AsyncIterable<T> | Iterable<T>;

/** Calls methods behind one gateway. Messages are JSON values as ProtoJSON has them. */
export class Client {
  readonly #base: string;
  readonly #options: ClientOptions;
  #current: Promise<Transport> | undefined;
  #fetch: FetchTransport | undefined;
  #failed = new Map<TransportName, number>();

  /** url is the gateway's, "https://api.example"; a path in it goes before the methods'. */
  constructor(url: string | URL, options: ClientOptions = {}) {
    this.#base = String(url).replace(/\/+$/, "");
    this.#options = options;
  }

  /** Makes a unary call of a method, "/bank.v1.Accounts/Get". */
  async unary<Req, Res>(method: string, request: Req, options: CallOptions = {}): Promise<Res> {
    return only(this.#call<Res>({ method, clientStreams: false, serverStreams: false }, [request], options));
  }

  /** Makes a call with one request and a stream of answers. Leaving the iteration cancels it. */
  serverStream<Req, Res>(method: string, request: Req, options: CallOptions = {}): AsyncIterableIterator<Res> {
    return this.#call<Res>({ method, clientStreams: false, serverStreams: true }, [request], options);
  }

  /** Makes a call with a stream of requests and one answer. */
  async clientStream<Req, Res>(method: string, requests: Requests<Req>, options: CallOptions = {}): Promise<Res> {
    return only(this.#call<Res>({ method, clientStreams: true, serverStreams: false }, requests, options));
  }

  /** Makes a call with a stream each way. The call begins with the first next(). */
  bidi<Req, Res>(method: string, requests: Requests<Req>, options: CallOptions = {}): AsyncIterableIterator<Res> {
    return this.#call<Res>({ method, clientStreams: true, serverStreams: true }, requests, options);
  }

  /** Ends the connection and all calls on it. The client may be used again. */
  async close(): Promise<void> {
    const current = this.#current;
    this.#current = undefined;
    try {
      (await current)?.close();
    } catch {
      // it was never open
    }
  }

  #call<Res>(kind: Kind, requests: Requests<unknown>, options: CallOptions): AsyncIterableIterator<Res> {
    return new Call<Res>(kind, requests, options, this.#options, (k, last) => this.#transport(k, last));
  }

  /** The connection in use, or a new one; fetch where there is none and it will do. */
  async #transport(kind: Kind, deadline: number): Promise<Transport> {
    const left = deadline - Date.now();
    this.#current ??= this.#connect(Math.min(this.#options.connectTimeoutMs ?? 3000, left));
    const current = this.#current;
    try {
      return await current;
    } catch (e) {
      if (this.#current === current) this.#current = undefined;
      if (kind.clientStreams || !this.#names().includes("fetch")) throw e;
      return (this.#fetch ??= new FetchTransport(this.#base, this.#options.fetch ?? globalThis.fetch.bind(globalThis)));
    }
  }

  #names(): readonly TransportName[] {
    return this.#options.transports ?? ["webtransport", "websocket", "fetch"];
  }

  /** Opens the first of the transports that can be opened, fetch aside. */
  async #connect(timeoutMs: number): Promise<Transport> {
    const { idleMs = 60_000, retryMs = 60_000 } = this.#options;
    const gone = () => {
      this.#current = undefined;
    };
    let error: unknown = new ConnectionError("no transport is left to try", true);
    for (const name of this.#names()) {
      if (Date.now() - (this.#failed.get(name) ?? -Infinity) < retryMs) continue;
      try {
        if (name === "websocket") {
          const make = this.#options.WebSocket ?? (globalThis.WebSocket as unknown as SocketConstructor | undefined);
          if (!make) continue;
          return await Session.connect(make, `${this.#base.replace(/^http/, "ws")}/`, timeoutMs, idleMs, gone);
        }
        if (name === "webtransport" && this.#base.startsWith("https:")) {
          const make = this.#options.WebTransport ?? (globalThis as { WebTransport?: WebTransportConstructor }).WebTransport;
          if (!make) continue;
          return await WebTransportSession.connect(make, `${this.#base}/transom.v1`, this.#options.webTransportOptions ?? {}, timeoutMs, gone);
        }
      } catch (e) {
        error = e;
        // A WebSocket that is refused once may be so for a moment only, unless there is something else to use meanwhile.
        if (name === "webtransport" || this.#names().includes("fetch")) this.#failed.set(name, Date.now());
      }
    }
    throw error;
  }
}

interface Kind {
  method: string;
  clientStreams: boolean;
  serverStreams: boolean;
}

/** The single answer of a call. */
async function only<Res>(call: AsyncIterableIterator<Res>): Promise<Res> {
  let found: { value: Res } | undefined;
  for await (const value of call) {
    if (found) throw new TransomError(Code.Internal, "the backend sent more than one answer");
    found = { value };
  }
  if (!found) throw new TransomError(Code.Internal, "the backend sent no answer");
  return found.value;
}

/** One call, with all its attempts, as the stream of its answers. */
class Call<Res> implements AsyncIterableIterator<Res> {
  #queue: Res[] = [];
  #waiting: { resolve: (r: IteratorResult<Res>) => void; reject: (e: unknown) => void }[] = [];
  #over = false;
  #error: unknown;
  #started = false;
  #sender: Sender | undefined;
  #stop = new AbortController(); // of waits between attempts
  #timer: ReturnType<typeof setTimeout> | undefined;
  #deadline: number;
  #onAbort: (() => void) | undefined;

  constructor(
    readonly kind: Kind,
    readonly requests: Requests<unknown>,
    readonly options: CallOptions,
    readonly settings: ClientOptions,
    readonly transport: (k: Kind, deadline: number) => Promise<Transport>,
  ) {
    this.#deadline = options.timeoutMs === undefined ? Infinity : Date.now() + options.timeoutMs;
  }

  [Symbol.asyncIterator](): AsyncIterableIterator<Res> {
    return this;
  }

  next(): Promise<IteratorResult<Res>> {
    if (!this.#started) {
      this.#started = true;
      this.#start();
    }
    if (this.#queue.length > 0) {
      const value = this.#queue.shift()!;
      this.#sender?.consumed();
      return Promise.resolve({ value, done: false });
    }
    if (this.#over) {
      const error = this.#error;
      this.#error = undefined;
      return error === undefined ? Promise.resolve({ value: undefined, done: true }) : Promise.reject(error);
    }
    return new Promise((resolve, reject) => this.#waiting.push({ resolve, reject }));
  }

  return(): Promise<IteratorResult<Res>> {
    this.#started = true;
    this.#abandon(undefined);
    this.#queue = [];
    return Promise.resolve({ value: undefined, done: true });
  }

  /** Ends the call from this side. */
  #abandon(error: unknown): void {
    const sender = this.#sender;
    this.#end(error);
    sender?.cancel();
  }

  #end(error: unknown): void {
    if (this.#over) return;
    this.#over = true;
    clearTimeout(this.#timer);
    if (this.#onAbort) this.options.signal?.removeEventListener("abort", this.#onAbort);
    this.#stop.abort();
    this.#error = error;
    for (const w of this.#waiting.splice(0)) {
      if (error === undefined) w.resolve({ value: undefined, done: true });
      else {
        w.reject(error);
        this.#error = undefined;
      }
    }
  }

  #start(): void {
    const { signal } = this.options;
    const aborted = () => this.#abandon(new TransomError(Code.Canceled, "the call was aborted", [], {}, { cause: signal?.reason }));
    if (signal?.aborted) return aborted();
    if (signal) {
      this.#onAbort = aborted;
      signal.addEventListener("abort", aborted);
    }
    if (this.#deadline !== Infinity) {
      this.#timer = setTimeout(() => this.#abandon(new TransomError(Code.DeadlineExceeded, "the deadline has passed")), this.#deadline - Date.now());
    }
    void this.#attempts().catch((e: unknown) => this.#abandon(e));
  }

  async #attempts(): Promise<void> {
    const { attempts = 4, minDelayMs = 100, maxDelayMs = 5000 } = this.settings.reconnect ?? {};
    const requests = this.kind.clientStreams ? undefined : [...(this.requests as Iterable<unknown>)];
    for (let n = 1; ; n++) {
      const outcome = await this.#attempt(requests);
      if (this.#over) return;
      const { error } = outcome;
      const again =
        error instanceof ConnectionError && !outcome.answered && !outcome.taken && (error.unsent || this.options.idempotent === true);
      if (!again || n >= attempts) return this.#end(error);
      const longest = Math.min(minDelayMs * 2 ** (n - 1), maxDelayMs);
      await this.#pause(longest * (0.5 + Math.random() / 2));
      if (this.#over) return;
    }
  }

  #pause(ms: number): Promise<void> {
    return new Promise((resolve) => {
      const timer = setTimeout(resolve, ms);
      this.#stop.signal.addEventListener("abort", () => {
        clearTimeout(timer);
        resolve();
      });
    });
  }

  async #metadata(): Promise<Metadata> {
    const md: Metadata = {};
    for (const from of [this.settings.metadata ?? {}, this.options.metadata ?? {}]) {
      for (const [k, v] of Object.entries(from)) md[k.toLowerCase()] = typeof v === "string" ? [v] : [...v];
    }
    const { token } = this.settings;
    if (token !== undefined) md["authorization"] ??= [`Bearer ${typeof token === "function" ? await token() : token}`];
    return md;
  }

  /** Makes one attempt. answered: an answer has come. taken: requests of a stream were taken that cannot be taken again. */
  async #attempt(replay: unknown[] | undefined): Promise<{ error: unknown; answered: boolean; taken: boolean }> {
    const state = { error: undefined as unknown, answered: false, taken: false };
    let sender: Sender;
    let ended!: () => void;
    const end = new Promise<void>((resolve) => (ended = resolve));
    try {
      const metadata = await this.#metadata();
      const transport = await this.transport(this.kind, this.#deadline);
      if (this.#over) return state;
      const receiver: Receiver = {
        header: (md) => {
          if (!this.#over) this.options.onHeader?.(md);
        },
        message: (m) => {
          state.answered = true;
          this.#push(m as Res);
        },
        end: (error, trailers) => {
          state.error = error;
          if (!this.#over) this.options.onTrailer?.(trailers);
          ended();
        },
      };
      const timeoutMs = this.#deadline === Infinity ? undefined : this.#deadline - Date.now();
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

  async #send(sender: Sender, replay: unknown[] | undefined, state: { taken: boolean }): Promise<void> {
    try {
      if (replay) {
        for (const m of replay) await sender.send(m);
      } else {
        for await (const m of this.requests) {
          state.taken = true;
          if (this.#over) return;
          try {
            await sender.send(m);
          } catch {
            return; // the call has ended, and end says how
          }
        }
        state.taken = true;
      }
      sender.end();
    } catch (e) {
      if (!(e instanceof TransomError)) this.#abandon(e); // of the caller's own iterable
    }
  }

  #push(m: Res): void {
    if (this.#over) return;
    const w = this.#waiting.shift();
    if (!w) {
      this.#queue.push(m);
      return;
    }
    w.resolve({ value: m, done: false });
    this.#sender?.consumed();
  }
}
