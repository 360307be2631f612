"use strict";
const $ = (selector, root = document) => root.querySelector(selector);
const put = (id, text) => { const node = document.getElementById(id); if (node.textContent !== text) node.textContent = text; };
const make = (tag, text, attributes = {}) => {
  const node = document.createElement(tag);
  if (text !== undefined) node.textContent = text;
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  return node;
};

/* What a viewer may not see is null, and shown as a dash. */
const NONE = "–";
const whole = (value) => (value === null ? NONE : Math.round(value).toLocaleString("en-US"));
const short = (value) => {
  if (value === null) return NONE;
  for (const [size, unit] of [[1e9, "G"], [1e6, "M"], [1e4, "k"]])
    if (Math.abs(value) >= size) return `${(value / (unit === "k" ? 1e3 : size)).toFixed(1).replace(".0", "")} ${unit}`;
  return value > 0 && value < 10 ? value.toFixed(1).replace(".0", "") : whole(value);
};
const percent = (share) => (share === null ? NONE : `${(100 * share).toFixed(share > 0 && share < 0.1 ? 1 : 0)} %`);
const seconds = (value) =>
  value === null ? NONE : value >= 120 ? `${whole(value / 60)} min` : value >= 10 ? `${whole(value)} s`
  : value >= 1 ? `${value.toFixed(1)} s` : value > 0 ? `${(1000 * value).toFixed(value < 0.01 ? 1 : 0)} ms` : "0 s";
const span = (value) => {
  const [days, hours, minutes] = [Math.floor(value / 86400), Math.floor(value / 3600) % 24, Math.floor(value / 60) % 60];
  return days ? `${days} d ${hours} h` : hours ? `${hours} h ${minutes} min` : minutes ? `${minutes} min` : `${Math.floor(value)} s`;
};

const meter = (id, share) => { document.getElementById(id).style.width = `${100 * Math.min(1, share)}%`; };

/* Names with their counts, "none", or a dash. */
function tags(id, counts) {
  const entries = Object.entries(counts ?? { [NONE]: null });
  document.getElementById(id).replaceChildren(...(entries.length ? entries : [["none", null]]).map(([name, count]) => {
    const tag = make("span", `${name.replaceAll("_", " ")} `);
    if (count !== null) tag.append(make("b", whole(count)));
    return tag;
  }));
}

/* Fill a table body with rows of text cells; a cell {share} becomes a bar. */
function fill(body, rows) {
  body.replaceChildren(...rows.map((cells) => {
    const row = make("tr");
    for (const cell of cells) {
      const td = make("td");
      if (cell !== null && typeof cell === "object" && "share" in cell) {
        const bar = make("span", undefined, { class: "bar" });
        const inner = make("i");
        inner.style.width = `${100 * cell.share}%`;
        bar.append(inner);
        td.append(bar, percent(cell.share));
      } else td.textContent = cell;
      row.append(td);
    }
    return row;
  }));
}

/* Plot the last five minutes as overlapping areas. series: [{name, color, values}], one value a second, newest last. */
const SPAN = 300;
function plot(svg, series, describe) {
  const width = Math.max(svg.clientWidth, 200), height = Number(svg.dataset.height), left = 46, bottom = 18, top = 6;
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  svg.style.height = `${height}px`;
  const highest = Math.max(1, ...series.flatMap(({ values }) => values));
  const rough = highest / 3, power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].map((factor) => factor * power).find((size) => size >= rough);
  const ceiling = step * Math.ceil(highest / step);
  const x = (ago) => left + (width - left - 2) * (1 - ago / (SPAN - 1));
  const y = (value) => top + (height - bottom - top) * (1 - value / ceiling);
  const node = (name, attributes, text) => {
    const made = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    if (text !== undefined) made.textContent = text;
    return made;
  };
  const parts = [];
  for (let value = 0; value <= ceiling * 1.001; value += step) {
    parts.push(node("line", { class: "grid", x1: left, x2: width, y1: y(value), y2: y(value) }));
    parts.push(node("text", { x: left - 6, y: y(value) + 4, "text-anchor": "end" }, short(value)));
  }
  for (let minutes = 0; minutes <= 5; minutes += width < 420 && minutes ? 2 : 1) {
    const label = minutes ? `−${minutes} min` : "now";
    const anchor = minutes === 0 ? "end" : minutes === 5 ? "start" : "middle";
    parts.push(node("text", { x: x(Math.min(60 * minutes, SPAN - 1)), y: height - 3, "text-anchor": anchor }, label));
  }
  for (const { color, values } of series) {
    if (!values.length) continue;
    const points = values.map((value, index) => `${x(values.length - 1 - index).toFixed(1)},${y(value).toFixed(1)}`);
    const floor = y(0);
    parts.push(node("polygon", { points: `${x(values.length - 1)},${floor} ${points.join(" ")} ${x(0)},${floor}`, style: `fill:${color};fill-opacity:.16` }));
    parts.push(node("polyline", { points: points.join(" "), style: `fill:none;stroke:${color};stroke-width:1.6;stroke-linejoin:round` }));
  }
  const note = document.getElementById(svg.dataset.note);
  if (svg.dataset.ago) {
    const ago = Number(svg.dataset.ago);
    parts.push(node("line", { class: "cursor", x1: x(ago), x2: x(ago), y1: top, y2: height - bottom }));
    const at = series.map(({ name, values }) => `${name} ${describe(values[values.length - 1 - ago] ?? 0)}`).join(" · ");
    note.textContent = `${ago ? `${ago} s ago` : "now"}: ${at}`;
  } else note.textContent = note.dataset.text;
  svg.replaceChildren(...parts);
  svg.onpointermove = (event) => {
    const box = svg.getBoundingClientRect();
    const share = (event.clientX - box.left - left) / (box.width - left - 2);
    svg.dataset.ago = String(Math.round((1 - Math.min(1, Math.max(0, share))) * (SPAN - 1)));
    plot(svg, series, describe);
  };
  svg.onpointerleave = () => { delete svg.dataset.ago; plot(svg, series, describe); };
}

/* Poll /v1/status every second. An entered API key stays in this tab. */
let key = null;
async function poll(show) {
  const state = (name, text) => { $("#state").className = `pill ${name}`; put("state", text); };
  try {
    const headers = key ? { authorization: `Bearer ${key}` } : {};
    const reply = await fetch("v1/status", { headers, cache: "no-store" });
    document.body.classList.toggle("locked", reply.status === 401 || reply.status === 403);
    if (reply.ok) {
      const status = await reply.json();
      document.body.classList.remove("stale");
      state(status.ready ? "ready" : "", status.ready ? "ready" : "not ready");
      put("facts", `up ${span(status.uptime_seconds)} · version ${status.version}`);
      show(status);
      window.shown = status; // the status that the page shows now
    } else state("away", `HTTP ${reply.status}`);
  } catch (error) {
    if (!(error instanceof TypeError)) throw error;
    document.body.classList.add("stale");
    state("away", "unreachable");
  } finally {
    setTimeout(() => (document.hidden ? document.addEventListener("visibilitychange", () => poll(show), { once: true }) : poll(show)), 1000);
  }
}
function begin(show) {
  $("#key form").onsubmit = (event) => { event.preventDefault(); key = $("#key input").value; };
  addEventListener("resize", () => window.shown && show(window.shown));
  poll(show);
}
