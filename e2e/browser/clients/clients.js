// The clients that others wrote, each making the same calls of the bank. No code is generated: the messages are made from
// the bank's descriptor set, and what a code generator would add to it is written out here.
import { create, createFileRegistry, fromBinary, toBinary } from "@bufbuild/protobuf";
import { FileDescriptorSetSchema } from "@bufbuild/protobuf/wkt";
import { Code, ConnectError, createClient } from "@connectrpc/connect";
import { createConnectTransport, createGrpcWebTransport } from "@connectrpc/connect-web";
import { grpc as improbable } from "@improbable-eng/grpc-web";
import * as grpcweb from "grpc-web";

const account = "customers/3/accounts/1";

// answerHeader makes the backend send a header, and one that lets pages of other origins see the HTTP version of the answer.
const answerHeader = { h: "1", "timing-allow-origin": "*" };

// version waits for the browser to name the HTTP version of the answer that has the second of these.
const version = () => new Promise((resolve) => {
  new PerformanceObserver((list, observer) => {
    const entry = list.getEntries().find((e) => e.name.includes("/Metadata"));
    if (!entry) return;
    observer.disconnect();
    resolve(entry.nextHopProtocol);
  }).observe({ type: "resource", buffered: true });
});

// bank is the registry of the descriptor set, given in base64.
function bank(set) {
  return createFileRegistry(fromBinary(FileDescriptorSetSchema, Uint8Array.from(atob(set), (c) => c.charCodeAt(0))));
}

// lookup finds a method by service and name.
function lookup(registry, service, name) {
  return registry.getService("bank.v1." + service).methods.find((m) => m.name === name);
}

// attempt tells how a call ended that should fail.
async function attempt(call, toResult) {
  try {
    await call();
  } catch (e) {
    return toResult(e);
  }
  return "OK";
}

// officialGRPCWeb uses the client of the gRPC project; format is "text" or "binary".
export async function officialGRPCWeb({ base, set, format }) {
  performance.clearResourceTimings();
  const registry = bank(set);
  const client = new grpcweb.GrpcWebClientBase({ format });
  const method = (service, name, type) => {
    const m = lookup(registry, service, name);
    return new grpcweb.MethodDescriptor(`/bank.v1.${service}/${name}`, type, Object, Object,
      (request) => toBinary(m.input, create(m.input, request)), (bytes) => fromBinary(m.output, bytes));
  };
  const unary = (service, name, request, metadata = {}, onCall = () => {}) => new Promise((resolve, reject) => {
    const descriptor = method(service, name, "unary");
    const got = {};
    const done = () => got.result && got.trailer && resolve(got);
    const call = client.rpcCall(base + `/bank.v1.${service}/${name}`, request, metadata, descriptor, (error, response) => {
      if (error) return reject(error);
      got.result = response;
      done();
    });
    call.on("metadata", (m) => (got.header = m));
    call.on("status", (s) => {
      got.trailer = s.metadata;
      done();
    });
    onCall(call);
  });
  const out = {};
  out.unary = (await unary("Accounts", "Get", { name: account })).result.name;
  out.code = await attempt(() => unary("Accounts", "Get", { name: "customers/3/accounts/99" }), (e) => e.code);
  out.details = await attempt(() => unary("Diagnostics", "Fail", { code: 9, message: "as asked", details: true }),
    (e) => e.code === 9 && e.message === "as asked" && (e.metadata["grpc-status-details-bin"]?.length ?? 0) > 10);
  out.deadline = await attempt(() => unary("Diagnostics", "Slow", { delay: { seconds: 600n } }, { deadline: String(Date.now() + 300) }), (e) => e.code);
  const md = await unary("Diagnostics", "Metadata", { header: answerHeader, trailer: { t: "2" } }, { "x-mine": "3" });
  out.metadata = [md.header.h, md.trailer.t, md.result.metadata["x-mine"].values[0]];
  out.version = await version();
  out.generated = 0;
  const stream = (service, name, request, onData) => new Promise((resolve, reject) => {
    const call = client.serverStreaming(base + `/bank.v1.${service}/${name}`, request, {}, method(service, name, "server_streaming"));
    call.on("data", (m) => onData(m, call, resolve));
    call.on("error", reject);
    call.on("end", resolve);
  });
  await stream("Diagnostics", "Generate", { count: 100n, sizeBytes: 1000 }, (m) => (out.generated += m.payload.length));
  out.late = 0;
  out.lateCode = await attempt(() => stream("Diagnostics", "FailLate", { code: 10, afterMessages: 3 }, () => out.late++), (e) => e.code);
  // The call is given up once it is on its way.
  unary("Diagnostics", "Slow", { delay: { seconds: 600n } }, {}, (call) => setTimeout(() => call.cancel(), 200)).catch(() => {});
  return out;
}

// connect uses Connect's client; kind is "json", "binary", "get" or "grpc-web".
export async function connect({ base, set, kind }) {
  performance.clearResourceTimings();
  const registry = bank(set);
  const verbs = new Set();
  const options = {
    baseUrl: base,
    fetch: (url, init) => {
      verbs.add(init.method);
      return fetch(url, init);
    },
  };
  const transport = kind === "grpc-web" ? createGrpcWebTransport(options)
    : createConnectTransport({ ...options, useBinaryFormat: kind === "binary", useHttpGet: kind === "get" });
  const client = (service) => createClient(registry.getService("bank.v1." + service), transport);
  const accounts = client("Accounts"), diagnostics = client("Diagnostics");
  const code = (e) => ConnectError.from(e).code;
  const out = {};
  out.unary = (await accounts.get({ name: account })).name;
  out.verbs = [...verbs];
  out.code = await attempt(() => accounts.get({ name: "customers/3/accounts/99" }), code);
  out.details = await attempt(() => diagnostics.fail({ code: 9, message: "as asked", details: true }), (e) =>
    e.code === Code.FailedPrecondition && e.rawMessage === "as asked" && e.details[0]?.type === "google.rpc.ErrorInfo");
  out.deadline = await attempt(() => diagnostics.slow({ delay: { seconds: 600n } }, { timeoutMs: 300 }), code);
  let header, trailer;
  const md = await diagnostics.metadata({ header: answerHeader, trailer: { t: "2" } },
    { headers: { "x-mine": "3" }, onHeader: (h) => (header = h), onTrailer: (t) => (trailer = t) });
  out.metadata = [header.get("h"), trailer.get("t"), md.metadata["x-mine"].values[0]];
  out.version = await version();
  out.generated = 0;
  for await (const m of diagnostics.generate({ count: 100n, sizeBytes: 1000 })) out.generated += m.payload.length;
  out.late = 0;
  out.lateCode = await attempt(async () => {
    for await (const _ of diagnostics.failLate({ code: 10, afterMessages: 3 })) out.late++;
  }, code);
  const abort = new AbortController();
  setTimeout(() => abort.abort(), 200);
  out.aborted = await attempt(() => diagnostics.slow({ delay: { seconds: 600n } }, { signal: abort.signal }), code);
  return out;
}

// improbableGRPCWeb uses improbable-eng's client; kind is "fetch", or "websocket" for the subprotocol grpc-websockets.
export async function improbableGRPCWeb({ base, set, kind }) {
  performance.clearResourceTimings();
  const registry = bank(set);
  const transport = kind === "websocket" ? improbable.WebsocketTransport() : improbable.FetchReadableStreamTransport({});
  // A message as google-protobuf's generated code has it.
  const message = (desc) => class Message {
    constructor(value) { this.value = create(desc, value); }
    serializeBinary() { return toBinary(desc, this.value); }
    toObject() { return this.value; }
    static deserializeBinary(bytes) {
      const m = new Message();
      m.value = fromBinary(desc, bytes);
      return m;
    }
  };
  // call makes a call of the requests; those after the first wait for an answer each. It resolves with what came.
  const call = (service, name, requests, metadata = {}, onClient = () => {}) => new Promise((resolve) => {
    const m = lookup(registry, service, name);
    const Request = message(m.input);
    const client = improbable.client({
      methodName: name, service: { serviceName: "bank.v1." + service }, requestType: Request, responseType: message(m.output),
      requestStream: m.methodKind.endsWith("client_streaming") || m.methodKind === "bidi_streaming", responseStream: m.methodKind !== "unary",
    }, { host: base, transport });
    const got = { messages: [] };
    const say = () => {
      const request = requests.shift();
      if (request) client.send(new Request(request));
      if (request && requests.length === 0) client.finishSend();
    };
    client.onHeaders((h) => (got.header = h));
    client.onMessage((message) => {
      got.messages.push(message.toObject());
      say();
    });
    client.onEnd((code, text, trailer) => resolve({ ...got, code, text, trailer }));
    client.start(metadata);
    say();
    onClient(client);
  });
  const out = {};
  out.unary = (await call("Accounts", "Get", [{ name: account }])).messages[0].name;
  out.code = (await call("Accounts", "Get", [{ name: "customers/3/accounts/99" }])).code;
  const failed = await call("Diagnostics", "Fail", [{ code: 9, message: "as asked", details: true }]);
  out.details = failed.code === 9 && failed.text === "as asked" && (failed.trailer.get("grpc-status-details-bin")[0]?.length ?? 0) > 10;
  out.deadline = (await call("Diagnostics", "Slow", [{ delay: { seconds: 600n } }], { "grpc-timeout": "300m" })).code;
  const md = await call("Diagnostics", "Metadata", [{ header: answerHeader, trailer: { t: "2" } }], { "x-mine": "3" });
  out.metadata = [md.header.get("h")[0], md.trailer.get("t")[0], md.messages[0].metadata["x-mine"].values[0]];
  if (kind !== "websocket") out.version = await version();
  const generated = await call("Diagnostics", "Generate", [{ count: 100n, sizeBytes: 1000 }]);
  out.generated = generated.messages.reduce((sum, m) => sum + m.payload.length, 0);
  const late = await call("Diagnostics", "FailLate", [{ code: 10, afterMessages: 3 }]);
  [out.late, out.lateCode] = [late.messages.length, late.code];
  if (kind === "websocket") {
    out.chat = (await call("Support", "Chat", [{ room: "r" }, { text: "hi" }, { text: "bye" }])).messages.map((m) => m.text);
  }
  call("Diagnostics", "Slow", [{ delay: { seconds: 600n } }], {}, (client) => setTimeout(() => client.close(), 200));
  return out;
}

// refused makes the simplest call by each client, and tells which of them got an answer.
export async function refused({ base, set }) {
  const registry = bank(set);
  const get = lookup(registry, "Accounts", "Get");
  const answered = [];
  for (const format of ["text", "binary"]) {
    const descriptor = new grpcweb.MethodDescriptor("/bank.v1.Accounts/Get", "unary", Object, Object,
      (request) => toBinary(get.input, create(get.input, request)), (bytes) => fromBinary(get.output, bytes));
    const client = new grpcweb.GrpcWebClientBase({ format });
    await new Promise((resolve) => client.rpcCall(base + "/bank.v1.Accounts/Get", { name: account }, {}, descriptor, (error) => {
      if (!error) answered.push("grpc-web " + format);
      resolve();
    }));
  }
  for (const useHttpGet of [false, true]) {
    const transport = createConnectTransport({ baseUrl: base, useHttpGet });
    const client = createClient(registry.getService("bank.v1.Accounts"), transport);
    await client.get({ name: account }).then(() => answered.push("connect " + (useHttpGet ? "GET" : "POST")), () => {});
  }
  for (const transport of [improbable.WebsocketTransport(), improbable.FetchReadableStreamTransport({})]) {
    await new Promise((resolve) => {
      class Request {
        serializeBinary() { return toBinary(get.input, create(get.input, { name: account })); }
      }
      const client = improbable.client({
        methodName: "Get", service: { serviceName: "bank.v1.Accounts" }, requestStream: false, responseStream: false,
        requestType: Request, responseType: { deserializeBinary: (bytes) => fromBinary(get.output, bytes) },
      }, { host: base, transport });
      client.onMessage(() => answered.push("improbable"));
      client.onEnd(resolve);
      client.start();
      client.send(new Request());
      client.finishSend();
    });
  }
  return answered;
}
