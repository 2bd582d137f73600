"use strict";
const form = document.querySelector("form");
const state = document.querySelector("#state");
function answers() {
  const rows = {};
  for (const input of form.querySelectorAll("input:checked")) {
    const { row, question } = input.dataset;
    rows[row] = rows[row] || {};
    rows[row][question] = input.value === "yes";
  }
  return rows;
}
function show() {
  const questions = Number(form.dataset.questions);
  const whole = Object.values(answers()).filter((row) => Object.keys(row).length === questions);
  state.textContent = `${whole.length} of ${form.dataset.items} rows answered`;
}
function save() {
  const text = JSON.stringify({ rows: answers() }, null, 1) + "\n";
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type: "application/json" }));
  link.download = form.dataset.file;
  link.click();
  URL.revokeObjectURL(link.href);
}
form.addEventListener("change", show);
document.querySelector("#save").addEventListener("click", save);
show();
