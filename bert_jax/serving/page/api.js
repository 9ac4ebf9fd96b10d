// Requests to the server, and the same requests as programs would write them.

let token = "";

export function setToken(value) {
  token = value;
}

export class ServerError extends Error {
  /** `field` is the part of an invalid body, such as "inputs.3"; "" if it is not known. */
  constructor(status, message, field = "") {
    super(message);
    this.status = status;
    this.field = field;
  }
}

export const pause = (seconds) => new Promise((done) => setTimeout(done, 1000 * seconds));

async function send(path, options) {
  try {
    return await fetch(path, options);
  } catch {
    throw new ServerError(0, "The server cannot be reached. Is it still running?");
  }
}

let showWaiting = () => {};

/** Sets what is called with true while the server is not ready, and with false once it is. */
export function onWaiting(show) {
  showWaiting = show;
}

async function poll() {
  while (!(await send("/ready")).ok) {
    showWaiting(true);
    await pause(0.5);
  }
}

let polling = null; // one for all requests that wait

/** Waits if others wait already, so that a request after it can be timed. */
export const othersWait = async () => { await polling; };

/** Waits until all programs are compiled; throws a ServerError if the server cannot be reached. */
export function ready() {
  polling ??= poll().finally(() => {
    polling = null;
    showWaiting(false);
  });
  return polling;
}

/** Returns the JSON of an answer; throws a ServerError with the server's own message otherwise. Waits for the server. */
export async function call(path, body) {
  const headers = token ? { authorization: `Bearer ${token}` } : {};
  const options = body === undefined ? { headers } : {
    method: "POST",
    headers: { ...headers, "content-type": "application/json" },
    body: JSON.stringify(body),
  };
  let response = await send(path, options);
  if (response.status === 503) {
    const { ok } = await send("/ready");
    if (!ok) {
      await ready();
      response = await send(path, options);
    }
  }
  const text = await response.text();
  let value = null;
  try {
    value = JSON.parse(text);
  } catch { /* e.g. of a proxy */ }
  if (!response.ok) {
    throw new ServerError(response.status, value?.error ?? `The server answered with status ${response.status}.`, value?.field);
  }
  return value;
}

const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;

export function asCurl(path, body) {
  const lines = [`curl ${location.origin}${path}`];
  if (token) lines.push('-H "Authorization: Bearer $TOKEN"');
  lines.push("-H 'Content-Type: application/json'", `-d ${quoted(JSON.stringify(body))}`);
  return lines.join(" \\\n  ");
}

/** Returns Python that needs nothing but the standard library. */
export function asPython(path, body) {
  const headers = token
    ? '{"Content-Type": "application/json", "Authorization": f"Bearer {token}"}'
    : '{"Content-Type": "application/json"}';
  return [
    "import json",
    "import urllib.request",
    "",
    `body = json.loads(r'''${JSON.stringify(body).replaceAll("'''", "\\u0027''")}''')`,
    "request = urllib.request.Request(",
    `    "${location.origin}${path}",`,
    "    json.dumps(body).encode(),",
    `    ${headers},`,
    ")",
    "print(json.load(urllib.request.urlopen(request)))",
  ].join("\n");
}
