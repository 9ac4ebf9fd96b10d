// A file of inputs up, a file of answers down: lines are sent in groups, and the answers stay in the browser until all are there.
// A line that is no input, or that the server refuses, gets its error; the others are answered.

import { ServerError, call, pause } from "./api.js";
import { h } from "./views.js";

const GROUP = 64; // inputs of a request
const MOST_BYTES = 20 * 1024 * 1024;
const MOST_SHOWN = 5; // answers and errors on the page
const TRIES = 5;
const REFUSED = [413, 422, 504]; // statuses that are about the inputs: other inputs may be answered

/** Returns the input in a line: a text, or the run's fields of a JSON object; throws an Error if it is none. */
function parseLine(line, run) {
  if (!line.trimStart().startsWith("{")) {
    if (run.fields.length > 1) throw new Error(`is not a JSON object with ${run.fields.join(" and ")}`);
    return { [run.fields[0]]: line };
  }
  let value;
  try {
    value = JSON.parse(line);
  } catch {
    throw new Error("is not valid JSON");
  }
  const missing = run.fields.find((field) => typeof value[field] !== "string");
  if (missing) throw new Error(`“${missing}” is missing or not a text`);
  return Object.fromEntries(run.fields.map((field) => [field, value[field]]));
}

/** Returns a row for each line with text: its number, and the input in it or an error. */
export function parseLines(text, run) {
  const rows = [];
  text.split(/\r?\n/).forEach((line, number) => {
    if (!line.trim()) return;
    const row = { line: number + 1 };
    try {
      row.input = parseLine(line, run);
    } catch (error) {
      row.input = { text: line };
      row.error = error.message;
    }
    rows.push(row);
  });
  return rows;
}

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

/** Gives each row its answer, or its error if the server refuses it. Throws a ServerError if nothing can be answered. */
async function answerRows(path, rows) {
  if (!rows.length) return;
  try {
    const answers = await patient(path, { inputs: rows.map((row) => row.input) });
    rows.forEach((row, number) => { row.answer = answers[number]; });
  } catch (error) {
    if (!REFUSED.includes(error.status)) throw error;
    const number = rows.length === 1 ? 0 : Number(/^inputs\.(\d+)/.exec(error.field)?.[1] ?? -1);
    if (number in rows) {
      rows[number].error = error.message.replace(/^inputs(\.\d+)?[.:] ?/, "");
      await answerRows(path, rows.filter((_, other) => other !== number));
    } else { // too large or too slow together
      const half = Math.ceil(rows.length / 2);
      await answerRows(path, rows.slice(0, half));
      await answerRows(path, rows.slice(half));
    }
  }
}

/** Answers all rows in groups. If the server cannot answer any more, the rows that are left get that as their error. */
async function answerAll(path, rows, showProgress) {
  const valid = rows.filter((row) => !row.error);
  for (let first = 0; first < valid.length; first += GROUP) {
    try {
      await answerRows(path, valid.slice(first, first + GROUP));
    } catch (error) {
      if (!(error instanceof ServerError) || error.status === 401) throw error;
      for (const row of valid.slice(first)) if (!row.answer) row.error ??= error.message;
      return;
    }
    showProgress(Math.min(first + GROUP, valid.length));
  }
}

const count = (number, one) => `${number} ${one}${number === 1 ? "" : "s"}`;

function resultView(rows, name, seconds) {
  const lines = rows.map((row) => JSON.stringify(row.error ? { ...row.input, line: row.line, error: row.error } : { ...row.input, answer: row.answer }));
  const url = URL.createObjectURL(new Blob([`${lines.join("\n")}\n`], { type: "application/jsonl" }));
  const failed = rows.filter((row) => row.error);
  const answered = lines.filter((_, number) => !rows[number].error);
  const errors = failed.slice(0, MOST_SHOWN).map((row) => h("li", {}, `Line ${row.line}: ${row.error}`));
  if (failed.length > MOST_SHOWN) errors.push(h("li", {}, `and ${failed.length - MOST_SHOWN} more, which are in the file`));
  return [
    h("p", {}, `${count(answered.length, "answer")}${failed.length ? ` and ${count(failed.length, "error")}` : ""} in ${seconds} s. `,
      h("a", { href: url, download: name }, `Download ${name}`)),
    failed.length ? [h("h2", {}, "Lines without an answer"), h("ul", { class: "error" }, errors)] : [],
    answered.length ? [h("h2", {}, "The first answers"), h("pre", { tabindex: "0" }, answered.slice(0, MOST_SHOWN).join("\n"))] : [],
  ].flat();
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
      const rows = parseLines(await file.text(), run);
      if (!rows.length) throw new ServerError(0, "The file has no text.");
      const bar = h("progress", { max: String(rows.length), value: "0", "aria-label": "Progress" });
      result.replaceChildren(bar);
      const start = performance.now();
      await answerAll(path, rows, (number) => { bar.value = number; });
      const name = `${file.name.replace(/\.[^.]*$/, "")}.${run.name}.jsonl`;
      result.replaceChildren(...resultView(rows, name, ((performance.now() - start) / 1000).toFixed(1)));
    } catch (error) {
      fail(result, error);
    } finally {
      go.disabled = false;
    }
  });
  return { elements: [form, result] };
}
