// Uses the example for browsers in headless Chromium: try-browser.mjs URL [measure]; see try-browser.sh.

import assert from "node:assert/strict";
import { mkdirSync, readFileSync } from "node:fs";
import { createRequire } from "node:module";

const { chromium } = createRequire(import.meta.url)(process.env.DRIVER);
const [url, measure] = process.argv.slice(2);
const hasGpu = process.env.WEBGPU === "1";
const pictures = process.env.SCREENSHOTS;
const expected = (name) => readFileSync(new URL(`../examples/browser/tests/greedy/${name}.txt`, import.meta.url), "utf8").replace(/\n$/, "");
const PROMPT = expected("prompt");
const TEXT = expected("text"); // a test of the package says that it is what the model says natively

const browser = await chromium.launch({
  executablePath: process.env.CHROMIUM,
  args: [
    "--no-sandbox", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update",
    "--disable-sync", ...(hasGpu ? [] : ["--disable-gpu"]),
    ...(process.env.CHROMIUM_ARGUMENTS ?? "").split(" ").filter(Boolean),
  ],
});

function done(name, ...shown) {
  console.log(`ok  ${name}`, ...shown);
}

async function open(query = "", options = {}) {
  const page = await browser.newPage({ viewport: { width: 1000, height: 900 }, ...options });
  page.complaints = [];
  page.on("pageerror", (error) => page.complaints.push(String(error)));
  page.on("console", (message) => message.type() === "error" && page.complaints.push(message.text()));
  page.setDefaultTimeout(300_000);
  await page.goto(url + query);
  return page;
}

const ready = async (page) => {
  await page.waitForFunction(() => document.querySelector("#status").textContent.includes("Ready") || !document.querySelector("#error").hidden);
  assert.ok(await page.locator("#error").isHidden(), await page.textContent("#error"));
};
const text = (page, kind) => page.locator(`#text .${kind}`).evaluateAll((blocks) => blocks.map((b) => b.textContent).join(""));
const wait = (page, status) => page.waitForFunction((s) => document.querySelector("#status").textContent.startsWith(s), status);

async function generate(page, { prompt = PROMPT, length = 64, temperature = 0 } = {}) {
  await page.fill("#prompt", prompt);
  await page.fill("#length", String(length));
  await page.fill("#temperature", String(temperature));
  await page.click("#generate");
}

async function picture(page, name) {
  if (!pictures) return;
  mkdirSync(pictures, { recursive: true });
  await page.screenshot({ path: `${pictures}/${name}.png`, fullPage: true });
}

async function refused(page, part) {
  await page.waitForSelector("#error:not([hidden])");
  const message = await page.textContent("#error");
  assert.ok(message.includes(part), `${message} does not say ${part}`);
  return message;
}

console.log(browser.version());
let page = await open("?backend=cpu");
await ready(page);
done("the model is there:", await page.textContent("#status"));
await picture(page, "ready");

await generate(page);
await wait(page, "Done");
assert.equal(await text(page, "new"), TEXT);
assert.equal(await text(page, "prompt"), PROMPT);
assert.equal(await page.locator("#text .new").count(), 16, "64 tokens in blocks of 4");
const colours = await page.locator("#text .new").evaluateAll((blocks) => blocks.map((b) => getComputedStyle(b).backgroundColor));
assert.ok(colours.every((colour, index) => index === 0 || colour !== colours[index - 1]), "neighbours look different");
done("what it says greedily is what it says natively:", JSON.stringify(TEXT.slice(0, 60)), "…");
assert.match(await page.textContent("#speed"), /^[\d.]+ tokens\/s$/);
assert.match(await page.textContent("#first"), /^[\d.]+ ms$/);
assert.deepEqual([await page.textContent("#tokens"), await page.textContent("#blocks")], ["64", "16"]);
done("speed:", await page.textContent("#speed"), "first block after", await page.textContent("#first"));

// Nobody presses it as fast as this, but the model may be done before anybody does.
await page.evaluate(() => {
  const press = new MutationObserver(() => {
    if (document.querySelectorAll("#text .new").length > 3 && document.querySelector("#generate").disabled) {
      press.disconnect();
      document.querySelector("#stop").click();
    }
  });
  press.observe(document.querySelector("#text"), { childList: true });
});
await generate(page, { length: 500 });
await wait(page, "Stopped");
assert.ok(await page.isDisabled("#stop") && await page.isEnabled("#generate"));
const blocks = await page.locator("#text .new").count();
assert.ok(blocks > 3 && blocks < 120, `${blocks} blocks`);
assert.ok((await text(page, "new")).startsWith(TEXT.slice(0, 20)));
done("stopped in the middle:", await page.textContent("#status"));

await page.press("#prompt", "Control+Enter");
await page.keyboard.press("Escape");
await page.waitForFunction(() => /^(Stopped|Done)/.test(document.querySelector("#status").textContent));
done("and the same by keys:", await page.textContent("#status"));

await generate(page, { prompt: "" });
done("an empty prompt:", await refused(page, "The prompt is empty"));
await generate(page, { prompt: "The whale. ".repeat(300) });
done("a prompt that is too long:", await refused(page, "do not fit into the context of 512"));
await generate(page, { temperature: -1 });
done("a temperature below zero:", await refused(page, "Temperature"));
await generate(page, { length: "" });
done("no length:", await refused(page, "Tokens"));
await generate(page);
await wait(page, "Done");
assert.equal(await text(page, "new"), TEXT);
assert.ok(await page.isHidden("#error"));
assert.deepEqual(page.complaints, []);
done("after all that it says the same");

await generate(page, { prompt: "Naïve 🐋 <b>&amp;</b>", length: 8 });
await wait(page, "Done");
assert.equal(await text(page, "prompt"), "Naïve 🐋 <b>&amp;</b>");
done("a prompt of many bytes, and of markup, is text");
await page.close();

for (const [missing, what] of [["**/*.wasm", "WebAssembly"], ["**/blockformer_browser.js", "WebAssembly"], ["**/model.safetensors", "model/model.safetensors"]]) {
  page = await browser.newPage();
  await page.route(missing, (route) => route.fulfill({ status: 404 }));
  await page.goto(`${url}?backend=cpu`);
  const message = await refused(page, what);
  assert.ok(await page.isDisabled("#generate"));
  await picture(page, `missing-${what.toLowerCase().replace(/\W/g, "-")}`);
  await page.unroute(missing);
  await page.click("#error button");
  await ready(page);
  assert.ok(await page.isHidden("#error"));
  done(`${missing} missing, and then there:`, message);
  await page.close();
}

page = await open();
await ready(page);
const status = await page.textContent("#status");
assert.ok(status.includes(hasGpu ? "on the GPU" : "on the CPU"), status);
done("automatically:", status);
await page.selectOption("#backend", "webgpu");
await page.waitForFunction(() => !document.querySelector("#status").textContent.includes("Ready"));
await ready(page);
const chosen = await page.textContent("#status");
assert.ok(hasGpu ? chosen.includes("on the GPU") : /WebGPU.*on the CPU/.test(chosen), chosen);
done("the GPU asked for:", chosen);
await generate(page);
await wait(page, "Done");
assert.equal(await text(page, "new"), TEXT);
done("the same text there,", await page.textContent("#speed"));
await page.close();

if (hasGpu) {
  page = await browser.newPage();
  await page.route("**/webgpu/*", (route) => route.fulfill({ status: 404 }));
  await page.goto(url);
  await ready(page);
  const instead = await page.textContent("#status");
  assert.match(instead, /^The GPU could not be used .* on the CPU/);
  await page.close();
  done("no module for the GPU:", instead);
}

for (const [name, options] of [
  ["light", { colorScheme: "light", viewport: { width: 860, height: 900 } }],
  ["dark", { colorScheme: "dark", viewport: { width: 860, height: 900 } }],
  ["phone", { colorScheme: "light", viewport: { width: 360, height: 740 }, deviceScaleFactor: 2, isMobile: true, hasTouch: true }],
  ["phone-dark", { colorScheme: "dark", viewport: { width: 360, height: 740 }, deviceScaleFactor: 2, isMobile: true, hasTouch: true }],
]) {
  page = await open("?backend=cpu", options);
  await ready(page);
  await generate(page, { length: 96, temperature: 0.7 });
  await wait(page, "Done");
  const [width, inner] = await page.evaluate(() => [document.documentElement.scrollWidth, innerWidth]);
  assert.ok(width <= inner, `${name}: ${width} pixels in a window of ${inner}`);
  await picture(page, name);
  if (name === "phone") {
    await generate(page, { prompt: "" });
    await refused(page, "empty");
    await picture(page, "phone-error");
  }
  await page.close();
  done(`fits the ${name} window`);
}

if (measure) {
  for (const backend of hasGpu ? ["cpu", "flex", "webgpu"] : ["cpu", "flex"]) {
    page = await open(`?backend=${backend}`);
    await ready(page);
    const speeds = [];
    for (let run = 0; run < 5; run += 1) {
      await generate(page, { length: 400 });
      await wait(page, "Done");
      speeds.push(`${await page.textContent("#speed")} (first block after ${await page.textContent("#first")})`);
    }
    console.log(`${backend}: ${speeds.join(", ")}`);
    await page.close();
  }
}
await browser.close();
