// User input of the map page: mouse, touch, keys, search, lasso, and the list of files.
(() => {
  "use strict";
  const {
    find, names, words, wordOf, count, news, base, map, loop, stage, listed, screenX, screenY, choose, under, zoom, pan,
    fit, goTo, step, draw, resize, chosen, match,
  } = collection;
  const MOST_LISTED = 100, NOTCH = 0.0016, CLICK = 4;
  const folded = names.map((name, i) => `${name}\n${words[wordOf[i]]}`.toLowerCase());
  const pen = loop.getContext("2d"), fingers = new Map();
  let looping = false, path = null, from = null, apart = 0;

  const place = (event) => {
    const box = map.getBoundingClientRect();
    return [event.clientX - box.left, event.clientY - box.top];
  };

  // List of files

  function showList(said = "") {
    const files = Array.from(listed, (i) => names[i]);
    find("list").value = files.join("\n");
    find("count").textContent = files.length ? `${files.length} of ${count}` : "";
    for (const id of ["copy", "download", "clear"]) find(id).disabled = !files.length;
    find("done").textContent = said;
    draw();
  }

  function take(several) {
    const before = listed.size;
    for (const i of several) listed.add(i);
    const more = listed.size - before;
    showList(`${more} file${more === 1 ? "" : "s"} added`);
  }

  async function copy() {
    const text = `${find("list").value}\n`;
    try {
      await navigator.clipboard.writeText(text);
      find("done").textContent = `${listed.size} lines copied`;
    } catch {
      find("list").focus();
      find("list").select();
      const copied = document.execCommand("copy");
      find("done").textContent = copied ? `${listed.size} lines copied` : "Press Ctrl+C to copy the selected text";
    }
  }

  function download() {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([`${find("list").value}\n`], { type: "text/plain" }));
    link.download = "files.txt";
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  }

  // Lasso

  function inside(x, y) {
    let within = false;
    for (let i = 0, j = path.length - 1; i < path.length; j = i++) {
      const [[ax, ay], [bx, by]] = [path[i], path[j]];
      if ((ay > y) !== (by > y) && x < (bx - ax) * (y - ay) / (by - ay) + ax) within = !within;
    }
    return within;
  }

  function drawLoop() {
    const ratio = loop.width / loop.clientWidth;
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    pen.clearRect(0, 0, loop.clientWidth, loop.clientHeight);
    if (!path) return;
    const color = getComputedStyle(document.documentElement).getPropertyValue("--accent");
    pen.beginPath();
    path.forEach(([x, y], i) => (i ? pen.lineTo(x, y) : pen.moveTo(x, y)));
    pen.closePath();
    pen.fillStyle = `${color}22`;
    pen.fill();
    pen.strokeStyle = color;
    pen.lineWidth = 2;
    pen.stroke();
  }

  function endLoop(keep) {
    if (keep && path.length > 2) take(Array.from(names.keys()).filter((i) => inside(screenX(i), screenY(i))));
    path = null;
    drawLoop();
  }

  function setLooping(on) {
    looping = on;
    find("lasso").setAttribute("aria-pressed", on);
    map.classList.toggle("lasso", on);
  }

  // Search

  function search() {
    const text = find("search").value.trim().toLowerCase();
    const hits = text ? Array.from(names.keys()).filter((i) => folded[i].includes(text)) : [];
    find("found").textContent = !text ? "" : `${hits.length} of ${count}`
      + (hits.length > MOST_LISTED ? `; the first ${MOST_LISTED} are listed` : "");
    find("hits").replaceChildren(...hits.slice(0, MOST_LISTED).map((i) => {
      const item = document.createElement("li"), button = document.createElement("button");
      Object.assign(button, { type: "button", textContent: base(names[i]), title: names[i] });
      button.addEventListener("click", () => goTo(i));
      item.append(button);
      return item;
    }));
    find("take").hidden = !hits.length;
    find("take").onclick = () => take(hits);
    match(text ? new Set(hits) : null);
  }

  // Mouse and touch

  map.addEventListener("pointerdown", (event) => {
    if (event.button) return;
    map.setPointerCapture(event.pointerId);
    fingers.set(event.pointerId, place(event));
    from = place(event);
    if (fingers.size === 2) {
      apart = spread();
      if (path) endLoop(false);
    } else if (looping || event.shiftKey) path = [from];
    else map.classList.add("dragged");
  });

  function spread() {
    const [[ax, ay], [bx, by]] = fingers.values();
    return Math.hypot(ax - bx, ay - by) || 1;
  }

  function middle() {
    const all = [...fingers.values()];
    return [0, 1].map((axis) => all.reduce((sum, each) => sum + each[axis], 0) / all.length);
  }

  map.addEventListener("pointermove", (event) => {
    const now = place(event);
    if (!fingers.has(event.pointerId)) {
      choose(under(...now));
      return;
    }
    const before = middle();
    fingers.set(event.pointerId, now);
    if (path) {
      path.push(now);
      drawLoop();
      return;
    }
    const after = middle();
    pan(after[0] - before[0], after[1] - before[1]);
    if (fingers.size === 2) {
      zoom(spread() / apart, ...after);
      apart = spread();
    }
  });

  for (const kind of ["pointerup", "pointercancel"]) {
    map.addEventListener(kind, (event) => {
      if (!fingers.delete(event.pointerId)) return;
      map.classList.remove("dragged");
      const now = place(event);
      if (path) endLoop(kind === "pointerup");
      else if (Math.hypot(now[0] - from[0], now[1] - from[1]) < CLICK) choose(under(...now), true);
    });
  }
  map.addEventListener("pointerleave", (event) => { if (event.pointerType === "mouse" && !path) choose(-1); });
  map.addEventListener("dblclick", (event) => zoom(2, ...place(event)));
  map.addEventListener("wheel", (event) => {
    event.preventDefault();
    const pixels = event.deltaY * (event.deltaMode === 1 ? 32 : event.deltaMode === 2 ? 400 : 1);
    zoom(Math.exp(-NOTCH * pixels), ...place(event));
  }, { passive: false });

  // Keys

  map.addEventListener("keydown", (event) => {
    if (event.altKey || event.ctrlKey || event.metaKey) return;
    const around = chosen() < 0 ? [] : [screenX(chosen()), screenY(chosen())];
    const action = {
      ArrowUp: () => step(0, -1), ArrowDown: () => step(0, 1), ArrowLeft: () => step(-1, 0), ArrowRight: () => step(1, 0),
      "+": () => zoom(Math.SQRT2, ...around), "=": () => zoom(Math.SQRT2, ...around),
      "-": () => zoom(Math.SQRT1_2, ...around), 0: fit, Home: fit, l: () => setLooping(!looping),
      Enter: () => {
        if (chosen() < 0) return;
        if (listed.delete(chosen())) showList("removed from the list");
        else take([chosen()]);
      },
      Escape: () => {
        if (path) endLoop(false);
        setLooping(false);
        choose(-1);
      },
    }[event.key];
    if (!action) return;
    event.preventDefault();
    action();
  });

  find("lasso").addEventListener("click", () => setLooping(!looping));
  find("nearer").addEventListener("click", () => zoom(Math.SQRT2));
  find("farther").addEventListener("click", () => zoom(Math.SQRT1_2));
  find("all").addEventListener("click", fit);
  find("size").addEventListener("input", draw);
  find("search").addEventListener("input", search);
  find("copy").addEventListener("click", copy);
  find("download").addEventListener("click", download);
  find("clear").addEventListener("click", () => {
    listed.clear();
    showList();
  });
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  new ResizeObserver(resize).observe(stage);

  find("facts").textContent = `${count} picture${count === 1 ? "" : "s"}`
    + (news.length ? `, ${news.length} of them new (framed)` : "");
  showList();
  resize();
})();
