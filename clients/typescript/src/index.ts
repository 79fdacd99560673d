/** The client of ditcast, and the contract's messages. */

export * from "../gen/ditcast/v1/acceleration_pb.js";
export * from "../gen/ditcast/v1/capabilities_pb.js";
export * from "../gen/ditcast/v1/diffusion_service_pb.js";
export * from "../gen/ditcast/v1/generation_pb.js";
export * from "../gen/ditcast/v1/tuning_pb.js";
export { DitcastClient } from "./client.js";
export { DitcastError, type FieldViolation } from "./errors.js";
export { Generation, type Patience, type Result } from "./generation.js";
export type { Output } from "./outputs.js";
