/** The server's configuration: shown as JSON, changed by JSON, each field's outcome in a table. */

import { fromJsonString, toJsonString } from "@bufbuild/protobuf";
import {
  type Configuration,
  ConfigurationSchema,
  type ConfigureResponse,
  type DitcastClient,
  DitcastError,
  Outcome,
} from "@ditcast/client";

import { find, make } from "./page.js";

const form = find("#change", HTMLFormElement);
const outcomes = find("#outcomes", HTMLElement);

/** Show a configuration, and let it be changed. */
export function offer(client: DitcastClient, shown: Configuration, onChange: (now: Configuration) => void): void {
  show(shown);
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    const how = event.submitter instanceof HTMLButtonElement ? event.submitter.value : "dry";
    void change(client, how === "dry", onChange);
  });
}

function show(configuration: Configuration): void {
  find("#revision", HTMLElement).textContent = `revision ${configuration.revision}`;
  json().value = toJsonString(ConfigurationSchema, configuration, { prettySpaces: 2 });
}

function json(): HTMLTextAreaElement {
  return find("#change textarea", HTMLTextAreaElement);
}

async function change(client: DitcastClient, validateOnly: boolean, onChange: (now: Configuration) => void): Promise<void> {
  try {
    const configuration = fromJsonString(ConfigurationSchema, json().value);
    const allowReload = find("[name=reload]", HTMLInputElement).checked;
    const answer = await client.service.configure({ configuration, validateOnly, allowReload });
    tell(answer);
    if (!validateOnly && answer.configuration) {
      show(answer.configuration);
      onChange(answer.configuration);
    }
  } catch (error) {
    const refused = error instanceof SyntaxError ? undefined : DitcastError.from(error);
    const why = refused?.fieldViolations.map(({ field, description }) => `${field}: ${description}`) ?? [];
    outcomes.replaceChildren(make("p", { class: "why" }, [refused?.message ?? String(error), ...why].join("\n")));
  }
}

function tell({ outcomes: found }: ConfigureResponse): void {
  if (found.length === 0) {
    outcomes.replaceChildren(make("p", {}, "Nothing changes."));
    return;
  }
  const rows = found.map(({ path, outcome, reason }) =>
    make("tr", {}, make("td", {}, path), make("td", {}, Outcome[outcome]?.toLowerCase().replaceAll("_", " ") ?? ""), make("td", {}, reason)),
  );
  outcomes.replaceChildren(make("table", {}, make("tbody", {}, ...rows)));
}
