/** What is said and shown of one generation, event by event. */

import { toJsonString } from "@bufbuild/protobuf";
import { type Duration, durationMs } from "@bufbuild/protobuf/wkt";
import {
  type Completed,
  type DitcastError,
  type GenerationEvent,
  type Queued,
  type Receipt,
  ReceiptSchema,
  type Result,
  type Started,
  type StepCompleted,
} from "@ditcast/client";

import { Outputs } from "./outputs.js";
import { find, make, said, spoken } from "./page.js";
import { Steps } from "./steps.js";

const status = find("#status", HTMLElement);
const announcement = find("#announcement", HTMLElement);
const caption = find("#caption", HTMLElement);
const receipt = find("#receipt", HTMLDetailsElement);

/** Stages that took less go unsaid. */
const WORTH_SAYING_MS = 50;

/** Shows one generation; a new one takes the page over. */
export class View {
  readonly #outputs = new Outputs();
  #steps = new Steps(0, undefined);
  #started: Started | undefined;

  constructor(private readonly name: string) {
    receipt.hidden = true;
    caption.textContent = "";
    this.#say("Sent.");
  }

  /** Show an event. */
  show({ kind }: GenerationEvent): void {
    switch (kind.case) {
      case "queued":
        this.#queued(kind.value);
        break;
      case "started":
        this.#started = kind.value;
        caption.prepend(`Seed ${kind.value.parameters?.seed}, configuration ${kind.value.configurationRevision}.`);
        this.#begin("Begins.");
        break;
      case "stepCompleted":
        this.#step(kind.value);
        break;
      case "preview":
        this.#outputs.preview(kind.value);
        break;
      case "restarted":
        this.#begin(`Begins again: ${kind.value.reason}`);
        break;
      case "warning":
        caption.append(make("br"), kind.value.message);
        break;
    }
  }

  /** Show what came of it. */
  finish({ outputs, completed }: Result): void {
    outputs.forEach((output, index) => this.#outputs.finish(index, output, this.name));
    this.#say(`Done in ${seconds(completed.timings?.total)}: ${stages(completed)}.`);
    if (completed.receipt) this.#receipt(completed.receipt);
  }

  /** Say how it ended without a result. */
  fail(error: DitcastError): void {
    this.#say(error.fieldViolations.length > 0 ? "Not accepted: see the fields." : said(error));
  }

  #queued({ position, estimatedWait }: Queued): void {
    const wait = estimatedWait ? `, about ${seconds(estimatedWait)}` : "";
    this.#say(position === 0 ? `Next in the queue${wait}.` : `In the queue, ${position} before it${wait}.`);
  }

  #begin(why: string): void {
    const { numInferenceSteps = 0, cache } = this.#started?.parameters ?? {};
    this.#steps = new Steps(numInferenceSteps, cache);
    this.#say(why);
  }

  #step(step: StepCompleted): void {
    const { step: done, totalSteps: total } = step;
    if (this.#steps.total !== total) this.#steps = new Steps(total, this.#started?.parameters?.cache);
    this.#steps.add(step);
    const left = step.estimatedRemaining ? `, ${seconds(step.estimatedRemaining)} left` : "";
    status.textContent = done < total ? `Step ${done} of ${total}${left}.` : "All steps are done; what they made is decoded.";
    // Each step would drown whoever listens: a quarter is worth a word.
    if (Math.floor((done * 4) / total) > Math.floor(((done - 1) * 4) / total)) announcement.textContent = `Step ${done} of ${total}`;
  }

  #receipt(made: Receipt): void {
    const text = toJsonString(ReceiptSchema, made, { prettySpaces: 2 });
    find("pre", HTMLElement, receipt).textContent = text;
    const save = find("a", HTMLAnchorElement, receipt);
    URL.revokeObjectURL(save.href);
    save.href = URL.createObjectURL(new Blob([text], { type: "application/json" }));
    receipt.hidden = false;
  }

  #say(words: string): void {
    status.textContent = announcement.textContent = words;
  }
}

function seconds(duration: Duration | undefined): string {
  return duration ? spoken(durationMs(duration) / 1000) : "a while";
}

function stages({ timings }: Completed): string {
  const { queued, load, prepare, denoise, decode, encode } = timings ?? {};
  const all = { "in the queue": queued, loading: load, preparing: prepare, steps: denoise, decoding: decode, encoding: encode };
  return Object.entries(all)
    .filter(([, spent]) => spent && durationMs(spent) >= WORTH_SAYING_MS)
    .map(([name, spent]) => `${name} ${seconds(spent)}`)
    .join(", ");
}
