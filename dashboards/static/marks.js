// A figure of marks that are links: one stop for Tab, the arrow keys go from mark to mark, and what stands beside the
// figure for the same key (a row, a text) shows which it is.
"use strict";
const STEPS = { ArrowRight: 1, ArrowUp: 1, ArrowLeft: -1, ArrowDown: -1, Home: -Infinity, End: Infinity };

function prepareMarks(figure) {
  const beside = figure.parentElement;
  const readout = beside.querySelector(".readout");
  const marks = figure.querySelector(".marks");
  const points = [...marks.querySelectorAll(".point")];
  const all = [...beside.querySelectorAll("[data-key]")];

  const show = (shown) => {
    if (readout) readout.textContent = shown.dataset.text;
    for (const each of all) each.classList.toggle("shown", each.dataset.key === shown.dataset.key);
  };
  const makeStop = (stop) => { for (const point of points) point.tabIndex = point === stop ? 0 : -1; };

  makeStop(marks.querySelector(".current") ?? points[0]);
  for (const each of all) {
    each.addEventListener("pointerenter", () => show(each));
    each.addEventListener("focus", () => show(each));
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
