export { Client } from "./client.js";
export type { CallOptions, ClientOptions, ReconnectPolicy, Requests, TransportName } from "./client.js";
export { Code, TransomError } from "./status.js";
export type { Metadata } from "./status.js";
