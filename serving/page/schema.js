// A JSON schema as an outline that a person can read, one line a field.

const MAX_HOPS = 8;

/** What `$ref` points at inside the document; anything else as it is. */
export function resolve(document, node) {
  for (let hops = 0; node?.$ref && hops < MAX_HOPS; hops++) {
    const keys = node.$ref.replace(/^#\//, "").split("/");
    const plain = keys.map((key) => key.replaceAll("~1", "/").replaceAll("~0", "~"));
    node = plain.reduce((place, key) => place?.[key], document);
  }
  return node ?? {};
}

/** The outline of a schema, as text over several lines; `inside` names what it stands in. */
export function outline(document, schema, indent = "", inside = []) {
  const name = schema?.$ref?.split("/").pop();
  if (inside.includes(name)) return name; // it holds itself: once is enough
  if (name) inside = [...inside, name];
  schema = resolve(document, schema);
  const deeper = (each) => outline(document, each, indent, inside);
  if (schema.allOf) return schema.allOf.map(deeper).join(" and ");
  const choices = schema.oneOf ?? schema.anyOf;
  if (choices) return choices.map(deeper).join(" or ");
  if (schema.properties) return fields(document, schema, indent, inside);
  if (schema.items) return `[ ${deeper(schema.items)}, … ]`;
  if (typeof schema.additionalProperties === "object") {
    return `{ <name>: ${deeper(schema.additionalProperties)}, … }`;
  }
  return kind(schema);
}

/** A schema without fields, in a few words: `number, 0 to 1`. */
export function kind(schema) {
  if (schema.const !== undefined) return JSON.stringify(schema.const);
  if (schema.enum) return schema.enum.map((value) => JSON.stringify(value)).join(" | ");
  const types = [schema.type ?? "any"].flat();
  const words = [types.join(" or ")];
  if (schema.format) words[0] += ` (${schema.format})`;
  if (schema.contentMediaType) words.push(schema.contentMediaType);
  const [low, high] = [schema.minimum, schema.maximum];
  if (low !== undefined && high !== undefined) words.push(`${low} to ${high}`);
  else if (low !== undefined) words.push(`at least ${low}`);
  else if (high !== undefined) words.push(`at most ${high}`);
  return words.join(", ");
}

function fields(document, schema, indent, inside) {
  const required = new Set(schema.required ?? []);
  const inner = `${indent}  `;
  const lines = Object.entries(schema.properties).map(([name, field]) => {
    const optional = required.has(name) ? "" : "?";
    const said = field.description ?? resolve(document, field).description;
    const text = `${inner}${name}${optional}: ${outline(document, field, inner, inside)}`;
    // What is said of a field stands behind its first line.
    const [first, ...rest] = text.split("\n");
    return [said ? `${first}  // ${said.replaceAll("\n", " ")}` : first, ...rest].join("\n");
  });
  return `{\n${lines.join("\n")}\n${indent}}`;
}
