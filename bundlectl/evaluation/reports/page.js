"use strict";
const form = document.querySelector("form");
const cases = [...document.querySelectorAll("details.case")];
function choose() {
  const wanted = Object.fromEntries(new FormData(form));
  let shown = 0;
  for (const one of cases) {
    const low = JSON.parse(one.dataset.low);
    const stands = !wanted.verdict || one.dataset.state === wanted.verdict || one.dataset.moved === wanted.verdict
      || (wanted.verdict === "must pass" && one.dataset.must === "1");
    const fits = stands
      && (!wanted.tag || JSON.parse(one.dataset.tags).includes(wanted.tag))
      && (!wanted.scorer || low.includes(wanted.scorer))
      && (!wanted.text || one.textContent.toLowerCase().includes(wanted.text.toLowerCase()));
    one.hidden = !fits;
    shown += fits ? 1 : 0;
  }
  document.getElementById("shown").textContent = `${shown} of ${cases.length} rows`;
}
form.addEventListener("input", choose);
form.addEventListener("submit", (event) => event.preventDefault());
choose();
