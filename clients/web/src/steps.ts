/** The steps of one generation: a strip of segments by what the cache did, and their differences as bars above it. */

import { CacheDecision, type CacheConfig, type StepCompleted } from "@ditcast/client";

import { find, make } from "./page.js";

const whole = find("#steps", HTMLElement);
const strip = find("#strip", HTMLElement);
const plot = find("#plot", HTMLElement);
const bars = find("#bars", HTMLElement);
const level = find("#threshold", HTMLElement);

/** Steps up to which there is room for gaps between them. */
const SPARSE = 100;
/** How much the plot reaches beyond the highest of what it shows. */
const HEADROOM = 1.15;

const DECISIONS = { [CacheDecision.COMPUTED]: "computed", [CacheDecision.CACHED]: "cached", [CacheDecision.PRUNED]: "pruned" } as const;

type Decision = (typeof DECISIONS)[keyof typeof DECISIONS];

/** Shows the steps of one generation, from the first. */
export class Steps {
  readonly #counts: Record<Decision, number> = { computed: 0, cached: 0, pruned: 0 };
  readonly #differences: number[] = [];
  readonly #threshold: number | undefined;

  /**
   * @param total How many there will be.
   * @param cache The settings in force; undefined: not known.
   */
  constructor(
    readonly total: number,
    cache: CacheConfig | undefined,
  ) {
    const method = cache?.method;
    this.#threshold = method?.case === "dbCache" || method?.case === "dbPrune" ? method.value.residualDiffThreshold : undefined;
    whole.hidden = total === 0;
    whole.classList.toggle("dense", total > SPARSE);
    for (const row of [strip, bars]) row.replaceChildren(...Array.from({ length: total }, () => make("span")));
    strip.setAttribute("aria-valuemax", String(total));
    this.#advance(0, "none yet");
    this.#count();
    this.#draw();
  }

  /** Show one that is done. */
  add(step: StepCompleted): void {
    const decision = DECISIONS[step.cacheDecision as keyof typeof DECISIONS] ?? "computed";
    const difference = step.residualDiff;
    const title = `step ${step.step}: ${decision}${difference === undefined ? "" : `, difference ${difference.toFixed(3)}`}`;
    for (const row of [strip, bars]) {
      const mark = row.children[step.step - 1];
      mark?.setAttribute("class", decision);
      mark?.setAttribute("title", title);
    }
    this.#counts[decision] += 1;
    this.#count();
    this.#advance(step.step, decision);
    if (difference === undefined) return;
    this.#differences.push(difference);
    const bar = bars.children[step.step - 1];
    if (bar instanceof HTMLElement) bar.style.setProperty("--difference", String(difference));
    this.#draw();
  }

  #advance(done: number, decision: string): void {
    strip.setAttribute("aria-valuenow", String(done));
    strip.setAttribute("aria-valuetext", `${done} of ${this.total}, ${decision}`);
  }

  #count(): void {
    for (const [decision, count] of Object.entries(this.#counts)) {
      find(`#legend .${decision} b`, HTMLElement).textContent = String(count);
    }
    find("#legend .pruned", HTMLElement).hidden = this.#counts.pruned === 0;
  }

  #draw(): void {
    plot.hidden = find("#what", HTMLElement).hidden = this.#differences.length === 0;
    const highest = Math.max(...this.#differences, this.#threshold ?? 0);
    plot.style.setProperty("--top", String(highest * HEADROOM || 1));
    level.hidden = this.#threshold === undefined;
    level.style.setProperty("--difference", String(this.#threshold ?? 0));
    find("span", HTMLElement, level).textContent = `threshold ${this.#threshold}`;
    const known = `at ${this.#differences.length} steps, at most ${highest.toFixed(3)}`;
    plot.setAttribute("aria-label", `Residual difference ${known}; ${level.hidden ? "no threshold" : level.textContent}`);
  }
}
