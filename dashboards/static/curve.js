// The curve: pointer and arrow keys walk along it, the line below says where one is.
"use strict";

function prepareCurve(figure) {
  const plot = figure.querySelector(".plot");
  const points = JSON.parse(figure.querySelector(".points").textContent);
  const [line, dot] = figure.querySelectorAll(".cursor");
  const readout = figure.querySelector("#curve-readout");
  const peak = points.findIndex((point) => point.is_peak);
  let current = peak;

  function point(index) {
    current = Math.max(0, Math.min(points.length - 1, index));
    const { x, y, text } = points[current];
    for (const name of ["x1", "x2"]) line.setAttribute(name, `${x}%`);
    dot.setAttribute("cx", `${x}%`);
    dot.setAttribute("cy", `${y}%`);
    for (const mark of [line, dot]) mark.setAttribute("visibility", "visible");
    readout.textContent = text;
  }
  function leave() {
    current = peak;
    for (const mark of [line, dot]) mark.setAttribute("visibility", "hidden");
    readout.textContent = points[peak].text;
  }
  function pointAt(event) {
    const box = plot.getBoundingClientRect();
    const x = (100 * (event.clientX - box.left)) / box.width;
    const distances = points.map((each) => Math.abs(each.x - x));
    point(distances.indexOf(Math.min(...distances)));
  }
  plot.addEventListener("pointermove", pointAt);
  plot.addEventListener("pointerdown", pointAt);
  plot.addEventListener("pointerleave", leave);
  plot.addEventListener("blur", leave);
  plot.addEventListener("keydown", (event) => {
    const target = { ArrowLeft: current - 1, ArrowRight: current + 1, Home: 0, End: points.length - 1 }[event.key];
    if (target === undefined) return;
    event.preventDefault();
    point(target);
  });
  leave();
}
