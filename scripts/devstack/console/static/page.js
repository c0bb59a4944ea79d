// The console's page. What services say goes into text nodes and form fields only, never into markup.

const SVG = "http://www.w3.org/2000/svg";
const BOX = { width: 148, height: 76, gap: 44, beside: 12 };
const BEND = 34; // of an arrow that passes boxes, in pixels
const STATES = ["ready", "busy", "restarting", "gone"];

const $ = (id) => document.getElementById(id);
let patterns = {};
let latest = { processes: {}, loads: {} };
let drawings = []; // what the stream of states updates
let view = "";

// Numbers and elements

function digits(value, unit = "") {
  if (value === null || value === undefined) return "–";
  const places = Number.isInteger(value) || Math.abs(value) >= 10 ? 0 : 1;
  return value.toLocaleString("en", { minimumFractionDigits: places, maximumFractionDigits: places }) + unit;
}

function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

function drawn(tag, attributes, ...children) {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

// Diagrams

function draw(container, number) {
  const { boxes, arrows, title } = patterns[number];
  const columns = [...new Set(boxes.map((box) => box.column))].sort();
  const rows = Math.max(...boxes.map((box) => box.row)) + 1;
  const isWide = container.clientWidth >= columns.length * (BOX.width + BOX.gap) - BOX.gap;
  // Along the way of a request, and across it: from left to right, or from top to bottom where that is too wide.
  const [along, across] = isWide ? [BOX.width, BOX.height] : [BOX.height, BOX.width];
  const fits = Math.min(1, (container.clientWidth - (isWide ? 0 : BEND)) / (rows * (across + BOX.beside)));
  const breadth = (isWide ? across : across * fits) + BOX.beside;
  const inColumn = (column) => boxes.filter((box) => box.column === column).length;
  const point = (u, v) => (isWide ? [u, v] : [v, u]);
  const places = new Map(boxes.map((box) => {
    const u = columns.indexOf(box.column) * (along + BOX.gap);
    return [box.id, { u, v: (box.row + (rows - inColumn(box.column)) / 2) * breadth, column: columns.indexOf(box.column) }];
  }));
  const bends = arrows.some(([from, to]) => Math.abs(places.get(from).column - places.get(to).column) > 1);
  const [width, height] = point(
    columns.length * (along + BOX.gap) - BOX.gap, rows * breadth - BOX.beside + (bends ? BEND : 0),
  ).map((length) => length + 2);
  const calls = arrows.map((ends) => ends.map((id) => boxes.find((box) => box.id === id).name).join(" calls "));
  const svg = drawn("svg", {
    viewBox: `-1 -1 ${width} ${height}`, width, height, role: "img", "aria-label": `${title}: ${calls.join(", ")}`,
  });
  const marker = `arrow-${container.id || number}`;
  svg.append(drawn("defs", {}, drawn(
    "marker", { id: marker, viewBox: "0 0 8 8", refX: 8, refY: 4, markerWidth: 7, markerHeight: 7, orient: "auto" },
    drawn("path", { d: "M0 0L8 4L0 8z" }),
  )));
  const thick = breadth - BOX.beside;
  for (const [from, to] of arrows) {
    const [a, b] = [places.get(from), places.get(to)];
    const forward = b.column > a.column;
    let d;
    if (Math.abs(a.column - b.column) > 1) {
      const [start, end] = [a, b].map(({ u, v }) => ({ u: u + along / 2, v: v + thick }));
      const dip = start.v + BEND * 1.3;
      d = `M${point(start.u, start.v)}C${point(start.u, dip)} ${point(end.u, dip)} ${point(end.u, end.v)}`;
    } else {
      const [u1, u2] = forward ? [a.u + along, b.u] : [a.u, b.u + along];
      const middle = (u1 + u2) / 2;
      const [v1, v2] = [a.v + thick / 2, b.v + thick / 2];
      d = `M${point(u1, v1)}C${point(middle, v1)} ${point(middle, v2)} ${point(u2, v2)}`;
    }
    svg.append(drawn("path", { d, "marker-end": `url(#${marker})` }));
  }
  const parts = new Map();
  for (const box of boxes) {
    const { u, v } = places.get(box.id);
    const [x, y] = point(u, v);
    const [w, h] = point(along, thick);
    const lines = (box.column ? [22, 38, 53, 67] : [h / 2 + 4, 0, 0, 0]).map((dy, i) => drawn("text", {
      x: x + w / 2, y: y + dy, "text-anchor": "middle", class: ["name", "state", "quiet", "quiet"][i],
    }));
    lines[0].textContent = box.name.replace("service_", "");
    const group = drawn("g", {}, drawn("rect", { x, y, width: w, height: h, rx: 8 }), ...lines);
    svg.append(group);
    parts.set(box.id, { box, group, lines });
  }
  container.replaceChildren(svg);
  drawings.push({ number, parts });
}

function waitingIn(number) {
  const ids = patterns[number].boxes.map((box) => box.id).filter((id) => id.startsWith(`${number}-`));
  return ids.map((id) => latest.processes[id]).find((process) => process && typeof process.waiting === "number");
}

function update({ number, parts }) {
  for (const { box, group, lines } of parts.values()) {
    const process = latest.processes[box.id];
    const waiting = box.is_store ? waitingIn(number) : undefined;
    const kind = box.column === 0 ? "callers" : box.is_store ? "store" : "process";
    group.setAttribute("class", `${kind} ${process && STATES.includes(process.state) ? process.state : "quiet"}`);
    const texts = [process ? process.why || process.state : "", "", ""];
    if (process && typeof process.rate === "number") {
      texts[1] = digits(process.rate, ` ${process.unit}`);
      if (process.p50_ms !== null) texts[2] = `p50 ${digits(process.p50_ms)}, p99 ${digits(process.p99_ms, " ms")}`;
    } else if (waiting) {
      texts[1] = digits(waiting.waiting, number === "04" ? " rows waiting" : " waiting");
      texts[2] = `oldest ${digits(waiting.oldest_s, " s")}`;
    }
    texts.forEach((text, i) => { lines[i + 1].textContent = text; });
  }
}

// Views

function showOverview() {
  $("cards").replaceChildren(...Object.entries(patterns).map(([number, { title }]) => {
    const link = element("a", { href: `#${number}`, textContent: `${number} ${title}` });
    return element("article", {}, element("h3", {}, link), element("div", { className: "diagram" }));
  }));
  Object.keys(patterns).forEach((number, i) => draw($("cards").children[i].lastChild, number));
}

function showPattern(number) {
  $("title").textContent = `${number} ${patterns[number].title}`;
  draw($("large"), number);
}

async function openPattern(number) {
  for (const id of ["answer", "outcome", "operation", "processes"]) $(id).replaceChildren();
  $("timeline").hidden = $("source-of-timeline").hidden = true;
  const offered = await call(`requests/${number}`);
  if (view !== number) return;
  $("operation").replaceChildren(...offered.map((each, i) => element("option", {
    value: i, textContent: `${each.method} ${each.path}`,
  })));
  const choose = () => {
    const { method, path, body } = offered[$("operation").value];
    Object.assign($("method"), { value: method });
    $("path").value = path;
    $("body").value = body === null ? "" : JSON.stringify(body);
  };
  $("operation").onchange = choose;
  choose();
}

function render() {
  drawings = [];
  if (view === "overview") showOverview();
  else if (patterns[view]) showPattern(view);
  refresh();
}

function route() {
  const [, token] = location.hash.match(/^#token=([\w-]+)/) || [];
  if (token) {
    useToken(token);
    history.replaceState(null, "", "#overview"); // neither in a bookmark nor in a screenshot
  }
  const wanted = location.hash.slice(1);
  view = patterns[wanted] || wanted === "choose" ? wanted : "overview";
  $("overview").hidden = view !== "overview";
  $("choose").hidden = view !== "choose";
  $("pattern").hidden = !patterns[view];
  for (const link of document.querySelectorAll("nav a")) {
    if (link.hash === `#${view}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  render();
  if (view === "choose") chooseAgain();
  if (patterns[view]) openPattern(view).catch(complain);
  scrollTo(0, 0);
}

// The state of everything, once a second

function refresh() {
  drawings.forEach(update);
  if (!patterns[view]) return;
  const tally = latest.loads[view] || { rate: 0, accepted: 0, completed: 0, lost: 0, twice: 0, stuck: 0, refused: 0 };
  for (const name of ["accepted", "completed", "lost", "twice", "stuck", "refused"]) {
    $(name).textContent = digits(tally[name]);
    $(name).className = ["lost", "twice", "stuck"].includes(name) && tally[name] ? "wrong" : "";
  }
  for (const button of $("rates").children) button.setAttribute("aria-pressed", Number(button.value) === tally.rate);
  const ids = patterns[view].boxes.map((box) => box.id).filter((id) => id in latest.processes);
  if ($("processes").children.length !== ids.length) {
    $("processes").replaceChildren(...ids.map((id) => element(
      "tr", {}, element("th", { scope: "row" }), element("td", {}, element("span")), faultsOf(id),
      ...[1, 2, 3].map(() => element("td")),
    )));
  }
  ids.forEach((id, i) => {
    const process = latest.processes[id];
    const [name, state, , rate, p50, p99] = $("processes").children[i].children;
    name.textContent = id.replace("-", " ");
    state.firstChild.textContent = process.why ? `${process.state}: ${process.why}` : process.state;
    state.firstChild.className = `state ${process.state}`;
    rate.textContent = process.unit ? digits(process.rate, ` ${process.unit}`) : "–";
    p50.textContent = process.unit ? digits(process.p50_ms, " ms") : "–";
    p99.textContent = process.unit ? digits(process.p99_ms, " ms") : "–";
  });
}

function watch() {
  const events = new EventSource("events");
  events.onopen = () => { $("connection").textContent = "Live"; };
  events.onmessage = (event) => {
    latest = JSON.parse(event.data);
    refresh();
  };
  events.onerror = () => {
    $("connection").textContent = "No connection: is make up running?";
    if (events.readyState === EventSource.CLOSED) setTimeout(watch, 3000);
  };
}

// Requests

async function call(path, body) {
  const options = body === undefined ? {} : {
    method: "POST", body: JSON.stringify(body), headers: { "Content-Type": "application/json", "X-Console-Token": $("token").value },
  };
  const response = await fetch(path, options);
  const answer = await response.json();
  if (!response.ok) throw new Error(answer.detail || response.statusText);
  return answer;
}

function complain(error) {
  $("outcome").textContent = error.message;
}

function pretty(text) {
  try {
    return JSON.stringify(JSON.parse(text), null, 1).replace(/\n\s+(?=[-\d\]])/g, " ");
  } catch {
    return text;
  }
}

function shownExchange(line, sent, { status, answer, ms }) {
  const outcome = `${status === null ? "No answer" : status} after ${digits(ms, " ms")}`;
  const parts = [element("h4", { textContent: line })];
  if (sent) parts.push(element("pre", { textContent: sent }));
  return [...parts, element("p", { textContent: outcome }), element("pre", { textContent: pretty(answer) })];
}

// Spans: what, process, start_ms and ms, from any source.
function timeline(spans, source) {
  const end = Math.max(...spans.map((span) => span.start_ms + span.ms), 0.001);
  $("timeline").replaceChildren(...spans.map((span) => {
    const bar = element("div", { className: "bar" });
    bar.style.setProperty("--start", span.start_ms / end);
    bar.style.setProperty("--share", span.ms / end);
    const name = span.process === "callers" ? span.what : `${span.process} ${span.what}`;
    return element("li", {}, element("span", { textContent: name }),
      element("span", { className: "lane" }, bar), element("span", { className: "time", textContent: digits(span.ms, " ms") }));
  }));
  $("source-of-timeline").textContent = source;
  $("timeline").hidden = $("source-of-timeline").hidden = false;
}

$("request").addEventListener("submit", async (event) => {
  event.preventDefault();
  const [number, button] = [view, $("request").querySelector("button")];
  const sent = { method: $("method").value, path: $("path").value, body: $("body").value };
  button.disabled = true;
  $("answer").replaceChildren(element("p", { textContent: "Sent…" }));
  $("timeline").hidden = $("source-of-timeline").hidden = true;
  try {
    const result = await call(`requests/${number}`, sent);
    if (view !== number) return;
    const job = result.job ? shownExchange(`GET ${result.job.path}`, "", result.job) : [];
    $("answer").replaceChildren(...shownExchange(`${sent.method} ${sent.path}`, sent.body, result), ...job);
    timeline(result.timeline, result.source);
  } catch (error) {
    $("answer").replaceChildren(element("p", { className: "gone", textContent: error.message }));
  } finally {
    button.disabled = false;
  }
});

function faultsOf(id) {
  const buttons = [["kill", "kill -9"], ["hang", "hang 5 s"], ["restart", "restart"]].map(([fault, textContent]) => {
    const button = element("button", { type: "button", textContent, className: "armed", disabled: !$("token").value });
    button.setAttribute("aria-label", `${textContent}: ${id.replace("-", " ")}`);
    button.onclick = async () => {
      $("outcome").textContent = `${button.getAttribute("aria-label")} …`;
      try {
        $("outcome").textContent = (await call(`faults/${id}`, { fault })).done;
      } catch (error) {
        complain(error);
      }
    };
    return button;
  });
  return element("td", {}, ...buttons);
}

$("rates").addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (!button) return;
  $("outcome").textContent = "";
  call(`load/${view}`, { rate: Number(button.value) }).catch(complain);
});

// The choosing guide

async function chooseAgain() {
  const form = $("needs");
  if (!form.checkValidity()) return;
  const query = new URLSearchParams();
  for (const field of form.elements) if (field.name) query.set(field.name, field.type === "checkbox" ? field.checked : field.value);
  try {
    const found = await call(`choose?${query}`);
    const names = { "02": "Synchronous", "03": "Asynchronous", "04": "Batch", "06": "Horizontal microservices", "07": "Sync-async" };
    $("best").textContent = `${found.best} ${names[found.best]}`;
    $("fits").replaceChildren(...Object.entries(found.patterns).map(([number, each]) => {
      const cells = [each.against || (number === found.best ? "Nothing: it fits best." : "Nothing."), digits(each.p50_ms, " ms"),
        digits(each.p99_ms, " ms"), digits(each.capacity, "/s"), digits(each.machines)];
      return element("tr", { className: number === found.best ? "best" : "" },
        element("th", { scope: "row", textContent: `${number} ${names[number]}` }),
        ...cells.map((textContent) => element("td", { textContent })));
    }));
    $("source").textContent = `Figures: ${found.source} (${found.machine}). p50 and p99: the pattern itself with one caller and a small model. `
      + "At most: the highest rate measured, or what the model allows on as many cores.";
  } catch (error) {
    $("best").textContent = error.message;
  }
}
$("needs").addEventListener("input", chooseAgain);
$("needs").addEventListener("submit", (event) => event.preventDefault());

// Start

function useToken(token) {
  sessionStorage.setItem("token", token);
  $("token").value = token;
  $("needs-token").hidden = Boolean(token);
  for (const button of document.querySelectorAll(".armed")) button.disabled = !token;
}

useToken(sessionStorage.getItem("token") || "");
$("token").addEventListener("change", (event) => useToken(event.target.value.trim()));

patterns = await call("patterns");
$("links").append(...Object.keys(patterns).map((number) => element("a", {
  href: `#${number}`, textContent: number, title: patterns[number].title,
})));
addEventListener("hashchange", route);
let width = document.body.clientWidth;
addEventListener("resize", () => {
  if (width === document.body.clientWidth) return;
  width = document.body.clientWidth;
  render();
});
route();
watch();
