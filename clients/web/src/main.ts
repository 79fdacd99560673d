/** The page: ask the server what it takes, generate, watch, come back after a reload. */

import { Code } from "@connectrpc/connect";
import { createGrpcWebTransport } from "@connectrpc/connect-web";
import { type Capabilities, type Configuration, DitcastClient, DitcastError, type Generation } from "@ditcast/client";

import { ConfigurationView } from "./configuration.js";
import { fill, layOut, mark, request } from "./form.js";
import { enable, enabled, find, said } from "./page.js";
import { View } from "./view.js";

const RETRY_MS = 2000;

// `?server=http://host:port` names the proxy; by default it is where the page comes from.
const baseUrl = new URLSearchParams(location.search).get("server") ?? location.origin;
const client = new DitcastClient(createGrpcWebTransport({ baseUrl }));
const server = find("#server", HTMLElement);
const form = find("#request", HTMLFormElement);
const generate = find("#generate", HTMLButtonElement);
const cancel = find("#cancel", HTMLButtonElement);
const error = find("#error", HTMLElement);

let current: Generation | undefined;

async function ask(): Promise<{ capabilities: Capabilities; configuration: Configuration }> {
  for (;;) {
    try {
      const [{ capabilities }, { configuration }] = await Promise.all([
        client.service.getCapabilities({}),
        client.service.getConfiguration({}),
      ]);
      if (capabilities && configuration) return { capabilities, configuration };
    } catch (failure) {
      // While it loads, the server says so: the page waits with it.
      const why = `Waiting for the server: ${said(DitcastError.from(failure))}`;
      if (server.textContent !== why) server.textContent = why;
    }
    await new Promise((resolve) => setTimeout(resolve, RETRY_MS));
  }
}

/** Show a generation to its end, in the place of the one before. */
async function follow(generation: Generation, isOwn: boolean): Promise<void> {
  current?.leave();
  current = generation;
  busy(true);
  tell([]);
  const view = new View(generation.requestId);
  try {
    const result = await generation.result((event) => {
      if (current !== generation) return;
      view.show(event);
      if (event.kind.case !== "started") return;
      configuration.expect(event.kind.value.configurationRevision);
      if (!isOwn && event.kind.value.parameters) fill(event.kind.value.parameters);
    });
    if (current === generation) view.finish(result);
  } catch (failure) {
    const refused = DitcastError.from(failure);
    if (current !== generation) return;
    view.fail(refused);
    const rest = mark(refused.fieldViolations).map(({ field, description }) => `${field}: ${description}`);
    const isNews = refused.fieldViolations.length === 0 && refused.code !== Code.Canceled;
    tell(isNews ? [said(refused)] : rest);
  } finally {
    if (current === generation) {
      current = undefined;
      busy(false);
    }
  }
}

function busy(isBusy: boolean): void {
  enable(generate, !isBusy);
  enable(cancel, isBusy);
  find("#generation", HTMLElement).classList.toggle("running", isBusy);
}

function tell(lines: string[]): void {
  error.textContent = lines.join("\n");
}

/** Watch the generation that the address names: after a reload, or where somebody was given the link. */
function watchNamed(): void {
  const name = decodeURIComponent(location.hash.slice(1));
  if (name !== "" && name !== current?.requestId) void follow(client.watch(name), false);
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  if (!enabled(generate)) return;
  const { request: asked, violations } = request();
  mark(violations);
  tell([]);
  if (violations.length > 0) return;
  const generation = client.generate(asked);
  void follow(generation, true);
  // One can come back to it, by a reload and by the browser's history.
  history.pushState(null, "", `#${encodeURIComponent(generation.requestId)}`);
});
form.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && event.ctrlKey) form.requestSubmit();
});
cancel.addEventListener("click", () => {
  current?.cancel().catch((failure: unknown) => tell([said(DitcastError.from(failure))]));
});

const found = await ask();
const { model, device, worldSize } = found.capabilities;
const ranks = worldSize === 1 ? "1 rank" : `${worldSize} ranks`;
server.textContent = `${model?.id} (${model?.pipelineClass}) on ${ranks}, ${device}`;
layOut(found.capabilities, found.configuration);
const configuration = new ConfigurationView(client, found.configuration);
enable(generate, true);
addEventListener("hashchange", watchNamed);
watchNamed();
