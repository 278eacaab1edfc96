/** The codes of google.rpc.Code. */
export enum Code {
  OK = 0,
  Canceled = 1,
  Unknown = 2,
  InvalidArgument = 3,
  DeadlineExceeded = 4,
  NotFound = 5,
  AlreadyExists = 6,
  PermissionDenied = 7,
  ResourceExhausted = 8,
  FailedPrecondition = 9,
  Aborted = 10,
  OutOfRange = 11,
  Unimplemented = 12,
  Internal = 13,
  Unavailable = 14,
  DataLoss = 15,
  Unauthenticated = 16,
}

/** Metadata: names in lower case, each with its values; those of names in "-bin" are base64. */
export type Metadata = Record<string, string[]>;

/** How a call failed. */
export class TransomError extends Error {
  override readonly name = "TransomError";
  constructor(
    readonly code: Code,
    message: string,
    /** google.rpc details as JSON, each with an "@type". */
    readonly details: readonly unknown[] = [],
    readonly trailers: Metadata = {},
    options?: ErrorOptions,
  ) {
    super(message, options);
  }
}

/**
 * A call that failed since its connection was lost or refused it. `unsent` says that the server has surely not begun it.
 */
export class ConnectionError extends TransomError {
  constructor(
    message: string,
    readonly unsent: boolean,
    options?: ErrorOptions,
  ) {
    super(Code.Unavailable, message, [], {}, options);
  }
}
