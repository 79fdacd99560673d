/** The page: ask the server what it takes, generate, watch, come back after a reload. */

import { createGrpcWebTransport } from "@connectrpc/connect-web";
import { type Capabilities, type Configuration, DitcastClient, DitcastError, type Generation } from "@ditcast/client";

import { offer } from "./configuration.js";
import { layOut, mark, request } from "./form.js";
import { find } from "./page.js";
import { View } from "./view.js";

/** Where the generation that runs is remembered over a reload of the page. */
const REMEMBERED = "ditcast.generation";
const RETRY_MS = 2000;

// `?server=http://host:port` names the proxy; by default it is where the page comes from.
const baseUrl = new URLSearchParams(location.search).get("server") ?? location.origin;
const client = new DitcastClient(createGrpcWebTransport({ baseUrl }));
const server = find("#server", HTMLElement);
const cancel = find("#cancel", HTMLButtonElement);
const error = find("#error", HTMLElement);

let configuration: Configuration | undefined;
let current: Generation | undefined;

async function ask(): Promise<{ capabilities: Capabilities; configuration: Configuration }> {
  for (;;) {
    try {
      const [{ capabilities }, answer] = await Promise.all([
        client.service.getCapabilities({}),
        client.service.getConfiguration({}),
      ]);
      if (capabilities && answer.configuration) return { capabilities, configuration: answer.configuration };
    } catch (failure) {
      // While it loads, the server says so: the page waits with it.
      server.textContent = DitcastError.from(failure).message;
    }
    await new Promise((resolve) => setTimeout(resolve, RETRY_MS));
  }
}

function threshold(): number | undefined {
  const method = configuration?.cache?.method;
  return method?.case === "dbCache" || method?.case === "dbPrune" ? method.value.residualDiffThreshold : undefined;
}

async function follow(generation: Generation): Promise<void> {
  const view = new View(threshold());
  current = generation;
  cancel.disabled = false;
  sessionStorage.setItem(REMEMBERED, generation.requestId);
  try {
    const { outputs, completed } = await generation.result((event) => view.show(event));
    view.finish(outputs, completed);
  } catch (failure) {
    const refused = DitcastError.from(failure);
    view.fail(refused.message);
    tell(refused);
  } finally {
    if (current === generation) {
      cancel.disabled = true;
      current = undefined;
      sessionStorage.removeItem(REMEMBERED);
    }
  }
}

function tell(refused: DitcastError): void {
  const rest = mark(refused.fieldViolations);
  const lines = refused.fieldViolations.length > 0 ? rest.map(({ field, description }) => `${field}: ${description}`) : [refused.message];
  error.textContent = lines.join("\n");
  error.hidden = lines.length === 0;
}

find("#request", HTMLFormElement).addEventListener("submit", (event) => {
  event.preventDefault();
  error.hidden = true;
  mark([]);
  void follow(client.generate(request()));
});
cancel.addEventListener("click", () => void current?.cancel());

const found = await ask();
({ configuration } = found);
const { model, device, worldSize } = found.capabilities;
const ranks = worldSize === 1 ? "1 rank" : `${worldSize} ranks`;
server.textContent = `${model?.id} (${model?.pipelineClass}) on ${ranks}, ${device}`;
layOut(found.capabilities, found.configuration);
offer(client, found.configuration, (now) => (configuration = now));
const remembered = sessionStorage.getItem(REMEMBERED);
if (remembered !== null) void follow(client.watch(remembered));
