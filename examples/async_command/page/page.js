"use strict";
// A command is kept in localStorage, under its ID, from before it is sent until a person has seen what became of it: so nothing is lost
// or shown twice by a reload, in a second tab, or over the death of the server. What is heard of a command is put into its record
// first, and shown from there.
//
//   sending -> running -> succeeded | failed | cancelled        or: sending -> refused
//
// While a tab is in front, it listens to the newest commands by server-sent events; of all others it asks for the status now and then.

const READY_SHORTLY = 3000;   // after so many ms a person is told that there is no need to wait
const LOOK_AGAIN = 2000;      // from one look at a command that is not listened to, to the next; and between attempts to send one
const STREAMS = 2;            // of a browser's six connections to a server, which all tabs share
const EVENTS = ["progress", "resource", "location-created", "creating-location-failed", "succeeded", "failed", "cancelled"];

const $ = id => document.getElementById(id);
const main = document.querySelector("main"), form = $("form"), list = $("list"), title = document.title;

const commands = {
  memory: "[]",               // where there is no localStorage
  all() {
    try { return JSON.parse(localStorage.commands ?? "[]"); } catch { return JSON.parse(this.memory); }
  },
  keep(all) {
    this.memory = JSON.stringify(all);
    try { localStorage.commands = this.memory; } catch { /* for as long as this page is open */ }
  },
  get(id) { return this.all().find(command => command.id === id); },
  add(command) { this.keep([command, ...this.all()]); },
  forget(id) { this.keep(this.all().filter(command => command.id !== id)); },
  change(id, changes) { this.keep(this.all().map(command => command.id === id ? {...command, ...changes} : command)); },
};
const isUnderWay = command => command.state === "sending" || command.state === "running";
const isWrong = command => command.state === "failed" || command.state === "refused";

// The command that the form of this tab has sent last, until it is over and that was seen.
const current = {
  get id() { try { return sessionStorage.current; } catch { return this.own; } },
  set id(id) {
    this.own = id;
    try { if (id) sessionStorage.current = id; else delete sessionStorage.current; } catch { /* as above */ }
  },
};

function element(tag, className, text) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  made.append(text ?? "");
  return made;
}

// ---- Of the server

function isConnected(is) {
  const text = is ? "" : "The connection is lost. What was accepted goes on meanwhile, and this page catches up by itself.";
  if ($("lost").textContent !== text) $("lost").textContent = text;
}

const busy = new Set();       // commands with a request under way

/** Makes a request about a command, unless there is one. `null` if there is no answer, or none that says anything. */
async function ask(id, options, suffix = "") {
  if (busy.has(id)) return null;
  busy.add(id);
  try {
    const answer = await fetch(`/flows/location/${encodeURIComponent(id)}${suffix}`, {...options, cache: "no-store"});
    isConnected(answer.status < 500);
    if (answer.status >= 500 || answer.status === 408 || answer.status === 429) return null;
    const type = answer.headers.get("content-type") ?? "";
    return {status: answer.status, body: type.includes("json") ? await answer.json() : null};
  } catch {
    isConnected(false);
    return null;
  } finally {
    busy.delete(id);
  }
}

/** Sends a command, which may have been sent before: under its ID it counts once. */
async function send({id, input}) {
  const headers = {"Content-Type": "application/json"};
  const answer = await ask(id, {method: "PUT", headers, body: JSON.stringify(input)});
  if (!answer || commands.get(id)?.state !== "sending") return;
  const wrong = {field: answer.body?.field, reason: answer.body?.detail ?? "The server did not take it."};
  commands.change(id, answer.status < 300 ? {state: "running"} : {state: "refused", wrong});
  go();
}

/** Asks for the status of a command. */
async function look({id}) {
  const answer = await ask(id, {});
  const command = commands.get(id);
  if (!answer || !command || !isUnderWay(command)) return;
  if (answer.status === 410) commands.forget(id);
  const {status, progress, resource, problem} = answer.body ?? {};
  if (status === "succeeded") commands.change(id, {state: "succeeded", resource});
  else if (status === "failed") commands.change(id, {state: "failed", wrong: command.wrong ?? {reason: problem.detail}});
  else if (status === "cancelled") commands.change(id, {state: "cancelled"});
  else if (progress) commands.change(id, {progress});
  go();
}

async function cancel(id) {
  const answer = await ask(id, {method: "DELETE"});
  if (answer?.status === 404 || answer?.status === 410) commands.forget(id);
  go();
}

const streams = new Map();    // by ID

function listen({id}) {
  const stream = new EventSource(`/flows/location/${encodeURIComponent(id)}/events`);
  streams.set(id, stream);
  stream.onopen = () => isConnected(true);
  // It comes back by itself, and goes on after the last event; unless it was refused, and then the status is asked for.
  stream.onerror = () => { if (streams.get(id) === stream) isConnected(false); };
  for (const name of EVENTS) {
    stream.addEventListener(name, event => hear(id, Number(event.lastEventId), name, JSON.parse(event.data)));
  }
}

/** Puts an event into its command's record. The number of the last one is there: it may come again, and in several tabs. */
function hear(id, number, name, value) {
  const command = commands.get(id);
  if (!command || !isUnderWay(command) || number <= command.heard) return;
  commands.change(id, {heard: number, ...{
    "progress": {progress: value},
    "resource": {resource: value},
    "location-created": {state: "succeeded"},
    "creating-location-failed": {wrong: value},
    "succeeded": {state: "succeeded"},
    "failed": {state: "failed", wrong: command.wrong ?? {reason: value}},
    "cancelled": {state: "cancelled"},
  }[name]});
  go();
}

// ---- To the person

/** Says what is new of a command that is not the form's, once. */
function tell(text) {
  $("news").textContent = text;
  if (document.hidden) document.title = `${text} – ${title}`;
}

function link(command, text) {
  const made = element("a", "", text);
  made.href = command.resource ?? `/locations/${encodeURIComponent(command.id)}`;
  return made;
}

function button(text, action) {
  const made = element("button", "small", text);
  made.type = "button";
  made.onclick = action;
  return made;
}

function quoted({input}) { return `“${input.name}”`; }

/** Shows a text in an element, unless it is there: it would be read out again. */
function show(where, className, ...parts) {
  const text = parts.map(part => part.textContent ?? part).join("");
  if (where.textContent === text && where.className === className) return;
  where.className = className;
  where.replaceChildren(...parts);
}

/** A line of the list for each command that has none from the server, whatever else is in the list. */
function showList(all) {
  for (const row of list.querySelectorAll("[data-own]")) {
    if (all.some(command => command.id === row.dataset.id)) continue;
    // One that is there stays there: it was only seen in another tab.
    if (row.dataset.stage === "succeeded") delete row.dataset.own; else remove(row);
  }
  for (const command of [...all].reverse()) {
    let row = [...list.children].find(row => row.dataset.id === command.id);
    if (row && !("own" in row.dataset)) continue;
    if (command.id === current.id && isWrong(command)) { if (row) remove(row); continue; }
    if (!row) {
      row = element("li");
      Object.assign(row.dataset, {id: command.id, own: ""});
      list.prepend(row);
    }
    const stage = isUnderWay(command) && command.slow ? "slow" : command.state;
    const detail = isWrong(command) ? command.wrong.reason : isUnderWay(command) ? command.progress ?? "" : command.input.description;
    if (row.dataset.stage !== stage) {
      const hadFocus = row.contains(document.activeElement);
      row.dataset.stage = stage;
      const name = command.state === "succeeded" ? link(command, command.input.name) : element("span", "", command.input.name);
      const [kind, text] = isWrong(command) ? ["bad", "Not created"] : isUnderWay(command) ? ["wait", "Creating…"] : ["ready", "Ready"];
      row.replaceChildren(name, element("span", `badge ${kind}`, text), element("p"));
      if (stage === "slow") {
        row.append(actions(button("Cancel", () => cancel(command.id))));
      } else if (isWrong(command)) {
        const edit = button("Change and send again", () => { commands.forget(command.id); fill(command.input); go(); form.elements.name.focus(); });
        row.append(actions(edit, button("Dismiss", () => { commands.forget(command.id); go(); })));
      }
      row.querySelectorAll("button").forEach(made => made.setAttribute("aria-label", `${made.textContent}: ${command.input.name}`));
      if (hadFocus) row.querySelector("a, button")?.focus();
    }
    row.querySelector("p").textContent = detail;
  }
  $("none").hidden = list.children.length > 0;
}

/** Takes a line away. What had the focus in it leaves it to the form. */
function remove(row) {
  const hadFocus = row.contains(document.activeElement);
  row.remove();
  if (hadFocus) form.elements.name.focus();
}

function actions(...buttons) {
  const made = element("div", "do");
  made.append(...buttons);
  return made;
}

let wrongId;                  // the command with which the form says that something is wrong

/** What has become of the command that the form has sent. */
function showCurrent(command) {
  const isWaiting = command && isUnderWay(command) && !command.slow;
  $("create").setAttribute("aria-disabled", Boolean(isWaiting));
  $("create").textContent = isWaiting ? "Creating…" : "Create location";
  if (!command) return;
  const status = $("status"), spinner = element("span", "spinner");
  spinner.setAttribute("aria-hidden", "true");
  if (isWaiting) {
    show(status, "status", spinner, `Creating ${quoted(command)}…`);
  } else if (isUnderWay(command)) {
    // Free for another. Should this one fail, it is filled again.
    if (isStill(command.input)) form.reset();
    show(status, "status wait", spinner, `${quoted(command)} will be ready shortly. You may leave this page: it goes on, and you find it here.`);
  } else if (command.state === "succeeded") {
    settle(command);
    // Whoever has been told not to wait stays where they are.
    if (!command.slow && !document.hidden) { location.assign(link(command).href); return; }
    show(status, "status", `${quoted(command)} is ready. `, link(command, "Go there"));
  } else if (command.state === "cancelled") {
    settle(command);
    commands.forget(command.id);
    show(status, "status", `${quoted(command)} was cancelled, and nothing of it is left.`);
  } else {
    show(status, "status");
    if (wrongId === command.id) return;
    // Here it is said, and nowhere else, until the form is sent again; but what is written meanwhile is not written over.
    if (isBlank() || isStill(command.input)) { wrongId = command.id; fill(command.input); sayWrong(command); } else current.id = undefined;
  }
}

/** A command of the form is over, and well: the form is free for another. */
function settle(command) {
  current.id = undefined;
  if (isStill(command.input)) form.reset();
  if (document.hidden && command.state === "succeeded") tell(`${quoted(command)} is ready`);
}

const told = new Map();       // the state of each command as it was shown last

function render() {
  const all = commands.all();
  for (const command of all) {
    const before = told.get(command.id);
    const isNews = before && before !== command.state && command.id !== current.id;
    if (isNews && command.state === "succeeded") tell(`${quoted(command)} is ready`);
    if (isNews && isWrong(command)) tell(`${quoted(command)} was not created: ${command.wrong.reason}`);
    told.set(command.id, command.state);
    if (command.state === "cancelled" && command.id !== current.id) commands.forget(command.id);
  }
  showCurrent(all.find(command => command.id === current.id));
  showList(commands.all());
}

// ---- The form

const read = () => {
  const {name, description, slow, fail} = form.elements;
  return {name: name.value.trim(), description: description.value.trim(), slow: Number(slow.value), fail: fail.checked ? 1 : 0};
};
const isBlank = () => JSON.stringify(read()) === JSON.stringify({name: "", description: "", slow: 0, fail: 0});
const isStill = input => JSON.stringify(read()) === JSON.stringify(input);

function fill(input) {
  const {name, description, slow, fail} = form.elements;
  [name.value, description.value, slow.value, fail.checked] = [input.name, input.description, input.slow, input.fail > 0];
}

/** Says what is wrong: at its field, if there is one, and else above the form. */
function sayWrong(command) {
  const {wrong} = command;
  const field = wrong.field && $(wrong.field), place = $(`${wrong.field}-wrong`);
  if (field && place) {
    place.textContent = wrong.reason;
    field.setAttribute("aria-invalid", "true");
    field.focus();
    return;
  }
  $("failed").replaceChildren(element("strong", "", `${quoted(command)} was not created.`), ` ${wrong.reason} You may change it, and send it again.`);
  $("failed").hidden = false;
  $("failed").focus();
}

function sayNothingIsWrong() {
  $("failed").hidden = true;
  for (const field of form.querySelectorAll("[aria-invalid]")) field.removeAttribute("aria-invalid");
  for (const place of form.querySelectorAll(".wrong")) place.textContent = "";
}

function submit(event) {
  event.preventDefault();
  const before = commands.get(current.id);
  if (before && isUnderWay(before) && !before.slow) return;
  if (before && isWrong(before)) commands.forget(before.id);
  sayNothingIsWrong();
  show($("status"), "status");
  const input = read();
  if (!Number.isInteger(input.slow) || input.slow < 0) {
    sayWrong({input, wrong: {field: "slow", reason: "A number of seconds, such as 5."}});
    return;
  }
  const id = [...crypto.getRandomValues(new Uint8Array(16))].map(byte => byte.toString(16).padStart(2, "0")).join("");
  current.id = id;
  commands.add({id, input, state: "sending", at: Date.now(), heard: 0});
  go();
}

// ---- All of it

let next;                     // when a command is slow

/** Brings everything in line with the records: what is sent, who is listened to, what is shown. */
function go() {
  const all = commands.all(), now = Date.now();
  for (const command of all) {
    if (isUnderWay(command) && !command.slow && now >= command.at + READY_SHORTLY) commands.change(command.id, {slow: true});
    if (command.state === "sending") send(command);
  }
  const running = all.filter(command => command.state === "running");
  const heard = document.hidden ? [] : running.slice(0, STREAMS);
  for (const [id, stream] of streams) {
    if (!heard.some(command => command.id === id)) { streams.delete(id); stream.close(); }
  }
  for (const command of heard) if (!streams.has(command.id)) listen(command);
  render();
  const soonest = commands.all().filter(command => isUnderWay(command) && !command.slow).map(command => command.at + READY_SHORTLY);
  clearTimeout(next);
  if (soonest.length) next = setTimeout(go, Math.max(0, Math.min(...soonest) - Date.now()) + 1);
}

function lookAgain() {
  for (const command of commands.all()) {
    const stream = streams.get(command.id);
    if (stream?.readyState === EventSource.CLOSED) streams.delete(command.id);
    if (command.state === "running" && stream?.readyState !== EventSource.OPEN) look(command);
  }
  go();
}

/** A location has been seen: its command is of no interest any more. */
function seen(id) { if (commands.get(id)?.state === "succeeded") commands.forget(id); }

if (form) {
  form.noValidate = true;     // the server says what is wrong, for everyone alike
  form.onsubmit = submit;
  for (const row of list.children) seen(row.dataset.id);
  addEventListener("storage", go);
  addEventListener("pageshow", event => { if (event.persisted) location.reload(); });
  document.addEventListener("visibilitychange", () => {
    if (!document.hidden) document.title = title;
    lookAgain();
  });
  setInterval(lookAgain, LOOK_AGAIN);
  lookAgain();
} else if (main.dataset.location) {
  seen(main.dataset.location);
  const time = main.querySelector("time");
  time.dateTime = new Date(Number(time.dataset.at)).toISOString();
  time.textContent = new Date(Number(time.dataset.at)).toLocaleString(undefined, {dateStyle: "long", timeStyle: "short"});
  $("since").hidden = false;
}
