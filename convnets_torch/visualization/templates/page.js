// Draws a map over the picture, describes the cell at the pointer, and lists the regions above a threshold.
// All positions are in pixels of the original picture. Names come from files: they are set as text, never as markup.
"use strict";
(() => {
  const data = JSON.parse(find("data").textContent);
  const [rows, columns] = [axis(data.rows, data.height), axis(data.columns, data.width)];
  const width = data.columns.windows.length;
  const topIds = numbers(data.top_ids, data.id_bytes === 2 ? Uint16Array : Uint32Array);
  const topProbabilities = numbers(data.top_probabilities, Uint16Array);
  const layers = data.layers.map((layer) => ({
    ...layer, values: numbers(layer.values, Float32Array), ramp: numbers(layer.ramp, Uint8Array),
  }));
  const MOST_LISTED = 100, MOST_PAINTED = 1.5e6; // regions; pixels of the overlay, which the browser enlarges
  const stage = find("stage"), heat = find("heat");
  let layer, row = 0, column = 0, regions = [];

  function find(id) { return document.getElementById(id); }

  function numbers(base64, Type) {
    return new Type(Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0)).buffer);
  }

  // One axis of the picture: the cells' boxes, centres and borders. Borders lie halfway between centres; the outermost
  // cells are symmetric about their centres.
  function axis({ windows, fields }, extent) {
    const centres = windows.map(([first, end]) => (first + end) / 2);
    const cuts = centres.slice(1).map((centre, i) => (centres[i] + centre) / 2);
    const ends = cuts.length ? [2 * centres[0] - cuts[0], 2 * centres.at(-1) - cuts.at(-1)] : windows[0];
    const borders = [ends[0], ...cuts, ends[1]].map((border) => clamp(border, 0, extent));
    return { windows, fields, centres, borders, extent };
  }

  function nearest({ centres }, place) {
    let best = 0;
    centres.forEach((centre, i) => { if (Math.abs(centre - place) < Math.abs(centres[best] - place)) best = i; });
    return best;
  }

  // For each of `count` pixels: the cells before and after it, its position between them, 0 to 1, and its opacity.
  function between({ windows, centres, extent }, count) {
    const last = centres.length - 1;
    const half = (cell) => (windows[cell][1] - windows[cell][0]) / 2;
    let before = 0;
    return Array.from({ length: count }, (_, pixel) => {
      const place = (pixel + 0.5) * extent / count;
      while (before + 1 < last && centres[before + 1] <= place) before++;
      const next = Math.min(before + 1, last);
      const part = next > before ? clamp((place - centres[before]) / (centres[next] - centres[before]), 0, 1) : 0;
      const fade = Math.min(1 - (centres[0] - place) / half(0), 1 - (place - centres[last]) / half(last));
      return { before, next, part, fade: clamp(fade, 0, 1) };
    });
  }

  function clamp(value, least, most) { return Math.min(Math.max(value, least), most); }

  function paint() {
    const shrink = Math.min(1, Math.sqrt(MOST_PAINTED / (stage.clientWidth * stage.clientHeight || 1)));
    heat.width = Math.max(1, Math.round(stage.clientWidth * shrink));
    heat.height = Math.max(1, Math.round(stage.clientHeight * shrink));
    const down = between(rows, heat.height), across = between(columns, heat.width);
    const { values, ramp, top } = layer, zero = layer.signed ? 255 : 0;
    const image = new ImageData(heat.width, heat.height);
    let at = 0;
    for (const y of down) {
      const upper = y.before * width, lower = y.next * width;
      for (const x of across) {
        const left = values[upper + x.before] + (values[lower + x.before] - values[upper + x.before]) * y.part;
        const right = values[upper + x.next] + (values[lower + x.next] - values[upper + x.next]) * y.part;
        const color = 4 * (zero + Math.round((left + (right - left) * x.part) * 255 / top));
        for (let channel = 0; channel < 3; channel++) image.data[at++] = ramp[color + channel];
        image.data[at++] = ramp[color + 3] * y.fade * x.fade;
      }
    }
    heat.getContext("2d").putImageData(image, 0, 0);
  }

  // Connected regions of cells above the threshold, including at corners, highest score first.
  function components() {
    const { values } = layer, threshold = Math.fround(layer.threshold); // compares in float32, as NumPy does
    const seen = new Uint8Array(values.length), found = [];
    for (let start = 0; start < values.length; start++) {
      if (seen[start] || !(values[start] > threshold)) continue;
      const region = { peak: start, first: Infinity, last: 0, left: Infinity, right: 0 };
      const waiting = [start];
      seen[start] = 1;
      while (waiting.length) {
        const cell = waiting.pop(), r = Math.floor(cell / width), c = cell % width;
        if (values[cell] > values[region.peak]) region.peak = cell;
        region.first = Math.min(region.first, r);
        region.last = Math.max(region.last, r);
        region.left = Math.min(region.left, c);
        region.right = Math.max(region.right, c);
        for (let y = Math.max(r - 1, 0); y <= Math.min(r + 1, rows.centres.length - 1); y++) {
          for (let x = Math.max(c - 1, 0); x <= Math.min(c + 1, width - 1); x++) {
            const beside = y * width + x;
            if (seen[beside] || !(values[beside] > threshold)) continue;
            seen[beside] = 1;
            waiting.push(beside);
          }
        }
      }
      region.box = clipped({
        left: columns.windows[region.left][0], top: rows.windows[region.first][0],
        right: columns.windows[region.right][1], bottom: rows.windows[region.last][1],
      });
      found.push(region);
    }
    return found.sort((one, other) => values[other.peak] - values[one.peak]);
  }

  // SVG path of the borders between cells above the threshold and the others.
  function contour() {
    const threshold = Math.fround(layer.threshold), high = rows.centres.length;
    const above = (r, c) => r >= 0 && r < high && c >= 0 && c < width && layer.values[r * width + c] > threshold;
    const path = [];
    const trace = (lines, steps, differs, draw) => {
      for (let line = 0; line <= lines; line++) {
        for (let step = 0; step < steps; step++) {
          const start = step;
          while (step < steps && differs(line, step)) step++;
          if (step > start) path.push(draw(line, start, step));
        }
      }
    };
    trace(high, width, (r, c) => above(r - 1, c) !== above(r, c),
      (r, from, to) => `M${columns.borders[from]} ${rows.borders[r]}H${columns.borders[to]}`);
    trace(width, high, (c, r) => above(r, c - 1) !== above(r, c),
      (c, from, to) => `M${columns.borders[c]} ${rows.borders[from]}V${rows.borders[to]}`);
    return path.join("");
  }

  function boxOf(kind) {
    const [[left, right], [top, bottom]] = [columns[kind][column], rows[kind][row]];
    return { left, top, right, bottom };
  }

  function clipped({ left, top, right, bottom }) {
    return {
      left: clamp(left, 0, data.width), top: clamp(top, 0, data.height),
      right: clamp(right, 0, data.width), bottom: clamp(bottom, 0, data.height),
    };
  }

  function place(rectangle, box) {
    const { left, top, right, bottom } = clipped(box);
    for (const [name, value] of Object.entries({ x: left, y: top, width: right - left, height: bottom - top })) {
      rectangle.setAttribute(name, value);
    }
  }

  function pixels({ left, top, right, bottom }) {
    return [left, top, right, bottom].map((value) => String(Math.round(value * 10) / 10));
  }

  function element(name, text = "", properties = {}) {
    return Object.assign(document.createElement(name), { textContent: text }, properties);
  }

  function showCell() {
    const cell = row * width + column, count = data.top;
    find("place").textContent = `row ${row}, column ${column}`;
    find("value").textContent = layer.values[cell].toFixed(3);
    for (const [id, kind] of [["window", "windows"], ["field", "fields"]]) {
      const box = boxOf(kind);
      pixels(box).forEach((text, i) => { find(`${id}-box`).cells[i + 1].textContent = text; });
      document.querySelectorAll(`#chosen .${id}`).forEach((rectangle) => place(rectangle, box));
    }
    const field = boxOf("fields"), drawn = clipped(field);
    find("beyond").hidden = Object.keys(field).every((side) => field[side] === drawn[side]);
    find("best").replaceChildren(...Array.from({ length: count }, (_, i) => {
      const probability = topProbabilities[cell * count + i] / 65535;
      const item = element("li");
      item.append(element("span", probability.toFixed(3)), element("bdi", data.names[topIds[cell * count + i]]),
        element("meter", "", { value: probability, ariaHidden: "true" }));
      return item;
    }));
  }

  function showRegions() {
    const say = String(Math.round(layer.threshold * 1e6) / 1e6);
    regions = components();
    const border = contour();
    document.querySelectorAll("#regions > path").forEach((path) => path.setAttribute("d", border));
    const listed = regions.slice(0, MOST_LISTED);
    find("region-boxes").replaceChildren(...listed.map(({ box }) => {
      const rectangle = document.createElementNS(find("marks").namespaceURI, "rect");
      rectangle.classList.add("region");
      place(rectangle, box);
      return rectangle;
    }));
    find("badges").replaceChildren(...listed.map(({ peak }, i) => {
      const badge = element("span", i + 1);
      badge.style.left = `${100 * columns.centres[peak % width] / data.width}%`;
      badge.style.top = `${100 * rows.centres[Math.floor(peak / width)] / data.height}%`;
      return badge;
    }));
    find("list").tBodies[0].replaceChildren(...listed.map(({ peak, box }, i) => {
      const line = element("tr"), head = element("th", "", { scope: "row" });
      head.append(element("button", i + 1, { type: "button", title: "Go to its highest cell" }));
      const texts = [layer.values[peak].toFixed(3), ...pixels(box)];
      line.append(head, ...texts.map((text) => element("td", text)));
      line.addEventListener("click", () => choose(Math.floor(peak / width), peak % width, true));
      const light = (on) => find("region-boxes").children[i].classList.toggle("lit", on);
      for (const event of ["pointerenter", "focusin"]) line.addEventListener(event, () => light(true));
      for (const event of ["pointerleave", "focusout"]) line.addEventListener(event, () => light(false));
      return line;
    }));
    find("list").hidden = !regions.length;
    find("count").textContent = `above ${say}: ${regions.length || "none"}`;
    find("more").textContent = regions.length > MOST_LISTED ? `The ${MOST_LISTED} highest are listed.` : "";
    const [least, most] = [layer.signed ? -layer.top : 0, layer.top];
    find("mark").style.left = `${100 * (layer.threshold - least) / (most - least)}%`;
    find("mark").hidden = layer.threshold > most;
  }

  function choose(newRow, newColumn, speak) {
    row = clamp(newRow, 0, rows.centres.length - 1);
    column = clamp(newColumn, 0, width - 1);
    showCell();
    if (speak) {
      const { textContent } = find("best").firstElementChild.children[1];
      const value = find("value").textContent;
      find("said").textContent = `Row ${row}, column ${column}: ${value}. Most probable: ${textContent}`;
    }
  }

  function setThreshold(value) {
    layer.threshold = value;
    find("threshold").value = find("threshold-exact").value = value;
    showRegions();
  }

  function setLayer(number) {
    layer = layers[number];
    const { values, ramp, top, words, signed } = layer;
    const [least, most] = values.reduce(([low, high], value) => [Math.min(low, value), Math.max(high, value)], [1, -1]);
    find("words").textContent = find("cell-words").textContent = words;
    find("extremes").textContent = `${signed ? `lowest ${least.toFixed(2)}, ` : ""}highest ${most.toFixed(2)}`;
    find("low").textContent = signed ? (-top).toFixed(2) : "0";
    find("high").textContent = top.toFixed(2);
    const stops = Array.from({ length: 17 }, (_, i) => Math.round(i / 16 * (ramp.length / 4 - 1)));
    find("bar").style.background =
      `linear-gradient(to right, ${stops.map((stop) => `rgb(${ramp.slice(4 * stop, 4 * stop + 3).join()})`).join()})`;
    paint();
    showCell();
    setThreshold(layer.threshold);
  }

  function setOpacity() {
    const opacity = Number(find("opacity").value);
    heat.style.opacity = find("shown").checked ? opacity : 0;
    find("opacity-said").textContent = `${Math.round(100 * opacity)} %`;
  }

  function follow(event) {
    const { left, top, width: wide, height: high } = stage.getBoundingClientRect();
    const pixel = (place, extent) => clamp(Math.floor(place * extent), 0, extent - 1) + 0.5;
    choose(nearest(rows, pixel((event.clientY - top) / high, data.height)),
      nearest(columns, pixel((event.clientX - left) / wide, data.width)));
  }

  stage.addEventListener("pointermove", follow);
  stage.addEventListener("pointerdown", follow);
  stage.addEventListener("keydown", (event) => {
    const to = {
      ArrowUp: [row - 1, column], ArrowDown: [row + 1, column], ArrowLeft: [row, column - 1],
      ArrowRight: [row, column + 1], Home: [row, 0], End: [row, width - 1],
    }[event.key];
    if (!to || event.altKey || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    choose(...to, true);
  });
  find("threshold").addEventListener("input", (event) => setThreshold(Math.round(event.target.value * 1000) / 1000));
  find("threshold-exact").addEventListener("change", (event) => {
    const { valueAsNumber } = event.target;
    setThreshold(Number.isNaN(valueAsNumber) ? layer.threshold : clamp(valueAsNumber, 0, 1));
  });
  find("layer").addEventListener("change", (event) => setLayer(event.target.selectedIndex));
  for (const id of ["opacity", "shown"]) find(id).addEventListener("input", setOpacity);

  find("sizes").textContent = `${data.width} × ${data.height} pixels (width × height), `
    + `${rows.centres.length} × ${width} cells (rows × columns)`;
  find("best-heading").textContent = data.top === 1 ? "Most probable class" : `The ${data.top} most probable classes`;
  find("marks").setAttribute("viewBox", `0 0 ${data.width} ${data.height}`);
  document.documentElement.style.setProperty("--ratio", data.width / data.height);
  find("layer").append(...layers.map(({ words }) => element("option", words)));
  find("layer-row").hidden = layers.length === 1;
  const peak = layers[0].values.reduce((best, value, cell, values) => (value > values[best] ? cell : best), 0);
  [row, column] = [Math.floor(peak / width), peak % width];
  setOpacity();
  setLayer(0);
  new ResizeObserver(paint).observe(stage);
})();
