// The page: tiles on a canvas, points above them. Every change goes to the server first and is shown when it is saved.

const TILE = 256, GRAB = 8, NEAR = 14;
const token = document.body.dataset.token;
const element = (id) => document.getElementById(id);
const canvas = element("view"), context = canvas.getContext("2d");

const view = { x: 0, y: 0, scale: 1 };          // picture's pixel at the canvas' middle; screen pixels per picture pixel
let state = null, image = null, points = new Map(), chosen = 0, version = 0;
let suggestions = [], undo = [], tiles = new Map(), pending = 0, drag = null, dirty = true;

async function ask(path, options = {}) {
  const answer = await fetch(path, { ...options, headers: { "X-Token": token } });
  if (!answer.ok) throw new Error(await answer.text());
  return answer;
}
const get = async (path) => (await ask(path)).json();
const post = async (path, content) => (await ask(path, { method: "POST", body: JSON.stringify(content) })).json();

function note(text, error = false) {
  element("note").textContent = text;
  element("note").classList.toggle("error", error);
}
async function attempt(work) {
  try { return await work(); } catch (error) { note(String(error.message || error), true); return null; }
}

// Places

const toScreen = (x, y) => [(x - view.x) * view.scale + canvas.clientWidth / 2, (y - view.y) * view.scale + canvas.clientHeight / 2];
const toPicture = (sx, sy) => [(sx - canvas.clientWidth / 2) / view.scale + view.x, (sy - canvas.clientHeight / 2) / view.scale + view.y];
const redraw = () => { dirty = true; };

function zoom(factor, sx = canvas.clientWidth / 2, sy = canvas.clientHeight / 2) {
  const [x, y] = toPicture(sx, sy);
  view.scale = Math.min(16, Math.max(2 ** -(image.top + 1), view.scale * factor));
  const [nx, ny] = toPicture(sx, sy);
  move(x - nx, y - ny);
}
function move(dx, dy) {
  view.x = Math.min(image.width, Math.max(0, view.x + dx));
  view.y = Math.min(image.height, Math.max(0, view.y + dy));
  redraw();
}
function fit() {
  const whole = Math.min(canvas.clientWidth / image.width, canvas.clientHeight / image.height);
  view.scale = image.coarse ? whole : Math.max(whole, 2 ** -image.direct);
  [view.x, view.y] = [image.width / 2, image.height / 2];
  redraw();
}

// Tiles

function tile(layer, z, x, y) {
  const key = `${layer}/${layer === "picture" ? image.coarse : version}/${image.id}/${z}/${x}/${y}`;
  let entry = tiles.get(key);
  if (entry) {
    tiles.delete(key);                          // the most recently used last
    tiles.set(key, entry);
    return entry.bitmap;
  }
  if (pending >= 6) { redraw(); return null; }
  entry = { bitmap: null };
  tiles.set(key, entry);
  if (tiles.size > 1500) tiles.delete(tiles.keys().next().value);
  pending += 1;
  ask(`tile?layer=${layer}&image=${encodeURIComponent(image.id)}&z=${z}&x=${x}&y=${y}`)
    .then((answer) => answer.blob()).then(createImageBitmap)
    .then((bitmap) => { entry.bitmap = bitmap; }, () => {})
    .finally(() => { pending -= 1; redraw(); });
  return null;
}

function drawLayer(layer, finest) {
  let whole = true;
  const wanted = Math.max(0, Math.min(image.top, Math.floor(Math.log2(1 / view.scale) + 0.5)));
  if (wanted > finest) return false;
  const [left, top] = toPicture(0, 0), [right, bottom] = toPicture(canvas.clientWidth, canvas.clientHeight);
  const levels = layer === "picture" ? [Math.min(image.top, wanted + 3), wanted] : [wanted];
  for (const z of levels) {                      // coarse tiles first: they stand in for those that are not here yet
    const size = TILE * 2 ** z;
    for (let y = Math.max(0, Math.floor(top / size)); y * size < Math.min(bottom, image.height); y += 1) {
      for (let x = Math.max(0, Math.floor(left / size)); x * size < Math.min(right, image.width); x += 1) {
        const bitmap = tile(layer, z, x, y);
        if (!bitmap) { whole = whole && z !== wanted; continue; }
        const [sx, sy] = toScreen(x * size, y * size);
        context.drawImage(bitmap, sx, sy, Math.min(size, image.width - x * size) * view.scale, Math.min(size, image.height - y * size) * view.scale);
      }
    }
  }
  if (whole) document.body.dataset[layer === "picture" ? "shown" : layer] = layer === "picture" ? "yes" : version;  // for whoever waits for it
  return true;
}

function paint() {
  requestAnimationFrame(paint);
  if (!dirty || !image) return;
  dirty = false;
  const ratio = window.devicePixelRatio || 1, width = canvas.clientWidth, height = canvas.clientHeight;
  if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(height * ratio)) {
    [canvas.width, canvas.height] = [Math.round(width * ratio), Math.round(height * ratio)];
  }
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  context.clearRect(0, 0, width, height);
  context.imageSmoothingEnabled = view.scale < 2;
  drawLayer("picture", image.top);
  context.globalAlpha = Number(element("opacity").value);
  let shown = true;
  for (const layer of ["map", "doubt"]) if (element(layer).checked && version) shown = drawLayer(layer, state.finest) && shown;
  context.globalAlpha = 1;
  if (!shown) note("zoom in to see the map");
  for (const [number, point] of points) drawPoint(point, drag && drag.number === number);
  if (suggestions.length) drawRing(...toScreen(suggestions[0].x + 0.5, suggestions[0].y + 0.5));
  drawCross(width / 2, height / 2);
}
function drawPoint(point, held) {
  const [x, y] = toScreen(point.x + 0.5, point.y + 0.5), [r, g, b] = state.classes[point.label].color;
  context.beginPath();
  context.arc(x, y, held ? 8 : 5, 0, 2 * Math.PI);
  context.fillStyle = `rgb(${r} ${g} ${b})`;
  context.fill();
  context.lineWidth = 3; context.strokeStyle = "#000"; context.stroke();
  context.lineWidth = 1.5; context.strokeStyle = "#fff"; context.stroke();
}
function drawRing(x, y) {
  for (const [width, color] of [[5, "#000"], [2.5, "#ffb347"]]) {
    context.beginPath();
    context.arc(x, y, 13, 0, 2 * Math.PI);
    context.lineWidth = width; context.strokeStyle = color; context.stroke();
  }
}
function drawCross(x, y) {
  for (const [width, color] of [[3, "#000"], [1, "#fff"]]) {
    context.beginPath();
    for (const [a, b, c, d] of [[-11, 0, -4, 0], [4, 0, 11, 0], [0, -11, 0, -4], [0, 4, 0, 11]]) { context.moveTo(x + a, y + b); context.lineTo(x + c, y + d); }
    context.lineWidth = width; context.strokeStyle = color; context.stroke();
  }
}

// Points

function nearest(sx, sy, within) {
  let best = null, distance = within;
  for (const [number, point] of points) {
    const [x, y] = toScreen(point.x + 0.5, point.y + 0.5), d = Math.hypot(x - sx, y - sy);
    if (d < distance) [best, distance] = [number, d];
  }
  return best;
}
async function click(content) {
  const done = await attempt(() => post("click", content));
  if (done) done.counts.forEach((count, i) => { state.classes[i].points = count; });
  if (done && done.judge) state.judge = done.judge;
  showClasses();
  return done;
}
// Changes are done one after the other: an undo waits for what it undoes.
let last = Promise.resolve();
const inTurn = (work) => (...given) => { last = last.then(() => work(...given)); return last; };

const add = inTurn(async (x, y) => {
  if (state.judge) { note("a number gives the class; the points stay where they were drawn"); return; }
  [x, y] = [Math.floor(x), Math.floor(y)];
  if (x < 0 || y < 0 || x >= image.width || y >= image.height) return;
  const point = { image: image.id, x, y, label: chosen };
  const done = await click({ do: "add", ...point });
  if (!done) return;
  points.set(done.number, point);
  undo.push({ do: "remove", number: done.number });
  suggestions = suggestions.filter((one) => Math.hypot(one.x - x, one.y - y) > 2);
  note(`${state.classes[chosen].name} at ${x}, ${y}: saved`);
  redraw();
  if (element("auto").checked) learn(2);
});
const remove = inTurn(async (number) => {
  if (state.judge) return;
  const point = points.get(number);
  if (!point || !(await click({ do: "remove", number }))) return;
  points.delete(number);
  undo.push({ do: "add", ...point });
  note("deleted");
  redraw();
});
const undoChange = inTurn(async () => {
  const change = undo.pop();
  if (!change) { note("nothing to undo"); return; }
  const done = await click(change);
  if (done) { note("undone"); await loadPoints(); }
});
// Judging a drawn sample: the class of the point that is asked for, then the next one.

const judge = inTurn(async (label, asked) => {
  const { number, total } = state.judge;
  if (number !== asked) return;                  // pressed while another point was still being saved
  if (number >= total) { note("every point is judged"); return; }
  if (!(await click({ do: "judge", number, label }))) return;
  await showTurn(`${state.classes[label].name}: saved. `);
});
const takeBack = inTurn(async () => {
  if (state.judge.number === 0) { note("nothing to undo"); return; }
  if (await click({ do: "take_back", number: state.judge.number - 1 })) await showTurn("Taken back. ");
});
const undoLast = () => (state.judge ? takeBack() : undoChange());
async function showTurn(before = "") {
  const { number, total, image: id, x, y } = state.judge;
  element("turn").textContent = `${number} of ${total} judged`;
  element("done").max = total;
  element("done").value = number;
  if (number >= total) {
    suggestions = [];
    await loadPoints();
    note(`${before}Every point is judged: run estimate.py with --sample`);
    return;
  }
  if (id !== image.id) { element("image").value = id; image = state.images.find((one) => one.id === id); }
  await loadPoints();
  suggestions = [{ x, y }];
  [view.x, view.y] = [x + 0.5, y + 0.5];
  view.scale = Math.max(view.scale, 2);
  note(`${before}Point ${number + 1}: what is under the cross, on the ground?`);
  redraw();
}

async function loadPoints() {
  const found = await attempt(() => get(`points?image=${encodeURIComponent(image.id)}`));
  if (found) points = new Map(Object.entries(found).map(([number, point]) => [Number(number), point]));
  redraw();
}

// Suggestions and learning

async function next() {
  if (state.judge) { await showTurn(); return; }
  suggestions.shift();
  if (!suggestions.length) {
    note("looking for points …");
    const [left, top] = toPicture(0, 0), [right, bottom] = toPicture(canvas.clientWidth, canvas.clientHeight);
    const box = [Math.max(0, top), Math.max(0, left), Math.max(1, bottom - top), Math.max(1, right - left)].map(Math.round);
    suggestions = (await attempt(() => get(`suggest?image=${encodeURIComponent(image.id)}&row=${box[0]}&col=${box[1]}&height=${box[2]}&width=${box[3]}`))) || [];
  }
  if (!suggestions.length) return;
  [view.x, view.y] = [suggestions[0].x + 0.5, suggestions[0].y + 0.5];
  view.scale = Math.max(view.scale, 1);
  note("what is in the ring? a number, then Enter or a click");
  redraw();
}
async function learn(seconds) {
  if (state.judge) return;
  const done = await attempt(() => post("learn", { seconds }));
  if (done && done.started) { element("map").checked ||= version === 0; poll(); }
}
async function poll() {
  const fresh = await attempt(() => get("state"));
  if (!fresh) { setTimeout(poll, 2000); return; }
  const coarse = image && image.coarse;
  state = fresh;
  if (image) image = state.images.find((one) => one.id === image.id);
  if (image && image.coarse !== coarse) note("overviews are ready: zoom out");
  element("progress").hidden = !state.busy;
  element("progress").value = state.progress;
  element("learn").disabled = state.busy;
  element("message").textContent = state.message;
  showClasses();
  if (state.version !== version) { version = state.version; suggestions = []; }
  redraw();
  if (state.busy) setTimeout(poll, 250);
  else if (state.images.some((one) => !one.coarse)) setTimeout(poll, 1500);
}

// Controls

function showClasses() {
  const list = element("classes");
  list.replaceChildren(...state.classes.map((one, index) => {
    const item = document.createElement("li"), button = document.createElement("button");
    const color = document.createElement("span"), name = document.createElement("span"), count = document.createElement("span");
    color.className = "color"; color.style.background = `rgb(${one.color.join(" ")})`;
    name.textContent = index < 9 ? `${index + 1} ${one.name}` : one.name;
    count.className = "count"; count.textContent = one.points;
    button.append(color, name, count);
    button.setAttribute("aria-pressed", String(index === chosen && !state.judge));
    button.addEventListener("click", () => choose(index));
    item.append(button);
    return item;
  }));
}
function choose(index) {
  if (index >= state.classes.length) return;
  if (state.judge) { judge(index, state.judge.number); return; }
  chosen = index;
  showClasses();
}
async function open(id) {
  image = state.images.find((one) => one.id === id);
  [suggestions, undo] = [[], []];
  fit();
  await loadPoints();
}

canvas.addEventListener("pointerdown", (event) => {
  canvas.focus();
  canvas.setPointerCapture(event.pointerId);
  const number = state.judge ? null : nearest(event.offsetX, event.offsetY, GRAB);
  drag = { x: event.offsetX, y: event.offsetY, moved: false, number, from: number !== null ? { ...points.get(number) } : null };
});
canvas.addEventListener("pointermove", (event) => {
  if (!drag) return;
  const dx = event.offsetX - drag.x, dy = event.offsetY - drag.y;
  if (!drag.moved && Math.hypot(dx, dy) < 4) return;
  drag.moved = true;
  if (drag.number !== null) {
    const [x, y] = toPicture(event.offsetX, event.offsetY), point = points.get(drag.number);
    [point.x, point.y] = [Math.floor(Math.min(image.width - 1, Math.max(0, x))), Math.floor(Math.min(image.height - 1, Math.max(0, y)))];
    redraw();
  } else {
    move(-dx / view.scale, -dy / view.scale);
    [drag.x, drag.y] = [event.offsetX, event.offsetY];
  }
});
canvas.addEventListener("pointerup", (event) => {
  const ended = drag;
  drag = null;
  if (!ended) return;
  if (!ended.moved) { if (ended.number === null) add(...toPicture(event.offsetX, event.offsetY)); return; }
  if (ended.number === null) return;
  moved(ended.number, ended.from);
});
const moved = inTurn(async (number, from) => {
  const { x, y } = points.get(number);
  if (await click({ do: "move", number, x, y })) {
    undo.push({ do: "move", number, x: from.x, y: from.y });
    note("moved");
  } else points.set(number, from);
  redraw();
});
canvas.addEventListener("wheel", (event) => {
  event.preventDefault();
  zoom(Math.exp(-event.deltaY / 400), event.offsetX, event.offsetY);
}, { passive: false });

const keys = {
  " ": next, l: () => learn(20), u: undoLast, Enter: () => add(view.x, view.y), "+": () => zoom(1.5), "=": () => zoom(1.5), "-": () => zoom(1 / 1.5), 0: fit,
  m: () => { element("map").click(); }, n: () => { element("doubt").click(); },
  Delete: () => remove(nearest(canvas.clientWidth / 2, canvas.clientHeight / 2, NEAR)),
  Backspace: () => remove(nearest(canvas.clientWidth / 2, canvas.clientHeight / 2, NEAR)),
  ArrowLeft: () => move(-60 / view.scale, 0), ArrowRight: () => move(60 / view.scale, 0),
  ArrowUp: () => move(0, -60 / view.scale), ArrowDown: () => move(0, 60 / view.scale),
};
window.addEventListener("keydown", (event) => {
  if (!image || event.ctrlKey || event.metaKey || event.altKey || event.target.matches("select, input[type=range]")) return;
  if (state.judge && event.repeat) return;
  if (event.target.matches("button") && (event.key === " " || event.key === "Enter")) return;
  const action = event.key >= "1" && event.key <= "9" ? () => choose(Number(event.key) - 1) : keys[event.key.length === 1 ? event.key.toLowerCase() : event.key];
  if (!action) return;
  event.preventDefault();
  action();
});
element("image").addEventListener("change", (event) => open(event.target.value));
element("suggest").addEventListener("click", next);
element("ask").addEventListener("click", next);
element("take").addEventListener("click", undoLast);
element("learn").addEventListener("click", () => learn(20));
element("undo").addEventListener("click", undoLast);
element("remove").addEventListener("click", () => remove(nearest(canvas.clientWidth / 2, canvas.clientHeight / 2, Infinity)));
for (const id of ["map", "doubt", "opacity"]) element(id).addEventListener("input", redraw);
window.addEventListener("resize", redraw);
window.addEventListener("focus", () => { if (image) loadPoints(); });

await poll();
element("image").replaceChildren(...state.images.map((one) => new Option(`${one.id} (${one.width} x ${one.height})`, one.id)));
element("file").textContent = `saved in ${state.file}`;
paint();
document.body.dataset.mode = state.judge ? "judge" : "label";
await open(state.images[0].id);
if (state.judge) await showTurn();
canvas.focus();
document.body.dataset.ready = "yes";
