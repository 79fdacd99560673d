/** The form: fields for what the loaded pipeline takes, and the request that they make. */

import { create, type JsonObject } from "@bufbuild/protobuf";
import {
  CacheConfigSchema,
  type Capabilities,
  type Configuration,
  type FieldViolation,
  type GenerateRequest,
  GenerateRequestSchema,
  type Parameter,
  ParameterType,
  ProgressOptionsSchema,
  type ResolvedParameters,
} from "@ditcast/client";

import { find, make } from "./page.js";

const form = find("#request", HTMLFormElement);
const PREVIEWS = "progress.preview_every_n_steps";
const KWARGS = "pipeline_kwargs.";
const MAX_INT32 = 2 ** 31 - 1;
const MAX_SEED = 2n ** 64n - 1n;

/** Fields of the request that the page offers where the pipeline takes them: those on top first. */
const OFFERED = {
  negative_prompt: { label: "Negative prompt", key: "negativePrompt", place: "#parameters" },
  width: { label: "Width", key: "width", place: "#parameters" },
  height: { label: "Height", key: "height", place: "#parameters" },
  num_frames: { label: "Frames", key: "numFrames", place: "#parameters" },
  fps: { label: "Frames a second", key: "fps", place: "#parameters" },
  num_inference_steps: { label: "Steps", key: "numInferenceSteps", place: "#parameters" },
  num_images: { label: "How many", key: "numImages", place: "#more" },
  guidance_scale: { label: "Guidance scale", key: "guidanceScale", place: "#more" },
  true_cfg_scale: { label: "True CFG scale", key: "trueCfgScale", place: "#more" },
} as const;

/** Types of the pipeline's own arguments that a field can hold. */
const SIMPLE = [ParameterType.BOOLEAN, ParameterType.INTEGER, ParameterType.NUMBER, ParameterType.STRING];

type Input = HTMLInputElement | HTMLTextAreaElement | HTMLSelectElement;

let taken = new Map<string, Parameter>();

/** Lay out the fields for a pipeline, with its own defaults and bounds. */
export function layOut({ parameters, limits, previewsSupported }: Capabilities, { defaults }: Configuration): void {
  taken = new Map(parameters.map((parameter) => [fieldName(parameter), parameter]));
  for (const [name, { label, key, place }] of Object.entries(OFFERED)) {
    const parameter = taken.get(name);
    if (parameter === undefined) continue;
    const value = (defaults as Record<string, unknown> | undefined)?.[key] ?? plain(parameter);
    add(place, label, name, parameter, value);
  }
  for (const [name, parameter] of taken) {
    if (!parameter.inPipelineKwargs || !SIMPLE.includes(parameter.type)) continue;
    add("#more", titled(parameter.name), name, parameter, plain(parameter));
  }
  const seed = make("input", { name: "seed", inputmode: "numeric", placeholder: "drawn", autocomplete: "off" });
  find("#parameters", HTMLElement).append(make("label", {}, "Seed", seed));
  for (const side of ["width", "height"]) field(side)?.setAttribute("step", String(limits?.sizeMultiple || 1));
  find("#previews", HTMLElement).hidden = !previewsSupported;
}

function titled(name: string): string {
  return name.charAt(0).toUpperCase() + name.slice(1).replaceAll("_", " ");
}

function fieldName({ name, inPipelineKwargs }: Parameter): string {
  return inPipelineKwargs ? KWARGS + name : name;
}

/** The default where it is one that a field can hold. */
function plain({ default: value }: Parameter): unknown {
  const kind = value?.kind;
  return kind?.case === "numberValue" || kind?.case === "stringValue" || kind?.case === "boolValue" ? kind.value : undefined;
}

function add(place: string, label: string, name: string, parameter: Parameter, value: unknown): void {
  const input = made(name, parameter);
  const text = String(value ?? "");
  // Of what is rarely set the default is told and not sent: it may mean nothing with the rest of a request.
  if (place === "#more") input.setAttribute("placeholder", text);
  else input.value = text;
  const attributes: Record<string, string> = { ...(name === "negative_prompt" && { class: "full" }) };
  if (parameter.description) attributes["title"] = parameter.description;
  find(place, HTMLElement).append(make("label", attributes, label, input));
}

function made(name: string, { type, minimum, maximum }: Parameter): Input {
  if (type === ParameterType.BOOLEAN) {
    return make("select", { name }, ...["", "true", "false"].map((value) => make("option", { value }, value || "unset")));
  }
  if (type !== ParameterType.INTEGER && type !== ParameterType.NUMBER) return make("input", { name });
  const input = make("input", { name, type: "number", step: type === ParameterType.INTEGER ? "1" : "any" });
  if (minimum !== undefined) input.min = String(minimum);
  if (maximum !== undefined) input.max = String(maximum);
  return input;
}

function field(name: string): Input | undefined {
  const found = form.elements.namedItem(name);
  const kinds = [HTMLInputElement, HTMLTextAreaElement, HTMLSelectElement];
  return kinds.some((kind) => found instanceof kind) ? (found as Input) : undefined;
}

/** Make the request of what is filled in; what is empty stays unset. What cannot be sent at all is said. */
export function request(): { request: GenerateRequest; violations: FieldViolation[] } {
  const violations: FieldViolation[] = [];
  const made = create(GenerateRequestSchema, { prompt: field("prompt")?.value ?? "" });
  const kwargs: JsonObject = {};
  for (const [name, parameter] of taken) {
    const offered = OFFERED[name as keyof typeof OFFERED];
    const text = field(name)?.value ?? "";
    if (text === "" || (offered === undefined && !parameter.inPipelineKwargs)) continue;
    const value = read(text, parameter.type);
    if (value === undefined) violations.push({ field: name, description: `a whole number up to ${MAX_INT32} is wanted` });
    else if (offered) Object.assign(made, { [offered.key]: value });
    else kwargs[parameter.name] = value;
  }
  if (Object.keys(kwargs).length > 0) made.pipelineKwargs = kwargs;
  const seed = field("seed")?.value.trim() ?? "";
  if (/^\d{1,20}$/.test(seed) && BigInt(seed) <= MAX_SEED) made.seed = BigInt(seed);
  else if (seed !== "") violations.push({ field: "seed", description: `a whole number from 0 to ${MAX_SEED} is wanted` });
  if (field("cache")?.value === "disabled") {
    made.cache = create(CacheConfigSchema, { method: { case: "disabled", value: {} } });
  }
  if (!find("#previews", HTMLElement).hidden) {
    made.progress = create(ProgressOptionsSchema, { previewEveryNSteps: Math.trunc(Number(field(PREVIEWS)?.value ?? 0)) });
  }
  return { request: made, violations };
}

function read(text: string, type: ParameterType): string | number | boolean | undefined {
  if (type === ParameterType.BOOLEAN) return text === "true";
  if (type === ParameterType.NUMBER) return Number(text);
  if (type !== ParameterType.INTEGER) return text;
  const value = Number(text);
  return Number.isInteger(value) && Math.abs(value) <= MAX_INT32 ? value : undefined;
}

/** Fill in what a generation was made of; its seed is left to be drawn anew. */
export function fill(parameters: ResolvedParameters): void {
  const prompt = field("prompt");
  if (prompt) prompt.value = parameters.prompt;
  for (const [name, { key }] of Object.entries(OFFERED)) {
    const input = field(name);
    const text = String(parameters[key] ?? "");
    if (input) input.value = text === input.getAttribute("placeholder") ? "" : text;
  }
}

/** Say at each field what is wrong with it, and give what belongs to none. */
export function mark(violations: readonly FieldViolation[]): FieldViolation[] {
  form.querySelectorAll("label .why").forEach((each) => each.remove());
  for (const each of form.querySelectorAll("[aria-invalid]")) {
    each.removeAttribute("aria-invalid");
    each.removeAttribute("aria-describedby");
  }
  const rest = violations.filter((violation) => !markOne(violation));
  form.querySelector<HTMLElement>("[aria-invalid]")?.focus();
  return rest;
}

function markOne({ field: name, description }: FieldViolation): boolean {
  const input = field(name);
  if (input === undefined) return false;
  const id = `why-${name}`;
  const more = input.closest("details");
  if (more) more.open = true;
  input.setAttribute("aria-invalid", "true");
  input.setAttribute("aria-describedby", id);
  input.after(make("span", { class: "why", id }, description));
  return true;
}
