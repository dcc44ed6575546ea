"use strict";
// The heatmap answers to pointer and keyboard; without this script all of its measures are shown,
// and the table has the figures. Foreign text is set as text alone.
(() => {
  for (const place of document.querySelectorAll(".scroll, .wide")) {
    // What does not scroll need not be reached.
    if (place.scrollWidth <= place.clientWidth && place.scrollHeight <= place.clientHeight && !place.closest("details"))
      place.removeAttribute("tabindex");
  }
  // What is folded is printed, but for what is too long.
  let folded = [];
  addEventListener("beforeprint", () => {
    folded = [...document.querySelectorAll("details:not([open]):not(.long):not(.whole)")];
    for (const one of folded) one.open = true;
  });
  addEventListener("afterprint", () => { for (const one of folded) one.open = false; });

  const body = document.getElementById("cells");
  if (!body) return;
  const names = [...body.parentElement.tHead.rows[0].cells].map((cell) => cell.textContent);
  const rows = [...body.rows];
  const at = rows.map((row) => [Number(row.dataset.row), Number(row.dataset.column)]);
  const told = document.getElementById("told");
  const tip = document.getElementById("tip");
  const maps = [...document.querySelectorAll(".map")];
  let current = -1;

  const figures = (number) => [...rows[number].cells].slice(3)
    .map((cell, i) => [names[i + 3], cell.textContent])
    .filter(([, value]) => value !== "–");

  function forget() {
    for (const cell of document.querySelectorAll("[data-cell].on")) cell.classList.remove("on");
    tip.hidden = true;
  }

  function show(number, map, byKey) {
    if (number === current && !tip.hidden) return;
    current = number;
    forget();
    const cell = map.querySelector(`[data-cell="${number}"]`);
    cell.classList.add("on");
    const name = rows[number].cells[0].textContent;
    told.textContent = `${name}: ${figures(number).map((pair) => pair.join(" ")).join("; ")}`;
    const list = document.createElement("dl");
    for (const [what, value] of figures(number)) {
      const term = document.createElement("dt");
      const detail = document.createElement("dd");
      term.textContent = what;
      detail.textContent = value;
      list.append(term, detail);
    }
    tip.replaceChildren(name, list);
    tip.hidden = false;
    if (byKey) cell.scrollIntoView({ block: "nearest", inline: "nearest" });
    const box = cell.getBoundingClientRect();
    const frame = tip.parentElement.getBoundingClientRect();
    const right = box.right - frame.left + 8;
    const fits = right + tip.offsetWidth <= frame.width;
    tip.style.left = `${fits ? right : Math.max(0, box.left - frame.left - tip.offsetWidth - 8)}px`;
    tip.style.top = `${box.bottom - frame.top + 8}px`;
  }

  // The nearest cell in a direction; in a column rows may be missing, and the other way about.
  function next(down, right) {
    if (current < 0) return 0;
    const [row, column] = at[current];
    let best = -1;
    let least = Infinity;
    at.forEach(([r, c], number) => {
      const ahead = down ? (r - row) * down : (c - column) * right;
      const aside = down ? Math.abs(c - column) : Math.abs(r - row);
      const far = ahead + aside * 1000;
      if (ahead > 0 && (down || aside === 0) && far < least) { least = far; best = number; }
    });
    return best < 0 ? current : best;
  }

  function end(direction) {
    const row = current < 0 ? 0 : at[current][0];
    const same = at.map(([r, c], number) => [c, number]).filter(([, number]) => at[number][0] === row);
    same.sort((one, other) => direction * (other[0] - one[0]));
    return same[0][1];
  }

  const moves = {
    ArrowDown: () => next(1, 0), ArrowUp: () => next(-1, 0),
    ArrowRight: () => next(0, 1), ArrowLeft: () => next(0, -1),
    Home: () => end(-1), End: () => end(1),
  };
  for (const map of maps) {
    const cells = map.querySelector(".cells");
    cells.addEventListener("keydown", (event) => {
      if (event.key === "Escape") { forget(); return; }
      if (!(event.key in moves) || event.ctrlKey || event.altKey || event.metaKey) return;
      event.preventDefault();
      show(moves[event.key](), map, true);
    });
    cells.addEventListener("focus", () => {
      if (cells.matches(":focus-visible")) show(Math.max(current, 0), map, true);
    });
    cells.addEventListener("blur", forget);
    cells.addEventListener("pointerover", (event) => {
      const cell = event.target.closest("[data-cell]");
      if (cell) show(Number(cell.dataset.cell), map, false);
    });
    cells.addEventListener("pointerleave", forget);
  }

  const choice = document.querySelector(".switch");
  if (!choice) return;
  function choose(key) {
    for (const map of maps) map.style.display = map.dataset.measure === key ? "" : "none";
  }
  choice.hidden = false;
  choice.addEventListener("change", (event) => choose(event.target.value));
  choose(choice.querySelector("input:checked").value);
})();
