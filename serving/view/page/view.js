// The page of the live view. It shows what the server sends over one WebSocket and can change nothing there. All text
// from outside goes through textContent or a canvas.

const get = (id) => document.getElementById(id);
const LEVELS = { DEBUG: 0, INFO: 1, WARNING: 2, ERROR: 3, CRITICAL: 3 };
const USED = /^(trajectory|coil maps?|maps|noise|readouts are whitened|field|off-resonance|gradient|computing with)/i;
const TRACE_SECONDS = 8;
const KEPT_SAMPLES = 60000; // of a trace
const PLOTTED = 300; // images
const RETRY = 1000; // [ms]
const COLOURS = { text: "#d5dae1", dim: "#8b95a3", line: "#2a3039", accent: "#6cb2f7", good: "#79cfa0", warn: "#e8b75a" };

let socket = null;
let identity = null; // of the server: another one after a restart
let clock = 0; // the server's clock minus ours [s]
let sessions = []; // as the server lists them
let watched = null; // name of the session that is shown
let confirmed = false; // the server sends that session's images from here on
let scene = null; // what is known of it
const rows = new Map(); // of the list of sessions

function newScene() {
  return {
    series: new Map(), shown: null, messages: [], settings: {}, parameters: "", traces: new Map(),
    mode: "live", number: 0, plane: 0, mosaic: null, fit: true, newest: 0, first: null, live: 0, used: [],
  };
}

// ---- the connection ------------------------------------------------------------------------------------------------

function connect() {
  socket = new WebSocket(`${location.protocol === "https:" ? "wss" : "ws"}://${location.host}/live`);
  socket.binaryType = "arraybuffer";
  socket.onmessage = (event) => (typeof event.data === "string" ? hear(JSON.parse(event.data)) : take(event.data));
  socket.onclose = (event) => {
    confirmed = false;
    const why = event.reason || "the server does not answer";
    get("link").textContent = `${why}: trying again`;
    get("link").className = "down";
    setTimeout(connect, RETRY);
  };
}

function hear(told) {
  if (told.type === "server") {
    get("link").textContent = "connected";
    get("link").className = "up";
    clock = told.now - Date.now() / 1000;
    if (identity !== told.identity) watch(null);
    else if (watched) watch(watched, scene); // what came meanwhile follows
    identity = told.identity;
  } else if (told.type === "sessions") {
    sessions = told.sessions;
    follow();
    listSessions();
  } else if (told.type === "watching") {
    confirmed = told.name === watched;
  } else if (told.type === "details" && told.name === watched) {
    takeDetails(told);
  }
}

function follow() {
  const newest = sessions.filter((each) => each.outcome === "running").at(-1) || (watched ? null : sessions.at(-1));
  if (!newest || newest.name === watched) return;
  if (!watched || get("follow").checked) watch(newest.name);
}

function watch(name, kept = null) {
  watched = name;
  confirmed = false;
  scene = kept || newScene();
  scene.messages = [];
  scene.used = [];
  scene.traces = new Map();
  get("messages").replaceChildren();
  get("series").replaceChildren();
  for (const each of scene.series.values()) each.thumb = null;
  if (name && socket.readyState === WebSocket.OPEN) socket.send(JSON.stringify({ watch: name }));
  listSettings();
  redraw();
}

// ---- what comes ----------------------------------------------------------------------------------------------------

function take(buffer) {
  const length = new DataView(buffer).getUint32(0, true);
  const header = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 4, length)));
  if (header.type === "image") {
    socket.send('{"got": 1}');
    const Kind = header.signed ? Int16Array : Uint16Array;
    if (confirmed) takeImage(header, new Kind(buffer, 4 + length));
  } else if (confirmed) {
    takeWaveform(header, new Float32Array(buffer, 4 + length));
  }
}

function takeImage(frame, pixels) {
  frame.pixels = pixels;
  if (!scene.series.has(frame.series)) {
    scene.series.set(frame.series, { frames: [], window: null, thumb: null });
    if (scene.shown === null) scene.shown = frame.series;
  }
  const frames = scene.series.get(frame.series).frames;
  let place = frames.length;
  while (place > 0 && frames[place - 1].number > frame.number) place -= 1;
  if (place > 0 && frames[place - 1].number === frame.number) return; // it is here from before a break
  frames.splice(place, 0, frame);
  if (frame.number > scene.newest) {
    if (scene.first === null) scene.first = frame.number;
    scene.newest = frame.number;
    scene.live += 1;
  }
  redraw();
}

function takeWaveform(header, curve) {
  const trace = scene.traces.get(header.id) || { packets: [], samples: 0 };
  scene.traces.set(header.id, trace);
  let start = 0;
  for (const [time, interval, count, triggers] of header.packets) {
    trace.packets.push({ time, interval, triggers, curve: curve.subarray(start, start + count) });
    trace.samples += count;
    start += count;
  }
  while (trace.samples > KEPT_SAMPLES) trace.samples -= trace.packets.shift().curve.length;
  redraw();
}

function takeDetails(told) {
  for (const message of told.messages) {
    scene.messages.push(message);
    if (USED.test(message.text)) scene.used.push(message.text);
    addMessage(message);
  }
  while (scene.messages.length > 500) {
    scene.messages.shift();
    get("messages").firstChild.remove();
  }
  for (const [number, series] of scene.series) { // what the server has dropped is dropped here
    const oldest = told.series[number]?.[0] ?? Infinity;
    while (series.frames.length && series.frames[0].number < oldest) series.frames.shift();
    if (series.frames.length) continue;
    scene.series.delete(number);
    series.thumb?.remove();
    if (scene.shown === number) scene.shown = scene.series.keys().next().value ?? null;
  }
  if (told.settings) Object.assign(scene, { settings: told.settings, parameters: told.parameters });
  if (told.settings || told.messages.length) listSettings();
  redraw();
}

// ---- which image is shown ------------------------------------------------------------------------------------------

const current = () => scene?.series.get(scene.shown);

// Planes of a series: of each slice, those of its images.
function planesOf(series) {
  const found = new Map();
  for (const frame of series.frames.slice(-512)) {
    const count = frame.rgb ? frame.shape[1] : frame.shape[0] * frame.shape[1];
    for (let plane = 0; plane < count; plane += 1) found.set(`${frame.slice} ${plane}`, [frame.slice, plane]);
  }
  return [...found.values()].sort((a, b) => a[0] - b[0] || a[1] - b[1]);
}

const isMosaic = (planes) => scene.mosaic ?? planes.length > 1;

// Images that can be gone through: all of the series in a mosaic, else those of the slice.
function timeline(series, planes) {
  if (isMosaic(planes) || planes.length < 2) return series.frames;
  const slice = planes[Math.min(scene.plane, planes.length - 1)][0];
  return series.frames.filter((frame) => frame.slice === slice);
}

function placeIn(frames) {
  if (scene.mode === "live") return frames.length - 1;
  let place = frames.length - 1;
  while (place > 0 && frames[place].number > scene.number) place -= 1;
  return place;
}

// Tiles to draw: image and plane.
function tiles(series, planes, frame) {
  if (!isMosaic(planes)) return [[frame, planes.length > 1 ? planes[Math.min(scene.plane, planes.length - 1)][1] : 0]];
  const newest = new Map();
  for (const each of series.frames) {
    if (each.number > frame.number) break;
    newest.set(each.slice, each);
  }
  return planes.map(([slice, plane]) => [newest.get(slice), plane]);
}

function go(mode, number = scene.number) {
  if (!scene) return;
  scene.mode = mode;
  scene.number = number;
  played = performance.now();
  redraw();
}

function step(by) {
  const series = current();
  if (!series) return;
  const frames = timeline(series, planesOf(series));
  const place = Math.max(0, Math.min(frames.length - 1, placeIn(frames) + by));
  go("paused", frames[place].number);
}

function playOrPause() {
  const series = current();
  if (!series) return;
  const frames = timeline(series, planesOf(series));
  const place = placeIn(frames);
  if (scene.mode !== "paused") return go("paused", frames[place].number);
  go("playing", place === frames.length - 1 ? frames[0].number : frames[place].number);
}

let played = 0; // when the movie went on to another image [ms]

function playOn(frames) {
  const place = placeIn(frames);
  if (place === frames.length - 1) {
    const running = sessions.find((each) => each.name === watched)?.outcome === "running";
    return running ? go("live") : go("playing", frames[0].number);
  }
  const apart = frames.slice(1).map((frame, number) => frame.sent - frames[number].sent).sort((a, b) => a - b);
  const interval = Math.max(20, Math.min(500, 1000 * apart[apart.length >> 1]));
  const steps = Math.floor((performance.now() - played) / interval);
  if (steps > 0) {
    scene.number = frames[Math.min(place + steps, frames.length - 1)].number;
    played += steps * interval;
  }
  redraw();
}

// ---- pixels --------------------------------------------------------------------------------------------------------

function rangeOf(frame) {
  let low = Infinity, high = -Infinity;
  for (const pixel of frame.pixels) {
    if (pixel < low) low = pixel;
    if (pixel > high) high = pixel;
  }
  return [frame.offset + frame.scale * low, frame.offset + frame.scale * high];
}

function autoWindow(frame) {
  const sorted = frame.pixels.slice().sort(); // of few pixels: one image
  const at = (part) => frame.offset + frame.scale * sorted[Math.round(part * (sorted.length - 1))];
  const [low, high] = [at(0.01), at(0.995)];
  return high > low ? [(low + high) / 2, high - low] : [low, 1];
}

function windowOf(series, frame) {
  if (series.window) return series.window;
  if (frame.window) return frame.window;
  if (!frame.own) {
    const [low, high] = rangeOf(frame);
    frame.own = [(low + high) / 2, high > low ? high - low : 1];
  }
  return frame.own;
}

let table = null; // grey values of all 65536 stored values
let tableIsFor = "";

function greys(frame, [centre, width]) {
  const wanted = [frame.signed, frame.scale, frame.offset, centre, width].join();
  if (wanted === tableIsFor) return table;
  table = new Uint8ClampedArray(65536);
  const view = frame.signed ? new Int16Array(1) : new Uint16Array(1);
  for (let bits = 0; bits < 65536; bits += 1) {
    view[0] = bits;
    table[bits] = ((frame.offset + frame.scale * view[0] - centre) / width + 0.5) * 255;
  }
  tableIsFor = wanted;
  return table;
}

const paper = document.createElement("canvas"); // takes one plane in its own size

function putPlane(frame, plane, window) {
  const [channels, depth, height, width] = frame.shape;
  if (paper.width !== width || paper.height !== height) Object.assign(paper, { width, height });
  const context = paper.getContext("2d", { willReadFrequently: true });
  const picture = context.createImageData(width, height);
  const points = new Uint32Array(picture.data.buffer);
  const grey = greys(frame, window);
  const size = width * height;
  const pixels = frame.pixels;
  if (frame.rgb) {
    const next = depth * size;
    for (let n = 0, at = plane * size; n < size; n += 1, at += 1)
      points[n] = 0xff000000 | (grey[pixels[at + 2 * next] & 0xffff] << 16)
        | (grey[pixels[at + next] & 0xffff] << 8) | grey[pixels[at] & 0xffff];
  } else {
    const start = Math.min(plane, channels * depth - 1) * size;
    for (let n = 0; n < size; n += 1) points[n] = 0xff000000 | (grey[pixels[start + n] & 0xffff] * 0x10101);
  }
  context.putImageData(picture, 0, 0);
  return paper;
}

function contextOf(canvas) {
  const [width, height] = [Math.round(canvas.clientWidth * devicePixelRatio), Math.round(canvas.clientHeight * devicePixelRatio)];
  if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
  const context = canvas.getContext("2d");
  context.setTransform(1, 0, 0, 1, 0, 0);
  context.clearRect(0, 0, width, height);
  return context;
}

// ---- drawing -------------------------------------------------------------------------------------------------------

let isDue = false;
let placed = []; // tiles on the canvas, for the pointer
const delays = (globalThis.paintDelays = []); // from sent to painted, on one clock [ms]; benchmarks read it
const painted = new MessageChannel(); // its message comes after the browser has painted
let lastPainted = null;
painted.port1.onmessage = (event) => {
  delays.push(performance.timeOrigin + performance.now() - 1000 * event.data);
  if (delays.length > 2000) delays.shift();
};

function redraw() {
  if (isDue) return;
  isDue = true;
  requestAnimationFrame(() => {
    isDue = false;
    draw();
  });
}

function draw() {
  const series = current();
  const planes = series ? planesOf(series) : [];
  const frames = series ? timeline(series, planes) : [];
  if (scene?.mode === "playing" && frames.length) playOn(frames);
  const place = frames.length ? placeIn(frames) : 0;
  const frame = frames[place];
  drawImage(series, planes, frame);
  drawWords(series, planes, frame, frames, place);
  drawTraces(frame);
  drawSlowly();
  if (frame && scene.mode === "live" && frame !== lastPainted) {
    lastPainted = frame;
    painted.port2.postMessage(frame.sent);
  }
}

function drawImage(series, planes, frame) {
  const context = contextOf(get("image"));
  placed = [];
  if (!frame) return;
  const shown = tiles(series, planes, frame);
  const [, , rows, columns] = frame.shape;
  const { width, height } = context.canvas;
  const aspect = scene.fit ? frame.aspect : 1;
  const ratio = (across) => Math.min(width / (across * columns), height / (Math.ceil(shown.length / across) * rows * aspect));
  let across = 1;
  for (let each = 2; each <= shown.length; each += 1) if (ratio(each) > ratio(across)) across = each;
  const down = Math.ceil(shown.length / across);
  const scale = scene.fit ? ratio(across) : 1;
  const [wide, high] = [columns * scale, rows * scale * aspect];
  const [left, top] = [Math.floor((width - across * wide) / 2), Math.floor((height - down * high) / 2)];
  context.imageSmoothingEnabled = scene.fit;
  context.imageSmoothingQuality = "high";
  shown.forEach(([each, plane], number) => {
    if (!each) return;
    const [x, y] = [left + (number % across) * wide, top + Math.floor(number / across) * high];
    context.drawImage(putPlane(each, plane, windowOf(series, each)), x, y, wide, high);
    placed.push({ frame: each, plane, x, y, wide, high });
  });
}

function drawWords(series, planes, frame, frames, place) {
  get("empty").hidden = Boolean(frame);
  get("empty").textContent = watched ? "No image yet." : "No session yet: send one, and it is shown here.";
  const mark = frame && [frame.fallback && `FALLBACK IMAGE: ${frame.fallback}`,
    frame.missing && `made without ${frame.missing}`].filter(Boolean).join("\n");
  get("mark").hidden = !mark;
  get("mark").textContent = mark || "";
  for (const id of ["play", "live", "size", "mosaic", "auto", "reset", "scrub"]) get(id).disabled = !frame;
  get("play").textContent = scene?.mode === "paused" ? "Play" : "Pause";
  get("live").className = scene?.mode === "live" ? "on" : "";
  get("size").textContent = scene?.fit ? "1:1" : "Fit";
  get("mosaic").className = planes.length > 1 && isMosaic(planes) ? "on" : "";
  get("mosaic").hidden = planes.length < 2;
  get("scrub").max = Math.max(0, frames.length - 1);
  get("scrub").value = place;
  get("place").textContent = frame ? `${place + 1} / ${frames.length}` : "";
  if (!frame) return ["corner", "windowing", "counts", "value"].forEach((id) => (get(id).textContent = ""));
  const [centre, width] = windowOf(series, frame);
  const where = planes.length > 1 && !isMosaic(planes) ? `slice ${planes[Math.min(scene.plane, planes.length - 1)].join(", plane ")}` : "";
  get("corner").textContent = [`series ${frame.series}, image ${frame.index}`, where,
    `${frame.shape[3]} x ${frame.shape[2]}`, frame.stamp ? clockTime(frame.stamp) : "", frame.method].filter(Boolean).join("\n");
  get("windowing").textContent = `window ${digits(centre)}, ${digits(width)}`;
  const skipped = scene.newest - scene.first + 1 - scene.live;
  get("counts").textContent = skipped ? `${skipped} images came faster than this page\ncould show them live` : "";
  get("counts").className = skipped ? "lost" : "";
}

const digits = (value) => (Number.isInteger(value) ? String(value) : value.toPrecision(4));
const clockTime = (seconds) => new Date(1000 * (seconds % 86400)).toISOString().slice(11, 23);

function drawTraces(frame) {
  const canvas = get("traces");
  canvas.hidden = !scene?.traces.size;
  if (canvas.hidden) return;
  const context = contextOf(canvas);
  const scale = devicePixelRatio;
  context.scale(scale, scale);
  const [width, height] = [canvas.clientWidth, canvas.clientHeight];
  const ids = [...scene.traces.keys()].sort((a, b) => a - b);
  let end = -Infinity;
  for (const trace of scene.traces.values())
    for (const each of trace.packets.slice(-4)) end = Math.max(end, each.time + each.interval * each.curve.length);
  if (frame?.stamp && scene.mode !== "live") end = Math.min(end, frame.stamp + TRACE_SECONDS / 2);
  else if (frame?.stamp) end = Math.max(end, frame.stamp);
  const begin = end - TRACE_SECONDS;
  const label = 76;
  const across = (time) => label + ((time - begin) / TRACE_SECONDS) * (width - label - 8);
  const band = (height - 16) / ids.length;
  context.font = "11px system-ui, sans-serif";
  ids.forEach((id, row) => {
    const [top, bottom] = [4 + row * band + 6, 4 + (row + 1) * band - 4];
    const packets = scene.traces.get(id).packets.filter((each) => each.time + each.interval * each.curve.length > begin && each.time < end);
    let low = Infinity, high = -Infinity;
    for (const each of packets) for (const value of each.curve) {
      low = Math.min(low, value);
      high = Math.max(high, value);
    }
    const up = (value) => (high > low ? bottom - ((value - low) / (high - low)) * (bottom - top) : (top + bottom) / 2);
    context.fillStyle = COLOURS.dim;
    context.fillText({ 0: "ECG", 1: "pulse", 2: "respiration", 1025: "pilot tone" }[id] || `waveform ${id}`, 10, (top + bottom) / 2 + 4);
    context.save();
    context.beginPath();
    context.rect(label, 0, width - label, height);
    context.clip();
    context.strokeStyle = COLOURS.warn;
    context.beginPath();
    for (const each of packets) for (const time of each.triggers) {
      context.moveTo(across(time), top - 5);
      context.lineTo(across(time), bottom + 3);
    }
    context.globalAlpha = 0.55;
    context.stroke();
    context.globalAlpha = 1;
    context.strokeStyle = id === 0 ? COLOURS.good : COLOURS.accent;
    context.beginPath();
    let last = -Infinity;
    for (const each of packets) each.curve.forEach((value, sample) => {
      const time = each.time + sample * each.interval;
      if (time - last > 3 * each.interval + 0.01) context.moveTo(across(time), up(value));
      else context.lineTo(across(time), up(value));
      last = time;
    });
    context.stroke();
    context.restore();
  });
  context.fillStyle = COLOURS.dim;
  for (let second = Math.ceil(begin); second <= end; second += 1)
    context.fillText(`${second % 60}`, across(second), height - 3);
  if (frame?.stamp >= begin && frame.stamp <= end) {
    context.fillStyle = COLOURS.text;
    context.fillRect(across(frame.stamp) - 0.5, 2, 1.5, height - 16);
  }
}

let slowDue = false;

function drawSlowly() { // small pictures and plots: a few times a second
  if (slowDue) return;
  slowDue = true;
  setTimeout(() => {
    slowDue = false;
    drawSeries();
    drawPlots();
  }, 200);
}

function drawSeries() {
  get("seriespart").hidden = !scene?.series.size;
  for (const [number, series] of scene?.series ?? []) {
    const frame = series.frames.at(-1);
    if (!series.thumb) {
      const button = document.createElement("button");
      button.append(document.createElement("canvas"), document.createElement("span"));
      button.onclick = () => {
        Object.assign(scene, { shown: number, plane: 0 });
        go("live");
      };
      series.thumb = button;
      get("series").append(button);
    }
    series.thumb.className = `thumb${number === scene.shown ? " on" : ""}${frame.fallback ? " marked" : ""}`;
    series.thumb.lastChild.textContent = `${number}: ${series.frames.length}`;
    series.thumb.title = frame.fallback ? `series ${number}: fallback` : `series ${number}`;
    if (series.thumbIsOf === frame && series.thumbWindow === series.window) continue;
    Object.assign(series, { thumbIsOf: frame, thumbWindow: series.window });
    const context = contextOf(series.thumb.firstChild);
    const { width, height } = context.canvas;
    const [, , rows, columns] = frame.shape;
    const scale = Math.min(width / columns, height / (rows * frame.aspect));
    const [wide, high] = [columns * scale, rows * frame.aspect * scale];
    context.drawImage(putPlane(frame, 0, windowOf(series, frame)), (width - wide) / 2, (height - high) / 2, wide, high);
  }
}

function drawPlots() {
  const canvas = get("plots");
  const context = contextOf(canvas);
  context.scale(devicePixelRatio, devicePixelRatio);
  const width = canvas.clientWidth;
  const frames = [...(scene?.series.values() ?? [])].flatMap((each) => each.frames.slice(-PLOTTED))
    .sort((a, b) => a.number - b.number).slice(-PLOTTED);
  const rates = frames.map((frame, place) => {
    let first = place;
    while (first > 0 && frame.sent - frames[first - 1].sent < 1) first -= 1;
    const seconds = frame.sent - frames[first].sent;
    return seconds > 0.2 ? (frame.number - frames[first].number) / seconds : null;
  });
  const height = canvas.clientHeight / 3;
  drawPlot(context, "latency [ms]", frames.map((each) => each.latency), 0, width, height, COLOURS.good);
  drawPlot(context, "images per second", rates, height, width, height, COLOURS.accent);
  drawPlot(context, "readouts waiting", frames.map((each) => each.waiting), 2 * height, width, height, COLOURS.warn);
}

function drawPlot(context, name, values, top, width, height, colour) {
  const known = values.filter((value) => value !== null);
  context.font = "11px system-ui, sans-serif";
  context.fillStyle = COLOURS.dim;
  context.fillText(name, 12, top + 16);
  const text = known.length ? `${digitsOf(known.at(-1))}   (max. ${digitsOf(Math.max(...known))})` : "-";
  context.fillStyle = COLOURS.text;
  context.fillText(text, width - 12 - context.measureText(text).width, top + 16);
  if (known.length < 2) return;
  const high = Math.max(...known, 1e-9);
  const [up, down] = [top + 22, top + height - 6];
  context.strokeStyle = colour;
  context.beginPath();
  values.forEach((value, place) => {
    if (value === null) return;
    const x = 12 + (place / (values.length - 1)) * (width - 24);
    context.lineTo(x, down - (value / high) * (down - up));
  });
  context.stroke();
}

const digitsOf = (value) => (value >= 100 ? value.toFixed(0) : value >= 10 || value === 0 ? value.toFixed(1) : value.toFixed(2));

// ---- lists ---------------------------------------------------------------------------------------------------------

function element(name, text, className = "") {
  const made = document.createElement(name);
  made.textContent = text;
  made.className = className;
  return made;
}

function listSessions() {
  get("none").hidden = sessions.length > 0;
  const names = new Set(sessions.map((each) => each.name));
  for (const [name, row] of rows) if (!names.has(name)) row.remove(), rows.delete(name);
  for (const each of sessions) {
    let row = rows.get(each.name);
    if (!row) {
      row = document.createElement("button");
      row.append(element("b", ""), element("span", ""), element("span", ""), element("span", "", "outcome"), document.createElement("progress"));
      row.onclick = () => {
        get("follow").checked = false;
        watch(each.name);
        listSessions();
      };
      rows.set(each.name, row);
      get("sessions").prepend(row);
    }
    row.className = `session${each.name === watched ? " watched" : ""}`;
    const [title, protocol, counts, outcome, progress] = row.children;
    title.textContent = each.module || "no module yet";
    protocol.textContent = [each.protocol, each.patient].filter(Boolean).join(" · ") || each.peer;
    counts.textContent = `${each.received_readouts} readouts, ${each.sent_images} images`;
    const running = each.outcome === "running";
    const seconds = running ? Math.max(0, Date.now() / 1000 + clock - each.started) : each.seconds;
    outcome.textContent = `${each.outcome}, ${seconds < 10 ? seconds.toFixed(1) : seconds.toFixed(0)} s`;
    outcome.className = `outcome ${each.outcome.split(" ").at(-1)}`;
    row.title = [each.name, each.peer, each.config && `config ${each.config}`, each.reason].filter(Boolean).join("\n");
    progress.hidden = !running || !each.readouts || each.received_readouts > each.readouts;
    progress.max = each.readouts || 1;
    progress.value = each.received_readouts;
  }
  const shown = sessions.find((each) => each.name === watched);
  get("title").textContent = shown
    ? [shown.name, shown.module, shown.protocol, shown.patient, shown.outcome, shown.reason].filter(Boolean).join("  ·  ") : "";
}

function addMessage(message) {
  const item = element("li", "", message.level);
  item.append(element("time", new Date(1000 * message.time).toTimeString().slice(0, 8)), message.text);
  item.hidden = LEVELS[message.level] < Number(get("severity").value);
  const list = get("messages");
  const atEnd = list.scrollHeight - list.scrollTop - list.clientHeight < 40;
  list.append(item);
  if (atEnd) list.scrollTop = list.scrollHeight;
}

// Rows of a table of settings; a table within it begins with its name.
function addRows(table, values) {
  for (const [key, value] of Object.entries(values)) {
    const isTable = value !== null && typeof value === "object" && !Array.isArray(value);
    const row = table.insertRow();
    if (isTable) {
      row.append(element("th", `[${key}]`));
      addRows(table, value);
    } else {
      row.append(element("td", key), element("td", value === null ? "-" : String(value)));
    }
  }
}

function listSettings() {
  const place = get("settings");
  place.replaceChildren();
  if (scene?.used.length) {
    place.append(element("h3", "Used"));
    for (const text of new Set(scene.used)) place.append(element("pre", text));
  }
  for (const [file, values] of Object.entries(scene?.settings ?? {})) {
    const table = document.createElement("table");
    addRows(table, values);
    place.append(element("h3", file.split(/[/\\]/).at(-1)), table);
  }
  if (scene?.parameters) place.append(element("h3", "JSON parameters of the client"), element("pre", scene.parameters));
  if (!place.children.length) place.append(element("pre", "This session has read no settings."));
}

// ---- mouse and keyboard --------------------------------------------------------------------------------------------

function changePlane(by) {
  const series = current();
  if (!series) return;
  const count = planesOf(series).length;
  scene.mosaic = false;
  scene.plane = Math.max(0, Math.min(count - 1, scene.plane + by));
  redraw();
}

function setWindow(window) {
  const series = current();
  if (!series) return;
  series.window = window;
  redraw();
}

const shownFrame = () => placed[0]?.frame;
const actions = {
  " ": playOrPause,
  ArrowLeft: () => step(-1),
  ArrowRight: () => step(1),
  Home: () => step(-Infinity),
  End: () => go("live"),
  ArrowUp: () => changePlane(-1),
  ArrowDown: () => changePlane(1),
  f: () => Object.assign(scene, { fit: !scene.fit }) && redraw(),
  m: () => Object.assign(scene, { mosaic: !isMosaic(planesOf(current())) }) && redraw(),
  a: () => setWindow(autoWindow(shownFrame())),
  r: () => setWindow(null),
};

addEventListener("keydown", (event) => {
  const action = actions[event.key.length === 1 ? event.key.toLowerCase() : event.key];
  const isForElse = /^(SELECT|INPUT)$/.test(event.target.tagName) || (event.key === " " && event.target.tagName === "BUTTON");
  if (!action || isForElse || event.ctrlKey || event.altKey || event.metaKey || !shownFrame()) return;
  event.preventDefault();
  action();
});

for (const [id, key] of [["play", " "], ["live", "End"], ["size", "f"], ["mosaic", "m"], ["auto", "a"], ["reset", "r"]])
  get(id).onclick = () => shownFrame() && actions[key]();

get("scrub").oninput = () => {
  const series = current();
  if (!series) return;
  const frames = timeline(series, planesOf(series));
  go("paused", frames[Math.min(Number(get("scrub").value), frames.length - 1)].number);
};

let drag = null;
const image = get("image");

image.onpointerdown = (event) => {
  if (event.button !== 0 || !shownFrame()) return;
  image.setPointerCapture(event.pointerId);
  drag = { x: event.clientX, y: event.clientY, window: windowOf(current(), shownFrame()) };
};

image.onpointermove = (event) => {
  showValue(event);
  if (!drag) return;
  const [centre, width] = drag.window;
  setWindow([centre + ((event.clientY - drag.y) * width) / 300, width * 2 ** ((event.clientX - drag.x) / 150)]);
};

image.onpointerup = image.onpointercancel = () => (drag = null);
image.onpointerleave = () => (get("value").textContent = "");
image.ondblclick = () => setWindow(null);
image.onwheel = (event) => {
  const series = current();
  if (series && planesOf(series).length > 1) changePlane(Math.sign(event.deltaY));
};

function showValue(event) {
  const [x, y] = [event.offsetX * devicePixelRatio, event.offsetY * devicePixelRatio];
  const tile = placed.find((each) => x >= each.x && y >= each.y && x < each.x + each.wide && y < each.y + each.high);
  if (!tile) return (get("value").textContent = "");
  const { frame, plane } = tile;
  const [, , rows, columns] = frame.shape;
  const column = Math.floor(((x - tile.x) / tile.wide) * columns);
  const row = Math.floor(((y - tile.y) / tile.high) * rows);
  const pixel = frame.pixels[plane * rows * columns + row * columns + column];
  get("value").textContent = `x ${column}, y ${row}: ${digits(frame.offset + frame.scale * pixel)}`;
}

for (const tab of ["messages", "settings"])
  get(`tab-${tab}`).onclick = () => {
    for (const each of ["messages", "settings"]) {
      get(each).hidden = each !== tab;
      get(`tab-${each}`).setAttribute("aria-selected", String(each === tab));
    }
    get("severity").hidden = tab !== "messages";
  };

get("severity").onchange = () => {
  get("messages").replaceChildren();
  scene?.messages.forEach(addMessage);
};
get("follow").onchange = () => follow();
addEventListener("resize", redraw);
new ResizeObserver(redraw).observe(get("stage"));

connect();
redraw();
