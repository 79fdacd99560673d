/** What is not whole, or not what its receipt says, is never handed out. */

import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { test } from "node:test";

import { create } from "@bufbuild/protobuf";
import { Code } from "@connectrpc/connect";

import { DitcastError, OutputChunkSchema, OutputDigestSchema } from "../src/index.js";
import { OutputAssembly } from "../src/outputs.js";

const PICTURE = new TextEncoder().encode("a picture");

/** Give `data` from an offset on, as a chunk of a picture. */
function chunk(data: Uint8Array, offset: number, end = data.length) {
  const part = data.slice(offset, end);
  return create(OutputChunkSchema, { totalBytes: BigInt(data.length), offset: BigInt(offset), data: part });
}

/** Give what a receipt says of an output. */
function digest(data: Uint8Array) {
  const sha256 = createHash("sha256").update(data).digest();
  return create(OutputDigestSchema, { sizeBytes: BigInt(data.length), sha256 });
}

function isDataLoss(error: unknown): boolean {
  return error instanceof DitcastError && error.code === Code.DataLoss;
}

test("chunks in their order make the output", async () => {
  const assembly = new OutputAssembly();
  assembly.add(chunk(PICTURE, 0, 4));
  assembly.add(chunk(PICTURE, 4));
  const [output] = await assembly.finish([digest(PICTURE)]);
  assert.deepEqual(output?.data, PICTURE);
});

test("other bytes than the receipt's are refused", async () => {
  const assembly = new OutputAssembly();
  assembly.add(chunk(PICTURE.toReversed(), 0));
  await assert.rejects(assembly.finish([digest(PICTURE)]), isDataLoss);
});

test("an output that lacks its end is refused", async () => {
  const assembly = new OutputAssembly();
  assembly.add(chunk(PICTURE, 0, 4));
  await assert.rejects(assembly.finish([digest(PICTURE)]), isDataLoss);
});

test("a chunk with a gap before it is refused", () => {
  const assembly = new OutputAssembly();
  assembly.add(chunk(PICTURE, 0, 4));
  assert.throws(() => assembly.add(chunk(PICTURE, 5)), isDataLoss);
});

test("what came before a restart is void", async () => {
  const assembly = new OutputAssembly();
  assembly.add(chunk(PICTURE, 0));
  assembly.clear();
  await assert.rejects(assembly.finish([digest(PICTURE)]), isDataLoss);
});
