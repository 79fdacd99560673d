/** What is shown of one generation: the strip of steps, the plot, the picture, the receipt. */

import { toJsonString } from "@bufbuild/protobuf";
import { durationMs } from "@bufbuild/protobuf/wkt";
import {
  CacheDecision,
  type Completed,
  type GenerationEvent,
  type Output,
  ReceiptSchema,
  type StepCompleted,
} from "@ditcast/client";

import { find, make, spoken } from "./page.js";

const strip = find("#strip", HTMLElement);
const status = find("#status", HTMLElement);
const caption = find("#caption", HTMLElement);
const picture = find("#picture", HTMLImageElement);
const video = find("#video", HTMLVideoElement);
const plot = find("#plot", HTMLElement);
const lines = find("#plot svg", SVGElement);
const receipt = find("#receipt", HTMLDetailsElement);

const PLOT = { width: 600, height: 140 };

/** Shows one generation; a new one takes the page over. */
export class View {
  #steps: StepCompleted[] = [];
  #total = 0;
  #url = "";

  /** @param threshold Of the cache in force; undefined: nothing is cached. */
  constructor(private readonly threshold: number | undefined) {
    strip.replaceChildren();
    lines.replaceChildren();
    for (const each of [plot, receipt, video]) each.hidden = true;
    status.textContent = "Sent.";
  }

  /** Show an event. */
  show({ kind }: GenerationEvent): void {
    switch (kind.case) {
      case "queued": {
        const wait = kind.value.estimatedWait && ` about ${spoken(durationMs(kind.value.estimatedWait) / 1000)}`;
        status.textContent = kind.value.position === 0 ? "Next in the queue." : `${kind.value.position} before it${wait ? `,${wait}` : ""}.`;
        break;
      }
      case "started":
        this.#begin(kind.value.parameters?.numInferenceSteps ?? 0);
        caption.textContent = `Seed ${kind.value.parameters?.seed}, revision ${kind.value.configurationRevision}.`;
        break;
      case "stepCompleted":
        this.#step(kind.value);
        break;
      case "preview":
        this.#picture(new Blob([kind.value.data.slice()], { type: kind.value.mediaType }), `step ${kind.value.step}`, true);
        break;
      case "restarted":
        status.textContent = `Begins again: ${kind.value.reason}`;
        this.#begin(this.#total);
        break;
      case "warning":
        status.textContent = kind.value.message;
        break;
    }
  }

  /** Show what came of it. */
  finish(outputs: readonly Output[], completed: Completed): void {
    const [output] = outputs;
    if (output !== undefined) this.#output(output);
    const cached = completed.cache?.cachedSteps.length ?? 0;
    const total = completed.timings?.total ? spoken(durationMs(completed.timings.total) / 1000) : "";
    status.textContent = `Done in ${total}: ${this.#total - cached} steps computed, ${cached} cached.`;
    if (completed.receipt) {
      find("#receipt pre", HTMLElement).textContent = toJsonString(ReceiptSchema, completed.receipt, { prettySpaces: 2 });
      receipt.hidden = false;
    }
  }

  /** Say how it ended without a result. */
  fail(message: string): void {
    status.textContent = message;
  }

  #begin(total: number): void {
    this.#steps = [];
    this.#total = total;
    strip.replaceChildren(...Array.from({ length: total }, () => make("span")));
    strip.setAttribute("aria-valuemax", String(total));
    strip.setAttribute("aria-valuenow", "0");
  }

  #step(step: StepCompleted): void {
    if (this.#total !== step.totalSteps) this.#begin(step.totalSteps);
    this.#steps.push(step);
    const computed = step.cacheDecision === CacheDecision.COMPUTED;
    const mark = strip.children[step.step - 1];
    mark?.setAttribute("class", computed ? "computed" : "cached");
    mark?.setAttribute("title", `step ${step.step}: ${computed ? "computed" : "cached"}`);
    strip.setAttribute("aria-valuenow", String(step.step));
    const left = step.estimatedRemaining ? `, ${spoken(durationMs(step.estimatedRemaining) / 1000)} left` : "";
    status.textContent = `Step ${step.step} of ${step.totalSteps}${left}.`;
    this.#plot();
  }

  #plot(): void {
    const known = this.#steps.filter(({ residualDiff }) => residualDiff !== undefined);
    plot.hidden = known.length === 0;
    if (plot.hidden) return;
    const most = Math.max(this.threshold ?? 0, ...known.map(({ residualDiff = 0 }) => residualDiff)) * 1.1 || 1;
    const x = (step: number): number => ((step - 0.5) / Math.max(1, this.#total)) * PLOT.width;
    const y = (value: number): number => PLOT.height - (value / most) * PLOT.height;
    const points = known.map(({ step, residualDiff = 0 }) => `${x(step).toFixed(1)},${y(residualDiff).toFixed(1)}`);
    const level = this.threshold === undefined ? [] : [svg("line", { x1: 0, x2: PLOT.width, y1: y(this.threshold), y2: y(this.threshold) })];
    lines.replaceChildren(...level, svg("polyline", { points: points.join(" ") }));
  }

  #output({ data, mediaType }: Output): void {
    const blob = new Blob([data], { type: mediaType });
    if (mediaType.startsWith("image/")) {
      this.#picture(blob, "the picture", false);
    } else if (mediaType.startsWith("video/")) {
      picture.hidden = true;
      video.hidden = false;
      video.src = this.#shown(blob);
    }
  }

  #picture(blob: Blob, what: string, preview: boolean): void {
    picture.src = this.#shown(blob);
    picture.alt = preview ? `Preview after ${what}` : "What was generated";
    picture.className = preview ? "preview" : "";
    picture.hidden = false;
  }

  #shown(blob: Blob): string {
    URL.revokeObjectURL(this.#url);
    this.#url = URL.createObjectURL(blob);
    return this.#url;
  }
}

function svg(name: string, attributes: Record<string, string | number>): SVGElement {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, String(value));
  return made;
}
