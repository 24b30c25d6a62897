"use strict";
// The list of studies: columns of data, of which only the rows in sight are elements.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const byId = (id) => document.getElementById(id);
  const table = byId("table");
  const count = data.names.length;
  const pictures = Object.keys(data.pages).length > 0;
  const ROW = pictures ? 66 : 38; // pixels
  const TALLEST = 8e6; // what browsers can scroll; longer lists move by more than one row a pixel
  const states = new Set();
  let order = Array.from({ length: count }, (_, k) => k);
  let sorted = { key: "score", down: true };
  let words = null;

  // three digits or so, with as many decimals as others of its size
  function figure(value) {
    if (value === null) return "–";
    const size = Math.abs(value);
    if (size >= 1e6 || (size && size < 0.001)) return value.toExponential(1);
    return value.toFixed(size >= 100 ? 0 : size >= 10 ? 1 : size >= 0.1 || !size ? 2 : 4);
  }
  const note = (k) => [
    data.warning[k] === null ? "" : data.warnings[data.warning[k]],
    k in data.reason ? data.reasons[data.reason[k]] : "",
  ].filter(Boolean).join(". ");

  const COLUMNS = [
    { key: "rank", title: "#", type: "number", value: (k) => k },
    { key: "picture", title: "", type: "picture" },
    { key: "name", title: "Study", type: "name", value: (k) => data.names[k] },
    { key: "state", title: "State", type: "state", value: (k) => data.state[k] },
    { key: "score", title: "Score", type: "number", value: (k) => data.score[k], text: (k) => figure(data.score[k]) },
    { key: "ml", title: "Volume, ml", type: "number", value: (k) => data.ml[k], text: (k) => figure(data.ml[k]) },
    { key: "hottest", title: "Hottest", type: "number", value: (k) => data.hottest[k], text: (k) => figure(data.hottest[k]) },
    { key: "above", title: "Slices", type: "number", value: (k) => data.above[k],
      text: (k) => (data.slices[k] === null ? "–" : `${data.above[k] ?? "–"} / ${data.slices[k]}`) },
    { key: "note", title: "Warnings and reasons", type: "note", value: (k) => note(k) || null },
  ];

  function node(name, className, text) {
    const made = document.createElement(name);
    if (className) made.className = className;
    if (text !== undefined) made.textContent = text;
    return made;
  }

  function cell(column, k) {
    const made = node("div", `cell is-${column.type}`);
    made.setAttribute("role", "cell");
    const page = data.pages[k];
    if (column.type === "picture") {
      if (page) {
        const picture = node("img");
        picture.src = page[1];
        picture.alt = "";
        made.append(picture);
      }
    } else if (column.type === "name") {
      const name = node("bdi", "", data.names[k]);
      made.title = data.names[k];
      if (page) {
        const link = node("a");
        link.href = page[0];
        link.append(name);
        made.append(link);
      } else {
        made.append(name);
      }
    } else if (column.type === "state") {
      made.append(node("span", `state ${data.states[data.state[k]]}`, data.labels[data.state[k]]));
    } else if (column.type === "note") {
      made.textContent = note(k);
      made.title = note(k);
      made.classList.toggle("warned", data.warning[k] !== null);
    } else {
      made.textContent = column.text ? column.text(k) : k + 1;
    }
    return made;
  }

  const head = node("div", "row head");
  head.setAttribute("role", "row");
  for (const column of COLUMNS) {
    const made = node("div", `cell is-${column.type}`);
    made.setAttribute("role", "columnheader");
    if (column.value) {
      const button = node("button", "", column.title);
      button.dataset.key = column.key;
      button.addEventListener("click", () => sortBy(column.key));
      made.append(button);
      column.head = made;
    }
    head.append(made);
  }
  const body = node("div", "rows");
  body.setAttribute("role", "rowgroup");
  table.append(head, body);
  table.classList.toggle("plain", !pictures);
  table.style.setProperty("--row-height", `${ROW}px`);
  const drawn = new Map(); // place in the list → element

  function draw() {
    const height = Math.min(order.length * ROW, TALLEST);
    const room = table.clientHeight - head.offsetHeight;
    const hidden = Math.max(1, height - room);
    const most = Math.max(0, order.length * ROW - room);
    const top = height < TALLEST ? table.scrollTop : (Math.min(table.scrollTop, hidden) / hidden) * most;
    const first = Math.max(0, Math.floor(top / ROW) - 4);
    const last = Math.min(order.length, Math.ceil((top + room) / ROW) + 4);
    for (const [place, row] of drawn) {
      if (place >= first && place < last) continue;
      row.remove();
      drawn.delete(place);
    }
    for (let place = first; place < last; place++) {
      let row = drawn.get(place);
      if (!row) {
        row = node("div", "row");
        row.setAttribute("role", "row");
        row.setAttribute("aria-rowindex", place + 2);
        row.append(...COLUMNS.map((column) => cell(column, order[place])));
        drawn.set(place, row);
        body.append(row);
      }
      row.style.top = `${place * ROW - top + table.scrollTop}px`;
    }
  }

  function renew() {
    for (const row of drawn.values()) row.remove();
    drawn.clear();
    body.replaceChildren();
    const height = Math.min(order.length * ROW, TALLEST);
    body.style.height = `${height}px`;
    table.style.setProperty("--content", `${Math.max(200, height + 40)}px`);
    table.setAttribute("aria-rowcount", order.length + 1);
    if (!order.length) body.append(node("p", "empty", "No study is like this."));
    if (!order.length) body.style.height = "120px";
    for (const column of COLUMNS) {
      if (!column.head) continue;
      const direction = sorted.down ? "descending" : "ascending";
      column.head.setAttribute("aria-sort", column.key === sorted.key ? direction : "none");
    }
    byId("found").textContent = order.length === count ? `${count} studies` : `${order.length} of ${count} studies`;
    byId("clear").hidden = order.length === count;
    table.scrollTop = 0;
    draw();
  }

  // studies in the chosen states that have all words of the search, in the order that was asked for
  function choose() {
    words ??= data.names.map((name, k) => `${name} ${note(k)}`.toLowerCase());
    const asked = byId("search").value.toLowerCase().split(/\s+/).filter(Boolean);
    order = [];
    for (let k = 0; k < count; k++) {
      if (states.size && !states.has(data.state[k])) continue;
      if (asked.every((word) => words[k].includes(word))) order.push(k);
    }
    const column = COLUMNS.find((one) => one.key === sorted.key);
    const values = new Map(order.map((k) => [k, column.value(k)]));
    const sign = sorted.down ? -1 : 1;
    const compare = column.type === "name" || column.type === "note"
      ? new Intl.Collator(undefined, { numeric: true }).compare : (a, b) => a - b;
    order.sort((a, b) => {
      const [left, right] = [values.get(a), values.get(b)];
      if (left === null || right === null) return (left === null) - (right === null) || a - b;
      return sign * compare(left, right) || a - b;
    });
    renew();
  }

  function sortBy(key) {
    const first = !["name", "state", "rank", "note"].includes(key);
    sorted = { key, down: sorted.key === key ? !sorted.down : first };
    choose();
  }

  const buttons = document.querySelectorAll("[data-state]");
  for (const button of buttons) {
    button.addEventListener("click", () => {
      const state = Number(button.dataset.state);
      if (!states.delete(state)) states.add(state);
      button.setAttribute("aria-pressed", states.has(state));
      choose();
    });
  }
  byId("clear").addEventListener("click", () => {
    byId("search").value = "";
    states.clear();
    for (const button of buttons) button.setAttribute("aria-pressed", "false");
    choose();
  });
  let waiting = 0;
  byId("search").addEventListener("input", () => {
    clearTimeout(waiting);
    waiting = setTimeout(choose, count > 5000 ? 150 : 0);
  });
  table.addEventListener("scroll", draw, { passive: true });
  new ResizeObserver(draw).observe(table);
  renew();
  document.documentElement.dataset.ready = "yes";
})();
