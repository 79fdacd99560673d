/** The server's configuration: told in words, shown as JSON and changed by it, each field's outcome in a table. */

import { fromJsonString, toJsonString } from "@bufbuild/protobuf";
import {
  Compile,
  type Configuration,
  ConfigurationSchema,
  type ConfigureResponse,
  type DitcastClient,
  DitcastError,
  Offload,
  Outcome,
} from "@ditcast/client";

import { find, make, said } from "./page.js";

const form = find("#change", HTMLFormElement);
const json = find("textarea", HTMLTextAreaElement, form);
const outcomes = find("#outcomes", HTMLElement);

/** Shows the configuration, and lets it be changed. */
export class ConfigurationView {
  constructor(
    private readonly client: DitcastClient,
    private shown: Configuration,
  ) {
    this.#show(shown);
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      const how = event.submitter instanceof HTMLButtonElement ? event.submitter.value : "try";
      void this.#change(how === "try");
    });
    form.addEventListener("reset", (event) => {
      event.preventDefault();
      outcomes.replaceChildren();
      void this.#load();
    });
  }

  /** Show what is in force, once a generation says that somebody changed it. */
  expect(revision: bigint): void {
    if (revision > this.shown.revision) void this.#load();
  }

  async #load(): Promise<void> {
    try {
      const { configuration } = await this.client.service.getConfiguration({});
      if (configuration) this.#show(configuration);
    } catch (error) {
      refuse(DitcastError.from(error));
    }
  }

  #show(configuration: Configuration): void {
    this.shown = configuration;
    find("#revision", HTMLElement).textContent = `revision ${configuration.revision}`;
    find("#settings", HTMLElement).replaceChildren(
      ...Object.entries(words(configuration)).map(([name, value]) => make("div", {}, make("dt", {}, name), make("dd", {}, value))),
    );
    // Named as in the paths of outcomes.
    json.value = toJsonString(ConfigurationSchema, configuration, { prettySpaces: 2, useProtoFieldName: true });
  }

  async #change(validateOnly: boolean): Promise<void> {
    let configuration: Configuration;
    try {
      configuration = fromJsonString(ConfigurationSchema, json.value);
    } catch (error) {
      refuse(error instanceof Error ? error : new Error(String(error)));
      return;
    }
    json.removeAttribute("aria-invalid");
    outcomes.replaceChildren(make("p", {}, validateOnly ? "Asking …" : "Applying, after the generation that runs …"));
    try {
      const allowReload = find("[name=reload]", HTMLInputElement, form).checked;
      const expectedRevision = this.shown.revision;
      const answer = await this.client.service.configure({ configuration, expectedRevision, validateOnly, allowReload });
      tell(answer);
      if (!validateOnly && answer.configuration) this.#show(answer.configuration);
    } catch (error) {
      refuse(DitcastError.from(error));
    }
  }
}

/** Say what matters of a configuration. */
function words({ cache, parallelism, attentionBackend, quantize, loading }: Configuration): Record<string, string> {
  const degrees = {
    Ulysses: parallelism?.ulyssesDegree,
    ring: parallelism?.ringDegree,
    tensor: parallelism?.tensorParallelDegree,
  };
  const split = Object.entries(degrees).flatMap(([name, degree = 1]) => (degree > 1 ? [`${name} ${degree}`] : []));
  const weights = [
    loading?.dtype ?? "auto",
    ...(quantize ? [`quantised (${quantize.quantType})`] : []),
    ...(loading?.offload && loading.offload !== Offload.NONE ? [`offload ${word(Offload, loading.offload)}`] : []),
    ...(loading?.compile && loading.compile !== Compile.NONE ? [`compiled, ${word(Compile, loading.compile)}`] : []),
  ];
  return {
    Caching: caching(cache),
    Parallelism: [...split, ...(parallelism?.extraParallelModules ?? [])].join(", ") || "none",
    Attention: attentionBackend ?? "the pipeline's own",
    Weights: weights.join(", "),
  };
}

function caching(cache: Configuration["cache"]): string {
  const method = cache?.method;
  if (method?.case !== "dbCache" && method?.case !== "dbPrune") return "off";
  const { residualDiffThreshold, maxWarmupSteps } = method.value;
  const parts = [method.case === "dbCache" ? "DBCache" : "DBPrune", `threshold ${residualDiffThreshold}`, `warm-up ${maxWarmupSteps}`];
  const calibrators = { taylorSeer: "TaylorSeer", dmd: "DMD", foca: "FoCa" };
  const calibrator = cache?.calibrator.case;
  return [...parts, ...(calibrator ? [calibrators[calibrator]] : [])].join(", ");
}

function word(names: Record<number, string>, value: number): string {
  return names[value]?.toLowerCase().replaceAll("_", " ") ?? String(value);
}

function refuse(error: Error): void {
  const violations = error instanceof DitcastError ? error.fieldViolations : [];
  const lines = violations.map(({ field, description }) => make("li", {}, field ? `${field}: ${description}` : description));
  const message = error instanceof DitcastError ? said(error) : error.message;
  json.setAttribute("aria-invalid", "true");
  outcomes.replaceChildren(make("div", { class: "why" }, ...(lines.length > 0 ? [make("ul", {}, ...lines)] : [message])));
}

function tell({ outcomes: found }: ConfigureResponse): void {
  if (found.length === 0) {
    outcomes.replaceChildren(make("p", {}, "Nothing changes."));
    return;
  }
  const head = make("tr", {}, ...["Setting", "Outcome", "Why"].map((name) => make("th", { scope: "col" }, name)));
  const rows = found.map(({ path, outcome, reason }) =>
    make("tr", {}, make("td", {}, make("code", {}, path)), make("td", {}, word(Outcome, outcome)), make("td", {}, reason)),
  );
  outcomes.replaceChildren(make("table", {}, make("thead", {}, head), make("tbody", {}, ...rows)));
}
