/** Against a live server at DITCAST_URL: `DITCAST_URL=http://127.0.0.1:50051 npm test`. */

import assert from "node:assert/strict";
import { connect, createServer, type AddressInfo, type Socket } from "node:net";
import { test } from "node:test";

import { Code } from "@connectrpc/connect";
import { createGrpcTransport } from "@connectrpc/connect-node";

import { DitcastClient, DitcastError, type Generation, GenerationState } from "../src/index.js";

const baseUrl = process.env["DITCAST_URL"] ?? "http://127.0.0.1:50051";
const client = new DitcastClient(createGrpcTransport({ baseUrl }));
const SMALL = { prompt: "a red circle", width: 64, height: 64, numInferenceSteps: 4, seed: 7n };
const LONG = { ...SMALL, numInferenceSteps: 400 };

/** Stand between a client and the server, and cut every connection at will. */
async function proxy(): Promise<{ url: string; cut: () => void; close: () => void }> {
  const open = new Set<Socket>();
  const { hostname, port } = new URL(baseUrl);
  const server = createServer((inner) => {
    const outer = connect(Number(port), hostname);
    inner.pipe(outer).pipe(inner);
    for (const each of [inner, outer]) {
      open.add(each);
      each.on("error", () => undefined).on("close", () => (inner.destroy(), outer.destroy(), open.delete(each)));
    }
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  const cut = (): void => open.forEach((each) => each.resetAndDestroy());
  const url = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
  return { url, cut, close: () => (cut(), server.close()) };
}

test("a picture comes whole, after its steps in order", async () => {
  const steps: number[] = [];
  const { outputs, completed } = await client.generate(SMALL).result(({ kind }) => {
    if (kind.case === "stepCompleted") steps.push(kind.value.step);
  });
  assert.deepEqual(steps, [1, 2, 3, 4]);
  assert.equal(outputs[0]?.mediaType, "image/png");
  assert.deepEqual([...outputs[0].data.subarray(1, 4)], [0x50, 0x4e, 0x47]);
  assert.equal(completed.receipt?.parameters?.seed, 7n);
});

test("a refusal names every wrong field", async () => {
  const refused = client.generate({ ...SMALL, prompt: "", width: 3 }).result();
  await assert.rejects(refused, (error: unknown) => {
    assert(error instanceof DitcastError);
    assert.equal(error.code, Code.InvalidArgument);
    assert.deepEqual(error.fieldViolations.map(({ field }) => field).sort(), ["prompt", "width"]);
    return true;
  });
});

test("a full queue says after how long to come back", async () => {
  const taken: Generation[] = [];
  try {
    await assert.rejects(
      async () => {
        for (;;) {
          const generation = client.generate({ ...SMALL, numInferenceSteps: 1000 });
          for await (const { kind } of generation) {
            if (kind.case === "queued") break; // It keeps its place without a reader.
          }
          taken.push(generation);
        }
      },
      (error: unknown) => {
        assert(error instanceof DitcastError);
        assert.equal(error.code, Code.ResourceExhausted);
        assert(error.retryDelayMs !== undefined && error.retryDelayMs > 0);
        return !error.transportBroken;
      },
    );
  } finally {
    await Promise.all(taken.map((generation) => generation.cancel()));
  }
  assert(taken.length > 0);
});

test("a cancel ends the stream with the steps that were done", async () => {
  const generation = client.generate(LONG);
  const ended = generation.result(({ kind }) => {
    if (kind.case === "stepCompleted" && kind.value.step === 2) void generation.cancel();
  });
  await assert.rejects(ended, (error: unknown) => {
    assert(error instanceof DitcastError);
    assert.equal(error.code, Code.Canceled);
    assert(Number(error.metadata["steps_done"]) >= 2);
    return true;
  });
  assert.equal(await generation.cancel(), GenerationState.CANCELLED);
});

test("leaving the loop leaves the server", async () => {
  const generation = client.generate({ ...LONG, reattachWindow: { seconds: 0n } });
  for await (const { kind } of generation) {
    if (kind.case === "stepCompleted") break;
  }
  let state: GenerationState | undefined;
  do {
    const { generations } = await client.service.listGenerations({});
    state = generations.find(({ requestId }) => requestId === generation.requestId)?.state;
  } while (state === GenerationState.RUNNING);
  assert.equal(state, GenerationState.CANCELLED);
});

test("a broken connection costs no event and repeats none", async () => {
  const between = await proxy();
  try {
    const other = new DitcastClient(createGrpcTransport({ baseUrl: between.url }));
    const sequences: bigint[] = [];
    const generation = other.generate({ ...SMALL, numInferenceSteps: 30 });
    await generation.result(({ kind, sequence }) => {
      if (kind.case !== "heartbeat") sequences.push(sequence);
      if (kind.case === "stepCompleted" && [3, 9].includes(kind.value.step)) between.cut();
    });
    assert.deepEqual(sequences, sequences.map((_, index) => BigInt(index + 1)));
    const seen = await client.watch(generation.requestId, sequences.at(-2) ?? 0n).result().catch(String);
    assert.match(String(seen), /not whole/, "an output from its middle on is no output");
    const { outputs } = await client.watch(generation.requestId).result();
    assert.equal(outputs.length, 1);
  } finally {
    between.close();
  }
});

test("a server that stays away is told as such, after the patience is over", async () => {
  const patience = { limitMs: 300, firstDelayMs: 50, maxDelayMs: 100 };
  const nobody = new DitcastClient(createGrpcTransport({ baseUrl: "http://127.0.0.1:1" }), patience);
  await assert.rejects(nobody.generate(SMALL).result(), (error: unknown) => {
    assert(error instanceof DitcastError);
    return error.transportBroken;
  });
});
