"use strict";
// Scores of the cohort beside those of held-out normals, as shares of each.
(() => {
  const { histograms } = JSON.parse(document.getElementById("data").textContent);

  function element(name, attributes, text) {
    const made = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    if (text !== undefined) made.textContent = text;
    return made;
  }

  function node(name, className, text) {
    const made = document.createElement(name);
    if (className) made.className = className;
    if (text !== undefined) made.textContent = text;
    return made;
  }

  const total = (counts) => counts.reduce((sum, count) => sum + count, 0);
  const short = (value) => Number(value.toPrecision(3)).toString();

  function draw(plot, of) {
    const [width, height, top, bottom] = [plot.clientWidth, plot.clientHeight, 18, 18];
    const shares = (counts) => counts.map((count) => count / (total(counts) || 1));
    const [cohort, normals] = [shares(of.cohort), shares(of.normals)];
    const most = Math.max(...cohort, ...normals) || 1;
    const step = width / cohort.length;
    const tall = (share) => (share && Math.max(1.5, (share / most) * (height - top - bottom)));
    const at = (score) => ((score - of.low) / (of.high - of.low)) * width;
    const svg = element("svg", { viewBox: `0 0 ${width} ${height}`, "aria-hidden": "true" });
    const bar = (name, share, x, wide) => svg.append(element("rect", {
      class: name, x, width: wide, y: height - bottom - tall(share), height: tall(share),
    }));
    cohort.forEach((share, k) => {
      bar("normals", normals[k], k * step + 0.5, Math.max(1, step - 1));
      bar("cohort", share, (k + 0.22) * step, Math.max(1, step * 0.56));
    });
    svg.append(element("line", { class: "axis", x1: 0, x2: width, y1: height - bottom, y2: height - bottom }));
    svg.append(element("text", { x: 0, y: height - 3 }, short(of.low)));
    const end = of.beyond ? `${short(of.high)} and above (${of.beyond})` : short(of.high);
    svg.append(element("text", { x: width, y: height - 3, "text-anchor": "end" }, end));
    if (of.threshold !== null) {
      const x = at(of.threshold);
      const right = x > width * 0.7;
      svg.append(element("line", { class: "limit", x1: x, x2: x, y1: 4, y2: height - bottom }));
      svg.append(element("text", {
        class: "limit-text", x: x + (right ? -6 : 6), y: 13, "text-anchor": right ? "end" : "start",
      }, `threshold ${short(of.threshold)}`));
    }
    plot.replaceChildren(svg);
  }

  for (const of of histograms) {
    const card = node("section", "card histogram");
    const title = node("h2");
    title.append(node("span", "", of.title), node("span", "key", `this cohort (${total(of.cohort)})`));
    if (total(of.normals)) {
      title.append(node("span", "key of-normals", `held-out normals (${total(of.normals)})`));
    }
    const plot = node("div", "plot");
    plot.setAttribute("role", "img");
    plot.setAttribute("aria-label", `Histogram of scores from ${short(of.low)} to ${short(of.high)}; ` +
      `${of.above} of ${total(of.cohort)} studies are above the threshold.`);
    card.append(title, plot, node("p", "", of.words));
    document.getElementById("histograms").append(card);
    new ResizeObserver(() => draw(plot, of)).observe(plot);
  }
})();
