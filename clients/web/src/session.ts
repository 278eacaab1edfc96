import { Code, ConnectionError, type Metadata, TransomError } from "./status.js";
import { type Frame, Gate, type Open, openFrame, type Receiver, type Sender, type Transport, WINDOW } from "./transport.js";

/** The part of the browser's WebSocket that a Session uses. */
export interface Socket {
  readonly readyState: number;
  binaryType: string;
  onopen: ((e: any) => void) | null;
  onmessage: ((e: any) => void) | null;
  onclose: ((e: any) => void) | null;
  onerror: ((e: any) => void) | null;
  send(data: string): void;
  close(code?: number, reason?: string): void;
}

export type SocketConstructor = new (url: string, protocols: string[]) => Socket;

interface OpenCall {
  receiver: Receiver;
  credit: number;
  owed: number;
  gate: Gate;
  halfClosed: boolean;
}

/** One WebSocket of the subprotocol transom.v1, which carries any number of calls. */
export class Session implements Transport {
  #calls = new Map<number, OpenCall>();
  #lastId = 0;
  #usable = true;
  #idle: ReturnType<typeof setTimeout> | undefined;

  private constructor(
    readonly socket: Socket,
    readonly idleMs: number,
    readonly onGone: () => void,
  ) {}

  /** Opens a socket. Rejects with a ConnectionError if that fails, also after timeoutMs. */
  static connect(make: SocketConstructor, url: string, timeoutMs: number, idleMs: number, onGone: (s: Session) => void): Promise<Session> {
    return new Promise((resolve, reject) => {
      let socket: Socket;
      try {
        socket = new make(url, ["transom.v1"]);
      } catch (cause) {
        reject(new ConnectionError("no WebSocket can be opened", true, { cause }));
        return;
      }
      const fail = (why: string) => {
        clearTimeout(timer);
        socket.onopen = socket.onclose = socket.onerror = null;
        socket.close();
        reject(new ConnectionError(why, true));
      };
      const timer = setTimeout(() => fail("the WebSocket does not open in time"), timeoutMs);
      socket.onclose = () => fail("the WebSocket was refused");
      socket.onopen = () => {
        clearTimeout(timer);
        const s: Session = new Session(socket, idleMs, () => onGone(s));
        s.#listen();
        resolve(s);
      };
    });
  }

  #listen(): void {
    this.socket.onmessage = (e) => {
      if (typeof e.data !== "string") return this.#fail("the gateway sent a binary frame");
      let f: Frame;
      try {
        f = JSON.parse(e.data) as Frame;
      } catch {
        return this.#fail("the gateway sent what is no frame");
      }
      this.#frame(f);
    };
    this.socket.onclose = (e) => this.#gone(`the connection was closed (${e.code}${e.reason ? ` ${e.reason}` : ""})`);
    this.#rest();
  }

  #fail(why: string): void {
    this.socket.close(1000);
    this.#gone(why);
  }

  /** Ends what is open: the socket is no more. */
  #gone(why: string): void {
    this.#retire();
    const calls = [...this.#calls.values()];
    this.#calls.clear();
    for (const c of calls) this.#finish(c, new ConnectionError(why, false), {});
    clearTimeout(this.#idle);
  }

  /** No further call is to be opened here. */
  #retire(): void {
    if (!this.#usable) return;
    this.#usable = false;
    this.onGone();
  }

  /** Closes the socket when no call has been open for idleMs. */
  #rest(): void {
    clearTimeout(this.#idle);
    if (this.#calls.size > 0) return;
    if (!this.#usable) return this.socket.close(1000);
    this.#idle = setTimeout(() => this.close(), this.idleMs);
    (this.#idle as { unref?: () => void }).unref?.();
  }

  #finish(c: OpenCall, error: TransomError | undefined, trailers: Metadata): void {
    c.gate.break(error ?? new TransomError(Code.Canceled, "the call has ended"));
    c.receiver.end(error, trailers);
  }

  #frame(f: Frame): void {
    const id = f.id ?? 0;
    if (id === 0) {
      if (f.status) this.#retire(); // the gateway goes away, or will close at once
      return;
    }
    const c = this.#calls.get(id);
    if (!c) return;
    if (f.header) c.receiver.header(f.header.metadata ?? {});
    if ("message" in f) c.receiver.message(f.message);
    if (f.credit) {
      c.credit += f.credit;
      c.gate.wake();
    }
    if (f.status) {
      this.#calls.delete(id);
      const { code = 0, message = "", details = [], trailers = {} } = f.status;
      this.#finish(c, code === 0 ? undefined : new TransomError(code, message, details, trailers), trailers);
      this.#rest();
    }
  }

  #send(f: Frame): void {
    if (this.socket.readyState === 1) this.socket.send(JSON.stringify(f));
  }

  open(o: Open, receiver: Receiver): Sender {
    if (!this.#usable || this.socket.readyState !== 1) throw new ConnectionError("the connection is closed", true);
    const id = ++this.#lastId;
    const call: OpenCall = { receiver, credit: WINDOW, owed: 0, gate: new Gate(), halfClosed: false };
    this.#calls.set(id, call);
    clearTimeout(this.#idle);
    // The opening frame takes the first message along, and the half-close of a client that does not stream.
    let first: Frame | undefined = openFrame(id, o);
    if (o.clientStreams) {
      this.#send(first);
      first = undefined;
    }
    return {
      send: async (message) => {
        while (call.credit === 0 && !call.gate.broken) await call.gate.wait();
        if (call.gate.broken) return call.gate.wait();
        call.credit--;
        if (first) {
          this.#send({ ...first, message, end: true });
          call.halfClosed = true;
        } else {
          this.#send({ id, message });
        }
        first = undefined;
      },
      end: () => {
        if (call.halfClosed || call.gate.broken) return;
        call.halfClosed = true;
        this.#send(first ? { ...first, end: true } : { id, end: true });
        first = undefined;
      },
      cancel: () => {
        if (!this.#calls.delete(id)) return;
        if (!first) this.#send({ id, cancel: true });
        this.#finish(call, new TransomError(Code.Canceled, "the call was cancelled"), {});
        this.#rest();
      },
      consumed: () => {
        if (!this.#calls.has(id)) return;
        if (++call.owed < WINDOW / 2) return;
        this.#send({ id, credit: call.owed });
        call.owed = 0;
      },
    };
  }

  close(): void {
    this.socket.close(1000);
    this.#gone("the client was closed");
  }
}
