// A file of inputs up, a file of answers down: lines are sent in groups, and the answers stay in the browser until all are there.

import { ServerError, call } from "./api.js";
import { h } from "./views.js";

const GROUP = 64; // inputs of a request
const MOST_BYTES = 20 * 1024 * 1024;
const TRIES = 5;

/** Returns the inputs in a file: a text or a JSON object with the run's fields per line; throws an Error that names the line. */
export function parseLines(text, run) {
  const lines = text.split(/\r?\n/);
  const inputs = [];
  lines.forEach((line, number) => {
    if (!line.trim()) return;
    if (!line.trimStart().startsWith("{")) {
      if (run.fields.length > 1) throw new Error(`Line ${number + 1}: is not a JSON object with ${run.fields.join(" and ")}.`);
      inputs.push(line);
      return;
    }
    let value;
    try {
      value = JSON.parse(line);
    } catch {
      throw new Error(`Line ${number + 1}: is not valid JSON.`);
    }
    const missing = run.fields.find((field) => typeof value[field] !== "string");
    if (missing) throw new Error(`Line ${number + 1}: “${missing}” is missing or not a text.`);
    inputs.push(Object.fromEntries(run.fields.map((field) => [field, value[field]])));
  });
  if (!inputs.length) throw new Error("The file has no text.");
  return inputs;
}

const pause = (seconds) => new Promise((done) => setTimeout(done, 1000 * seconds));

/** Asks again while the queue is full. */
async function patient(path, body) {
  for (let attempt = 1; ; attempt += 1) {
    try {
      return await call(path, body);
    } catch (error) {
      if (![429, 503].includes(error.status) || attempt === TRIES) throw error;
      await pause(attempt);
    }
  }
}

export function filePanel(run, path, fail) {
  const result = h("section", { "aria-live": "polite", "aria-label": "Answers" });
  const input = h("input", { type: "file", id: "file", accept: ".txt,.jsonl,.json,text/plain" });
  const go = h("button", { class: "main", type: "submit" }, "Predict all lines");
  const form = h("form", {}, h("label", { for: "file" }, "File"),
    h("p", { class: "quiet" }, `A text per line, or a JSON object with ${run.fields.join(", ")}. Answers come as JSON lines.`),
    input, h("div", { class: "row" }, go));
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const file = input.files[0];
    if (!file || file.size > MOST_BYTES) {
      fail(result, new ServerError(0, file ? "The file has more than 20 MB; use python -m bert_jax.predict for it." : "Choose a file first."));
      return;
    }
    go.disabled = true;
    try {
      const inputs = parseLines(await file.text(), run);
      const bar = h("progress", { max: String(inputs.length), value: "0", "aria-label": "Progress" });
      result.replaceChildren(bar);
      const start = performance.now();
      const lines = [];
      for (let first = 0; first < inputs.length; first += GROUP) {
        const group = inputs.slice(first, first + GROUP);
        const answers = await patient(path, { inputs: group });
        group.forEach((values, number) => {
          const fields = typeof values === "string" ? { [run.fields[0]]: values } : values;
          lines.push(JSON.stringify({ ...fields, answer: answers[number] }));
        });
        bar.value = lines.length;
      }
      const seconds = ((performance.now() - start) / 1000).toFixed(1);
      const url = URL.createObjectURL(new Blob([`${lines.join("\n")}\n`], { type: "application/jsonl" }));
      const name = `${file.name.replace(/\.[^.]*$/, "")}.${run.name}.jsonl`;
      result.replaceChildren(
        h("p", {}, `${lines.length} answers in ${seconds} s. `, h("a", { href: url, download: name }, `Download ${name}`)),
        h("h2", {}, "The first of them"),
        h("pre", { tabindex: "0" }, lines.slice(0, 5).join("\n")),
      );
    } catch (error) {
      fail(result, error instanceof ServerError ? error : new ServerError(0, error.message));
    } finally {
      go.disabled = false;
    }
  });
  return [form, result];
}
