// Texts that were typed, by the name of their field: one text for all tabs and runs, which is also there after a way back to the page.

const KEY = "bert_jax drafts";
let drafts = {};
try {
  drafts = JSON.parse(sessionStorage.getItem(KEY)) ?? {};
} catch { /* the browser keeps nothing, or something else */ }

/** Returns the text of a field; undefined if none was typed. */
export const draft = (name) => drafts[name];

export function keepDraft(name, text) {
  drafts[name] = text;
  try {
    sessionStorage.setItem(KEY, JSON.stringify(drafts));
  } catch { /* too long, or not allowed: it is kept until the page is closed */ }
}
