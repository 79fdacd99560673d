/** What a call that did not succeed says: the status, and the google.rpc details that came with it. */

import { durationMs } from "@bufbuild/protobuf/wkt";
import { Code, ConnectError } from "@connectrpc/connect";

import {
  BadRequestSchema,
  ErrorInfoSchema,
  PreconditionFailureSchema,
  RetryInfoSchema,
} from "../gen/google/rpc/error_details_pb.js";

/** Domain of the ErrorInfo in every status that is the server's own. */
const DOMAIN = "ditcast";

/** A field that was refused: its path from the request in snake case, and why. */
export interface FieldViolation {
  readonly field: string;
  readonly description: string;
}

/** A call or a generation that did not succeed. */
export class DitcastError extends Error {
  override readonly name = "DitcastError";

  constructor(
    /** The gRPC status code. */
    readonly code: Code,
    message: string,
    /** Why, in UPPER_SNAKE; empty where the status is not the server's own. */
    readonly reason: string = "",
    /** Every field that was refused; empty where the status does not say. */
    readonly fieldViolations: readonly FieldViolation[] = [],
    /** After how long to try again; undefined: trying again does not help. */
    readonly retryDelayMs?: number,
    /** What the server says beside it, such as `steps_done` or `error_id`. */
    readonly metadata: Readonly<Record<string, string>> = {},
    options?: ErrorOptions,
  ) {
    super(`${Code[code]}${reason && ` (${reason})`}: ${message}`, options);
  }

  /** Read a status with its details. */
  static from(error: unknown): DitcastError {
    if (error instanceof DitcastError) return error;
    const status = ConnectError.from(error);
    const info = status.findDetails(ErrorInfoSchema).find((each) => each.domain === DOMAIN);
    const fields = status.findDetails(BadRequestSchema).flatMap((each) => each.fieldViolations);
    const failed = status.findDetails(PreconditionFailureSchema).flatMap((each) => each.violations);
    const [retry] = status.findDetails(RetryInfoSchema);
    return new DitcastError(
      status.code,
      status.rawMessage,
      info?.reason,
      [
        ...fields.map(({ field, description }) => ({ field, description })),
        ...failed.map(({ subject, description }) => ({ field: subject, description })),
      ],
      retry?.retryDelay && durationMs(retry.retryDelay),
      info?.metadata,
      { cause: error },
    );
  }

  /**
   * Whether the transport broke, and nothing is known of the generation: a proxy whose server died
   * says INTERNAL or UNKNOWN, Connect's ABORTED of a reset connection; and only the server's own
   * statuses have an ErrorInfo.
   */
  get transportBroken(): boolean {
    const broken = [Code.Unavailable, Code.Internal, Code.Unknown, Code.Aborted];
    return this.reason === "" && broken.includes(this.code);
  }
}
