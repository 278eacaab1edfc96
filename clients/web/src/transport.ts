import type { Metadata, TransomError } from "./status.js";

/** How many messages a side of a call may send before it needs credit (docs/websocket.md). */
export const WINDOW = 16;

/** What a call asks for. */
export interface Open {
  method: string;
  metadata: Metadata;
  /** Milliseconds from now; undefined for no limit. */
  timeoutMs: number | undefined;
  /** Whether requests and answers are streams. */
  clientStreams: boolean;
  serverStreams: boolean;
}

/** What becomes of a call. `end` is called exactly once and last. */
export interface Receiver {
  header(md: Metadata): void;
  message(m: unknown): void;
  end(error: TransomError | undefined, trailers: Metadata): void;
}

/** The sending side of a call. */
export interface Sender {
  /** Resolves when the message is on its way and another may follow; rejects when the call has ended. */
  send(m: unknown): Promise<void>;
  /** Half-closes. */
  end(): void;
  cancel(): void;
  /** Tells that one message was taken by the application. */
  consumed(): void;
}

/** A way to the gateway. */
export interface Transport {
  open(o: Open, r: Receiver): Sender;
  close(): void;
}

/** Waits that are woken by an event, or rejected by the end of a call. */
export class Gate {
  #waiting: { resolve: () => void; reject: (e: unknown) => void }[] = [];
  #error: unknown;
  #broken = false;

  wait(): Promise<void> {
    if (this.#broken) return Promise.reject(this.#error);
    return new Promise((resolve, reject) => this.#waiting.push({ resolve, reject }));
  }

  wake(): void {
    for (const w of this.#waiting.splice(0)) w.resolve();
  }

  break(error: unknown): void {
    this.#broken = true;
    this.#error = error;
    for (const w of this.#waiting.splice(0)) w.reject(error);
  }

  get broken(): boolean {
    return this.#broken;
  }
}

/** A frame of transom.v1 in JSON (proto/transom/ws/v1/frame.proto). */
export interface Frame {
  id: number;
  open?: { method: string; metadata?: Metadata; timeout?: string };
  header?: { metadata?: Metadata };
  message?: unknown;
  end?: boolean;
  cancel?: boolean;
  status?: { code?: number; message?: string; details?: unknown[]; trailers?: Metadata };
  credit?: number;
}

/** The frame that begins a call. */
export function openFrame(id: number, o: Open): Frame {
  const open: NonNullable<Frame["open"]> = { method: o.method };
  if (Object.keys(o.metadata).length > 0) open.metadata = o.metadata;
  if (o.timeoutMs !== undefined) open.timeout = `${(Math.max(1, Math.round(o.timeoutMs)) / 1000).toFixed(3)}s`;
  return { id, open };
}
