const $ = (id) => document.getElementById(id);
const WAIT_S = 10;
let current = 0; // number of the newest image; answers to earlier ones are not shown

const milliseconds = (from) => `${Math.round(performance.now() - from).toLocaleString("en")} ms`;

async function request(path, body) {
  const headers = { "Content-Type": "application/json" };
  if ($("key").value) headers["X-API-Key"] = $("key").value;
  const response = await fetch(path, body ? { method: "POST", headers, body: JSON.stringify(body) } : { headers });
  const answer = await response.json();
  if (response.ok) return answer;
  if (response.status === 401) $("key-line").hidden = false;
  const reasons = (answer.errors ?? []).map((error) => (error.field === "image_data" ? "The file " : `${error.field} `) + error.reason);
  throw new Error(reasons.join("; ") || answer.detail);
}

const asDataUrl = (file) => new Promise((resolve, reject) => {
  const reader = new FileReader();
  reader.onload = () => resolve(reader.result.slice(reader.result.indexOf(",") + 1));
  reader.onerror = () => reject(new Error("The file cannot be read"));
  reader.readAsDataURL(file);
});

function announce(kind, stage, label, note) {
  $("answer").className = kind;
  $("stage").textContent = stage;
  $("label").textContent = label;
  $("note").textContent = note;
  $("answer").hidden = false;
}

function list(id, top5 = []) {
  document.querySelector(`#${id} ol`).replaceChildren(...top5.map(({ label, probability }) => {
    const percent = `${(100 * probability).toFixed(1)} %`;
    const item = document.createElement("li");
    const meter = Object.assign(document.createElement("meter"), { value: probability, ariaLabel: `${label}: ${percent}` });
    const number = Object.assign(document.createElement("span"), { textContent: percent });
    item.append(label, number, meter);
    return item;
  }));
}

const time = (id, text) => { document.querySelector(`#${id} .time`).textContent = text; };

function clear(file) {
  URL.revokeObjectURL($("picture").src);
  $("picture").src = URL.createObjectURL(file);
  $("picture").alt = file.name;
  $("picture").hidden = false;
  $("hint").textContent = "Try another image";
  $("error").hidden = $("answer").hidden = $("details").hidden = true;
  for (const id of ["sync", "async"]) { list(id); time(id, ""); }
  $("async").className = "";
}

async function classify(file) {
  const number = ++current;
  const isCurrent = () => number === current;
  clear(file);
  try {
    const image_data = await asDataUrl(file);
    const started = performance.now();
    const { job_id, result_sync } = await request("predict", { image_data });
    if (!isCurrent()) return;
    time("sync", milliseconds(started));
    $("details").hidden = false;
    if (job_id === null) {
      announce("fast", "Fast answer", result_sync, "There will be no better answer: the job queue is full or unavailable.");
      return;
    }
    announce("fast", "Fast answer", result_sync, "The better answer is on its way …");
    $("async").className = "waiting";
    time("async", "…");
    await better(job_id, result_sync, started, isCurrent);
  } catch (error) {
    if (!isCurrent()) return;
    $("error").textContent = error.message;
    $("error").hidden = false;
  } finally {
    if (isCurrent()) $("async").className = "";
  }
}

async function better(job_id, result_sync, started, isCurrent) {
  for (let wait = 0; ; wait = WAIT_S) {
    const entry = (await request(`job/${job_id}?detail=true&wait=${wait}`))[job_id];
    if (!isCurrent()) return;
    list("sync", entry.sync?.top5);
    if (entry.error) throw new Error(`There will be no better answer: ${entry.error}`);
    if (!entry.prediction) continue;
    time("async", milliseconds(started));
    list("async", entry.top5);
    const note = entry.prediction === result_sync ? "The same as the fast answer." : `The fast answer was: ${result_sync}`;
    announce("better", "Better answer", entry.prediction, note);
    return;
  }
}

$("file").addEventListener("change", () => { if ($("file").files.length) classify($("file").files[0]); });

addEventListener("paste", (event) => { if (event.clipboardData.files.length) classify(event.clipboardData.files[0]); });

for (const type of ["dragover", "dragleave", "drop"]) {
  addEventListener(type, (event) => {
    event.preventDefault(); // otherwise the browser opens a file that is dropped beside the field
    $("drop").classList.toggle("over", type === "dragover");
    if (type === "drop" && event.dataTransfer.files.length) classify(event.dataTransfer.files[0]);
  });
}

request("metadata").then(({ weights }) => {
  if (Object.values(weights).includes("random")) {
    const models = [weights.sync === "random" && "MobileNetV2", weights.async === "random" && "ResNet50"];
    $("weights").textContent = `${models.filter(Boolean).join(" and ")}: random weights, so the labels are meaningless.`;
  }
}, () => {});
