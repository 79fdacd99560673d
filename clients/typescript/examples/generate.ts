/** Generate a picture with a line of progress: `npm run example -- http://127.0.0.1:50051 "a red circle" out.png`. */

import { writeFile } from "node:fs/promises";

import { createGrpcTransport, createGrpcWebTransport } from "@connectrpc/connect-node";

import { CacheDecision, DitcastClient, DitcastError, type GenerationEvent } from "../src/index.js";

const [baseUrl = "http://127.0.0.1:50051", prompt = "a red circle", file = "out.png", web] = process.argv.slice(2);

/** Show a computed step as a block, one that the cache spared as a dot. */
function show({ kind }: GenerationEvent): void {
  if (kind.case === "stepCompleted") {
    process.stderr.write(kind.value.cacheDecision === CacheDecision.COMPUTED ? "█" : "·");
  } else if (kind.case === "completed") {
    process.stderr.write("\n");
  } else if (kind.case === "restarted") {
    process.stderr.write(`\nbegins again: ${kind.value.reason}\n`);
  }
}

// `web` as the fourth argument: gRPC-Web, through a proxy that translates, as a browser does.
const transport =
  web === undefined ? createGrpcTransport({ baseUrl }) : createGrpcWebTransport({ baseUrl, httpVersion: "1.1" });
const generation = new DitcastClient(transport).generate({ prompt, seed: 42n });
process.once("SIGINT", () => void generation.cancel());
try {
  const { outputs, completed } = await generation.result(show);
  await writeFile(file, outputs[0]!.data);
  const cached = completed.cache?.cachedSteps.length ?? 0;
  console.log(`${file}: ${outputs[0]!.mediaType}, seed ${completed.receipt?.parameters?.seed}, ${cached} steps cached`);
} catch (error) {
  const refused = DitcastError.from(error);
  console.error(refused.message);
  for (const { field, description } of refused.fieldViolations) console.error(`  ${field}: ${description}`);
  process.exitCode = 1;
}
