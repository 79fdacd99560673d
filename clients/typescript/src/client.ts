/** A client over any transport of Connect: gRPC from Node, gRPC-Web from a browser. */

import { create, type MessageInitShape } from "@bufbuild/protobuf";
import { durationFromMs } from "@bufbuild/protobuf/wkt";
import { type Client, createClient, type Transport } from "@connectrpc/connect";

import { DiffusionService, GenerateRequestSchema } from "../gen/ditcast/v1/diffusion_service_pb.js";
import { DisconnectPolicy } from "../gen/ditcast/v1/generation_pb.js";
import { Generation, type Patience } from "./generation.js";

const REATTACH_WINDOW_MS = 30_000;
const PATIENCE: Patience = { limitMs: 60_000, firstDelayMs: 100, maxDelayMs: 5_000 };

/** Generates with one server. */
export class DitcastClient {
  /** The contract's own calls, for what this class does not wrap: `configure` and the like. */
  readonly service: Client<typeof DiffusionService>;
  readonly #patience: Patience;

  /**
   * @param transport How to reach the server: `createGrpcTransport` of @connectrpc/connect-node, or
   *   `createGrpcWebTransport` of @connectrpc/connect-web where a proxy translates.
   * @param patience How long to come back to a generation whose connection broke.
   */
  constructor(transport: Transport, patience: Partial<Patience> = {}) {
    this.service = createClient(DiffusionService, transport);
    this.#patience = { ...PATIENCE, ...patience };
  }

  /**
   * Give the generation for a request; nothing is sent before its events or its result are asked
   * for. It goes on for 30 s without a reader unless the request says otherwise, so that a broken
   * connection costs nothing.
   */
  generate(request: MessageInitShape<typeof GenerateRequestSchema>): Generation {
    const asked = create(GenerateRequestSchema, request);
    asked.requestId ||= randomId();
    if (asked.onDisconnect !== DisconnectPolicy.CONTINUE) {
      asked.reattachWindow ??= durationFromMs(REATTACH_WINDOW_MS);
    }
    return new Generation(this.service, { request: asked }, this.#patience);
  }

  /** Give a generation that runs or has ended, to be watched after an event. */
  watch(requestId: string, afterSequence = 0n): Generation {
    return new Generation(this.service, { requestId, afterSequence }, this.#patience);
  }
}

/** Make a UUID: `crypto.randomUUID` is not there on pages without TLS. */
function randomId(): string {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  bytes[6] = (bytes[6]! & 0x0f) | 0x40;
  bytes[8] = (bytes[8]! & 0x3f) | 0x80;
  const text = Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
  return text.replace(/^(.{8})(.{4})(.{4})(.{4})/, "$1-$2-$3-$4-");
}
