"use strict";
// Draws figures when they scroll into view, in the colours of the theme; filters cards; shows the scores of a token.
(() => {
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const touch = matchMedia("(pointer: coarse)");
  const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const drawn = new Set();
  let touched = false;

  function themed(figure) {
    const [text, dim, grid, line, card] = ["--text", "--dim", "--grid", "--line", "--card"].map(css);
    const layout = structuredClone(figure.layout);
    layout.font = { family: getComputedStyle(document.body).fontFamily, size: 12, color: dim };
    layout.modebar = { bgcolor: "rgba(0,0,0,0)", color: dim, activecolor: text };
    layout.hoverlabel = { bgcolor: card, bordercolor: line, font: { color: text } };
    for (const axis of Object.keys(layout).filter((key) => /^[xy]axis\d*$/.test(key))) {
      layout[axis] = { gridcolor: grid, linecolor: line, tickcolor: line, ...layout[axis] };
    }
    // On a touch screen a drag must scroll the page, not zoom the plot.
    if (touch.matches) layout.dragmode = false;
    return layout;
  }

  const smooth = document.querySelector("[data-smooth]");
  const along = document.querySelector("[data-along]");
  const spanLabel = document.querySelector("[data-smooth-says]");
  const span = () => Number(smooth.dataset.spans.split(" ")[smooth.value]);
  const showSpan = () => { spanLabel.textContent = span() === 1 ? "off" : `${span()} points`; };

  // As stats.ema: weight 2 / (span + 1), with bias correction.
  function ema(values, span) {
    const decay = 1 - 2 / (span + 1);
    let total = 0, weight = 0;
    return values.map((value) => {
      total = decay * total + (1 - decay) * value;
      weight = decay * weight + (1 - decay);
      return total / weight;
    });
  }

  const hiddenRuns = new Set();

  // A curve is two traces: first the raw values, then the smoothed values, whose customdata holds the minutes.
  function applyControls(figure) {
    if (!smooth) return;
    figure.data.forEach((trace, i) => {
      if (!trace.meta || !trace.customdata) return;
      const raw = figure.data[i - 1];
      if (trace.meta.kind === "smooth" && figure.touched) trace.y = ema(raw.y, span());
      trace.steps = trace.steps || trace.x;
      trace.x = raw.x = along.value === "time" ? trace.customdata : trace.steps;
      figure.layout.xaxis.title.text = along.value === "time" ? "minutes" : "step";
      for (const part of [raw, trace]) {
        if (hiddenRuns.has(trace.meta.run) !== "shown" in part) {
          if ("shown" in part) { part.visible = part.shown; delete part.shown; }
          else { part.shown = part.visible ?? true; part.visible = false; }
        }
      }
    });
  }

  function redraw() {
    showSpan();
    for (const chart of drawn) {
      chart.figure.touched = touched;
      applyControls(chart.figure);
      Plotly.react(chart, chart.figure.data, themed(chart.figure));
    }
  }

  function draw(element) {
    if (drawn.has(element)) return;
    drawn.add(element);
    const data = document.querySelector(`script[data-for="${element.id}"]`);
    const figure = JSON.parse(data.textContent);
    element.figure = figure;
    figure.touched = touched;
    applyControls(figure);
    Plotly.newPlot(element, figure.data, themed(figure), {
      responsive: true, displaylogo: false, displayModeBar: touch.matches ? false : "hover",
      // The default mode bar also has a button that sends the chart to a server.
      modeBarButtons: [["toImage", "zoom2d", "pan2d", "resetScale2d"]],
    });
  }

  if (smooth) {
    showSpan();
    smooth.addEventListener("input", () => { touched = true; redraw(); });
    along.addEventListener("change", redraw);
    for (const chip of document.querySelectorAll("[data-chip]")) {
      chip.addEventListener("click", () => {
        const run = Number(chip.dataset.chip);
        if (!hiddenRuns.delete(run)) hiddenRuns.add(run);
        chip.setAttribute("aria-pressed", String(!hiddenRuns.has(run)));
        redraw();
      });
    }
  }

  const charts = [...document.querySelectorAll(".chart")];
  const observer = new IntersectionObserver((entries) => {
    for (const entry of entries) if (entry.isIntersecting) { observer.unobserve(entry.target); draw(entry.target); }
  }, { rootMargin: "300px" });
  charts.forEach((chart) => observer.observe(chart));
  addEventListener("beforeprint", () => charts.filter((chart) => chart.offsetParent).forEach(draw));
  dark.addEventListener("change", () => drawn.forEach((chart) => Plotly.relayout(chart, themed(chart.figure))));

  for (const switcher of document.querySelectorAll(".switcher")) {
    const select = switcher.querySelector("[data-switch]");
    const show = () => {
      for (const choice of switcher.querySelectorAll("[data-choice]")) {
        choice.hidden = choice.dataset.choice !== (select ? select.value : "0");
      }
    };
    if (select) select.addEventListener("change", show);
    show();
  }

  for (const section of document.querySelectorAll(".filtered")) {
    const selects = [...section.querySelectorAll("[data-filter]")];
    const items = [...section.querySelectorAll(".item")];
    if (!items.length) continue;
    const show = () => {
      let count = 0;
      for (const item of items) {
        item.hidden = selects.some(({ value, dataset }) => value !== ""
          && (value === "last" ? !("last" in item.dataset) : item.dataset[dataset.filter] !== value));
        count += item.hidden ? 0 : 1;
      }
      section.querySelector(".shown").textContent = `${count} of ${items.length} shown`;
      section.querySelector(".nothing").hidden = count > 0;
    };
    // Show the last step first: it is the final student, and all steps together are long.
    const step = selects.find((select) => select.dataset.filter === "step");
    const last = step && [...step.options].findIndex((option) => option.value === "last");
    if (step) step.selectedIndex = last > 0 ? last : step.options.length - 1;
    selects.forEach((select) => select.addEventListener("change", show));
    show();
  }

  const tip = document.getElementById("tip");
  const hideTip = () => { tip.hidden = true; };
  const showTip = (token) => {
    tip.textContent = token.getAttribute("aria-label");
    tip.hidden = false;
    const box = token.getClientRects()[0];
    const above = box.top - tip.offsetHeight - 6;
    tip.style.left = `${Math.max(8, Math.min(box.left, innerWidth - tip.offsetWidth - 8))}px`;
    tip.style.top = `${above > 4 ? above : box.bottom + 6}px`;
  };
  for (const tokens of document.querySelectorAll(".tokens")) {
    const all = [...tokens.querySelectorAll(".tok")];
    // One tab stop per rollout; inside it the arrow keys move the focus.
    all.forEach((token, i) => {
      token.setAttribute("aria-label", `${token.textContent.trim()} ${token.title}`);
      token.removeAttribute("title");
      token.tabIndex = i ? -1 : 0;
    });
    const move = (from, to) => { if (all[to]) { all[from].tabIndex = -1; all[to].tabIndex = 0; all[to].focus(); } };
    tokens.addEventListener("keydown", (event) => {
      const at = all.indexOf(event.target);
      const to = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: all.length - 1 }[event.key];
      if (event.key === "Escape") hideTip();
      if (at >= 0 && to !== undefined) { event.preventDefault(); move(at, to); }
    });
    for (const name of ["focusin", "mouseover", "click"]) {
      tokens.addEventListener(name, (event) => { const token = event.target.closest(".tok"); if (token) showTip(token); });
    }
    tokens.addEventListener("mouseleave", hideTip);
    tokens.addEventListener("focusout", hideTip);
  }
  // Focus may scroll a token into view: then the tip follows the token.
  addEventListener("scroll", () => {
    const token = document.activeElement.closest(".tokens .tok");
    if (token && !tip.hidden) showTip(token); else hideTip();
  }, { passive: true });
})();
