// Runs the model, so that the page never waits for it.
//
// Messages to the worker:   { type: "load", backend: "auto" | "cpu" | "flex" | "webgpu" }
//                           { type: "generate", prompt, options }   { type: "stop" }
// Messages from the worker: progress, ready, prompt, step, done, refused (this prompt), failed (the worker is of no use).

const MODEL_FILES = ["config.json", "tokenizer.json", "model.safetensors"];

let model = null;
let stopping = false;

self.onmessage = async ({ data }) => {
  try {
    if (data.type === "load") await load(data.backend);
    else if (data.type === "generate") await generate(data.prompt, data.options);
    else if (data.type === "stop") stopping = true;
  } catch (error) {
    // After a panic the module's memory is not to be trusted.
    self.postMessage({ type: "failed", message: describe(error) });
  }
};

// A panic in asynchronous code ends here.
self.addEventListener("unhandledrejection", ({ reason }) => {
  self.postMessage({ type: "failed", message: describe(reason) });
});

function describe(error) {
  return error?.message || String(error);
}

function isPanic(error) {
  return error instanceof WebAssembly.RuntimeError || describe(error).startsWith("panicked at");
}

async function load(wanted) {
  const files = await downloadModel();
  const [backend, note] = await choose(wanted);
  model = await open(backend, files);
  self.postMessage({ type: "ready", backend, note, description: JSON.parse(model.description()) });
}

// The backend to take, and what the user should know about it.
async function choose(wanted) {
  if (wanted === "cpu" || wanted === "flex") return [wanted, ""];
  const missing = await whyNoGpu();
  if (!missing) return ["webgpu", ""];
  return ["cpu", wanted === "webgpu" ? `${missing}.` : ""];
}

async function whyNoGpu() {
  if (!navigator.gpu) return "This browser has no WebGPU";
  const adapter = await navigator.gpu.requestAdapter();
  return adapter ? null : "This browser has WebGPU, but no GPU for it";
}

async function open(backend, [config, tokenizer, weights]) {
  self.postMessage({ type: "progress", what: "Starting the model", backend, share: null });
  const build = backend === "webgpu" ? "webgpu" : "cpu";
  let module;
  try {
    module = await import(`./${build}/blockformer_browser.js`);
    await module.default();
  } catch (error) {
    const hint = error instanceof WebAssembly.CompileError ? " This browser may be too old: it needs WebAssembly with SIMD." : "";
    throw new Error(`The WebAssembly module could not be loaded: ${describe(error)}.${hint}`);
  }
  const text = (bytes) => new TextDecoder().decode(bytes);
  return module.BrowserModel.open(backend, text(config), weights, tokenizer);
}

// Each file of the model, with a message whenever more of it has come.
async function downloadModel() {
  let loaded = 0;
  let total = 0;
  const files = await Promise.all(MODEL_FILES.map(async (name) => {
    const response = await fetch(`model/${name}`);
    if (!response.ok) throw new Error(`The model could not be loaded: model/${name} gave ${response.status} ${response.statusText}`);
    // Of a compressed answer the length says nothing about what comes out of it.
    if (!response.headers.has("Content-Encoding")) total += Number(response.headers.get("Content-Length"));
    return response;
  }));
  return Promise.all(files.map(async (response) => {
    const parts = [];
    for (const reader = response.body.getReader(); ;) {
      const { done, value } = await reader.read();
      if (done) break;
      parts.push(value);
      loaded += value.length;
      const share = total >= loaded ? loaded / total : null;
      self.postMessage({ type: "progress", what: "Loading the model", megabytes: loaded / 1e6, share });
    }
    return new Uint8Array(await new Blob(parts).arrayBuffer());
  }));
}

async function generate(prompt, options) {
  stopping = false;
  const started = performance.now();
  let pieces;
  try {
    pieces = JSON.parse(model.start(prompt, JSON.stringify(options)));
  } catch (error) {
    if (isPanic(error)) throw error;
    self.postMessage({ type: "refused", message: describe(error) });
    return;
  }
  self.postMessage({ type: "prompt", pieces });
  let tokens = 0;
  let first = null;
  for (let finish = null; finish === null;) {
    const step = stopping ? JSON.parse(model.stop()) : JSON.parse(await model.step());
    tokens += step.tokens;
    finish = step.finish;
    const now = performance.now();
    first ??= { milliseconds: now - started, tokens };
    // The speed once the prompt is taken in.
    const since = now - started - first.milliseconds;
    const speed = tokens > first.tokens ? ((tokens - first.tokens) / since) * 1000 : null;
    self.postMessage({ type: finish === null ? "step" : "done", ...step, total: tokens, speed, first: first.milliseconds });
    await letMessagesIn();
  }
}

// Ends after messages that have come were handled; unlike timers, not four milliseconds later.
function letMessagesIn() {
  return new Promise((resolve) => {
    const { port1, port2 } = new MessageChannel();
    port1.onmessage = () => {
      port1.close();
      resolve();
    };
    port2.postMessage(null);
  });
}
