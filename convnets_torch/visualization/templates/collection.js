// Draws the map page: view, dots, thumbnails, and the card of one picture.
const collection = (() => {
  "use strict";
  const find = (id) => document.getElementById(id);
  const clamp = (value, least, most) => Math.min(Math.max(value, least), most);
  const data = JSON.parse(find("data").textContent);
  const bytes = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0)).buffer;
  const at = new Float32Array(bytes(data.positions)), wordOf = new Uint16Array(bytes(data.word_of));
  const chances = new Uint16Array(bytes(data.chances)), levels = new Uint8Array(bytes(data.levels));
  const slots = new Uint32Array(bytes(data.slots)), sizes = new Uint8Array(bytes(data.sizes));
  const colors = new Uint8Array(bytes(data.colors)), fresh = new Uint8Array(bytes(data.new));
  const { names, words, side } = data;
  const count = names.length, across = Math.floor(1536 / side), perSheet = across * across;
  const NEAREST = 14, MARGIN = 12, NO_CHANCE = 65535, DEEPEST = 4096;
  const placeOf = (i) => `${at[2 * i]} ${at[2 * i + 1]}`, atPlace = new Map();
  for (let i = 0; i < count; i++) atPlace.set(placeOf(i), (atPlace.get(placeOf(i)) || 0) + 1);
  const news = Array.from(fresh.keys()).filter((i) => fresh[i]);
  const byLevel = Array.from(names.keys()).sort((one, other) => levels[one] - levels[other]);
  const base = (name) => name.split(/[\\/]/).pop() || name;

  const map = find("map"), loop = find("loop"), card = find("card"), stage = find("stage");
  const pen = map.getContext("2d");
  const low = [Infinity, Infinity], high = [-Infinity, -Infinity];
  for (let i = 0; i < 2 * count; i++) {
    low[i % 2] = Math.min(low[i % 2], at[i]);
    high[i % 2] = Math.max(high[i % 2], at[i]);
  }
  const extent = Math.max(high[0] - low[0], high[1] - low[1]) || 1;

  let wide = 1, tall = 1, ratio = 1, fitted = 1, dots = null;
  let scale = 1, left = 0, top = 0;  // pixels per unit, and the map position of the stage's top left corner
  let chosen = -1, matches = null, shown = [], wanted = false, unmoved = true;
  const listed = new Set();

  // Sheets are decoded when one of their thumbnails is first in view.
  const sources = document.getElementsByClassName("sheet"), sheets = [];
  function sheet(number) {
    if (!(number in sheets)) {
      sheets[number] = null;
      const image = new Image();
      image.src = sources[number].textContent;
      image.decode().then(() => createImageBitmap(image)).then((bitmap) => { sheets[number] = bitmap; draw(); });
    }
    return sheets[number];
  }

  const screenX = (i) => (at[2 * i] - left) * scale;
  const screenY = (i) => (at[2 * i + 1] - top) * scale;
  const shownSide = () => Math.min(side, 64) * Number(find("size").value);

  function colorOf(name) {
    const probe = getComputedStyle(document.documentElement).getPropertyValue(name).trim();
    const number = parseInt(probe.slice(1), 16);
    return [number >> 16, (number >> 8) & 255, number & 255];
  }

  function paintDots(small) {
    // Writes into one pixel array: a call for each of thousands of dots would take longer than a frame.
    const [width, height] = [map.width, map.height];
    if (!dots || dots.width !== width || dots.height !== height) dots = pen.createImageData(width, height);
    const pixels = new Uint32Array(dots.data.buffer), ground = colorOf("--ground");
    pixels.fill(0xff000000 | (ground[2] << 16) | (ground[1] << 8) | ground[0]);
    const least = Math.round((count > 5000 ? 3 : 5) * ratio);
    for (const faded of matches ? [true, false] : [false]) {  // search hits are painted last
      for (let i = 0; i < count; i++) {
        if (small[i] || (matches && matches.has(i) === faded)) continue;
        const size = matches && !faded ? least + 2 : least;
        const x = Math.round(screenX(i) * ratio - size / 2), y = Math.round(screenY(i) * ratio - size / 2);
        if (x < 0 || y < 0 || x + size > width || y + size > height) continue;
        const part = faded ? 0.2 : 1, rest = 1 - part;
        const color = 0xff000000 | ((part * colors[3 * i + 2] + rest * ground[2]) << 16)
          | ((part * colors[3 * i + 1] + rest * ground[1]) << 8) | (part * colors[3 * i] + rest * ground[0]);
        for (let row = y; row < y + size; row++) pixels.fill(color, row * width + x, row * width + x + size);
      }
    }
    pen.putImageData(dots, 0, 0);
  }

  const isThumbnail = new Uint8Array(count);
  function drawNow() {
    wanted = false;
    const square = shownSide(), level = Math.floor(2 * Math.log2(extent * scale / square) + 1e-9);
    isThumbnail.fill(0);
    shown = [];
    for (const i of byLevel) {
      if (levels[i] > level) break;
      const x = screenX(i), y = screenY(i);
      if (!sizes[2 * i] || x < -square || y < -square || x > wide + square || y > tall + square) continue;
      const part = square / side, width = sizes[2 * i] * part, height = sizes[2 * i + 1] * part;
      shown.push({ i, x: x - width / 2, y: y - height / 2, width, height });
      isThumbnail[i] = 1;
    }
    pen.setTransform(1, 0, 0, 1, 0, 0);
    pen.globalAlpha = 1;
    paintDots(isThumbnail);
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    pen.imageSmoothingQuality = "medium";
    for (const { i, x, y, width, height } of shown) {
      const slot = slots[i], bitmap = sheet(Math.floor(slot / perSheet)), cell = slot % perSheet;
      pen.globalAlpha = matches && !matches.has(i) ? 0.18 : 1;
      if (bitmap) {
        pen.drawImage(bitmap, cell % across * side, Math.floor(cell / across) * side, sizes[2 * i], sizes[2 * i + 1],
          x, y, width, height);
      } else {
        pen.fillStyle = `rgb(${colors.slice(3 * i, 3 * i + 3).join()})`;
        pen.fillRect(x, y, width, height);
      }
    }
    pen.globalAlpha = 1;
    const style = getComputedStyle(document.documentElement), boxes = new Map(shown.map((each) => [each.i, each]));
    const outline = (i, color, thick) => {
      const around = { x: screenX(i) - 3, y: screenY(i) - 3, width: 6, height: 6 };
      const { x, y, width, height } = boxes.get(i) || around;
      if (x + width < 0 || y + height < 0 || x > wide || y > tall) return;
      pen.strokeStyle = style.getPropertyValue(color);
      pen.lineWidth = thick;
      pen.strokeRect(x - thick / 2, y - thick / 2, width + thick, height + thick);
    };
    for (const i of news) outline(i, "--new", 2);
    for (const i of listed) outline(i, "--accent", 2);
    if (chosen >= 0) outline(chosen, "--ink", 3);
    showCard();
  }

  function draw() {
    if (!wanted) requestAnimationFrame(drawNow);
    wanted = true;
  }

  function showCard() {
    const off = chosen < 0 || screenX(chosen) < 0 || screenY(chosen) < 0 || screenX(chosen) > wide || screenY(chosen) > tall;
    card.hidden = off;
    if (off) return;
    const [width, height] = [sizes[2 * chosen], sizes[2 * chosen + 1]], slot = slots[chosen];
    const canvas = card.firstElementChild, bitmap = width ? sheet(Math.floor(slot / perSheet)) : null;
    canvas.hidden = !bitmap;
    if (bitmap) {
      const grown = Math.max(1, Math.min(3, Math.round(160 / side))), cell = slot % perSheet;
      [canvas.width, canvas.height] = [width * grown, height * grown];
      canvas.getContext("2d").drawImage(bitmap, cell % across * side, Math.floor(cell / across) * side, width, height,
        0, 0, canvas.width, canvas.height);
    }
    card.querySelector(".name").textContent = base(names[chosen]);
    card.querySelector(".words").textContent = wordsOf(chosen);
    const reach = (isThumbnail[chosen] ? shownSide() / 2 : 4) + MARGIN;
    const [x, y] = [screenX(chosen), screenY(chosen)];
    const right = x + reach + card.offsetWidth < wide ? x + reach : Math.max(0, x - reach - card.offsetWidth);
    card.style.transform = `translate(${right}px, ${clamp(y - card.offsetHeight / 2, 4, tall - card.offsetHeight - 4)}px)`;
  }

  function wordsOf(i) {
    const said = words[wordOf[i]], chance = chances[i] === NO_CHANCE ? "" : ` ${(chances[i] / 65534).toFixed(2)}`;
    const others = atPlace.get(placeOf(i)) - 1;
    return [said + (said ? chance : ""), fresh[i] ? "new on the map" : "", others ? `${others} more at this place` : ""]
      .filter(Boolean).join(", ");
  }

  function choose(i, speak) {
    if (i === chosen) return;
    chosen = i;
    map.classList.toggle("over", i >= 0);
    if (speak && i >= 0) find("said").textContent = `${base(names[i])}. ${wordsOf(i)}`;
    draw();
  }

  function under(x, y) {
    for (const { i, x: from, y: above, width, height } of shown) {
      if (x >= from && x < from + width && y >= above && y < above + height) return i;
    }
    let best = -1, least = NEAREST * NEAREST;
    for (let i = 0; i < count; i++) {
      const away = (screenX(i) - x) ** 2 + (screenY(i) - y) ** 2;
      if (away < least && !isThumbnail[i]) [best, least] = [i, away];
    }
    return best;
  }

  function zoom(factor, x = wide / 2, y = tall / 2) {
    const before = scale;
    scale = clamp(scale * factor, fitted / 4, fitted * DEEPEST);
    left += x / before - x / scale;
    top += y / before - y / scale;
    unmoved = false;
    draw();
  }

  function pan(x, y) {
    left -= x / scale;
    top -= y / scale;
    unmoved = false;
    draw();
  }

  function fit() {
    const edge = shownSide() / 2 + MARGIN;
    const room = (length, pixels) => Math.max(pixels - 2 * edge, 16) / (length || extent);
    scale = fitted = Math.min(room(high[0] - low[0], wide), room(high[1] - low[1], tall));
    left = (low[0] + high[0]) / 2 - wide / 2 / scale;
    top = (low[1] + high[1]) / 2 - tall / 2 / scale;
    unmoved = true;
    draw();
  }

  function goTo(i) {
    const level = levels[i] > 40 ? 40 : levels[i];
    scale = clamp(Math.max(scale, 1.02 * 2 ** (level / 2) * shownSide() / extent), fitted, fitted * DEEPEST);
    left = at[2 * i] - wide / 2 / scale;
    top = at[2 * i + 1] - tall / 2 / scale;
    unmoved = false;
    choose(i, true);
    draw();
  }

  function step(x, y) {
    // Chooses the nearest picture within 45 degrees of the direction, or, if none is chosen yet, the one nearest to the centre.
    let best = -1, least = Infinity;
    for (let i = 0; i < count; i++) {
      if (i === chosen) continue;
      const [across, down] = chosen < 0 ? [screenX(i) - wide / 2, screenY(i) - tall / 2]
        : [(at[2 * i] - at[2 * chosen]) * scale, (at[2 * i + 1] - at[2 * chosen + 1]) * scale];
      const ahead = across * x + down * y, aside = Math.abs(across * y + down * x);
      if (chosen >= 0 && (ahead <= 0 || aside > ahead)) continue;
      const away = Math.hypot(across, down);
      if (away < least) [best, least] = [i, away];
    }
    if (best < 0) return;
    choose(best, true);
    const edge = Math.min(80, wide / 4, tall / 4), [sx, sy] = [screenX(best), screenY(best)];
    pan(clamp(sx, edge, wide - edge) - sx, clamp(sy, edge, tall - edge) - sy);
  }

  function resize() {
    ratio = window.devicePixelRatio || 1;
    [wide, tall] = [stage.clientWidth, stage.clientHeight];
    for (const canvas of [map, loop]) {
      [canvas.width, canvas.height] = [Math.round(wide * ratio), Math.round(tall * ratio)];
    }
    if (unmoved) fit();
    draw();
  }

  return {
    find, names, words, wordOf, count, news, base, map, loop, stage, listed, screenX, screenY, choose, under, zoom, pan,
    fit, goTo, step, draw, resize,
    chosen: () => chosen,
    match: (found) => { matches = found; draw(); },
  };
})();
