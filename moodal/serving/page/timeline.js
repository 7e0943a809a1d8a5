// One time line under the clip: words, voice and face, drawn as SVG; a slider for the keyboard.

const SVG = "http://www.w3.org/2000/svg";
const WORDS_HEIGHT = 58;
const LANE_HEIGHT = 54;
const AXIS_HEIGHT = 20;
const LEAST_PIXELS_A_SECOND = 36;
const MOST_FACE_LANES = 4;

const node = (name, attributes = {}, text = null) => {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== null) made.textContent = text;
  return made;
};

const finite = (values) => values.filter((value) => value !== null);

const range = (values) => {
  const real = finite(values);
  if (!real.length) return [0, 1];
  const low = real.reduce((a, b) => Math.min(a, b));
  const high = real.reduce((a, b) => Math.max(a, b));
  return low === high ? [low - 0.5, high + 0.5] : [low, high];
};

const variation = (signal) => {
  const real = finite(signal.values);
  if (real.length < 2) return 0;
  const mean = real.reduce((a, b) => a + b) / real.length;
  const spread = Math.sqrt(real.reduce((sum, value) => sum + (value - mean) ** 2, 0) / real.length);
  return spread / (Math.abs(mean) + spread || 1);
};

const shown = (value) => String(Number(Number(value).toPrecision(3))).replace("-", "\u2212");

// The voice always, and of the face what moves most.
export const firstChoice = (signals) => {
  const face = signals.filter((signal) => signal.modality === "vision").sort((a, b) => variation(b) - variation(a));
  const voice = signals.filter((signal) => signal.modality !== "vision");
  return new Set([...voice, ...face.slice(0, MOST_FACE_LANES)].map((signal) => signal.name));
};

export class Timeline {
  constructor(host, media, { seconds, words, signals }) {
    this.host = host;
    this.media = media;
    this.seconds = Math.max(seconds || 0, ...words.map((word) => word[2]), 0.1);
    this.words = words;
    this.signals = signals;
    this.chosen = firstChoice(signals);
    this.position = 0;
    this.stop = new AbortController();
    this.build();
    this.draw(); // at once: the clip may tell its length before the first observation of the size
    this.observer = new ResizeObserver(() => this.draw());
    this.observer.observe(host);
  }

  close() {
    this.stop.abort();
    this.observer.disconnect();
    this.host.replaceChildren();
  }

  choose(names) {
    this.chosen = names;
    this.draw();
  }

  build() {
    this.names = document.createElement("div");
    this.names.className = "names";
    this.names.setAttribute("aria-hidden", "true");
    this.lanes = document.createElement("div");
    this.lanes.className = "lanes";
    this.lanes.tabIndex = 0;
    const about = { role: "slider", "aria-label": "Position in the clip", "aria-valuemin": "0" };
    for (const [key, value] of Object.entries(about)) this.lanes.setAttribute(key, value);
    this.lanes.setAttribute("aria-valuemax", this.seconds.toFixed(1));
    this.host.replaceChildren(this.names, this.lanes);
    const listen = { signal: this.stop.signal };
    this.lanes.addEventListener("keydown", (event) => this.key(event), listen);
    this.lanes.addEventListener("click", (event) => this.point(event), listen);
    for (const name of ["timeupdate", "seeked", "loadedmetadata"]) {
      this.media.addEventListener(name, () => this.move(this.media.currentTime), listen);
    }
    this.media.addEventListener("play", () => this.follow(), listen);
  }

  follow() {
    if (this.media.paused || this.stop.signal.aborted) return;
    this.move(this.media.currentTime);
    requestAnimationFrame(() => this.follow());
  }

  key(event) {
    const steps = { ArrowLeft: -0.25, ArrowRight: 0.25, ArrowDown: -0.25, ArrowUp: 0.25, PageDown: -2, PageUp: 2 };
    const ends = { Home: 0, End: this.seconds };
    if (event.key in steps) this.seek(this.position + steps[event.key]);
    else if (event.key in ends) this.seek(ends[event.key]);
    else if (event.key === " " && this.media.readyState > 0) this.media.paused ? this.media.play() : this.media.pause();
    else return;
    event.preventDefault();
  }

  point(event) {
    const box = this.svg.getBoundingClientRect();
    this.seek(((event.clientX - box.left) / box.width) * this.seconds);
  }

  seek(time) {
    const inside = Math.min(Math.max(time, 0), this.seconds);
    if (this.media.readyState > 0) this.media.currentTime = inside;
    this.move(inside);
  }

  move(time) {
    this.position = Math.min(Math.max(time, 0), this.seconds);
    const x = this.x(this.position);
    this.head.setAttribute("x1", x);
    this.head.setAttribute("x2", x);
    let word = "";
    this.boxes.forEach((box, n) => {
      const now = this.words[n][1] <= this.position && this.position < this.words[n][2];
      box.classList.toggle("now", now);
      if (now) word = this.words[n][0];
    });
    this.lanes.setAttribute("aria-valuenow", this.position.toFixed(2));
    this.lanes.setAttribute("aria-valuetext", `${this.position.toFixed(1)} seconds${word ? `, “${word}”` : ""}`);
    const { scrollLeft, clientWidth } = this.lanes;
    if (x < scrollLeft || x > scrollLeft + clientWidth) this.lanes.scrollLeft = x - clientWidth / 4;
  }

  x(time) {
    return (time / this.seconds) * this.width;
  }

  draw() {
    const room = this.lanes.clientWidth || 600;
    this.width = Math.max(room, Math.ceil(this.seconds * LEAST_PIXELS_A_SECOND));
    const lanes = this.signals.filter((signal) => this.chosen.has(signal.name));
    const height = WORDS_HEIGHT + lanes.length * LANE_HEIGHT + AXIS_HEIGHT;
    this.svg = node("svg", { width: this.width, height, viewBox: `0 0 ${this.width} ${height}`, "aria-hidden": "true" });
    this.names.replaceChildren(this.name("words", `${this.words.length} in ${this.seconds.toFixed(1)} s`, WORDS_HEIGHT));
    this.drawWords();
    lanes.forEach((signal, n) => this.drawSignal(signal, WORDS_HEIGHT + n * LANE_HEIGHT));
    this.drawAxis(height);
    this.head = node("line", { class: "head", x1: 0, x2: 0, y1: 0, y2: height });
    this.svg.append(this.head);
    this.lanes.replaceChildren(this.svg);
    this.move(this.position);
  }

  name(title, detail, height) {
    const cell = document.createElement("div");
    const small = document.createElement("small");
    cell.style.height = `${height}px`;
    cell.textContent = title;
    small.textContent = detail;
    cell.append(small);
    return cell;
  }

  drawWords() {
    const rows = [0, 0];
    this.boxes = this.words.map(([word, start, end]) => {
      const left = this.x(start);
      const wide = Math.max(this.x(end) - left, 4);
      const row = left >= rows[0] || rows[0] <= rows[1] ? 0 : 1;
      const y = 5 + row * 26;
      const box = node("g", { class: "word" });
      const fits = Math.max(1, Math.floor((wide + 8) / 7.4));
      const text = word.length <= fits ? word : fits > 2 ? `${word.slice(0, fits - 1)}…` : "";
      rows[row] = Math.max(left + wide, left + text.length * 7.4);
      box.append(
        node("title", {}, `${word}: ${start.toFixed(2)} to ${end.toFixed(2)} s`),
        node("rect", { x: left, y, width: wide, height: 22, rx: 4 }),
        node("text", { x: left + 3, y: y + 15.5 }, text),
      );
      this.svg.append(box);
      return box;
    });
  }

  drawSignal(signal, top) {
    const [low, high] = range(signal.values);
    const unit = signal.unit === "Hz" ? " Hz" : "";
    this.names.append(this.name(signal.title, `${shown(low)} to ${shown(high)}${unit}`, LANE_HEIGHT));
    const y = (value) => top + LANE_HEIGHT - 6 - ((value - low) / (high - low)) * (LANE_HEIGHT - 12);
    let path = "";
    let pen = false;
    signal.values.forEach((value, n) => {
      if (value === null) {
        pen = false;
        return;
      }
      path += `${pen ? "L" : "M"}${this.x(signal.times[n]).toFixed(1)} ${y(value).toFixed(1)}`;
      pen = true;
    });
    this.svg.append(
      node("line", { class: "rule", x1: 0, x2: this.width, y1: top, y2: top }),
      node("path", { class: `curve ${signal.modality === "vision" ? "vision" : "audio"}`, d: path, fill: "none" }),
    );
  }

  drawAxis(height) {
    const top = height - AXIS_HEIGHT;
    this.svg.append(node("line", { class: "rule", x1: 0, x2: this.width, y1: top, y2: top }));
    const steps = [0.5, 1, 2, 5, 10, 30, 60, 300];
    const step = steps.find((size) => this.x(size) >= 48) || 600;
    for (let time = 0; time < this.seconds; time += step) {
      this.svg.append(node("text", { class: "tick", x: this.x(time) + 3, y: height - 6 }, `${time} s`));
    }
    this.names.append(this.name("", "", AXIS_HEIGHT));
  }
}
