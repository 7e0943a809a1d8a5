// The page: choose, drop or record a clip, send it, show the answer. Nothing from the server is ever put in as HTML.

import { Timeline } from "./timeline.js";

const find = (id) => document.getElementById(id);
const MODALITIES = ["text", "audio", "vision"];
const NAMES = { text: "words", audio: "voice", vision: "face", comment: "words" };
const MIB = 1024 * 1024;
const TYPES = ["video/webm", "video/mp4"];
const LEAST_RECORDING = 1024; // bytes: a header alone is shorter

const state = { file: null, limits: null, request: null, recorder: null, timeline: null, address: null, clock: null };

// ---- small helpers

const element = (name, { text = null, cls = "", ...attributes } = {}, ...children) => {
  const made = document.createElement(name);
  if (text !== null) made.textContent = text;
  if (cls) made.className = cls;
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
};

const say = (sentence) => { find("status").textContent = sentence; };

const showError = (sentence) => {
  const box = find("error");
  box.hidden = !sentence;
  box.textContent = sentence;
};

const signed = (value, digits = 2) => `${value < 0 ? "\u2212" : "+"}${Math.abs(value).toFixed(digits)}`;
const bound = (value) => String(value).replace("-", "\u2212");
const percent = (share) => `${(100 * share).toFixed(share < 0.0995 ? 1 : 0)} %`;
const size = (bytes) => (bytes < MIB ? `${Math.ceil(bytes / 1024)} KiB` : `${(bytes / MIB).toFixed(1)} MiB`);

// ---- the server's facts

const greet = async () => {
  try {
    const health = await (await fetch("/health")).json();
    state.limits = health.limits;
    const run = health.run;
    const parts = [run.title || run.method, run.corpus].filter((part) => typeof part === "string");
    if (parts.length) find("run").textContent = `From a clip to a score with reasons · ${parts.join(" on ")}`;
    find("limits").textContent =
      `Up to ${size(health.limits.upload_bytes)} and ${health.limits.clip_seconds} seconds. It stays on this server until it is read, then it is deleted.`;
  } catch {
    showError("The server does not answer; start it and load this page again.");
  }
};

// ---- choosing and recording

const choose = (file) => {
  clearResult();
  showError("");
  state.file = file;
  find("chosen").hidden = find("discard").hidden = !file;
  find("drop-hint").hidden = Boolean(file);
  find("preview").hidden = !file;
  if (state.address) URL.revokeObjectURL(state.address);
  state.address = null;
  const video = find("video");
  find("unplayable").hidden = true;
  video.hidden = false;
  video.classList.remove("sound-only");
  if (!file) {
    video.removeAttribute("src");
    video.load();
    say("Nothing has been scored yet.");
    return;
  }
  find("chosen").textContent = `${file.name} (${size(file.size)})`;
  state.address = URL.createObjectURL(file);
  video.src = state.address;
  say("The clip is ready to be scored.");
};

const showPlayable = () => {
  const video = find("video");
  if (!video.getAttribute("src")) return;
  find("unplayable").hidden = !video.error;
  video.hidden = Boolean(video.error);
  video.classList.toggle("sound-only", !video.error && video.readyState > 0 && !video.videoWidth);
};

const startRecording = async () => {
  showError("");
  if (!navigator.mediaDevices || !window.MediaRecorder) {
    showError("Recording is not possible here: it needs a recent browser, and https or localhost.");
    return;
  }
  let stream;
  try {
    stream = await navigator.mediaDevices.getUserMedia({ audio: true, video: { facingMode: "user", width: { ideal: 640 }, frameRate: { ideal: 15 } } });
  } catch (fault) {
    showError(`The camera or microphone could not be used (${fault.name}); allow both, or choose a file.`);
    return;
  }
  choose(null);
  const type = TYPES.find((name) => MediaRecorder.isTypeSupported(name));
  const recorder = (state.recorder = new MediaRecorder(stream, type ? { mimeType: type } : {}));
  const parts = [];
  recorder.addEventListener("dataavailable", (event) => {
    parts.push(event.data);
    find("record").dataset.bytes = parts.reduce((sum, part) => sum + part.size, 0);
  });
  recorder.addEventListener("stop", () => finishRecording(stream, parts, recorder.mimeType));
  const video = find("video");
  find("preview").hidden = false;
  video.srcObject = stream;
  video.muted = true;
  video.play().catch(() => {});
  recorder.start(250);
  find("record").classList.add("live");
  count();
};

const count = () => {
  const started = performance.now();
  const most = (state.limits ? state.limits.clip_seconds : 60) - 1;
  const tick = () => {
    const seconds = Math.floor((performance.now() - started) / 1000);
    find("record").textContent = `Stop recording (${seconds} s)`;
    if (seconds >= most) stopRecording();
  };
  say("Recording. Press the button again to stop.");
  tick();
  state.clock = setInterval(tick, 500);
};

const stopRecording = () => {
  if (state.recorder && state.recorder.state !== "inactive") state.recorder.stop();
};

const finishRecording = (stream, parts, type) => {
  clearInterval(state.clock);
  for (const track of stream.getTracks()) track.stop();
  const video = find("video");
  video.srcObject = null;
  video.muted = false;
  state.recorder = null;
  find("record").classList.remove("live");
  find("record").textContent = "Record yourself";
  const file = new File(parts, type.startsWith("video/mp4") ? "recording.mp4" : "recording.webm", { type });
  if (file.size < LEAST_RECORDING) {
    choose(null);
    showError("Nothing was recorded; record a little longer, or choose a file.");
  } else choose(file);
};

// ---- sending

const send = (event) => {
  event.preventDefault();
  if (state.request) return;
  stopRecording();
  const text = find("text").value.trim();
  if (!state.file && !text) {
    showError("There is nothing to score: choose or record a clip, or write what is said.");
    return;
  }
  if (state.file && state.limits && state.file.size > state.limits.upload_bytes) {
    showError(`The clip has ${size(state.file.size)}, and the server takes ${size(state.limits.upload_bytes)}; choose a shorter one.`);
    return;
  }
  showError("");
  clearResult();
  const request = (state.request = new XMLHttpRequest());
  request.open("POST", "/predict");
  request.responseType = "text";
  request.upload.addEventListener("progress", uploading);
  request.addEventListener("load", () => finish(request));
  request.addEventListener("error", () => fail("The connection broke off; check that the server runs and try again."));
  request.addEventListener("abort", () => fail("", "Cancelled."));
  busy(true);
  if (state.file) request.send(form(text));
  else {
    request.setRequestHeader("Content-Type", "application/json");
    request.send(JSON.stringify({ text }));
  }
};

const form = (text) => {
  const data = new FormData();
  if (text) data.append("text", text);
  data.append("clip", state.file, "clip");
  return data;
};

const uploading = (event) => {
  const whole = event.lengthComputable && event.loaded < event.total;
  if (whole) {
    find("progress").value = event.loaded / event.total;
    say(`Uploading: ${percent(event.loaded / event.total)}`);
  } else {
    find("progress").removeAttribute("value");
    say("The server is reading and scoring the clip.");
  }
};

const busy = (on) => {
  document.body.setAttribute("aria-busy", String(on));
  for (const id of ["send", "record", "file", "discard"]) find(id).disabled = on;
  find("cancel").hidden = find("progress").hidden = !on;
  if (on) {
    find("progress").removeAttribute("value");
    say("Sending.");
  }
};

const fail = (sentence, status = "No result.") => {
  state.request = null;
  busy(false);
  say(status);
  showError(sentence);
};

const finish = (request) => {
  let answer = null;
  try {
    answer = JSON.parse(request.responseText);
  } catch {
    fail(`The server answered with something else than a result (status ${request.status}); try again.`);
    return;
  }
  if (request.status !== 200) {
    fail(answer.error || `The server answered with status ${request.status}; try again.`);
    return;
  }
  state.request = null;
  busy(false);
  show(answer);
};

// ---- showing

const clearResult = () => {
  if (state.timeline) state.timeline.close();
  state.timeline = null;
  for (const id of ["timeline", "choose-signals", "result"]) find(id).hidden = true;
};

const show = (answer) => {
  find("score").replaceChildren(...score(answer));
  find("change").replaceChildren(...changes(answer));
  find("gates").replaceChildren(...gates(answer));
  find("experts").replaceChildren(...experts(answer));
  find("reasons").replaceChildren(...reasons(answer));
  find("words").replaceChildren(...words(answer));
  find("notes").replaceChildren(...notes(answer));
  const spent = Object.entries(answer.spent || {}).map(([stage, seconds]) => `${stage} ${seconds.toFixed(2)} s`);
  find("spent").textContent = spent.length ? `Time: ${spent.join(", ")}` : "";
  if (answer.timeline) showTimeline(answer.timeline);
  find("result").hidden = false;
  say(`Done: ${find("score").dataset.told}.`);
  find("result").focus({ preventScroll: Boolean(answer.timeline) });
};

const showTimeline = (timeline) => {
  if (!timeline.words.length && !timeline.signals.length) return;
  find("timeline").hidden = false;
  const line = (state.timeline = new Timeline(find("timeline"), find("video"), timeline));
  find("choose-signals").hidden = !timeline.signals.length;
  const chosen = new Set(line.chosen);
  find("signals").replaceChildren(...timeline.signals.map((signal) => {
    const box = element("input", { type: "checkbox" });
    box.checked = chosen.has(signal.name);
    box.addEventListener("change", () => {
      if (box.checked) chosen.add(signal.name);
      else chosen.delete(signal.name);
      line.choose(chosen);
    });
    return element("label", {}, box, element("span", { text: signal.title }));
  }));
};

const score = (answer) => {
  const told = (sentence) => { find("score").dataset.told = sentence; };
  if (answer.value !== null && answer.value !== undefined) {
    told(`score ${signed(answer.value)}`);
    return [element("p", { cls: "big", text: signed(answer.value) }), ...scale(answer)];
  }
  if (!answer.probabilities) {
    told("no prediction");
    return [element("p", { text: "There is nothing in the clip that this run reads, so there is no score." })];
  }
  told(`${answer.label}, ${percent(answer.probabilities[answer.label])}`);
  const ranked = Object.entries(answer.probabilities).sort((a, b) => b[1] - a[1]);
  return [
    element("p", { cls: "big", text: answer.label }),
    bars(ranked.map(([name, share]) => ({ name, start: 0, end: share, text: percent(share) }))),
  ];
};

const scale = ({ value, low, high }) => {
  if (low === null || high === null || low === undefined || high === undefined) return [];
  const place = (number) => Math.min(Math.max((number - low) / (high - low), 0), 1) * 100;
  const line = element("div", { cls: "scale", role: "img", "aria-label": `${signed(value)} on a scale from ${low} to ${high}` });
  const fill = element("i");
  const mark = element("b");
  const middle = low < 0 && high > 0 ? place(0) : 0;
  fill.style.left = `${Math.min(middle, place(value))}%`;
  fill.style.width = `${Math.abs(place(value) - middle)}%`;
  mark.style.left = `${place(value)}%`;
  line.append(fill, mark);
  const ends = element("div", { cls: "ends" }, element("span", { text: bound(low) }), element("span", { text: bound(high) }));
  return [line, ends];
};

// rows: [{name, start, end, text, cls}], shares of the width
const bars = (rows, { two = false } = {}) => {
  const list = element("dl", { cls: "bars" });
  for (const row of rows) {
    const fill = element("i");
    fill.style.left = `${100 * Math.min(row.start, row.end)}%`;
    fill.style.width = `${100 * Math.abs(row.end - row.start)}%`;
    const bar = element("div", { cls: `bar ${row.cls || ""} ${two ? "two" : ""}` }, fill);
    list.append(element("dt", { text: row.name }), element("dd", { "aria-hidden": "true" }, bar), element("dd", { cls: "number", text: row.text }));
  }
  return list;
};

const present = (mapping) => MODALITIES.filter((modality) => mapping && modality in mapping);

const changes = (answer) => {
  const names = present(answer.change);
  if (!names.length) return [];
  const most = Math.max(...names.map((name) => Math.abs(answer.change[name])), 1e-9);
  const of = answer.label ? `the probability of ${answer.label}` : "the score";
  const rows = names.map((name) => ({
    name: NAMES[name], cls: name, start: 0.5, end: 0.5 + 0.5 * (answer.change[name] / most), text: signed(answer.change[name]),
  }));
  return [element("h3", { text: `How far each part moves ${of}` }), bars(rows, { two: true })];
};

const gates = (answer) => {
  const names = present(answer.gates);
  if (!names.length) return [];
  const rows = names.map((name) => ({ name: NAMES[name], cls: name, start: 0, end: answer.gates[name], text: percent(answer.gates[name]) }));
  return [element("h3", { text: "Weight of each part in the model's summary" }), bars(rows)];
};

const experts = (answer) => {
  if (!answer.experts || !answer.experts.length) return [];
  const most = Math.max(...answer.experts.map((layer) => layer.length));
  const numbers = Array.from({ length: most }, (_, n) => element("th", { scope: "col", text: `${n + 1}` }));
  const head = element("thead", {}, element("tr", {}, element("th", { scope: "col", text: "layer" }), ...numbers));
  const rows = answer.experts.map((layer, n) => element(
    "tr", {}, element("th", { scope: "row", text: `${n + 1}` }),
    ...layer.map((weight) => {
      const cell = element("td", { cls: "weight", text: percent(weight) });
      const mark = element("i");
      mark.style.width = `${100 * Math.min(Math.max(weight, 0), 1)}%`;
      cell.append(mark);
      return cell;
    }),
  ));
  const table = element("table", {}, element("caption", { cls: "soft small", text: "share of each expert" }), head, element("tbody", {}, ...rows));
  return [element("h3", { text: "Which experts the clip was sent to" }), element("div", { cls: "scroll", tabindex: "0", role: "group", "aria-label": "Expert routing" }, table)];
};

const listed = (entries) => {
  const list = element("dl", { cls: "told" });
  for (const [name, text] of entries) list.append(element("dt", { text: name }), element("dd", { text }));
  return list;
};

const reasons = (answer) => {
  const roles = ["audio", "vision", "comment"].filter((role) => answer.explanations && answer.explanations[role]);
  if (!roles.length) return [];
  return [element("h3", { text: "What was noticed" }), listed(roles.map((role) => [NAMES[role], answer.explanations[role]]))];
};

const words = (answer) => {
  if (!answer.text) return [];
  const parts = [element("h3", { text: answer.text_source ? `What was said (${answer.text_source})` : "What was said" }), element("q", { text: answer.text })];
  if (!answer.words || !answer.words.length) return parts;
  const rows = answer.words.map(([word, start, end]) => element(
    "tr", {}, element("td", { text: word }), element("td", { text: start.toFixed(2) }), element("td", { text: end.toFixed(2) }),
  ));
  const head = ["word", "from (s)", "to (s)"].map((text) => element("th", { scope: "col", text }));
  const table = element("table", {}, element("thead", {}, element("tr", {}, ...head)), element("tbody", {}, ...rows));
  return [...parts, element("details", {}, element("summary", { text: "Words with their times" }), table)];
};

const notes = (answer) => {
  const absent = present(answer.absent).map((name) => [`no ${NAMES[name]}`, answer.absent[name]]);
  const others = (answer.notes || []).map((note) => ["note", note]);
  if (!absent.length && !others.length) return [];
  return [element("h3", { text: "What to know" }), listed([...absent, ...others])];
};

// ---- wiring

const wire = () => {
  find("form").addEventListener("submit", send);
  find("file").addEventListener("change", () => { if (find("file").files.length) choose(find("file").files[0]); });
  find("discard").addEventListener("click", () => { find("file").value = ""; choose(null); find("record").focus(); });
  find("record").addEventListener("click", () => { if (state.recorder) stopRecording(); else startRecording(); });
  find("cancel").addEventListener("click", () => { if (state.request) state.request.abort(); });
  for (const name of ["error", "loadedmetadata"]) find("video").addEventListener(name, showPlayable);
  const drop = find("drop");
  for (const name of ["dragenter", "dragover"]) {
    drop.addEventListener(name, (event) => { event.preventDefault(); drop.classList.add("over"); });
  }
  for (const name of ["dragleave", "drop"]) drop.addEventListener(name, () => drop.classList.remove("over"));
  drop.addEventListener("drop", (event) => {
    event.preventDefault();
    if (!state.request && event.dataTransfer.files.length) choose(event.dataTransfer.files[0]);
  });
  greet();
};

wire();
