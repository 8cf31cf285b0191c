// A figure of marks that are links: one stop for Tab, the arrow keys go from mark to mark (of a grid's cells also from row
// to row), and what stands beside the figure for the same key (a row, a text) shows which it is.
"use strict";

function prepareMarks(figure) {
  const beside = figure.parentElement;
  const readout = beside.querySelector(".readout");
  const marks = figure.querySelector(".marks");
  const points = [...marks.querySelectorAll(".point")];
  const row = Number(marks.dataset.columns ?? 1);
  const steps = { ArrowRight: 1, ArrowUp: row, ArrowLeft: -1, ArrowDown: -row, Home: -Infinity, End: Infinity };
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
    if (!(event.key in steps)) return;
    event.preventDefault();
    const index = points.indexOf(document.activeElement) + steps[event.key];
    if (Math.abs(steps[event.key]) === row && row > 1 && !points[index]) return;
    const next = points[Math.min(points.length - 1, Math.max(0, index))];
    makeStop(next);
    next.focus();
  });
}
