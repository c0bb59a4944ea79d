const $ = (id) => document.getElementById(id);
const WAIT_S = 10; // of GET /job for one image; with several, each is asked in turn
const IN_TURN_S = 1;
const MAX_IMAGES = 50;
const RETRY_MS = [1000, 2000, 5000, 10000];
const MODELS = { sync: "MobileNetV2", async: "ResNet50" };

const images = []; // {file, url, state, stage, label, note, canRetry, uploaded, sync: {time, top5}, async: {time, top5}}
let shown = null;
let isFollowing = true; // the image whose turn it is becomes the shown one, until the user picks another
let unanswered = []; // images whose better answer is awaited
let leftOut = 0; // files of the last choice for which there was no room

const milliseconds = (from) => `${Math.round(performance.now() - from).toLocaleString("en")} ms`;
const listed = (words) => words.length > 1 ? `${words.slice(0, -1).join(", ")} or ${words.at(-1)}` : words[0];

// What went wrong, in words. `isTemporary`: the same request may succeed a moment later.
class Failure extends Error {
  constructor(message, isTemporary = false) {
    super(message);
    this.isTemporary = isTemporary;
  }
}

const unreachable = () => new Failure("The server cannot be reached. Check the connection, then try again.", true);

// The JSON of an answer, which may also be a page of something between here and the server.
function read(status, text) {
  let answer;
  try { answer = JSON.parse(text); } catch { answer = null; }
  if (status >= 200 && status < 300 && answer !== null) return answer;
  const isTemporary = status === 429 || status >= 500;
  if (status === 401) {
    askForKey();
    throw new Failure($("key").value ? "The API key is wrong. Correct it above, then try again." : "Enter the API key above, then try again.");
  }
  const reasons = answer?.errors?.map(({ field, reason }) => `${field === "image_data" ? "The file" : field} ${reason}`);
  if (reasons?.length) throw new Failure(`${reasons.join("; ")}.`, isTemporary);
  if (status === 413) throw new Failure(`${answer?.detail ?? "The file is larger than the server accepts"}.`);
  if (status === 429) throw new Failure("The server is busy. Try again in a moment.", true);
  if (status === 404 && answer?.detail) throw new Failure("The job is unknown to the server, or has expired.");
  if (status >= 500) throw new Failure(`The server has a problem (${answer?.detail ?? status}). Try again in a moment.`, true);
  throw new Failure(`The server's answer (${status}) is not one of this service. Is something else in front of it?`);
}

function key() {
  const value = $("key").value.trim();
  if (/[^\x20-\x7e]/.test(value)) throw new Failure("The API key has characters that a browser cannot send.");
  return value ? { "X-API-Key": value } : {};
}

function askForKey() {
  $("key-line").hidden = false;
}

async function get(path) {
  const headers = key();
  // A connection that was lost in silence ends, too; at once where the browser notices.
  const lost = new AbortController();
  const abort = () => lost.abort();
  addEventListener("offline", abort);
  let response, text;
  try {
    response = await fetch(path, { headers, signal: AbortSignal.any([lost.signal, AbortSignal.timeout((WAIT_S + 20) * 1000)]) });
    text = await response.text();
  } catch {
    throw unreachable();
  } finally {
    removeEventListener("offline", abort);
  }
  return read(response.status, text);
}

// XMLHttpRequest, because fetch does not say how far an upload is.
const post = (path, body, onProgress) => new Promise((resolve, reject) => {
  const request = new XMLHttpRequest();
  request.open("POST", path);
  request.setRequestHeader("Content-Type", "application/json");
  for (const [name, value] of Object.entries(key())) request.setRequestHeader(name, value);
  request.upload.onprogress = ({ loaded, total }) => onProgress(loaded / total);
  request.upload.onload = () => onProgress(1);
  request.onerror = request.onabort = () => reject(unreachable());
  request.onload = () => { try { resolve(read(request.status, request.responseText)); } catch (error) { reject(error); } };
  request.send(body);
});

const base64 = (file) => new Promise((resolve, reject) => {
  const reader = new FileReader();
  reader.onload = () => resolve(reader.result.slice(reader.result.indexOf(",") + 1));
  reader.onerror = () => reject(new Failure("The file cannot be read. Has it been moved or changed, or is it a folder?"));
  reader.readAsDataURL(file);
});

let settings = null;

// The server's limits; without them, nothing is checked before the upload. Asked again if that failed.
async function knownSettings() {
  if (settings === null) {
    try { settings = await get("page/settings"); } catch { return { formats: [], max_file_bytes: Infinity, weights: {} }; }
    const { formats, max_file_bytes, needs_api_key, weights } = settings;
    $("file").accept = formats.map(typeOf).join(",");
    $("limits").textContent = `${listed(formats)}, at most ${(max_file_bytes / 1e6).toLocaleString("en", { maximumSignificantDigits: 3 })} MB`;
    if (needs_api_key) askForKey();
    const random = Object.keys(MODELS).filter((model) => weights[model] === "random");
    if (random.length) {
      const names = random.map((model) => MODELS[model]).join(" and ");
      $("banner").textContent = `${names}: random weights, so the labels mean nothing. “python -m models.build --weights pretrained --force” builds models that know what they see.`;
      $("banner").hidden = false;
    }
  }
  return settings;
}

const typeOf = (format) => `image/${format.toLowerCase()}`;

async function check(file) {
  const { formats, max_file_bytes } = await knownSettings();
  if (file.size === 0) throw new Failure("The file is empty.");
  if (file.size > max_file_bytes) {
    throw new Failure(`The file has ${file.size.toLocaleString("en")} bytes, and at most ${max_file_bytes.toLocaleString("en")} are accepted.`);
  }
  // Without a type (no or an unknown ending) the server decides.
  if (file.type && formats.length && !formats.map(typeOf).includes(file.type)) {
    const kind = file.type.replace("image/", "").replace("+xml", "").toUpperCase();
    throw new Failure(`${kind} is not supported. Export the image as ${listed(formats)}.`);
  }
}

function show(image) {
  shown = image;
  $("picture").src = image.url;
  $("picture").alt = image.file.name;
  $("hint").textContent = "Drop, paste or choose more images";
  render();
}

function update(image, changes) {
  Object.assign(image, changes);
  render();
}

function render() {
  // A live region is read again whenever it changes: only what differs is written.
  const write = (id, text) => { if ($(id).textContent !== text) $(id).textContent = text; };
  $("answer").className = shown.state;
  write("stage", shown.stage);
  write("label", shown.label);
  write("note", leftOut ? `${shown.note} ${leftOut} of the files were left out: at most ${MAX_IMAGES} can wait.` : shown.note);
  $("answer").ariaBusy = String(["busy", "waiting"].includes(shown.state));
  $("progress").hidden = shown.state !== "busy";
  if (shown.uploaded > 0 && shown.uploaded < 1) $("progress").value = shown.uploaded;
  else $("progress").removeAttribute("value");
  $("retry").hidden = !shown.canRetry;
  $("details").hidden = !shown.sync.time;
  for (const model of Object.keys(MODELS)) {
    document.querySelector(`#${model} .time`).textContent = shown[model].time ?? "";
    list(model, shown[model].top5);
  }
  $("async").className = unanswered.includes(shown) ? "waiting" : "";
  $("images").hidden = images.length < 2;
  $("images").firstElementChild.replaceChildren(...images.map((image) => image.row));
  for (const image of images) {
    const button = image.row.firstElementChild;
    button.ariaCurrent = String(image === shown);
    const text = `${image.file.name}: ${image.label || image.stage}`;
    if (button.textContent !== text) button.textContent = text;
  }
}

function list(model, top5 = []) {
  document.querySelector(`#${model} ol`).replaceChildren(...top5.map(({ label, probability }) => {
    const percent = `${(100 * probability).toFixed(1)} %`;
    const item = document.createElement("li");
    const meter = Object.assign(document.createElement("meter"), { value: probability, ariaLabel: `${label}: ${percent}` });
    const number = Object.assign(document.createElement("span"), { textContent: percent });
    item.append(label, number, meter);
    return item;
  }));
}

const waiting = () => ({ state: "waiting", stage: "Waiting for its turn", label: "", note: "", canRetry: false, uploaded: 0, sync: {}, async: {} });

function add(files) {
  leftOut = 0;
  for (const file of files) {
    if (images.length >= MAX_IMAGES) {
      const finished = images.findIndex((image) => image.state !== "waiting" && image.state !== "busy" && !unanswered.includes(image));
      if (finished < 0) {
        leftOut++;
        continue;
      }
      URL.revokeObjectURL(images.splice(finished, 1)[0].url);
    }
    const image = { file, url: URL.createObjectURL(file), row: document.createElement("li"), ...waiting() };
    const button = Object.assign(document.createElement("button"), { type: "button" });
    button.addEventListener("click", () => { isFollowing = false; show(image); });
    image.row.append(button);
    images.push(image);
  }
  isFollowing = true;
  work();
}

let isWorking = false;

// One upload after another: together, each would be slower.
async function work() {
  if (isWorking) return shown && render();
  isWorking = true;
  for (let image; (image = images.find(({ state }) => state === "waiting"));) {
    Object.assign(image, { state: "busy", stage: "Preparing", note: image.file.name });
    if (isFollowing || shown === null) show(image);
    try {
      await classify(image);
    } catch (error) {
      if (!(error instanceof Failure)) console.error(error);
      update(image, { state: "wrong", stage: "No answer", label: "", note: error instanceof Failure ? error.message : "The page has a fault; the browser's console has more.", canRetry: true });
    }
  }
  isWorking = false;
}

async function classify(image) {
  await check(image.file);
  const body = JSON.stringify({ image_data: await base64(image.file) });
  const started = performance.now();
  update(image, { stage: "Uploading" });
  const { job_id, result_sync } = await post("predict", body, (uploaded) => {
    update(image, uploaded < 1 ? { uploaded } : { uploaded, stage: "Uploaded, waiting for the fast answer" });
  });
  Object.assign(image, { job_id, result_sync, started, sync: { time: milliseconds(started) } });
  if (job_id === null) {
    fast(image, "There will be no better answer: the image was not queued, because the queue is full or its Redis does not answer (job_id is null). The fast answer does not need it.", true);
    return;
  }
  fast(image, "The better answer is on its way …");
  unanswered.push(image);
  update(image, { async: { time: "…" } });
  if (await askForBetterAnswer(image, 0) && unanswered.length === 1) awaitBetterAnswers();
}

function fast(image, note, canRetry = false) {
  const isRandom = settings?.weights.sync === "random";
  update(image, { state: "fast", stage: isRandom ? "Fast answer (random weights)" : "Fast answer", label: image.result_sync, note, canRetry });
}

// Asks for the better answer; whether it has to be asked for again. A lost connection is waited out.
async function askForBetterAnswer(image, wait) {
  try {
    const entry = (await get(`job/${image.job_id}?detail=true&wait=${wait}`))[image.job_id];
    image.failures = 0;
    if (entry.sync) image.sync.top5 = entry.sync.top5;
    if (entry.error) throw new Failure(`${entry.error}.`);
    if (!entry.prediction) {
      fast(image, "The better answer is on its way …");
      return true;
    }
    unanswered = unanswered.filter((other) => other !== image);
    better(image, entry);
  } catch (error) {
    if (error instanceof Failure && error.isTemporary) {
      image.failures = (image.failures ?? 0) + 1;
      fast(image, "The better answer cannot be fetched now; the page keeps trying …");
      return true;
    }
    unanswered = unanswered.filter((other) => other !== image);
    image.async = {};
    if (!(error instanceof Failure)) console.error(error);
    fast(image, `There will be no better answer. ${error.message}`, true);
  }
  return false;
}

function better(image, { prediction, top5 }) {
  image.async = { time: milliseconds(image.started), top5 };
  if (settings?.weights.async === "random") {
    fast(image, `ResNet50 has random weights: its answer, “${prediction}”, means nothing and does not replace this one.`);
    return;
  }
  const note = prediction === image.result_sync ? "The same as the fast answer." : `The fast answer was: ${image.result_sync}`;
  update(image, { state: "better", stage: "Better answer", label: prediction, note });
}

let isAwaiting = false;

// In turn, because a browser has six connections to a server, and each long poll holds one.
async function awaitBetterAnswers() {
  if (isAwaiting) return;
  isAwaiting = true;
  while (unanswered.length) {
    const image = unanswered.shift();
    unanswered.push(image);
    if (await askForBetterAnswer(image, unanswered.length > 1 ? IN_TURN_S : WAIT_S) && image.failures) await backoff(image.failures);
  }
  isAwaiting = false;
}

// Until the next try: earlier if the browser notices that it is online again.
const backoff = (failures) => new Promise((resolve) => {
  const timer = setTimeout(resolve, RETRY_MS[Math.min(failures, RETRY_MS.length) - 1]);
  addEventListener("online", () => { clearTimeout(timer); resolve(); }, { once: true });
});

for (const id of ["file", "photo"]) {
  $(id).addEventListener("change", () => {
    add([...$(id).files]);
    $(id).value = ""; // otherwise choosing the same file again would be no change
  });
}

$("retry").addEventListener("click", () => {
  isFollowing = true;
  Object.assign(shown, waiting());
  work();
});
$("key").addEventListener("keydown", (event) => { if (event.key === "Enter" && !$("retry").hidden) $("retry").click(); });

$("example").addEventListener("click", async () => {
  $("example").disabled = true;
  try {
    const response = await fetch("page/example");
    if (!response.ok) throw unreachable();
    add([new File([await response.blob()], "example photograph")]);
  } catch {
    note(unreachable().message);
  }
  $("example").disabled = false;
});

function note(text) {
  $("answer").className = "wrong";
  $("note").textContent = text;
}

addEventListener("paste", (event) => {
  if (event.target.closest?.("#key")) return;
  if (event.clipboardData.files.length) add([...event.clipboardData.files]);
  else note("The clipboard has no image.");
});

for (const type of ["dragover", "dragleave", "drop"]) {
  addEventListener(type, (event) => {
    event.preventDefault(); // otherwise the browser opens a file that is dropped beside the field
    $("drop").classList.toggle("over", type === "dragover");
    if (type !== "drop") return;
    if (event.dataTransfer.files.length) add([...event.dataTransfer.files]);
    else note("That was not a file. Save the image first, then drop the file.");
  });
}

$("picture").addEventListener("load", () => { $("picture").hidden = false; });
$("picture").addEventListener("error", () => { $("picture").hidden = true; }); // not all that can be sent can be shown
$("example").firstElementChild.addEventListener("error", () => { $("example").firstElementChild.hidden = true; });

knownSettings();
