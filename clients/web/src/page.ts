/** The elements of the page, found once, each of the kind that is expected; and how things are said. */

import { DitcastError } from "@ditcast/client";

type Kind<T extends Element> = new (...of: never[]) => T;

/** Give the element that a selector names. */
export function find<T extends Element>(selector: string, kind: Kind<T>, within: ParentNode = document): T {
  const found = within.querySelector(selector);
  if (!(found instanceof kind)) throw new Error(`the page has no ${selector}`);
  return found;
}

/** Make an element with attributes and content. */
export function make<K extends keyof HTMLElementTagNameMap>(
  name: K,
  attributes: Record<string, string> = {},
  ...content: (Node | string)[]
): HTMLElementTagNameMap[K] {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...content);
  return made;
}

/** Switch a button: one that is off keeps the focus, which `disabled` would lose. */
export function enable(button: HTMLButtonElement, on: boolean): void {
  button.setAttribute("aria-disabled", String(!on));
}

/** Whether a button is switched on. */
export function enabled(button: HTMLButtonElement): boolean {
  return button.getAttribute("aria-disabled") !== "true";
}

/** Give seconds as people say them. */
export function spoken(seconds: number): string {
  return seconds < 90 ? `${seconds.toFixed(seconds < 10 ? 1 : 0)} s` : `${Math.round(seconds / 60)} min`;
}

/** Give what a status says in its own words, without its code. */
export function said(error: DitcastError): string {
  const { cause } = error;
  return cause instanceof Error && "rawMessage" in cause ? String(cause.rawMessage) : error.message;
}
