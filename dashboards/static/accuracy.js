// Each figure is one stop for Tab; the arrow keys go from mark to mark, and the text beside it says which it is.
"use strict";
const STEPS = { ArrowRight: 1, ArrowUp: 1, ArrowLeft: -1, ArrowDown: -1, Home: -Infinity, End: Infinity };

for (const figure of document.querySelectorAll(".scatter")) {
  const readout = figure.parentElement.querySelector(".readout");
  const [marks, errors] = figure.querySelectorAll(".marks");
  const points = [...marks.querySelectorAll(".point")];
  const all = [...points, ...errors.querySelectorAll(".point")];

  const show = (shown) => {
    readout.textContent = shown.dataset.text;
    for (const point of all) point.classList.toggle("shown", point.dataset.key === shown.dataset.key);
  };
  const makeStop = (stop) => { for (const point of points) point.tabIndex = point === stop ? 0 : -1; };

  makeStop(points[0]);
  for (const point of all) {
    point.addEventListener("pointerenter", () => show(point));
    point.addEventListener("focus", () => show(point));
  }
  marks.addEventListener("keydown", (event) => {
    if (!(event.key in STEPS)) return;
    event.preventDefault();
    const index = points.indexOf(document.activeElement) + STEPS[event.key];
    const next = points[Math.min(points.length - 1, Math.max(0, index))];
    makeStop(next);
    next.focus();
  });
}
