/** The form: fields for what the loaded pipeline takes, and the request that they make. */

import { create } from "@bufbuild/protobuf";
import {
  CacheConfigSchema,
  type Capabilities,
  type Configuration,
  type FieldViolation,
  type GenerateRequest,
  GenerateRequestSchema,
  ProgressOptionsSchema,
} from "@ditcast/client";

import { find, make } from "./page.js";

const form = find("#request", HTMLFormElement);

/** Fields of the request that the page offers, in its words, where the pipeline takes them. */
const OFFERED = {
  negative_prompt: { label: "Negative prompt", key: "negativePrompt" },
  width: { label: "Width", key: "width" },
  height: { label: "Height", key: "height" },
  num_inference_steps: { label: "Steps", key: "numInferenceSteps" },
  guidance_scale: { label: "Guidance scale", key: "guidanceScale" },
  true_cfg_scale: { label: "True CFG scale", key: "trueCfgScale" },
  num_frames: { label: "Frames", key: "numFrames" },
} as const;

type Name = keyof typeof OFFERED;

/** Lay out the fields for a pipeline, with its own defaults and bounds. */
export function layOut(capabilities: Capabilities, configuration: Configuration): void {
  const defaults = configuration.defaults as Record<string, unknown> | undefined;
  const parts = capabilities.parameters.flatMap((parameter) => {
    const offered = OFFERED[parameter.name as Name];
    if (offered === undefined) return [];
    const own = parameter.default?.kind;
    const value = defaults?.[offered.key] ?? (own?.case === "nullValue" ? undefined : own?.value);
    return [parameter.name === "negative_prompt" ? text(parameter.name) : number(parameter.name as Name, value)];
  });
  const { sizeMultiple = 8 } = capabilities.limits ?? {};
  find("#parameters", HTMLElement).replaceChildren(
    ...parts,
    make("label", {}, "Seed", make("input", { name: "seed", inputmode: "numeric", placeholder: "drawn by the server" })),
  );
  for (const side of ["width", "height"]) field(side)?.setAttribute("step", String(sizeMultiple));
  find("#previews", HTMLElement).hidden = !capabilities.previewsSupported;
}

function text(name: string): HTMLElement {
  return make("label", { class: "full" }, OFFERED.negative_prompt.label, make("input", { name }));
}

function number(name: Name, value: unknown): HTMLElement {
  const scale = name.endsWith("scale");
  const input = make("input", { name, type: "number", step: scale ? "0.1" : "1", min: scale ? "0" : "1" });
  if (typeof value === "number") input.value = String(value);
  return make("label", {}, OFFERED[name].label, input);
}

function field(name: string): HTMLInputElement | HTMLTextAreaElement | undefined {
  const found = form.elements.namedItem(name);
  return found instanceof HTMLInputElement || found instanceof HTMLTextAreaElement ? found : undefined;
}

/** Make the request of what is filled in; what is empty stays unset. */
export function request(): GenerateRequest {
  const made = create(GenerateRequestSchema, { prompt: field("prompt")?.value ?? "" });
  for (const [name, { key }] of Object.entries(OFFERED)) {
    const value = field(name)?.value ?? "";
    if (value === "") continue;
    Object.assign(made, { [key]: name === "negative_prompt" ? value : Number(value) });
  }
  const seed = field("seed")?.value.trim() ?? "";
  if (/^\d+$/.test(seed)) made.seed = BigInt(seed);
  const cache = form.elements.namedItem("cache");
  if (cache instanceof HTMLSelectElement && cache.value === "disabled") {
    made.cache = create(CacheConfigSchema, { method: { case: "disabled", value: {} } });
  }
  if (!find("#previews", HTMLElement).hidden) {
    made.progress = create(ProgressOptionsSchema, { previewEveryNSteps: Number(field("previews")?.value ?? 0) });
  }
  return made;
}

/** Say at each field what is wrong with it, and give what belongs to none. */
export function mark(violations: readonly FieldViolation[]): FieldViolation[] {
  form.querySelectorAll(".why").forEach((each) => each.remove());
  form.querySelectorAll("[aria-invalid]").forEach((each) => each.removeAttribute("aria-invalid"));
  const rest = violations.filter((violation) => !markOne(violation));
  form.querySelector<HTMLElement>("[aria-invalid]")?.focus();
  return rest;
}

function markOne({ field: name, description }: FieldViolation): boolean {
  const input = field(name);
  if (input === undefined) return false;
  const id = `why-${name}`;
  input.setAttribute("aria-invalid", "true");
  input.setAttribute("aria-describedby", id);
  input.after(make("span", { class: "why", id }, description));
  return true;
}
