/** The pictures and videos of one generation: previews, and what came of them. */

import type { Output, Preview } from "@ditcast/client";

import { find, make } from "./page.js";

const frame = find("#outputs", HTMLElement);
/** What is shown now, by the place of its output. */
const urls = new Map<number, string>();

/** Shows the outputs of one generation, in their order. */
export class Outputs {
  /** Take the frame over from the generation before. */
  constructor() {
    urls.forEach((url) => URL.revokeObjectURL(url));
    urls.clear();
    frame.replaceChildren(make("p", { class: "soft" }, "No picture yet."));
  }

  /** Show a preview in the place of its output. */
  preview({ outputIndex, step, data, mediaType }: Preview): void {
    // Its bytes are not kept once a newer one is there, which comes later in the log.
    if (data.length === 0) return;
    const src = shownAt(outputIndex, data.slice(), mediaType);
    this.#place(outputIndex, make("figure", {}, make("img", { src, alt: `Preview after step ${step}`, class: "preview" })));
  }

  /** Show an output, and let it be saved. */
  finish(index: number, { data, mediaType }: Output, name: string): void {
    const src = shownAt(index, data, mediaType);
    const [kind, form = ""] = mediaType.split("/");
    const shown: HTMLElement[] = [];
    if (kind === "image") shown.push(make("img", { src, alt: "What was generated" }));
    if (kind === "video") shown.push(make("video", { src, controls: "", loop: "" }));
    const save = make("a", { href: src, download: `${name}-${index}.${form}` }, `Save the ${form.toUpperCase()}`);
    this.#place(index, make("figure", {}, ...shown, make("figcaption", {}, save)));
  }

  #place(index: number, figure: HTMLElement): void {
    frame.querySelector(":scope > p")?.remove();
    // Those of a batch come one by one: a later one may be the first with a preview.
    while (frame.children.length <= index) frame.append(make("figure"));
    frame.children[index]?.replaceWith(figure);
  }
}

function shownAt(index: number, data: Uint8Array<ArrayBuffer>, type: string): string {
  URL.revokeObjectURL(urls.get(index) ?? "");
  const url = URL.createObjectURL(new Blob([data], { type }));
  urls.set(index, url);
  return url;
}
