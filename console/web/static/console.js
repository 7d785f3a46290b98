"use strict";
// Keys, one cursor across all plots, and parts of a live run's page that renew themselves.

const all = (selector, root = document) => [...root.querySelectorAll(selector)];

// --- theme ---------------------------------------------------------------------------------------------------------
function switchTheme() {
  const root = document.documentElement;
  const system = matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
  root.dataset.theme = (root.dataset.theme || system) === "dark" ? "light" : "dark";
  localStorage.setItem("longhaul-theme", root.dataset.theme);
}

// --- rows ----------------------------------------------------------------------------------------------------------
let chosen = -1;
function choose(step) {
  const rows = all("[data-row]");
  if (!rows.length) return;
  rows.forEach((row) => row.classList.remove("chosen"));
  chosen = Math.min(Math.max(chosen + step, 0), rows.length - 1);
  rows[chosen].classList.add("chosen");
  rows[chosen].scrollIntoView({ block: rows[chosen].offsetHeight > innerHeight / 2 ? "start" : "center" });
}
function openChosen() {
  const link = document.querySelector("[data-row].chosen a.go");
  if (link) link.click();
}
function follow(selector) {
  const link = document.querySelector(selector);
  if (link) link.click();
}

// --- keys ----------------------------------------------------------------------------------------------------------
const help = document.getElementById("help");
const KEYS = {
  j: () => choose(1),
  k: () => choose(-1),
  Enter: openChosen,
  "/": () => {
    const field = document.querySelector("[data-search]");
    if (field) field.focus();
    else location.href = "/episodes";
  },
  "?": () => (help.open ? help.close() : help.showModal()),
  n: () => follow("a[rel=next]"),
  p: () => follow("a[rel=prev]"),
  o: () => (location.href = "/"),
  e: () => (location.href = "/episodes"),
  s: () => (location.href = "/steps"),
  f: () => (location.href = "/fleet"),
  t: switchTheme,
};
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const typing = event.target.matches("input, select, textarea");
  if (typing) {
    if (event.key === "Escape") event.target.blur();
    return;
  }
  if (event.key === "Enter" && event.target.matches("a, button, summary")) return;
  const act = KEYS[event.key];
  if (!act || (help.open && event.key !== "?")) return;
  event.preventDefault();
  act();
});
document.addEventListener("click", (event) => {
  if (event.target.closest("[data-theme-switch]")) switchTheme();
  if (event.target.closest("[data-help]")) KEYS["?"]();
});
// a filter that was left empty is not in the address
all("form.filters").forEach((form) =>
  form.addEventListener("submit", () =>
    all("input, select", form).forEach((field) => { if (!field.value) field.disabled = true; }),
  ),
);

// --- plots ---------------------------------------------------------------------------------------------------------
function short(value) {
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size >= 1e6) return (value / 1e6).toPrecision(4).replace(/\.?0+$/, "") + "M";
  if (size >= 1e4) return (value / 1e3).toPrecision(4).replace(/\.?0+$/, "") + "k";
  return String(Number(value.toPrecision(4)));
}
function nearest(points, x) {
  let low = 0, high = points.length - 1;
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (points[middle][0] <= x) low = middle; else high = middle;
  }
  return x - points[low][0] < points[high][0] - x ? points[low] : points[high];
}
const frames = new WeakMap();
function frameOf(plot) {
  if (!frames.has(plot)) frames.set(plot, JSON.parse(plot.dataset.plot));
  return frames.get(plot);
}
function point(x) {
  all("svg.plot").forEach((plot) => {
    const frame = frameOf(plot);
    const cursor = plot.querySelector(".cursor");
    const at = x === null ? -9 : frame.from + ((x - frame.left) / (frame.right - frame.left)) * (frame.to - frame.from);
    cursor.setAttribute("x1", at);
    cursor.setAttribute("x2", at);
    frame.lines.forEach((line, number) => {
      const readout = plot.parentElement.querySelector(`[data-readout="${number}"]`);
      const found = x === null ? line.points[line.points.length - 1] : nearest(line.points, x);
      if (readout && found) readout.textContent = short(found[1]);
    });
    const where = document.getElementById("cursor-at");
    if (where) where.textContent = x === null ? "" : frame.axis === "step" ? `step ${Math.round(x)}` : `${x.toFixed(1)} min`;
  });
}
document.addEventListener("pointermove", (event) => {
  const plot = event.target.closest && event.target.closest("svg.plot");
  if (!plot) return;
  const frame = frameOf(plot);
  const box = plot.getBoundingClientRect();
  const across = ((event.clientX - box.left) / box.width) * plot.viewBox.baseVal.width;
  const x = frame.left + ((across - frame.from) / (frame.to - frame.from)) * (frame.right - frame.left);
  point(Math.min(Math.max(x, frame.left), frame.right));
});
document.addEventListener("pointerout", (event) => {
  if (event.target.closest && event.target.closest("svg.plot") && !(event.relatedTarget && event.relatedTarget.closest && event.relatedTarget.closest("svg.plot"))) point(null);
});

// --- what lives ----------------------------------------------------------------------------------------------------
async function renew() {
  if (document.hidden) return;
  const answer = await fetch(location.href, { headers: { accept: "text/html" } });
  if (!answer.ok) return;
  const page = new DOMParser().parseFromString(await answer.text(), "text/html");
  document.documentElement.dataset.state = page.documentElement.dataset.state;
  all("[data-live]").forEach((part) => {
    const fresh = page.getElementById(part.id);
    if (!fresh || part.matches(":hover")) return;
    part.className = fresh.className;
    part.replaceChildren(...fresh.childNodes);
  });
}
setInterval(() => {
  if (["live", "starting"].includes(document.documentElement.dataset.state)) renew().catch(() => {});
}, 3000);
