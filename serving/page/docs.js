// The documentation page: lays out /openapi.json and tries the GET routes.

import { byId, make } from "./dom.js";
import { kind, outline, resolve } from "./schema.js";

const METHODS = ["get", "post", "put", "patch", "delete"];
const SHOWN_HEADERS = ["content-type", "x-request-id", "x-total-time-ms", "retry-after"];
const MAX_SHOWN = 20_000; // characters of an answer
let spec;

/** Text with `code` between backticks, and an empty line between paragraphs. */
function prose(text = "", tag = "p") {
  return text
    .split(/\n\s*\n/)
    .filter((paragraph) => paragraph.trim())
    .map((paragraph) => {
      const parts = paragraph.split("`");
      const nodes = parts.map((part, i) => (i % 2 ? make("code", {}, part) : part));
      return make(tag, {}, ...nodes);
    });
}

function operations() {
  return Object.entries(spec.paths ?? {}).flatMap(([path, item]) =>
    METHODS.filter((method) => item[method]).map((method) => {
      const operation = item[method];
      const parameters = [...(item.parameters ?? []), ...(operation.parameters ?? [])];
      return {
        ...operation,
        path,
        method,
        id: `${method}${path.replaceAll(/[^A-Za-z0-9]+/g, "-")}`,
        parameters: parameters.map((each) => resolve(spec, each)),
      };
    }),
  );
}

function signature({ method, path }) {
  return [
    make("span", { class: `method ${method}` }, method.toUpperCase()),
    " ",
    make("span", { class: "path" }, path),
  ];
}

function routeList(all) {
  const items = all.map((each) => {
    const summary = make("span", { class: "summary" }, each.summary ?? "");
    return make("li", {}, make("a", { href: `#${each.id}` }, ...signature(each), summary));
  });
  return make("ul", {}, ...items);
}

function panel(operation) {
  return make(
    "section",
    { class: "operation panel", id: operation.id, "aria-labelledby": `${operation.id}-title` },
    make("header", {}, make("h2", { id: `${operation.id}-title` }, ...signature(operation))),
    ...prose(operation.summary),
    ...prose(operation.description),
    ...(operation.deprecated ? [make("p", { class: "required" }, "Deprecated")] : []),
    ...parameterTable(operation.parameters),
    ...requestBody(operation),
    ...responses(operation),
    ...(operation.method === "get" ? tryIt(operation) : []),
  );
}

function parameterTable(parameters) {
  if (parameters.length === 0) return [];
  const rows = parameters.map((each) => {
    const schema = resolve(spec, each.schema);
    const standard = schema.default === undefined ? "" : JSON.stringify(schema.default);
    const required = each.required ? make("div", { class: "required" }, "required") : null;
    return make(
      "tr",
      {},
      make("th", { scope: "row" }, make("code", {}, each.name), required),
      make("td", {}, each.in),
      make("td", {}, kind(schema)),
      make("td", {}, standard),
      make("td", {}, ...prose(each.description ?? schema.description, "div")),
    );
  });
  return [make("h3", {}, "Parameters"), table(["Name", "In", "Type", "Default", "What"], rows)];
}

function table(names, rows) {
  const head = make("tr", {}, ...names.map((name) => make("th", { scope: "col" }, name)));
  return make(
    "div",
    { class: "scroll", tabindex: 0, role: "group", "aria-label": "Parameters" },
    make("table", {}, make("thead", {}, head), make("tbody", {}, ...rows)),
  );
}

function requestBody(operation) {
  if (!operation.requestBody) return [];
  const body = resolve(spec, operation.requestBody);
  const heading = body.required ? "Body, required" : "Body";
  return [
    make("h3", {}, heading),
    ...prose(body.description),
    ...Object.entries(body.content ?? {}).map(([type, media]) =>
      make("div", {}, make("code", {}, type), ...content(media, "Body")),
    ),
  ];
}

function responses(operation) {
  const items = Object.entries(operation.responses ?? {}).map(([status, unresolved]) => {
    const response = resolve(spec, unresolved);
    const wrong = /^[45]/.test(status) ? "error" : "";
    const summary = make(
      "summary",
      {},
      make("span", { class: `status ${wrong}` }, status),
      make("span", {}, ...prose(response.description, "span")),
    );
    const bodies = Object.entries(response.content ?? {}).flatMap(([type, media]) => [
      make("p", { class: "note" }, make("code", {}, type)),
      ...content(media, `Answer ${status}`),
    ]);
    const headers = Object.entries(response.headers ?? {}).map(([name, unresolvedHeader]) => {
      const words = prose(resolve(spec, unresolvedHeader).description, "span");
      return make("p", { class: "note" }, make("code", {}, name), " ", ...words);
    });
    return make("details", { open: status === "200" }, summary, ...headers, ...bodies);
  });
  return items.length ? [make("h3", {}, "Answers"), ...items] : [];
}

function content(media, label) {
  const parts = media.schema ? [block(outline(spec, media.schema), `${label}: its form`)] : [];
  const named = Object.values(media.examples ?? {}).map((each) => resolve(spec, each).value);
  for (const example of [media.example, ...named].filter((each) => each !== undefined)) {
    const text = typeof example === "string" ? example : JSON.stringify(example, null, 2);
    parts.push(make("p", { class: "note" }, "For example"), block(text, `${label}: an example`));
  }
  return parts;
}

function block(text, label) {
  return make("pre", { tabindex: 0, role: "group", "aria-label": label }, text);
}

/** A form that sends the request and shows what comes back. */
function tryIt(operation) {
  const usable = operation.parameters.filter((each) => ["path", "query"].includes(each.in));
  const fields = usable.map((each) => ({ ...each, input: inputFor(each) }));
  const shown = make("div", { role: "status" });
  const onsubmit = async (event) => {
    event.preventDefault();
    shown.replaceChildren(...(await send(operation.path, fields)));
  };
  const labels = fields.map(({ name, input }) => make("label", {}, name, input));
  const button = make("button", { type: "submit" }, "Send");
  return [make("h3", {}, "Try it"), make("form", { onsubmit }, ...labels, button), shown];
}

function inputFor({ name, required, schema: unresolved }) {
  const schema = resolve(spec, unresolved);
  if (!schema.enum && schema.type !== "boolean") {
    return make("input", { name, required, placeholder: schema.default, autocomplete: "off" });
  }
  const values = schema.enum ?? [true, false];
  const options = values.map((value) => make("option", {}, String(value)));
  return make("select", { name }, ...(required ? [] : [make("option", {})]), ...options);
}

async function send(path, fields) {
  const query = new URLSearchParams();
  for (const field of fields.filter(({ input }) => input.value !== "")) {
    const value = field.input.value;
    if (field.in === "query") query.append(field.name, value);
    else path = path.replace(`{${field.name}}`, encodeURIComponent(value));
  }
  const address = path + (query.size ? `?${query}` : "");
  const start = performance.now();
  let response;
  let text;
  try {
    response = await fetch(address, { headers: { Accept: "application/json, */*;q=0.5" } });
    text = await response.text();
  } catch {
    return [make("p", { class: "status error" }, "No connection to the service")];
  }
  const kept = SHOWN_HEADERS.filter((name) => response.headers.has(name));
  const headers = kept.map((name) => `${name}: ${response.headers.get(name)}`);
  const took = `${Math.round(performance.now() - start)} ms`;
  return [
    make(
      "p",
      {},
      make("span", { class: response.ok ? "status" : "status error" }, String(response.status)),
      ` GET ${address}, ${took}`,
    ),
    block(headers.join("\n"), "Headers of the answer"),
    block(indented(text), "The answer"),
  ];
}

function indented(text) {
  try {
    text = JSON.stringify(JSON.parse(text), null, 2);
    // Lists of plain values on one line; a string in JSON has no line break of its own.
    text = text.replaceAll(/\[\n[^[\]{}]*\]/g, (list) => list.replaceAll(/\s*\n\s*/g, " "));
  } catch {
    // not JSON: shown as it came
  }
  return text.length > MAX_SHOWN ? `${text.slice(0, MAX_SHOWN)}\n…` : text || "(empty)";
}

async function show() {
  const response = await fetch("openapi.json", { headers: { Accept: "application/json" } });
  if (!response.ok) throw new Error(`/openapi.json answered with status ${response.status}`);
  spec = await response.json();
  const { title, version, description, summary } = spec.info;
  document.title = title;
  byId("title").textContent = version ? `${title} ${version}` : title;
  byId("lead").replaceChildren(...prose(description ?? summary, "span"));
  const all = operations();
  byId("routes").replaceChildren(routeList(all));
  byId("routes").hidden = false;
  byId("operations").replaceChildren(...all.map(panel));
  // The address may name a route that was not on the page when it was opened.
  if (location.hash) byId(decodeURIComponent(location.hash.slice(1)))?.scrollIntoView();
}

try {
  await show();
} catch (error) {
  byId("lead").textContent = `The documentation could not be loaded: ${error.message}.`;
  byId("lead").classList.add("required");
} finally {
  byId("main").removeAttribute("aria-busy");
}
