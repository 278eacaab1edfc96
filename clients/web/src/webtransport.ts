import { Code, ConnectionError, type Metadata, TransomError } from "./status.js";
import { type Frame, Gate, type Open, openFrame, type Receiver, type Sender, type Transport } from "./transport.js";

/** Options of the browser's WebTransport, such as serverCertificateHashes. */
export type WebTransportConstructor = new (url: string, options?: object) => WebTransport;

/** A WebTransport session: one bidirectional stream for each call, the frames of transom.v1 with their length in front. */
export class WebTransportSession implements Transport {
  #usable = true;

  private constructor(
    readonly wt: WebTransport,
    readonly onGone: () => void,
  ) {}

  static async connect(make: WebTransportConstructor, url: string, options: object, timeoutMs: number, onGone: (s: WebTransportSession) => void): Promise<WebTransportSession> {
    let wt: WebTransport;
    try {
      wt = new make(url, options);
    } catch (cause) {
      throw new ConnectionError("no WebTransport can be opened", true, { cause });
    }
    let timer: ReturnType<typeof setTimeout> | undefined;
    const late = new Promise<never>((_, reject) => {
      timer = setTimeout(() => reject(new Error("timeout")), timeoutMs);
    });
    try {
      wt.closed.catch(() => {});
      await Promise.race([wt.ready, late]);
    } catch (cause) {
      wt.close();
      throw new ConnectionError("WebTransport was refused", true, { cause });
    } finally {
      clearTimeout(timer);
    }
    const s: WebTransportSession = new WebTransportSession(wt, () => onGone(s));
    const gone = () => s.#retire();
    wt.closed.then(gone, gone);
    return s;
  }

  #retire(): void {
    if (!this.#usable) return;
    this.#usable = false;
    this.onGone();
  }

  open(o: Open, receiver: Receiver): Sender {
    if (!this.#usable) throw new ConnectionError("the connection is closed", true);
    return new StreamCall(this.wt, o, receiver);
  }

  close(): void {
    this.#retire();
    this.wt.close();
  }
}

/** Encodes a frame: a byte 1 for JSON, its length in four bytes, and the text. */
export function encodeFrame(f: Frame): Uint8Array<ArrayBuffer> {
  const json = new TextEncoder().encode(JSON.stringify(f));
  const b = new Uint8Array(5 + json.length);
  b[0] = 1;
  new DataView(b.buffer).setUint32(1, json.length);
  b.set(json, 5);
  return b;
}

class StreamCall implements Sender {
  #over = new Gate();
  #taken = new Gate();
  #ended = false;
  #first: Frame | undefined;
  #stream: Promise<WebTransportBidirectionalStream>;
  #writer: Promise<WritableStreamDefaultWriter<Uint8Array>>;
  #reader: Promise<ReadableStreamDefaultReader<Uint8Array>>;

  constructor(
    wt: WebTransport,
    readonly o: Open,
    readonly receiver: Receiver,
  ) {
    this.#stream = wt.createBidirectionalStream();
    this.#writer = this.#stream.then((s) => s.writable.getWriter() as WritableStreamDefaultWriter<Uint8Array>);
    this.#writer.catch(() => {});
    this.#reader = this.#stream.then((s) => s.readable.getReader() as ReadableStreamDefaultReader<Uint8Array>);
    this.#reader.catch(() => {});
    this.#first = openFrame(1, o);
    if (o.clientStreams) {
      void this.#write(this.#first).catch(() => {});
      this.#first = undefined;
    }
    void this.#read();
  }

  async #write(f: Frame): Promise<void> {
    const w = await this.#writer;
    await w.ready;
    await w.write(encodeFrame(f));
  }

  #finish(error: TransomError | undefined, trailers: Metadata): void {
    if (this.#over.broken) return;
    const why = error ?? new TransomError(Code.Canceled, "the call has ended");
    this.#over.break(why);
    this.#taken.break(why);
    this.receiver.end(error, trailers);
  }

  async #read(): Promise<void> {
    try {
      const reader = await this.#reader;
      let buf = new Uint8Array(0);
      for (;;) {
        while (buf.length >= 5) {
          const n = new DataView(buf.buffer, buf.byteOffset).getUint32(1);
          if (buf.length < 5 + n) break;
          const f = JSON.parse(new TextDecoder().decode(buf.subarray(5, 5 + n))) as Frame;
          buf = buf.slice(5 + n);
          if (f.header) this.receiver.header(f.header.metadata ?? {});
          if ("message" in f) {
            const taken = this.#taken.wait();
            taken.catch(() => {});
            this.receiver.message(f.message);
            await taken;
          }
          if (f.status) {
            const { code = 0, message = "", details = [], trailers = {} } = f.status;
            this.#finish(code === 0 ? undefined : new TransomError(code, message, details, trailers), trailers);
            (await this.#writer).abort().catch(() => {});
            return;
          }
        }
        const { value, done } = await reader.read();
        if (done) throw new Error("the stream ended without a status");
        const next = new Uint8Array(buf.length + value.length);
        next.set(buf);
        next.set(value, buf.length);
        buf = next;
      }
    } catch (cause) {
      this.#finish(new ConnectionError("the connection was lost", false, { cause }), {});
    }
  }

  async send(message: unknown): Promise<void> {
    if (this.#over.broken) return this.#over.wait();
    const first = this.#first;
    this.#first = undefined;
    if (first) this.#ended = true;
    try {
      await this.#write(first ? { ...first, message, end: true } : { id: 1, message });
    } catch (cause) {
      throw new ConnectionError("the connection was lost", false, { cause });
    }
  }

  end(): void {
    if (this.#ended) return;
    this.#ended = true;
    void this.#write(this.#first ? { ...this.#first, end: true } : { id: 1, end: true }).catch(() => {});
    this.#first = undefined;
  }

  cancel(): void {
    if (this.#over.broken) return;
    this.#finish(new TransomError(Code.Canceled, "the call was cancelled"), {});
    // Both directions: the gateway hears of the latter even while it is not reading.
    this.#writer.then((w) => w.abort()).catch(() => {});
    this.#reader.then((r) => r.cancel()).catch(() => {});
  }

  consumed(): void {
    this.#taken.wake();
  }
}
