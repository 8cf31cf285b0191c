// A change of a field becomes an address; what the server makes of it replaces the answers, never the field one is in.
"use strict";

const form = document.querySelector("form");
const REPLACED = ["heads", "verdicts", "answers", "additions", "overlay"];

function address() {
  const pairs = [];
  for (const element of form.elements) {
    if (!element.name || element.value === "" || element.value === element.dataset.default) continue;
    if (element.closest("[hidden]")) continue;
    pairs.push([element.name, element.value]);
  }
  return new URLSearchParams(pairs);
}

let asked = 0;

async function ask() {
  const mine = ++asked;
  const query = address();
  history.replaceState(null, "", `${location.pathname}?${query}`);
  for (const link of document.querySelectorAll(".language")) {
    query.set("lang", link.lang);
    link.search = query;
  }
  query.set("lang", document.documentElement.lang);
  const dimming = setTimeout(() => REPLACED.forEach((id) => document.getElementById(id).classList.add("late")), 100);
  try {
    const html = await (await fetch(`/compare?${query}`)).text();
    if (mine === asked) show(new DOMParser().parseFromString(html, "text/html"));
  } finally {
    clearTimeout(dimming);
  }
}

function show(answer) {
  for (const id of REPLACED) {
    const [old, fresh] = [document.getElementById(id), answer.getElementById(id)];
    old.classList.remove("late");
    if (old.innerHTML !== fresh.innerHTML) old.innerHTML = fresh.innerHTML;
  }
  const [olds, news] = [document, answer].map((page) => [...page.querySelectorAll("#fields [data-sync]")]);
  olds.forEach((old, index) => {
    old.className = news[index].className;
    old.hidden = news[index].hidden;
    if (old.placeholder !== undefined) old.placeholder = news[index].placeholder;
  });
  const heads = [...answer.querySelectorAll("#fields th")];
  document.querySelectorAll("#fields th").forEach((head, index) => { head.innerHTML = heads[index].innerHTML; });
  for (const link of document.querySelectorAll(".carries-query")) {
    link.search = [...answer.querySelectorAll(".carries-query")].find((fresh) => fresh.pathname === link.pathname).search;
  }
}

const catalogue = new Set(Array.from(document.querySelectorAll("#models option"), (option) => option.value));

form.addEventListener("input", (event) => {
  const isUnfinished = event.target.hasAttribute("list") && !catalogue.has(event.target.value);
  if (!isUnfinished) ask();
});
form.addEventListener("change", (event) => {
  if (event.target.hasAttribute("list")) ask();
});
form.addEventListener("submit", (event) => {
  event.preventDefault();
  ask();
});
