"use strict";
// What all study pages share: sliders, the legend and the profile of slices.
// volume.js and picture.js show the study, and set `study.show` and `study.goTo`.
const study = (() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const byId = (id) => document.getElementById(id);
  const bytes = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const colours = bytes(data.colours);
  const threshold = byId("threshold");
  const opacity = byId("opacity");
  const profile = byId("profile");
  let here = -1; // which slice of the profile is shown

  const shared = {
    data, byId, bytes, colours,
    ready: false,
    show: () => {}, // (heat from, heat to, opacity from 0 to 1)
    goTo: () => {}, // place along the slices' axis, from 0 to 1
    atSlice,
    update,
  };

  function update() {
    const low = Number(threshold.value);
    const high = low * data.end;
    byId("threshold-value").textContent = low.toFixed(1);
    byId("opacity-value").textContent = `${opacity.value} %`;
    byId("legend-low").textContent = `${low.toFixed(1)} ×`;
    byId("legend-high").textContent = `${high.toFixed(1)} × and above`;
    shared.show(low, high, Number(opacity.value) / 100);
  }

  function drawLegend() {
    const pen = byId("legend").getContext("2d");
    const line = pen.createImageData(256, 1);
    for (let k = 0; k < 256; k++) {
      line.data.set([colours[3 * k], colours[3 * k + 1], colours[3 * k + 2], 255], 4 * k);
    }
    pen.putImageData(line, 0, 0);
  }

  function element(name, attributes, text) {
    const made = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    if (text !== undefined) made.textContent = text;
    return made;
  }

  // bars of the slices; redrawn when the width changes, so that text keeps its size
  function drawProfile() {
    const width = profile.clientWidth;
    const height = profile.clientHeight - 16;
    const slices = data.slices;
    const most = Math.max(...slices.map((slice) => slice[1]), data.limit ?? 0) || 1;
    const first = slices[0][0];
    const count = slices[slices.length - 1][0] - first + 1;
    const step = width / count;
    const svg = element("svg", { viewBox: `0 0 ${width} ${height + 16}`, "aria-hidden": "true" });
    slices.forEach(([index, score, above], k) => {
      const tall = Math.max(1, (Math.max(0, score) / most) * (height - 6));
      const bar = element("rect", {
        x: (index - first) * step + Math.min(1, step * 0.1),
        y: height - tall,
        width: Math.max(0.8, step - Math.min(2, step * 0.2)),
        height: tall,
        rx: Math.min(2, step / 4),
        class: k === here ? "here" : above ? "above" : "",
      });
      svg.append(bar);
    });
    svg.append(element("line", { class: "axis", x1: 0, x2: width, y1: height, y2: height }));
    if (data.limit !== null) {
      const y = height - (data.limit / most) * (height - 6);
      svg.append(element("line", { x1: 0, x2: width, y1: y, y2: y }));
    }
    svg.append(element("text", { x: 0, y: height + 13 }, first));
    svg.append(element("text", { x: width, y: height + 13, "text-anchor": "end" }, first + count - 1));
    profile.replaceChildren(svg);
  }

  function tellSlice() {
    const [index, score, above] = data.slices[here];
    const limit = data.limit === null ? "" : `, threshold ${data.limit.toPrecision(3)}`;
    const text = `Slice ${index}: score ${score.toPrecision(3)}${limit}${above ? ", above" : ""}`;
    profile.setAttribute("aria-valuenow", here);
    profile.setAttribute("aria-valuetext", text);
    byId("profile-text").textContent = text;
  }

  // mark the slice that is shown: the nearest to a place along the axis
  function atSlice(place) {
    if (!data.slices.length) return;
    const distance = data.slices.map((slice) => Math.abs(slice[3] - place));
    const found = distance.indexOf(Math.min(...distance));
    if (found === here) return;
    here = found;
    drawProfile();
    tellSlice();
  }

  function choose(k) {
    const wanted = Math.max(0, Math.min(data.slices.length - 1, k));
    shared.goTo(data.slices[wanted][3]);
    atSlice(data.slices[wanted][3]);
  }

  function pointAt(event) {
    const box = profile.getBoundingClientRect();
    const first = data.slices[0][0];
    const count = data.slices[data.slices.length - 1][0] - first + 1;
    const index = first + Math.floor(((event.clientX - box.left) / box.width) * count);
    const distance = data.slices.map((slice) => Math.abs(slice[0] - index));
    choose(distance.indexOf(Math.min(...distance)));
  }

  function startProfile() {
    profile.setAttribute("aria-valuemin", 0);
    profile.setAttribute("aria-valuemax", data.slices.length - 1);
    atSlice(data.slices.reduce((best, slice) => (slice[1] > best[1] ? slice : best))[3]);
    const moves = {
      ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1, PageDown: -5, PageUp: 5,
      Home: -Infinity, End: Infinity,
    };
    profile.addEventListener("keydown", (event) => {
      if (!(event.key in moves)) return;
      event.preventDefault();
      choose(here + moves[event.key]);
    });
    profile.addEventListener("pointerdown", (event) => {
      profile.setPointerCapture(event.pointerId);
      pointAt(event);
    });
    profile.addEventListener("pointermove", (event) => {
      if (profile.hasPointerCapture(event.pointerId)) pointAt(event);
    });
    new ResizeObserver(drawProfile).observe(profile);
  }

  drawLegend();
  if (data.slices.length) startProfile();
  threshold.addEventListener("input", update);
  opacity.addEventListener("input", update);
  for (const button of document.querySelectorAll(".slice")) {
    button.addEventListener("click", () => {
      shared.goTo(Number(button.dataset.at));
      atSlice(Number(button.dataset.at));
    });
  }
  return shared;
})();
