/** One generation: its events, coming back to it when the connection breaks, and its result. */

import { create } from "@bufbuild/protobuf";
import { timestampNow } from "@bufbuild/protobuf/wkt";
import { type CallOptions, type Client, Code } from "@connectrpc/connect";

import type { DiffusionService, GenerateRequest } from "../gen/ditcast/v1/diffusion_service_pb.js";
import {
  type Completed,
  type GenerationEvent,
  GenerationEventSchema,
  type GenerationState,
  RestartedSchema,
} from "../gen/ditcast/v1/generation_pb.js";
import { DitcastError } from "./errors.js";
import { type Output, OutputAssembly } from "./outputs.js";

/** How long to wait for the end of a call that has said all. */
const END_MS = 1000;

/** The header by which a proxy before several servers finds the one that has a generation. */
const ROUTE = "ditcast-route";

/** What is left of a generation in the end. */
export interface Result {
  readonly outputs: readonly Output[];
  readonly completed: Completed;
}

/** How long to come back to a generation whose connection broke. */
export interface Patience {
  /** From the first break without a new event; 0: not at all. */
  readonly limitMs: number;
  readonly firstDelayMs: number;
  readonly maxDelayMs: number;
}

/** What is followed: a request of one's own, or somebody's generation after an event. */
export type Followed =
  | { readonly request: GenerateRequest }
  | { readonly requestId: string; readonly afterSequence: bigint };

/** What both streams carry. */
interface Answer {
  readonly event?: GenerationEvent | undefined;
}

/** A generation of one server; one reader at a time. */
export class Generation implements AsyncIterable<GenerationEvent> {
  readonly requestId: string;
  readonly #client: Client<typeof DiffusionService>;
  readonly #request: GenerateRequest | undefined;
  readonly #patience: Patience;
  #leave = new AbortController();
  #route: Record<string, string> = {};
  #after: bigint;
  #brokenAt = 0;
  #tries = 0;
  #sent = 0;

  constructor(client: Client<typeof DiffusionService>, followed: Followed, patience: Patience) {
    this.#client = client;
    this.#patience = patience;
    this.#request = "request" in followed ? followed.request : undefined;
    this.requestId = "request" in followed ? followed.request.requestId : followed.requestId;
    this.#after = "request" in followed ? 0n : followed.afterSequence;
  }

  /** The last event that was seen: what `watch` takes to go on after it. */
  get afterSequence(): bigint {
    return this.#after;
  }

  /**
   * The events, each once and in order, and heartbeats. Where the connection breaks, the reading
   * goes on after the last event. Leaving the loop leaves the server: it cancels a generation of
   * one's own once its `reattach_window` is over; `cancel` does so at once.
   */
  async *[Symbol.asyncIterator](): AsyncGenerator<GenerationEvent, void, undefined> {
    let said: ReturnType<typeof setTimeout> | undefined;
    let stream = this.#request === undefined ? this.#watch() : this.#generate(this.#request);
    try {
      for (;;) {
        try {
          for await (const { event } of stream) {
            if (event === undefined || !this.#isNew(event)) continue;
            // Dropped here, the call would be a cancelled one to proxies and traces.
            if (event.kind.case === "completed") said = setTimeout(() => this.leave(), END_MS);
            yield event;
          }
          return;
        } catch (error) {
          if (said !== undefined) return; // However it ends: everything is there.
          const again = await this.#comeBack(DitcastError.from(error));
          stream = again.stream;
          if (again.event !== undefined) yield again.event;
        }
      }
    } finally {
      // Connect does not tell the server of a loop that was left.
      clearTimeout(said);
      this.leave();
      this.#leave = new AbortController();
    }
  }

  /** Read to the end and give the result; `onEvent` sees each event on the way. */
  async result(onEvent?: (event: GenerationEvent) => void): Promise<Result> {
    const assembly = new OutputAssembly();
    let completed: Completed | undefined;
    for await (const event of this) {
      onEvent?.(event);
      const { kind } = event;
      if (kind.case === "outputChunk") assembly.add(kind.value);
      if (kind.case === "restarted") assembly.clear();
      if (kind.case === "completed") completed = kind.value;
    }
    if (completed === undefined) {
      throw new DitcastError(Code.DataLoss, "the stream ended without a result");
    }
    return { outputs: await assembly.finish(completed.receipt?.outputs ?? []), completed };
  }

  /** Cancel it, and give the state that the cancel met. */
  async cancel(): Promise<GenerationState> {
    try {
      const asked = { requestId: this.requestId };
      return (await this.#client.cancelGeneration(asked, { headers: this.#route })).state;
    } catch (error) {
      throw DitcastError.from(error);
    }
  }

  /** Stop reading, wherever it waits. */
  leave(): void {
    this.#leave.abort();
  }

  #generate(request: GenerateRequest): AsyncIterable<Answer> {
    this.#sent += 1;
    return this.#client.generate(request, this.#options());
  }

  #watch(): AsyncIterable<Answer> {
    const asked = { requestId: this.requestId, afterSequence: this.#after };
    return this.#client.watchGeneration(asked, this.#options());
  }

  /** Carry the route, if there is one, and keep the one that comes with the headers. */
  #options(): CallOptions {
    const onHeader = (headers: Headers): void => {
      const route = headers.get(ROUTE);
      if (route !== null) this.#route = { [ROUTE]: route };
    };
    return { signal: this.#leave.signal, headers: this.#route, onHeader };
  }

  #isNew(event: GenerationEvent): boolean {
    this.#tries = this.#brokenAt = 0;
    if (event.kind.case === "heartbeat") return true;
    if (event.sequence <= this.#after) return false;
    this.#after = event.sequence;
    return true;
  }

  /** Give the stream to go on with; throws what coming back would not help. */
  async #comeBack(
    error: DitcastError,
  ): Promise<{ stream: AsyncIterable<Answer>; event?: GenerationEvent }> {
    const comingBack = this.#brokenAt > 0;
    if (this.#leave.signal.aborted) throw error;
    if (error.transportBroken) {
      await this.#wait(error);
    } else if (error.code === Code.NotFound && comingBack && this.#request !== undefined) {
      // The server lost it with its process: it is asked again, under the same id.
      const seen = this.#after > 0n;
      this.#after = 0n;
      const stream = this.#generate(this.#request);
      return seen ? { stream, event: this.#restarted() } : { stream };
    } else if (error.reason !== "READER_TIMEOUT") {
      throw error;
    }
    return { stream: this.#watch() };
  }

  /** Wait longer each time, and spread, so that a server that is back meets no herd. */
  async #wait(error: DitcastError): Promise<void> {
    const { limitMs, firstDelayMs, maxDelayMs } = this.#patience;
    this.#brokenAt ||= Date.now();
    const delay = Math.min(maxDelayMs, firstDelayMs * 2 ** this.#tries) * (0.5 + Math.random());
    if (Date.now() + delay > this.#brokenAt + limitMs) throw error;
    this.#tries += 1;
    await new Promise((resolve) => setTimeout(resolve, delay));
  }

  #restarted(): GenerationEvent {
    const reason = "the server lost the generation with its process, and was asked again";
    return create(GenerationEventSchema, {
      requestId: this.requestId,
      time: timestampNow(),
      kind: { case: "restarted", value: create(RestartedSchema, { attempt: this.#sent, reason }) },
    });
  }
}
