// The page: reads the form, shows what the worker sends.

const $ = (id) => document.getElementById(id);

// Where the text runs, for people.
const NAMES = { cpu: "CPU", flex: "CPU, plain", webgpu: "GPU" };

let worker = null;
let backend = null; // the one chosen, once it is
let description = null; // of the model, once it is ready
let note = ""; // why it is not the one that was asked for
let generating = false;

// What ?backend=flex asks for is not in the list, since it is there for comparisons only.
const asked = new URLSearchParams(location.search).get("backend");
if (asked) {
  if (![...$("backend").options].some((option) => option.value === asked)) {
    $("backend").add(new Option(NAMES[asked] ?? asked, asked));
  }
  $("backend").value = asked;
}
start($("backend").value);

$("form").addEventListener("submit", (event) => {
  event.preventDefault();
  generate();
});
$("stop").addEventListener("click", stop);
$("backend").addEventListener("change", () => start($("backend").value));
document.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    event.preventDefault();
    generate();
  } else if (event.key === "Escape") {
    stop();
  }
});

// Begins anew with a worker of its own, which is also the way out of whatever state a worker was in.
function start(wanted, why = "") {
  worker?.terminate();
  note = why;
  generating = false;
  backend = null;
  description = null;
  hideError();
  showStatus("Loading the model");
  buttons();
  worker = new Worker("worker.js", { type: "module" });
  worker.onmessage = ({ data }) => handlers[data.type](data);
  worker.onerror = (event) => {
    event.preventDefault();
    handlers.failed({ message: event.message || "The worker could not be started" });
  };
  worker.postMessage({ type: "load", backend: wanted });
}

function generate() {
  if (generating || !description) return;
  hideError();
  const options = readOptions();
  if (!options) return;
  generating = true;
  buttons();
  showStatus("Reading the prompt");
  worker.postMessage({ type: "generate", prompt: $("prompt").value, options });
}

function stop() {
  if (generating) worker.postMessage({ type: "stop" });
}

const handlers = {
  progress({ what, megabytes, share, ...more }) {
    backend = more.backend ?? null;
    // The status is read out when it changes, the megabytes are not.
    if ($("status").textContent !== what) showStatus(what);
    $("loaded").textContent = megabytes ? `${megabytes.toFixed(1)} MB` : "";
    $("progress").hidden = false;
    if (share === null) $("progress").removeAttribute("value");
    else $("progress").value = share;
  },

  ready(ready) {
    ({ backend, description } = ready);
    const { block_length, max_length } = description;
    $("length").max = max_length - block_length;
    buttons();
    const ran = `Ready, on the ${NAMES[backend]}: blocks of ${block_length} tokens, a context of ${max_length}.`;
    showStatus([note, ready.note, ran].filter(Boolean).join(" "));
  },

  prompt({ pieces }) {
    $("text").replaceChildren();
    $("text").setAttribute("aria-busy", "true");
    for (const id of ["speed", "first", "tokens", "blocks"]) $(id).textContent = "–";
    $("ran-on").textContent = NAMES[backend];
    $("result").hidden = false;
    show(pieces, "prompt");
    $("result").scrollIntoView({ block: "nearest" });
    showStatus("Writing");
  },

  step({ pieces, total, speed, first }) {
    show(pieces, "new");
    $("tokens").textContent = total;
    $("blocks").textContent = $("text").querySelectorAll(".new").length;
    $("first").textContent = `${first < 10 ? first.toFixed(1) : Math.round(first)} ms`;
    if (speed !== null) $("speed").textContent = `${speed < 10 ? speed.toFixed(1) : Math.round(speed)} tokens/s`;
  },

  done(done) {
    handlers.step(done);
    ended();
    const why = { length: "Done", stop: "Done: the text has ended", cancelled: "Stopped" };
    showStatus(`${why[done.finish]}, after ${done.total} token${done.total === 1 ? "" : "s"}.`);
  },

  refused({ message }) {
    ended();
    showStatus("Ready.");
    showError(message);
    $("prompt").setAttribute("aria-invalid", "true");
    $("prompt").focus();
  },

  failed({ message }) {
    // A GPU that cannot be used is found out while the model is opened.
    if (backend === "webgpu" && !description) return start("cpu", `The GPU could not be used (${message}).`);
    worker.terminate();
    description = null;
    ended();
    showStatus("Not running.");
    showError(message);
    const again = document.createElement("button");
    again.type = "button";
    again.textContent = "Try again";
    again.addEventListener("click", () => start($("backend").value));
    $("error").append(again);
  },
};

function ended() {
  generating = false;
  $("text").setAttribute("aria-busy", "false");
  buttons();
}

// The form's options, or nothing where one is out of range; the field then says so.
function readOptions() {
  const fields = { max_new_tokens: "length", temperature: "temperature", top_p: "top-p", seed: "seed" };
  const options = {};
  for (const [name, id] of Object.entries(fields)) {
    const input = $(id);
    input.setAttribute("aria-invalid", String(!input.checkValidity()));
    if (!input.checkValidity()) {
      showError(`${input.labels[0].querySelector("span").textContent}: ${input.validationMessage}`);
      input.focus();
      return null;
    }
    options[name] = input.valueAsNumber;
  }
  return options;
}

// Appends text, each block in a box of its own.
function show(pieces, kind) {
  for (const { text, block } of pieces) {
    let last = $("text").lastElementChild;
    if (last?.dataset.block !== String(block) || !last.classList.contains(kind)) {
      last = document.createElement("span");
      last.className = `block ${kind} ${block % 2 ? "odd" : "even"}`;
      last.dataset.block = block;
      last.title = kind === "prompt" ? `block ${block}, of the prompt` : `block ${block}`;
      $("text").append(last);
    }
    last.append(text);
  }
}

function buttons() {
  $("generate").disabled = generating || !description;
  $("stop").disabled = !generating;
}

function showStatus(text) {
  $("status").textContent = text;
  $("loaded").textContent = "";
  $("progress").hidden = true;
}

function showError(text) {
  $("error").textContent = text.charAt(0).toUpperCase() + text.slice(1);
  $("error").hidden = false;
}

function hideError() {
  $("error").hidden = true;
  $("prompt").removeAttribute("aria-invalid");
}
