// What answers look like. Texts of people and models are always set as text, never as HTML.

const COLOURS = 10; // of entity types
const FAINT = 0.1; // share of the strongest word's score below which a word gets no line

/** h("p", {class: "quiet"}, "text", child): an element. */
export function h(name, attributes = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else if (key === "style") Object.assign(element.style, value);
    else if (value !== false && value !== null) element.setAttribute(key, value === true ? "" : value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return element;
}

export const percent = (share) => `${(100 * share).toFixed(share > 0.9995 || share < 0.0995 ? 2 : 1)}%`;

/** Bars of shares from 0 to 1: rows are [name, share]. */
export function bars(rows, isBest = (number) => number === 0) {
  return h("dl", { class: "bars" }, rows.map(([name, share], number) => h("div", { class: isBest(number) ? "best" : "" },
    h("dt", {}, name),
    h("dd", { class: "track", "aria-hidden": "true" }, h("div", { class: "bar", style: { width: `${100 * share}%` } })),
    h("dd", { class: "value" }, percent(share)),
  )));
}

function labels(rows, run) {
  if (run.problem === "regression") {
    return [h("p", {}, "The model predicts ", h("strong", {}, rows[0].score.toFixed(3)))];
  }
  const title = run.problem === "multi_label" ? "Each label by itself" : "Labels";
  const isChosen = run.problem === "multi_label" ? (number) => rows[number].score > 0.5 : undefined;
  return [h("h2", {}, title), bars(rows.map((row) => [row.label, row.score]), isChosen)];
}

/** Returns the slice of a text between two places of the API, which counts code points and not UTF-16 units. */
function slicer(text) {
  const points = Array.from(text);
  return (start, end) => points.slice(start, end).join("");
}

/** Text for screen readers alone. */
const spoken = (text) => h("span", { class: "spoken" }, text);

/** The words of an explanation, with a colour and a line for how much each speaks for the label or against it. */
export function explained(answer, fields, values) {
  const strongest = Math.max(1e-9, ...answer.words.flat().map((word) => Math.abs(word.score)));
  const shown = fields.flatMap((field, number) => {
    const parts = [];
    const slice = slicer(values[field]);
    let end = 0;
    for (const word of answer.words[number]) {
      const share = Math.abs(word.score) / strongest;
      const side = word.score > 0 ? "for" : "against";
      const style = { background: `rgba(var(--${side}), ${(0.75 * share).toFixed(2)})` };
      const isStrong = share >= FAINT;
      if (isStrong) style.borderBottomWidth = `${2 + Math.round(2 * share)}px`;
      const title = `${side} ${answer.label ?? "a higher number"}: ${word.score.toFixed(3)}`;
      parts.push(slice(end, word.start));
      parts.push(h("span", { class: `word ${isStrong ? side : ""}`, title, style }, word.text, isStrong ? spoken(` (${side}) `) : null));
      end = word.end;
    }
    return [fields.length > 1 ? h("p", { class: "quiet" }, field) : null, h("div", { class: "text" }, parts, slice(end))];
  });
  const strong = answer.words.flat().filter((word) => word.score > 0 && /[\p{L}\p{N}]/u.test(word.text)).sort((a, b) => b.score - a.score).slice(0, 3);
  const said = strong.length ? `Most for it: ${strong.map((word) => word.text).join(", ")}. ` : "";
  return [
    h("h2", {}, `Words that decided${answer.label === null ? "" : ` about “${answer.label}”`}`),
    ...shown,
    h("p", { class: "quiet" }, said, "Green with a solid line speaks for it, red with a dotted line against it (integrated gradients: an estimate of what masking "
      + "the word would change)."),
  ];
}

function entities(rows, run, values) {
  const slice = slicer(values.text);
  const types = [...new Set(rows.map((row) => row.entity_group ?? row.entity))];
  const parts = [];
  let end = 0;
  for (const row of rows) {
    const type = row.entity_group ?? row.entity;
    const hue = (types.indexOf(type) % COLOURS) * (360 / COLOURS) + 40;
    const style = { background: `hsla(${hue}, 70%, 55%, .32)` };
    const title = `${type}, ${percent(row.score)}`;
    parts.push(slice(end, row.start));
    parts.push(h("span", { class: "entity", style, title }, slice(row.start, row.end), h("small", {}, type)));
    end = row.end;
  }
  const table = rows.length
    ? bars(rows.map((row) => [`${row.word} (${row.entity_group ?? row.entity})`, row.score]), () => false)
    : h("p", { class: "quiet" }, "The model finds none.");
  return [h("h2", {}, "Entities"), h("div", { class: "text" }, parts, slice(end)), h("h2", {}, "How sure"), table];
}

function answerInContext(prediction, run, values) {
  const rows = Array.isArray(prediction) ? prediction : [prediction];
  const best = rows[0];
  const slice = slicer(values.context);
  const shown = best.answer
    ? h("div", { class: "text" }, slice(0, best.start), h("mark", {}, slice(best.start, best.end)), slice(best.end))
    : h("div", { class: "text" }, values.context);
  const others = rows.filter((row) => row.answer).map((row) => [row.answer, row.score]);
  others.push(["(no answer in this text)", best.none_score]);
  return [
    h("p", {}, best.answer ? h("strong", {}, best.answer) : "The model finds no answer in this text."),
    shown,
    h("h2", {}, "Alternatives"),
    bars(others.sort((a, b) => b[1] - a[1])),
  ];
}

function masks(prediction, run, values) {
  const byMask = Array.isArray(prediction[0]) ? prediction : [prediction];
  const word = (row) => row.token_str.trim() || row.token_str;
  const parts = values.text.split(run.mask);
  const filled = byMask.flatMap((rows, number) => [h("mark", {}, word(rows[0]).replace(/^##/, "")), parts[number + 1]]);
  return [
    ...byMask.flatMap((rows, number) => [
      h("h2", {}, byMask.length > 1 ? `Mask ${number + 1}` : "The likeliest tokens"),
      bars(rows.map((row) => [word(row), row.score])),
    ]),
    h("h2", {}, byMask.length > 1 ? "Filled in, each mask by itself" : "Filled in"),
    h("p", { class: "text" }, parts[0], filled),
  ];
}

const VIEWS = {
  "text-classification": (prediction, run) => labels(prediction[0], run),
  "token-classification": entities,
  "question-answering": answerInContext,
  "fill-mask": masks,
};

/** The elements that show an answer of /predict to one input. */
export function answerView(prediction, run, values) {
  const view = VIEWS[run.kind] ?? ((answer) => [h("pre", {}, JSON.stringify(answer, null, 2))]);
  return view(prediction, run, values);
}

/** A table of similarities, coloured by value. */
export function matrix(values, lines) {
  const cell = (value) => h("td", { style: { background: `rgba(var(--for), ${(0.6 * Math.max(0, value) ** 2).toFixed(2)})` } }, value.toFixed(2));
  const header = h("tr", {}, h("td", {}), lines.map((_, number) => h("th", { scope: "col" }, String(number + 1))));
  const rows = values.map((row, number) => h("tr", {}, h("th", { scope: "row" }, `${number + 1}. ${lines[number]}`), row.map(cell)));
  return h("div", { class: "scroll", tabindex: "0" }, h("table", {}, h("thead", {}, header), h("tbody", {}, rows)));
}

/** The tokens of an input as the model gets them. */
export function tokenView(seen) {
  const isPair = seen.windows.flat().some((token) => token.segment);
  const windows = seen.windows.map((tokens, number) => {
    const items = tokens.map((token) => {
      const kind = `${token.special ? "special" : ""} ${token.segment ? "second" : ""}`;
      const note = `position ${token.position}, segment ${token.segment}, id ${token.id}`;
      const segment = isPair ? h("b", {}, ` ${"AB"[token.segment]}`) : null;
      return h("li", { class: kind, title: note }, h("code", {}, token.token), token.special ? spoken(" (special token) ") : null,
        h("small", {}, `${token.position}`, segment));
    });
    const title = seen.windows.length > 1 ? h("h2", {}, `Window ${number + 1} of ${seen.windows.length}`) : null;
    return [title, h("ul", { class: "tokens" }, items)];
  });
  return [
    h("p", { class: seen.cut ? "error" : "quiet" }, `${seen.tokens} tokens; the model reads up to ${seen.max_tokens} at a time. `,
      seen.cut ? `${seen.cut} of them are cut off.` : seen.windows.length > 1 ? "The text is read in several windows." : ""),
    ...windows.flat(),
    h("p", { class: "quiet" }, "Numbers are positions. Dashed: special tokens. ",
      isPair ? "A and B are the first and the second segment; B has a thick lower border. " : "",
      "## or ▁ and Ġ mark the middle or the beginning of a word, depending on the vocabulary."),
  ];
}
