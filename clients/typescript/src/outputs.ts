/** Outputs, put together from chunks and checked against the receipt. */

import { Code } from "@connectrpc/connect";

import type { OutputChunk, OutputDigest } from "../gen/ditcast/v1/generation_pb.js";
import { DitcastError } from "./errors.js";

/** A picture, a video or latents, whole. */
export interface Output {
  readonly mediaType: string;
  readonly data: Uint8Array<ArrayBuffer>;
}

/** Takes the chunks of one generation. */
export class OutputAssembly {
  readonly #parts = new Map<number, { mediaType: string; data: Uint8Array<ArrayBuffer>; end: number }>();

  /** Take one chunk; those of one output come in order. */
  add(chunk: OutputChunk): void {
    const { outputIndex, mediaType, data, offset, totalBytes } = chunk;
    if (offset === 0n) {
      this.#parts.set(outputIndex, { mediaType, data: new Uint8Array(Number(totalBytes)), end: 0 });
    }
    const part = this.#parts.get(outputIndex);
    if (part?.end !== Number(offset) || part.end + data.length > part.data.length) {
      throw lost(`a chunk of output ${outputIndex} at ${offset} does not fit`);
    }
    part.data.set(data, part.end);
    part.end += data.length;
  }

  /** Forget everything: the generation begins again, and what came is void. */
  clear(): void {
    this.#parts.clear();
  }

  /** Give the outputs, each checked against its SHA-256 in the receipt. */
  async finish(digests: readonly OutputDigest[]): Promise<Output[]> {
    return Promise.all(digests.map((digest) => this.#check(digest)));
  }

  async #check({ outputIndex, sha256 }: OutputDigest): Promise<Output> {
    const part = this.#parts.get(outputIndex);
    if (part === undefined || part.end !== part.data.length) {
      throw lost(`output ${outputIndex} is not whole`);
    }
    const found = new Uint8Array(await crypto.subtle.digest("SHA-256", part.data));
    if (found.length !== sha256.length || found.some((byte, index) => byte !== sha256[index])) {
      throw lost(`output ${outputIndex} is not what its receipt says`);
    }
    return { mediaType: part.mediaType, data: part.data };
  }
}

function lost(message: string): DitcastError {
  return new DitcastError(Code.DataLoss, message);
}
