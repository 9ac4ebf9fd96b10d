// The page: choose a run, fill in its fields, see its answer. No framework, no build step, no other host.

import { ServerError, asCurl, asPython, call, onWaiting, othersWait, ready, setToken } from "./api.js";
import { draft, keepDraft } from "./drafts.js";
import { answerView, explained, h, matrix, tokenView } from "./views.js";
import { filePanel } from "./files.js";

const $ = (id) => document.getElementById(id);
const PLACES = { text: "Text", question: "Question", context: "Text with the answer" };
const MATRIX_LINES = 64;

/** Inputs to click on: the run's own, or some of its kind; pairs have others. */
function examples(run) {
  if (run.examples.length) return run.examples;
  const mask = run.mask;
  const byKind = {
    "fill-mask": [`The ship sailed along the ${mask} to the sea.`, `She ${mask} the book and ${mask} home.`],
    "token-classification": ["Ada Lovelace met Charles Babbage in London.", "The new phone of Acme Ltd. sells well in Norway."],
    "text-classification": ["A quiet, beautiful film that stays with you.", "Two hours of noise, and not one idea."],
  };
  if (run.kind === "question-answering") {
    const context = "The lighthouse was built in 1874 by a crew of forty men. Its lamp, the first electric one on this coast, "
      + "could be seen for nineteen miles.";
    return ["When was the lighthouse built?", "How far could the lamp be seen?", "Who paid for it?"].map((question) => ({ question, context }));
  }
  const [first, second] = run.fields;
  if (second) return [{ [first]: "A man plays the guitar.", [second]: "Someone is making music." }, { [first]: "A man plays the guitar.", [second]: "The shop is closed." }];
  return (byKind[run.kind] ?? byKind["text-classification"]).map((text) => ({ [first]: text }));
}

function show(element, ...children) {
  element.replaceChildren(...children.flat().filter(Boolean));
}

/** Says what went wrong where the answer would be; asks for the token if it is missing. */
function fail(place, error) {
  if (!(error instanceof ServerError)) console.error(error);
  if (error.status === 401) $("token-form").hidden = false;
  show(place, h("p", { class: "error", role: "alert" }, error.message));
}

/** A form of named texts above its result. `submit(values)` is awaited; a button and Ctrl+Enter call it. */
function form(fields, button, result, submit) {
  const inputs = fields.map(({ name, label, rows = 3, value = "", hint = "" }) => {
    const id = `field-${name}`;
    const described = hint ? { "aria-describedby": `${id}-hint` } : {};
    const input = rows === 1 ? h("input", { id, ...described }) : h("textarea", { id, rows, ...described });
    input.value = draft(name) ?? value;
    input.addEventListener("input", () => keepDraft(name, input.value));
    return { name, input, parts: [h("label", { for: id }, label), hint && h("p", { id: `${id}-hint`, class: "quiet" }, hint), input] };
  });
  const go = h("button", { class: "main" }, button);
  const element = h("form", {}, inputs.flatMap(({ parts }) => parts.filter(Boolean)), h("div", { class: "row" }, go,
    h("span", { class: "quiet" }, "or Ctrl + Enter")));
  const run = async (event) => {
    event?.preventDefault();
    if (go.disabled) return;
    go.disabled = true;
    try {
      await submit(Object.fromEntries(inputs.map(({ name, input }) => [name, input.value])));
    } finally {
      go.disabled = false;
    }
  };
  element.addEventListener("submit", run);
  element.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) run(event);
  });
  const fill = (values) => inputs.forEach(({ name, input }) => {
    if (!(name in values)) return;
    input.value = values[name];
    keepDraft(name, input.value);
  });
  /** Takes over what was typed elsewhere; an answer to another text is removed. */
  const refresh = () => {
    const changed = inputs.filter(({ name, input }) => input.value !== (draft(name) ?? input.value));
    changed.forEach(({ name, input }) => { input.value = draft(name); });
    if (changed.length) show(result);
  };
  return { element, fill, run, refresh };
}

/** The request as programs would send it, to be copied. */
function requestView(path, body) {
  const block = (title, text) => [
    h("div", { class: "row" }, h("h2", {}, title),
      h("button", { type: "button", onclick: (event) => copy(event.target, text) }, "Copy")),
    h("pre", { tabindex: "0" }, text),
  ];
  return h("details", {}, h("summary", {}, "This request as curl and Python"), block("curl", asCurl(path, body)), block("Python", asPython(path, body)));
}

async function copy(button, text) {
  try {
    await navigator.clipboard.writeText(text);
    button.textContent = "Copied";
  } catch {
    button.textContent = "Select the text to copy it";
  }
  setTimeout(() => { button.textContent = "Copy"; }, 1500);
}

const address = (run, operation) => `/v1/${encodeURIComponent(run.name)}/${operation}`;

async function timed(path, body) {
  await othersWait();
  const start = performance.now();
  const answer = await call(path, body);
  return [answer, h("p", { class: "quiet" }, `Answered in ${Math.round(performance.now() - start)} ms.`)];
}

function predictPanel(run) {
  const result = h("section", { "aria-live": "polite", "aria-label": "Answer" });
  const fields = run.fields.map((name) => ({ name, label: PLACES[name] ?? name, rows: name === "context" ? 7 : 3 }));
  if (run.kind === "fill-mask") {
    fields[0].hint = `${run.mask} marks what to fill in; there may be several.`;
    fields.push({ name: "targets", label: "Only these words (optional, separated by commas)", rows: 1 });
  }
  const panel = form(fields, run.kind === "fill-mask" ? "Fill in" : "Predict", result, async ({ targets, ...values }) => {
    const inputs = run.fields.length === 1 ? values[run.fields[0]] : values;
    const parameters = run.kind === "question-answering" ? { top_k: 5 } : {};
    const words = (targets ?? "").split(",").map((word) => word.trim()).filter(Boolean);
    if (words.length) parameters.targets = words;
    const path = address(run, "predict");
    const body = Object.keys(parameters).length ? { inputs, parameters } : { inputs };
    try {
      const [answer, latency] = await timed(path, body);
      const words = h("div");
      show(result, answerView(answer, run, values), words, latency, requestView(path, body));
      if (run.operations.includes("explain")) await explain(words, run, inputs, values);
    } catch (error) {
      fail(result, error);
    }
  });
  const chips = examples(run).map((values) => h("button", {
    type: "button",
    onclick: () => { panel.fill({ targets: "", ...values }); panel.run(); },
  }, run.kind === "question-answering" ? values.question : Object.values(values).join(" — ")));
  const group = h("div", { class: "examples", role: "group", "aria-label": "Examples" }, chips);
  return { elements: [group, panel.element, result], refresh: panel.refresh };
}

/** Shows the words that decided; if they cannot be computed, the answer stays. */
async function explain(place, run, inputs, values) {
  try {
    show(place, explained(await call(address(run, "explain"), { inputs }), run.fields, values));
  } catch (error) {
    show(place, h("p", { class: "quiet" }, `The words that decided cannot be shown: ${error.message}`));
  }
}

function similarityPanel(run) {
  const result = h("section", { "aria-live": "polite", "aria-label": "Similarities" });
  const value = ["A man plays the guitar.", "Someone is making music.", "The shop opens at nine.", "When does the shop open?"].join("\n");
  const hint = `Cosines of the mean vectors of the last layer. Up to ${MATRIX_LINES} lines.`;
  const panel = form([{ name: "lines", label: "Texts, one per line", rows: 6, value, hint }], "Compare", result, async ({ lines }) => {
    const inputs = lines.split("\n").map((line) => line.trim()).filter(Boolean);
    if (inputs.length < 2 || inputs.length > MATRIX_LINES) {
      fail(result, new ServerError(0, `There are ${inputs.length} texts; give 2 to ${MATRIX_LINES}, one per line.`));
      return;
    }
    try {
      const path = address(run, "similarity");
      const [similarities, latency] = await timed(path, { inputs });
      show(result, h("h2", {}, "Similarity"), matrix(similarities, inputs), latency, requestView(path, { inputs }));
    } catch (error) {
      fail(result, error);
    }
  });
  return { elements: [panel.element, result], refresh: panel.refresh };
}

function tokensPanel(run) {
  const result = h("section", { "aria-live": "polite", "aria-label": "Tokens" });
  const fields = run.fields.map((name) => ({ name, label: PLACES[name] ?? name, value: examples(run)[0][name] }));
  const panel = form(fields, "Show the tokens", result, async (values) => {
    try {
      const inputs = run.fields.length === 1 ? values[run.fields[0]] : values;
      show(result, tokenView(await call(address(run, "tokens"), { inputs })));
    } catch (error) {
      fail(result, error);
    }
  });
  return { elements: [panel.element, result], refresh: panel.refresh };
}

/** The tabs of a run: those of its operations. */
function panels(run) {
  const able = (operation, entry) => (run.operations.includes(operation) ? [entry] : []);
  const titles = { "fill-mask": "Fill masks", "token-classification": "Entities", "question-answering": "Questions" };
  return [
    ...able("predict", ["predict", titles[run.kind] ?? "Predict", predictPanel]),
    ...able("embed", ["similarity", "Similarity", similarityPanel]),
    ...able("predict", ["file", "A file", (served) => filePanel(served, address(served, "predict"), fail)]),
    ...able("predict", ["tokens", "What the model sees", tokensPanel]),
  ];
}

const hashOf = (run, tab) => `#${encodeURIComponent(run.name)}/${tab}`;

/** Opens a tab as a new entry of the browser's history. */
function goTo(run, tab) {
  if (location.hash !== hashOf(run, tab)) history.pushState(null, "", hashOf(run, tab));
  openTab(run, tab);
}

const opened = new Map(); // panels by run and tab, with what was typed and answered there

function openTab(run, chosen) {
  const tabs = panels(run);
  const [id, , panel] = tabs.find(([name]) => name === chosen) ?? tabs[0];
  const select = (number) => {
    const [next] = tabs[(number + tabs.length) % tabs.length];
    goTo(run, next);
    $(`tab-${next}`).focus();
  };
  show($("tabs"), tabs.map(([name, title], number) => h("button", {
    type: "button", role: "tab", id: `tab-${name}`, "aria-selected": String(name === id), "aria-controls": "main",
    tabindex: name === id ? "0" : "-1",
    onclick: () => goTo(run, name),
    onkeydown: (event) => {
      if (event.key === "ArrowRight") select(number + 1);
      if (event.key === "ArrowLeft") select(number - 1);
    },
  }, title)));
  $("tabs").hidden = false;
  $("main").setAttribute("aria-labelledby", `tab-${id}`);
  $("main").setAttribute("role", "tabpanel");
  if (!opened.has(hashOf(run, id))) opened.set(hashOf(run, id), panel(run));
  const { elements, refresh = () => {} } = opened.get(hashOf(run, id));
  refresh();
  show($("main"), elements);
  return id;
}

/** Opens the run and the tab in the address, or the first ones. */
function openAddress() {
  const [name, tab] = location.hash.slice(1).split("/");
  const run = runs.find((one) => encodeURIComponent(one.name) === name) ?? runs[0];
  $("run").value = run.name;
  history.replaceState(null, "", hashOf(run, openRun(run, tab)));
}

function openRun(run, tab) {
  const isTags = run.kind === "token-classification";
  const names = isTags ? [...new Set(run.labels.filter((tag) => tag !== "O").map((tag) => tag.replace(/^[A-Z]-/, "")))] : run.labels;
  const labels = names.length ? `; ${isTags ? "types" : "labels"} ${names.slice(0, 12).join(", ")}${names.length > 12 ? ", …" : ""}` : "";
  $("about").textContent = `${run.kind.replaceAll("-", " ")}, up to ${run.max_tokens} tokens${labels}`;
  document.title = `${run.name} · bert_jax`;
  return openTab(run, tab);
}

let runs = [];

async function start() {
  try {
    runs = await call("/v1/runs");
    $("token-form").hidden = true;
    $("notice").hidden = true;
    const select = $("run");
    show(select, runs.map((run) => h("option", { value: run.name }, run.name)));
    select.disabled = runs.length < 2;
    select.onchange = () => {
      const run = runs.find((one) => one.name === select.value);
      history.pushState(null, "", hashOf(run, openRun(run)));
    };
    openAddress();
    ready().catch(() => {}); // says that it waits; if the server is gone, the next request says so
  } catch (error) {
    if (error.status === 401) $("token-form").hidden = false;
    $("notice").textContent = error.message;
    $("notice").hidden = false;
  }
}

onWaiting((isWaiting) => {
  const text = isWaiting ? "The server is compiling its programs. You can type already: the answer comes as soon as it is ready." : "";
  if ($("waiting").textContent !== text) $("waiting").textContent = text;
});
window.addEventListener("hashchange", () => { if (runs.length) openAddress(); });
$("token-form").addEventListener("submit", (event) => {
  event.preventDefault();
  setToken($("token").value.trim());
  start();
});
start();
