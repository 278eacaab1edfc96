import { Code, ConnectionError, type Metadata, TransomError } from "./status.js";
import { Gate, type Open, type Receiver, type Sender, type Transport } from "./transport.js";

const codes: Record<string, Code> = {
  canceled: Code.Canceled, unknown: Code.Unknown, invalid_argument: Code.InvalidArgument, deadline_exceeded: Code.DeadlineExceeded,
  not_found: Code.NotFound, already_exists: Code.AlreadyExists, permission_denied: Code.PermissionDenied,
  resource_exhausted: Code.ResourceExhausted, failed_precondition: Code.FailedPrecondition, aborted: Code.Aborted,
  out_of_range: Code.OutOfRange, unimplemented: Code.Unimplemented, internal: Code.Internal, unavailable: Code.Unavailable,
  data_loss: Code.DataLoss, unauthenticated: Code.Unauthenticated,
};

interface ConnectError {
  code?: string;
  message?: string;
  details?: { type: string; value: string }[];
}

function errorOf(e: ConnectError, trailers: Metadata, fallback: Code): TransomError {
  const details = (e.details ?? []).map((d) => ({ "@type": `type.googleapis.com/${d.type}`, value: d.value }));
  return new TransomError(codes[e.code ?? ""] ?? fallback, e.message ?? "", details, trailers);
}

/** The metadata of response headers; those with the prefix "trailer-" are trailers. */
function metadataOf(h: Headers): { header: Metadata; trailers: Metadata } {
  const header: Metadata = {};
  const trailers: Metadata = {};
  h.forEach((value, name) => {
    if (name.startsWith("trailer-")) trailers[name.slice(8)] = value.split(", ");
    else header[name] = value.split(", ");
  });
  return { header, trailers };
}

/** What an HTTP status means when the body does not say. */
function codeOfHTTP(status: number): Code {
  switch (status) {
    case 400: return Code.Internal;
    case 401: return Code.Unauthenticated;
    case 403: return Code.PermissionDenied;
    case 404: return Code.Unimplemented;
    case 429: case 502: case 503: case 504: return Code.Unavailable;
    default: return Code.Unknown;
  }
}

/** Unary calls and server streams by fetch, in the Connect protocol with JSON. */
export class FetchTransport implements Transport {
  constructor(
    readonly base: string,
    readonly fetch: typeof globalThis.fetch,
  ) {}

  open(o: Open, receiver: Receiver): Sender {
    if (o.clientStreams) {
      throw new TransomError(Code.Unimplemented, "client streams need WebSocket or WebTransport, and neither could be opened");
    }
    const abort = new AbortController();
    const taken = new Gate();
    let over = false;
    const end = (error: TransomError | undefined, trailers: Metadata) => {
      if (over) return;
      over = true;
      taken.break(new TransomError(Code.Canceled, "the call has ended"));
      receiver.end(error, trailers);
    };
    return {
      send: async (m) => {
        void this.#run(o, m, { ...receiver, end, header: (h) => receiver.header(h), message: (v) => receiver.message(v) }, abort.signal, taken);
      },
      end: () => {},
      cancel: () => {
        end(new TransomError(Code.Canceled, "the call was cancelled"), {});
        abort.abort();
      },
      consumed: () => taken.wake(),
    };
  }

  async #run(o: Open, m: unknown, r: Receiver, signal: AbortSignal, taken: Gate): Promise<void> {
    const headers = new Headers({ "Connect-Protocol-Version": "1", "Content-Type": o.serverStreams ? "application/connect+json" : "application/json" });
    for (const [k, vs] of Object.entries(o.metadata)) for (const v of vs) headers.append(k, v);
    if (o.timeoutMs !== undefined) headers.set("Connect-Timeout-Ms", String(Math.max(1, Math.round(o.timeoutMs))));
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
        let e: ConnectError = {};
        try {
          e = JSON.parse(text) as ConnectError;
        } catch {
          e.message = `HTTP status ${resp.status}`;
        }
        return r.end(errorOf(e, trailers, codeOfHTTP(resp.status)), trailers);
      }
      r.header(header);
      if (!o.serverStreams) {
        r.message(await resp.json());
        return r.end(undefined, trailers);
      }
      await this.#stream(resp, r, taken);
    } catch (cause) {
      r.end(cause instanceof TransomError ? cause : new ConnectionError("the request failed", false, { cause }), {});
    }
  }

  /** Reads the enveloped messages of a stream, one at a time: the next is read when the last was taken. */
  async #stream(resp: Response, r: Receiver, taken: Gate): Promise<void> {
    const reader = resp.body!.getReader();
    let buf = new Uint8Array(0);
    for (;;) {
      while (buf.length >= 5) {
        const n = new DataView(buf.buffer, buf.byteOffset).getUint32(1);
        if (buf.length < 5 + n) break;
        const flags = buf[0]!;
        const value = JSON.parse(new TextDecoder().decode(buf.subarray(5, 5 + n))) as unknown;
        buf = buf.slice(5 + n);
        if (flags & 2) {
          const last = value as { error?: ConnectError; metadata?: Metadata };
          const trailers = last.metadata ?? {};
          return r.end(last.error ? errorOf(last.error, trailers, Code.Unknown) : undefined, trailers);
        }
        const wait = taken.wait();
        wait.catch(() => {});
        r.message(value);
        await wait;
      }
      const { value, done } = await reader.read();
      if (done) throw new ConnectionError("the stream was cut off", false);
      const next = new Uint8Array(buf.length + value.length);
      next.set(buf);
      next.set(value, buf.length);
      buf = next;
    }
  }

  close(): void {}
}
